"""Plots of times to an event: calibration at a horizon, and what became of rows of low, middle and high risk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epicrisis.evaluation.plots import COLOURS, GUIDE, LINES, PANELS_PER_ROW, Arms, arm_styles, new_figure, save
from epicrisis.evaluation.survival import kaplan_meier
from epicrisis.evaluation.survival_predictions import SurvivalArrays, survival_arrays

THIRDS = ("lowest third of risk", "middle third", "highest third")
NORMAL_95 = 1.959964


def plot_survival(predictions_by_arm: Arms, folder: Path, title: str, oracle: str | None = "oracle") -> dict[str, Path]:
    """Write calibration.png (at the farthest horizon) and kaplan_meier.png into `folder`; give {name: path}."""
    makers = {"calibration": plot_calibration, "kaplan_meier": plot_thirds}
    return {
        name: save(make(predictions_by_arm, title, oracle), folder / f"{name}.png") for name, make in makers.items()
    }


def plot_calibration(predictions_by_arm: Arms, title: str, oracle: str | None = "oracle") -> Figure:
    """Observed against predicted probability of the event by the farthest horizon, a panel per arm.

    Observed: Kaplan–Meier within each of ten bins of equal row count, with its 95% interval, since some rows are
    censored before the horizon.
    """
    days = max(float(table["horizon_days"].max() or 0) for table in predictions_by_arm.values())  # type: ignore[arg-type]
    figure, panels = _panels(f"Calibration at {days:g} days · {title}", predictions_by_arm)
    highest = 0.0
    for axes, (arm, style) in zip(panels, arm_styles(predictions_by_arm, oracle).items(), strict=False):
        curve = calibration_curve(survival_arrays(predictions_by_arm[arm]))
        axes.plot([0, 1], [0, 1], **GUIDE)
        axes.set_title(arm, loc="left", fontsize=8.5)
        predicted, observed, error = (curve[name].to_numpy() for name in ("predicted", "observed", "error"))
        axes.errorbar(
            *(predicted, observed, NORMAL_95 * error),
            **{"color": style["color"], "ecolor": "#999999", "elinewidth": 1, "marker": "o", "markersize": 4},
        )
        highest = max(highest, *predicted, *observed, 0.0)
    limit = min(1.0, 1.05 * highest) if highest else 1.0
    panels[0].set(xlim=(-0.03 * limit, 1.03 * limit), ylim=(-0.03 * limit, 1.03 * limit))
    figure.supxlabel("mean predicted probability", fontsize=10)
    figure.supylabel("observed (Kaplan–Meier)", fontsize=10)
    return figure


def plot_thirds(predictions_by_arm: Arms, title: str, oracle: str | None = "oracle") -> Figure:
    """Kaplan–Meier curves of the rows in thirds of predicted risk, a panel per arm."""
    figure, panels = _panels(f"Kaplan–Meier by thirds of risk · {title}", predictions_by_arm)
    for axes, arm in zip(panels, arm_styles(predictions_by_arm, oracle), strict=False):
        rows = survival_arrays(predictions_by_arm[arm])
        axes.set_title(arm, loc="left", fontsize=8.5)
        for place, (name, third) in enumerate(zip(THIRDS, thirds(rows.risk), strict=True)):
            if len(third):
                days, survival, _ = kaplan_meier(rows.days[third], rows.observed[third])
                style: dict[str, Any] = {"color": COLOURS[place], "linestyle": LINES[place], "where": "post"}
                axes.step(np.r_[0, days], np.r_[1, survival], label=f"{name}, n = {len(third)}", **style)
        axes.set_ylim(-0.02, 1.02)
        axes.legend(frameon=False, fontsize=7.5)
    figure.supxlabel("days from the prediction time", fontsize=10)
    figure.supylabel("without the event", fontsize=10)
    return figure


def calibration_curve(rows: SurvivalArrays, n_bins: int = 10) -> pl.DataFrame:
    """predicted · observed · error (standard, by Greenwood) · n at the farthest horizon, in bins of equal row count.

    Equal probabilities never fall into two bins.
    """
    schema = {"predicted": pl.Float64, "observed": pl.Float64, "error": pl.Float64, "n": pl.Int64}
    if not len(rows.days):
        return pl.DataFrame(schema=schema)
    probability, horizon = rows.probabilities[:, -1], rows.horizons[-1]
    rank = np.searchsorted(np.sort(probability), probability, side="left")
    bins = rank * n_bins // len(probability)
    curve = []
    for name in np.unique(bins):
        of_bin = bins == name
        days, survival, error = kaplan_meier(rows.days[of_bin], rows.observed[of_bin])
        step = np.searchsorted(days, horizon, side="right")
        curve.append(
            (probability[of_bin].mean(), 1 - np.r_[1, survival][step], np.r_[0, error][step], int(of_bin.sum()))
        )
    return pl.DataFrame(curve, schema=schema, orient="row")


def thirds(risk: np.ndarray) -> list[np.ndarray]:
    """The places of the rows in each third of risk, equal risks in one."""
    rank = np.searchsorted(np.sort(risk), risk, side="left")
    return [np.flatnonzero(rank * 3 // max(1, len(risk)) == third) for third in range(3)]


def _panels(title: str, predictions_by_arm: Arms) -> tuple[Figure, list[Axes]]:
    """One panel for each arm; those that are left over are hidden."""
    n_rows, n_columns = -(-len(predictions_by_arm) // PANELS_PER_ROW), min(PANELS_PER_ROW, len(predictions_by_arm))
    figure = new_figure(title, size=(3.4 * max(2, n_columns), 3.2 * n_rows + 0.4))
    panels = list(figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(predictions_by_arm) :]:
        axes.set_visible(False)
    return figure, panels
