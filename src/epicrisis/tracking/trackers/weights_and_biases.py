"""Weights & Biases: online with a key in the environment, else offline, below the run directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from epicrisis.settings import Settings
from epicrisis.settings.keys import key
from epicrisis.settings.tracking_checks import under_agent
from epicrisis.settings.watched import HIGHER_IS_BETTER, is_better
from epicrisis.tracking.run_directory import RunDirectory

_SECONDS_TO_UPLOAD = 300.0
"""How long the end of a run waits for what is not yet sent; the rest stays on disk for `wandb sync`."""

_STAGING = "WANDB_DATA_DIR"


class WeightsAndBiases:
    """A run of Weights & Biases; where an agent of a sweep started this process, the one that it made."""

    name = "wandb"

    def __init__(self, run: RunDirectory, settings: Settings) -> None:
        # where wandb puts tables before they are sent: else somewhere in the user's home
        self._staging_before = os.environ.get(_STAGING)
        os.environ.setdefault(_STAGING, str(run.path / "wandb"))
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self._best: dict[str, float] = {}
        try:
            self._run = wandb.init(dir=str(run.path), settings=self._quiet(), **_place(settings))
        except BaseException:
            self._restore()
            raise
        self._run.define_metric("*", step_metric="step")

    def settings(self, resolved: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        self._run.config.update({**resolved, "environment": dict(environment)}, allow_val_change=True)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})
        for name, value in numbers.items():
            metric = name.removeprefix("eval/")
            # Beside the last value, not in its place: an agent's search reads that, and takes a number only.
            if name != metric and metric in HIGHER_IS_BETTER and is_better(metric, value, self._best.get(metric)):
                self._best[metric] = value
                self._run.summary[f"best_{name}"] = value

    def results(self, table: pl.DataFrame) -> None:
        rows = [list(row) for row in table.rows()]
        self._run.log({"results": self._wandb.Table(columns=[*table.columns], data=rows)})

    def plots(self, files: Mapping[str, Path]) -> None:
        if files:
            self._run.log({f"plots/{name}": self._wandb.Image(str(file)) for name, file in files.items()})

    def finish(self, ok: bool) -> None:
        try:
            self._run.finish(exit_code=int(not ok))
        finally:
            self._restore()

    def _quiet(self) -> Any:
        """Nothing is collected but what it is told: no output, code, git state, command line, host or package list."""
        return self._wandb.Settings(
            console="off",
            disable_code=True,
            save_code=False,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            host="-",
            finish_timeout=_SECONDS_TO_UPLOAD,
            finish_timeout_raises=True,
        )

    def _restore(self) -> None:
        if self._staging_before is None:
            os.environ.pop(_STAGING, None)


def _place(settings: Settings) -> dict[str, Any]:
    """Project, name and mode. An agent has said all of them."""
    wandb = settings.wandb
    if under_agent():
        return {"mode": wandb.mode}
    return {
        "project": wandb.project or key("WANDB_PROJECT_NAME"),
        "name": wandb.run_name,
        "mode": wandb.mode or ("online" if os.environ.get("WANDB_API_KEY") else "offline"),
    }
