"""The run directory: all that is needed to read and repeat a run, and nothing about any one patient."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf

from epicrisis.settings.problems import refuse
from epicrisis.tracking import run_record
from epicrisis.tracking.environment import environment
from epicrisis.tracking.writing import plain, replacing

__all__ = ["PATIENT_FIELDS", "RunDirectory", "check_openable", "open_run", "plain", "replacing", "write_config"]

FOLDERS = ("predictions", "checkpoints", "adapters/clinical", "adapters/downstream", "plots")
PRODUCTS = (
    "metrics.jsonl",
    "hyperparameters.json",
    "metadata.json",
    "logs",
    "results.csv",
    "summary.json",
    "SUMMARY.txt",
    "timing.json",
    "report.html",
    "predictions",
    "plots",
    *("wandb", "mlflow", "tensorboard"),
)
PRODUCTS_OF_TRAINING = (
    *("checkpoints", "adapters", "model", "snapshots", "sequences", "embeddings", "judged"),
    *("code_vectors.csv", "fused", "stamps"),
)
PATIENT_FIELDS = frozenset({"subject_id", "prediction_time", "narrative", "text_value", "patient_id"})


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk. Making the object touches nothing; `open_run` makes the folders."""

    path: Path

    @property
    def dir(self) -> Path:
        """The folder itself, under the name that the arms know."""
        return self.path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.csv"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def summary_text(self) -> Path:
        return self.path / "SUMMARY.txt"

    @property
    def hyperparameters(self) -> Path:
        """What defines the model and its training."""
        return self.path / "hyperparameters.json"

    @property
    def metadata(self) -> Path:
        """Which run this is, when it ran, and how it ended."""
        return self.path / "metadata.json"

    @property
    def timing(self) -> Path:
        """How long fitting and predicting took."""
        return self.path / "timing.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def predictions(self, split: str, arm: str | None = None) -> Path:
        """`predictions/<split>.parquet`, or `predictions/<arm>/<split>.parquet` for many arms."""
        folder = self.path / "predictions"
        return (folder / arm if arm else folder) / f"{split}.parquet"

    def adapter(self, name: str) -> Path:
        """The folder of the `clinical` or the `downstream` adapter."""
        return self.path / "adapters" / name

    @property
    def finished(self) -> bool:
        """True once the summary has been written, which is a run's last step."""
        return self.summary.is_file()

    def log(self, **fields: Any) -> None:
        """Append one JSON line to metrics.jsonl, with the step and the time (seconds since 1970).

        `step` is the caller's; without one it is null. NaN and infinity are kept as the strings
        "NaN", "Infinity" and "-Infinity", so that a diverged loss stays visible in valid JSON.
        Raises ValueError for a field that would carry a patient's data or a whole table into the log.
        """
        _check_fields(fields)
        line = {"time": round(time.time(), 3), "step": fields.pop("step", None), **fields}
        text = json.dumps(plain(line), ensure_ascii=False, allow_nan=False) + "\n"
        # One write of one line in append mode: two processes cannot interleave half lines.
        with open(self.metrics, "ab", buffering=0) as file:
            file.write(text.encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; empty where there is none."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def history(self) -> list[dict[str, Any]]:
        """All lines logged so far; empty before the first."""
        if not self.metrics.is_file():
            return []
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines() if line]

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a JSON file of the run, in one piece."""
        with replacing(self.path / name) as part:
            part.write_text(json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return self.path / name

    def write_results(self, results: pl.DataFrame) -> Path:
        """Write results.csv, in one piece; undefined values stay empty."""
        with replacing(self.results) as part:
            results.write_csv(part)
        return self.results

    def finish(self, summary: Mapping[str, Any], text: str) -> None:
        """Close the record, write SUMMARY.txt and then summary.json, whose presence says that the run is finished."""
        run_record.close(self, "finished", summary)
        with replacing(self.summary_text) as part:
            part.write_text(text.rstrip() + "\n", encoding="utf-8")
        self.write_json("summary.json", summary)


def open_run(
    output_dir: Path, config: Mapping[str, Any], overwrite: bool = False, resume: bool = False
) -> RunDirectory:
    """Make or reopen a run directory and write its config.yaml and environment.json.

    overwrite: the run's results, checkpoints, adapters and stamps are removed first, and nothing else in the
    folder. resume: everything is kept, metrics.jsonl goes on, and the keys of the settings that changed are
    logged. Raises InputError for a finished run with neither, for both at once, and for a path that is a
    file.
    """
    run = RunDirectory(Path(output_dir))
    check_openable(run, overwrite, resume)
    if overwrite:
        _remove_products(run)
    for folder in FOLDERS:
        (run.path / folder).mkdir(parents=True, exist_ok=True)
    previous = _read_config(run)
    write_config(run, config)
    run.write_json("environment.json", environment())
    run_record.begin(run, plain(config))
    if resume and previous is not None:
        run.log(event="resumed", changed_settings=_changed_keys(previous, plain(config)))
    return run


def check_openable(run: RunDirectory, overwrite: bool, resume: bool) -> None:
    """Raise InputError for what `open_run` would refuse; write nothing."""
    where = "training.output_dir"
    there = next(path for path in (run.path, *run.path.absolute().parents) if path.exists())
    if not there.is_dir():
        raise refuse(where, f"{there} is a file, not a folder", "name a folder for the run")
    if not os.access(there, os.W_OK | os.X_OK):
        raise refuse(where, f"{there} cannot be written to", "name another folder, or mend its permissions")
    if overwrite and resume:
        raise refuse(
            where,
            "overwrite and resume exclude each other",
            "set only one of training.overwrite_output_dir, training.resume",
        )
    if run.finished and not (overwrite or resume):
        raise refuse(
            where,
            f"{run.path} holds a finished run",
            "choose another folder, or set training.resume=true or training.overwrite_output_dir=true",
        )


def write_config(run: RunDirectory, config: Mapping[str, Any]) -> None:
    """Write the resolved configuration as YAML."""
    with replacing(run.config) as part:
        part.write_text(OmegaConf.to_yaml(OmegaConf.create(plain(config))), encoding="utf-8")


def _check_fields(fields: Mapping[str, Any]) -> None:
    carried = sorted(PATIENT_FIELDS & fields.keys())
    if carried:
        raise ValueError(f"metrics.jsonl never holds patient-level data, but the fields {carried} would: drop them")
    tables = sorted(name for name, value in fields.items() if getattr(value, "ndim", 0) or hasattr(value, "columns"))
    if tables:
        raise ValueError(
            f"metrics.jsonl holds numbers and words, but {tables} are arrays or tables: log a figure of them"
        )


def _remove_products(run: RunDirectory) -> None:
    # Only a folder that carries a run's own marks is cleared, and only of names that a run writes.
    if not (run.config.is_file() and run.environment.is_file()):
        return
    for name in (*PRODUCTS, *PRODUCTS_OF_TRAINING):
        path = run.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read_config(run: RunDirectory) -> dict[str, Any] | None:
    if not run.config.is_file():
        return None
    loaded = OmegaConf.to_container(OmegaConf.load(run.config))
    return loaded if isinstance(loaded, dict) else None  # type: ignore[return-value]


def _changed_keys(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    changed: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed += _changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            changed.append(f"{prefix}{key}")
    return changed
