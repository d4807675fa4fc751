"""The metrics as Hugging Face `evaluate` modules that come with the package: no network is asked."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

import evaluate

from epicrisis.evaluation.metrics import METRICS


def load_metric(name: str) -> evaluate.Metric:
    """The `evaluate` metric of that name, one of auroc, auprc, brier, ece; nothing is fetched.

    `metric.compute(prediction_scores=..., references=...)` gives {name: value or None, "reason": why None, or
    None}. Raises KeyError for another name.
    """
    if name not in METRICS:
        raise KeyError(f"no metric {name!r} comes with the package; there are {', '.join(METRICS)}")
    module = importlib.import_module(f"{__name__}.{name}.{name}")
    # evaluate makes a cache folder for every metric, even one that keeps all in memory and never writes to
    # it.
    with tempfile.TemporaryDirectory() as folder:
        return getattr(module, name.capitalize())(keep_in_memory=True, cache_dir=folder)


def metric_path(name: str) -> Path:
    """Where the module lies, for `evaluate.load(str(metric_path("auroc")))` from other code."""
    return Path(__file__).parent / name
