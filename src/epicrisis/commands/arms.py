"""Every arm behind one protocol, found in one registry."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from epicrisis.cohort import History
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, refuse
from epicrisis.tracking.run_directory import RunDirectory


class Fitted(Protocol):
    """An arm that has learnt."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it tells apart, in the order of its probabilities."""
        ...

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """Probabilities [n_rows, n_classes], rows in the order given."""
        ...

    def save(self, directory: Path) -> None:
        """Write what `load` needs: safetensors and JSON."""
        ...


class Arm(Protocol):
    """A model family."""

    def fit(self, rows: pl.DataFrame, history: History, run: RunDirectory) -> Fitted:
        """Learn from the train rows, choose on the tuning rows."""
        ...

    def load(self, directory: Path) -> Fitted:
        """What `save` wrote."""
        ...


ARMS = {
    "llm": "epicrisis.llm.arm:LlmArm",
    "logistic_regression": "epicrisis.tabular.arms:logistic_regression",
    "xgboost": "epicrisis.tabular.arms:xgboost",
    "oracle": "epicrisis.commands.oracle:oracle",
}
"""Where each arm is made, by a callable that takes the settings and the lookups; imported when it is asked for."""


def make_arm(settings: Settings, lookups: Lookups) -> Arm:
    """The arm that the settings name. Raises InputError for one that is not there."""
    if settings.arm not in ARMS:
        raise refuse("arm", f"`{settings.arm}` cannot be run by this version", f"choose one of {', '.join(ARMS)}")
    module, _, maker = ARMS[settings.arm].partition(":")
    return getattr(import_module(module), maker)(settings, lookups)
