"""The examples in docs/narratives.md are what the styles tell: the golden files, word for word."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import pytest

from epicrisis.narrative import STYLES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_shown_as_it_is(style: str) -> None:
    page = (ROOT / "docs" / "narratives.md").read_text(encoding="utf-8")
    golden = (ROOT / "tests" / "golden" / f"woman_in_hospital.{style}.txt").read_text(encoding="utf-8")
    assert f"\n\n{indent(golden, '    ')}\n" in page
    assert f"| `{STYLES[style].label}` |" in page
