"""Forests of fewer trees, so that tests stay quick."""

import pytest

from epicrisis.tabular import forest


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest, "N_TREES", 40)
