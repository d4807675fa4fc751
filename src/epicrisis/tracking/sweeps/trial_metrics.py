"""What a trial has logged so far, read while it goes on writing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from epicrisis.tracking.sweeps.sweep_file import Goal


def logged_values(folder: Path, metric: str) -> dict[int | None, float]:
    """{step: value} of every line of metrics.jsonl with the metric, in the order of writing; NaN where it diverged.

    Of a step that was taken again after a resume, the last. A line that is still being written is left for later.
    """
    found: dict[int | None, float] = {}
    for line in _lines(folder / "metrics.jsonl"):
        if metric in line and line[metric] is not None:
            found[line.get("step")] = float(line[metric])
    return found


def value_of(folder: Path, metric: str, goal: Goal) -> float | None:
    """What a trial is ranked by: of `eval/` the best, since those weights are kept, else the last; None without any.

    Numbers that are not finite are passed over.
    """
    values = [value for value in logged_values(folder, metric).values() if math.isfinite(value)]
    if not values:
        return None
    if not metric.startswith("eval/"):
        return values[-1]
    return max(values) if goal == "maximize" else min(values)


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    whole, _, _ = file.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line]
