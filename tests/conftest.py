"""Tests see no key of the person who runs them."""

import pytest

from epicrisis.settings import keys


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither env/.env nor the environment has a key, and what a command puts there is gone after the test."""
    monkeypatch.setattr(keys, "keys_file", lambda: None)
    for name in (*keys.NAMES, *keys.SECRETS, "WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
