"""Where a run's history goes besides its own directory: Weights & Biases, if the config asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from epicrisis.settings import Settings, refuse
from epicrisis.tracking.run_directory import RunDirectory


@dataclass(frozen=True)
class TrackedRun(RunDirectory):
    """A run directory whose log lines also go to a tracker."""

    tracker: Any = None

    def log(self, **fields: Any) -> None:
        super().log(**fields)
        step = fields.pop("step", None)
        self.tracker.log(fields, step=step)


@contextmanager
def track(run: RunDirectory, settings: Settings, *, active: bool) -> Iterator[RunDirectory]:
    """The run, with Weights & Biases behind its log where `wandb` asks for it; closed in any case.

    Numbers and the config are sent, never a narrative or a row. Raises InputError where wandb is missing.
    """
    wandb_settings = settings.wandb
    enabled = wandb_settings.enabled if wandb_settings.enabled is not None else bool(wandb_settings.project)
    if not (enabled and active):
        yield run
        return
    try:
        import wandb
    except ImportError:
        raise refuse("wandb.enabled", "wandb is not installed", "pip install wandb, or wandb.enabled=false") from None
    mode = wandb_settings.mode or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    tracker = wandb.init(
        project=wandb_settings.project,
        name=wandb_settings.run_name,
        mode=mode,
        dir=run.dir,
        config=settings.resolved(),
        settings=wandb.Settings(console="off", disable_git=True, save_code=False),
    )
    failed = True
    try:
        yield TrackedRun(run.path, tracker)
        failed = False
    finally:
        tracker.finish(exit_code=int(failed))
