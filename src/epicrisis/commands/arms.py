"""Every arm behind one protocol, found in one registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from epicrisis.cohort import History
from epicrisis.commands.oracle import OracleArm
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


ARMS = ("llm", "logistic_regression", "xgboost", "oracle")


def make_arm(settings: Settings, lookups: Lookups) -> Arm:
    """The arm that the settings name. Raises InputError for one that is not there."""
    makers: dict[str, Any] = {
        "llm": _llm,
        "logistic_regression": _logistic_regression,
        "xgboost": _xgboost,
        "oracle": lambda settings, _: OracleArm(settings.data.oracle_dir),
    }
    if settings.arm not in makers:
        raise refuse("arm", f"`{settings.arm}` cannot be run by this version", f"choose one of {', '.join(ARMS)}")
    return makers[settings.arm](settings, lookups)


def _llm(settings: Settings, lookups: Lookups) -> Arm:
    from epicrisis.llm.arm import LlmArm

    return LlmArm(settings, lookups)


def _logistic_regression(settings: Settings, _: Lookups) -> Arm:
    from epicrisis.tabular.arms import LogisticRegressionArm

    return LogisticRegressionArm(min_subjects=settings.tabular.min_subjects, seed=settings.training.seed)


def _xgboost(settings: Settings, _: Lookups) -> Arm:
    from epicrisis.tabular.arms import XGBoostArm

    return XGBoostArm(min_subjects=settings.tabular.min_subjects, seed=settings.training.seed)
