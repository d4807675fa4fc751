"""Every arm behind one protocol, found in one registry."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

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
    "random_forest": "epicrisis.tabular.arms:random_forest",
    "xgboost": "epicrisis.tabular.arms:xgboost",
    "lightgbm": "epicrisis.tabular.arms:lightgbm",
    "encoder": "epicrisis.encoders.arm:encoder",
    "frozen_encoder": "epicrisis.encoders.frozen:frozen_encoder",
    "event_encoder": "epicrisis.encoders.events:event_encoder",
    "structured": "epicrisis.structured.arm:StructuredArm",
    "behrt": "epicrisis.structured.behrt:behrt",
    "exmed_bert": "epicrisis.structured.exmed:exmed_bert",
    "oracle": "epicrisis.commands.oracle:oracle",
}
"""Where each arm is made, by a callable that takes the settings and the lookups; imported when it is asked for."""

PRETRAINERS = {
    "llm": "epicrisis.llm.arm:pretrain",
    "event_encoder": "epicrisis.encoders.events:pretrain",
    "structured": "epicrisis.structured.pretrain:pretrain",
    "behrt": "epicrisis.structured.behrt:pretrain",
    "exmed_bert": "epicrisis.structured.exmed:pretrain",
}
"""What pretrains each arm that can be: a callable of settings, lookups, rows, history and run, giving figures."""


class Pretrainer(Protocol):
    """Learns from records without labels and leaves what classification begins with in the run directory."""

    def __call__(
        self, settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, run: RunDirectory
    ) -> dict[str, float]:
        """Figures for the summary, `loss_before` and `loss` (of tuning) among them."""
        ...


def make_arm(settings: Settings, lookups: Lookups) -> Arm:
    """The arm that the settings name. Raises InputError for one that is not there."""
    if settings.arm not in ARMS:
        raise refuse("arm", f"`{settings.arm}` cannot be run by this version", f"choose one of {', '.join(ARMS)}")
    return _found(ARMS[settings.arm])(settings, lookups)


def pretrainer_of(settings: Settings) -> Pretrainer:
    """What pretrains the arm that the settings name. Raises InputError for one that has no pretraining."""
    if settings.arm not in PRETRAINERS:
        raise refuse("stage", f"arm `{settings.arm}` has no pretraining", "set stage: classify")
    return _found(PRETRAINERS[settings.arm])


def _found(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
