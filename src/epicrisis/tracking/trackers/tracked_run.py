"""A run directory whose history, results and plots go to trackers too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

import polars as pl

from epicrisis.settings import InputError, Problem, Settings
from epicrisis.settings.tracking_checks import wandb_enabled
from epicrisis.tracking.run_directory import RunDirectory
from epicrisis.tracking.trackers.every import Lost, Trackers
from epicrisis.tracking.trackers.mlflow_store import MlflowStore
from epicrisis.tracking.trackers.protocol import Tracker
from epicrisis.tracking.trackers.tensorboard_events import TensorboardEvents
from epicrisis.tracking.trackers.weights_and_biases import WeightsAndBiases

_PACKAGES = {
    "wandb": {"wandb": "wandb"},
    "mlflow": {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
    "tensorboard": {"tensorboard": "tensorboard"},
}
"""What each tracker imports, and the name that pip knows it by."""

_MAKERS: dict[str, Callable[[RunDirectory, Settings], Tracker]] = {
    "wandb": WeightsAndBiases,
    "mlflow": MlflowStore,
    "tensorboard": TensorboardEvents,
}


@dataclass(frozen=True)
class TrackedRun(RunDirectory):
    """A run directory whose log lines also go to trackers; of each line only its numbers do."""

    trackers: Trackers = field(default_factory=Trackers)

    def log(self, **fields: Any) -> None:
        super().log(**fields)
        step = fields.pop("step", None)
        self.trackers.log(_numbers(fields), step)


def enabled_trackers(settings: Settings) -> list[str]:
    """The trackers that the config asks for."""
    asked = {
        "wandb": wandb_enabled(settings),
        "mlflow": settings.mlflow.enabled,
        "tensorboard": settings.tensorboard.enabled,
    }
    return [name for name, wanted in asked.items() if wanted]


def refuse_uninstalled(settings: Settings) -> None:
    """Raise InputError for each tracker that is asked for and lacks a package."""
    problems = []
    for name in enabled_trackers(settings):
        missing = [package for module, package in _PACKAGES[name].items() if find_spec(module) is None]
        if missing:
            fix = f'pip install "epicrisis[trackers]", or {name}.enabled=false'
            problems.append(Problem(f"{name}.enabled", f"{', '.join(missing)} is not installed", fix))
    if problems:
        raise InputError(problems)


@contextmanager
def track(run: RunDirectory, settings: Settings, *, active: bool) -> Iterator[RunDirectory]:
    """The run, with the trackers that the config asks for behind its log; closed however the block ends.

    They are told the resolved config, the environment and every number logged, and after a good end the table of
    results and the plots; never a narrative, a row or a word of a line. One that fails is dropped, which is said, and
    kept in metrics.jsonl. active: of several processes only one tracks. Raises InputError for a missing package.
    """
    refuse_uninstalled(settings)
    names = enabled_trackers(settings) if active else []
    if not names:
        yield run
        return
    trackers = Trackers(lambda lost: _note(run, lost))
    for name in names:
        trackers.start(name, lambda name=name: _MAKERS[name](run, settings))  # type: ignore[misc]
    ok = False
    try:
        trackers.settings(settings.resolved(), json.loads(run.environment.read_text(encoding="utf-8")))
        yield TrackedRun(run.path, trackers)
        if run.results.is_file():
            trackers.results(pl.read_csv(run.results))
        trackers.plots(_plots(run))
        ok = True
    finally:
        trackers.finish(ok)


def _numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    single = {name: value.item() if hasattr(value, "item") else value for name, value in fields.items()}
    return {
        name: float(value) for name, value in single.items() if isinstance(value, Real) and not isinstance(value, bool)
    }


def _plots(run: RunDirectory) -> dict[str, Path]:
    files = sorted(run.plots.rglob("*.png"))
    return {str(file.relative_to(run.plots).with_suffix("").as_posix()): file for file in files}


def _note(run: RunDirectory, lost: Lost) -> None:
    run.log(event="tracker_lost", tracker=lost.tracker, missed=lost.missed, reason=lost.reason)
