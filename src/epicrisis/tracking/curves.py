"""Metrics over optimiser steps: as columns, and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from epicrisis.tracking.writing import replacing

Line = Mapping[str, Any]

SIZES = ("n_parameters", "n_trainable_parameters")
"""What a run logs, once, of the module that it trains."""

CURVES = {"train": "train/", "tuning": "eval/"}
"""Which line of a plot a logged metric belongs to, by how its name begins."""

_LOOKS: dict[str, dict[str, Any]] = {
    "train": {"color": "#0072B2", "linestyle": "-"},
    "tuning": {"color": "#D55E00", "linestyle": "--", "marker": "o"},
}
_LABELS = {"loss": "mean loss", "auroc": "AUROC", "c_index": "C-index", "answer_mass": "probability of the answers"}


def metrics_history(history: Sequence[Line]) -> dict[str, Any]:
    """A run's log by columns: `step`, `metrics` (a value or null for each step), `final` (what belongs to no step)."""
    steps = by_step(history)
    names = dict.fromkeys(name for told in steps.values() for name in told)
    columns = {name: [told.get(name) for told in steps.values()] for name in names}
    final: dict[str, float] = {}
    for line in history:
        if line["step"] is None:
            final |= _numbers(line)
    return {"step": list(steps), "metrics": columns, "final": final}


def by_step(history: Sequence[Line]) -> dict[int, dict[str, float]]:
    """The numbers logged at each step, in order; of a step that was taken again after a resume, the last."""
    logged = [(line["step"], numbers) for line in history if line["step"] is not None and (numbers := _numbers(line))]
    steps: dict[int, dict[str, float]] = {}
    for step, numbers in logged:
        steps[step] = steps.get(step, {}) | numbers
    last = logged[-1][0] if logged else 0
    return {step: steps[step] for step in sorted(steps) if step <= last}


def draw_curves(history: Sequence[Line], folder: Path, title: str) -> dict[str, Path]:
    """`<metric>_curve.png` of every metric that tuning was watched by, with train's where it was logged too."""
    steps = by_step(history)
    watched = dict.fromkeys(n.removeprefix("eval/") for told in steps.values() for n in told if n.startswith("eval/"))
    drawn = {}
    for metric in watched:
        drawn[metric] = folder / f"{metric}_curve.png"
        with replacing(drawn[metric]) as part:
            plot_curve(steps, metric, title).savefig(part, format="png", dpi=150)
    return drawn


def plot_curve(steps: Mapping[int, Mapping[str, float]], metric: str, title: str) -> Figure:
    """A metric against optimiser steps, of train and of tuning. steps: as `by_step` gives them."""
    label = _LABELS.get(metric, metric)
    # A Figure of its own, not pyplot's: no window system is asked for, and nothing lives on after saving.
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{label[0].upper()}{label[1:]} · {title}", fontsize=11, x=0.02, ha="left")
    axes = figure.add_subplot(xlabel="optimiser step", ylabel=label)
    axes.spines[["top", "right"]].set_visible(False)
    for line, prefix in CURVES.items():
        known = [(step, told[prefix + metric]) for step, told in steps.items() if _is_number(told.get(prefix + metric))]
        if known:
            axes.plot(*zip(*known, strict=True), label=line, **_LOOKS[line])
    if axes.lines:
        axes.legend(frameon=False)
    return figure


def _numbers(line: Line) -> dict[str, float]:
    """The numbers of a log line; NaN and infinity, which are logged as words, among them."""
    found = {}
    for name, value in line.items():
        if name in ("step", "time", *SIZES) or isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            found[name] = value
        elif value in ("NaN", "Infinity", "-Infinity"):
            found[name] = float(value)
    return found


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
