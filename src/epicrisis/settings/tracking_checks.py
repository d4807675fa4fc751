"""What cannot be true of the trackers' sections, and which of the trackers a config asks for."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from epicrisis.settings.keys import key
from epicrisis.settings.problems import Problem
from epicrisis.settings.schema import Settings


def under_agent() -> bool:
    """Whether an agent of a W&B sweep started this run and gave it its id."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


def wandb_enabled(settings: Settings) -> bool:
    """What `wandb.enabled` says; where it says nothing, whether a project is named or an agent waits for the run."""
    wandb = settings.wandb
    return wandb.enabled if wandb.enabled is not None else bool(wandb.project) or under_agent()


def tracking_problems(settings: Settings) -> list[Problem]:
    """W&B without a project, a password where every reader of the config would see it, a store that MLflow gave up."""
    problems = []
    if wandb_enabled(settings) and not (settings.wandb.project or key("WANDB_PROJECT_NAME") or under_agent()):
        fix = "name the project, here or as WANDB_PROJECT_NAME in env/.env"
        problems.append(Problem("wandb.project", "W&B is enabled without a project", fix))
    if _has_password(settings.mlflow.tracking_uri):
        fix = "set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment"
        problems.append(Problem("mlflow.tracking_uri", "holds a password, and configs are kept with runs", fix))
    if (settings.mlflow.tracking_uri or "").startswith("file:"):
        fix = "name the folder without `file:`; a SQLite store is made in it"
        problems.append(Problem("mlflow.tracking_uri", "MLflow keeps no runs in plain files any more", fix))
    return problems


def _has_password(uri: str | None) -> bool:
    try:
        return uri is not None and urlsplit(uri).password is not None
    except ValueError:  # no address at all
        return False
