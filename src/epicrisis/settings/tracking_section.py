"""The keys of `wandb`, `mlflow` and `tensorboard`: where a run is shown besides its own directory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from epicrisis.settings.section import Section


class WandbSettings(Section):
    """Weights & Biases; off unless enabled."""

    enabled: bool | None = None
    """Off by default; on where `project` is given or an agent started the run, and this is not set to false."""
    project: str | None = None
    """The project that runs are sent to; naming it enables W&B. Where not given, WANDB_PROJECT_NAME."""
    run_name: str | None = None
    """What this run is called there."""
    mode: Literal["online", "offline"] | None = None
    """Online where WANDB_API_KEY is set, else offline."""


class MlflowSettings(Section):
    """MLflow; off unless enabled."""

    enabled: bool = False
    """Whether the run is kept in an MLflow store."""
    tracking_uri: str | None = None
    """A folder, a database or a server; where not given MLFLOW_TRACKING_URI, else `mlflow` in the run directory."""
    experiment: str = Field("epicrisis", min_length=1)
    """The experiment that the run belongs to; made where it is not there."""
    run_name: str | None = None
    """What this run is called there; the run directory's name where not given."""


class TensorboardSettings(Section):
    """TensorBoard; off unless enabled."""

    enabled: bool = False
    """Whether events are written to `tensorboard` in the run directory."""
