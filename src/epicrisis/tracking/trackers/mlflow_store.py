"""MLflow: a SQLite store below the run directory or in a folder, or a server's."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from epicrisis.settings import Settings
from epicrisis.tracking.run_directory import RunDirectory
from epicrisis.tracking.run_record import flat

_DATABASE, _ARTIFACTS = "mlflow.db", "artifacts"
_MOST_AT_ONCE = 100  # params that a server takes in one call
_LONGEST_VALUE, _LONGEST_NAME = 500, 250
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
"""What is set where the user has not: usage is not reported, and a server that is away does not hold a run up."""


class MlflowStore:
    """A run in an MLflow store."""

    name = "mlflow"

    def __init__(self, run: RunDirectory, settings: Settings) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri, artifacts = store(settings.mlflow.tracking_uri, run)
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(settings.mlflow.experiment, artifacts)
        begun = self._client.create_run(experiment, run_name=settings.mlflow.run_name or run.path.resolve().name)
        self._id = begun.info.run_id

    def settings(self, resolved: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self._client.log_dict(self._id, dict(resolved), "config.yaml")
        self._client.log_dict(self._id, dict(environment), "environment.json")
        params = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in flat(resolved).items()]
        for start in range(0, len(params), _MOST_AT_ONCE):
            self._client.log_batch(self._id, params=params[start : start + _MOST_AT_ONCE])

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(metric_name(name), value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def results(self, table: pl.DataFrame) -> None:
        self._client.log_text(self._id, table.write_csv(), "results.csv")

    def plots(self, files: Mapping[str, Path]) -> None:
        for name, file in files.items():
            self._client.log_artifact(self._id, str(file), str(Path("plots", name).parent))

    def finish(self, ok: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if ok else "FAILED")

    def _experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name, artifact_location=artifacts)
            except MlflowException:  # another run may have made it at the same time
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id


def store(given: str | None, run: RunDirectory) -> tuple[str, str | None]:
    """The store's address and where artifacts of a new experiment lie; None leaves that to the store.

    given: `mlflow.tracking_uri`. Of a folder, which is made, the address is that of a SQLite database in it.
    """
    place = given or os.environ.get("MLFLOW_TRACKING_URI") or str(run.path / "mlflow")
    if place.startswith("sqlite:///"):
        folder = Path(place.removeprefix("sqlite:///")).parent
    elif re.match(r"[a-z][a-z0-9+\-]+:", place) or place == "databricks":
        return place, None
    else:
        folder = Path(place).expanduser()
        place = f"sqlite:///{folder.resolve() / _DATABASE}"
    folder.mkdir(parents=True, exist_ok=True)
    return place, (folder / _ARTIFACTS).resolve().as_uri()


def metric_name(name: str) -> str:
    """The name with `_` for what MLflow admits in none: `tuning/brier@365` is `tuning/brier_365`."""
    split, slash, metric = name.partition("/")
    return re.sub(r"[^\w\-. :/]", "_", split + slash + metric.replace("/", "_"))[:_LONGEST_NAME]
