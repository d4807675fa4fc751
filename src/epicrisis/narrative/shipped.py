"""The lookup tables that come with the project, in `lookups/` of its checkout."""

from __future__ import annotations

from pathlib import Path

from epicrisis.settings.problems import refuse

LOOKUPS = Path(__file__).parents[3] / "lookups"


def shipped_lookup(name: str) -> Path:
    """The shipped table `<name>_lookup.csv`: medical, lab, region or time."""
    path = LOOKUPS / f"{name}_lookup.csv"
    if not path.is_file():
        fix = "install from a checkout (pip install -e .), or name your own tables in `data`"
        raise refuse(f"{name}_lookup.csv", "the shipped lookup tables are not beside the package", fix)
    return path
