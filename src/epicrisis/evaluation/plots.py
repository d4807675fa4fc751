"""ROC, precision-recall and reliability plots of all arms on one task, few-shot curves, narrative lengths: as PNG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from epicrisis.evaluation.calibration import reliability_curve
from epicrisis.evaluation.few_shot import curves, shots_text
from epicrisis.evaluation.metrics import point_scores, why_undefined
from epicrisis.evaluation.predictions import PROBABILITY
from epicrisis.tracking.run_directory import replacing

# Okabe & Ito's palette, told apart by colour-blind readers; line styles say the same in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), ":")
ORACLE_STYLE: dict[str, Any] = {"color": "#555555", "linestyle": (0, (6, 2)), "linewidth": 1.4}
GUIDE: dict[str, Any] = {"color": "#bbbbbb", "linewidth": 1, "zorder": 0}
PANELS_PER_ROW = 3
SPLITS = ("train", "tuning", "held_out")
ALL_ROWS_APART = 1.5
LENGTH_AXES = {"tokens": "tokens of a narrative", "tokens_per_event": "tokens per event kept"}

Arms = Mapping[str, pl.DataFrame]


def plot_all(predictions_by_arm: Arms, folder: Path, title: str, oracle: str | None = "oracle") -> dict[str, Path]:
    """Write roc.png, pr.png and reliability.png into `folder`; give {name: path}.

    title: names data set, task and split. A curve that does not exist (one class only) is told in its place.
    """
    makers = {"roc": plot_roc, "pr": plot_precision_recall, "reliability": plot_reliability}
    return {
        name: save(make(predictions_by_arm, title, oracle), folder / f"{name}.png") for name, make in makers.items()
    }


def plot_roc(predictions_by_arm: Arms, title: str, oracle: str | None = "oracle") -> Figure:
    """ROC curves; the legend gives each arm's AUROC, in the order of the arms."""
    figure = new_figure(f"ROC · {title}")
    axes = _unit_square(figure, "false positive rate (1 − specificity)", "true positive rate (sensitivity)")
    if _told_undefined(axes, predictions_by_arm, "auroc"):
        return figure
    axes.plot([0, 1], [0, 1], **GUIDE)
    for arm, style in arm_styles(predictions_by_arm, oracle).items():
        labels, probabilities = _columns(predictions_by_arm[arm])
        false_positive_rate, true_positive_rate, _ = roc_curve(labels, probabilities)
        label = _legend_entry(arm, "auroc", labels, probabilities)
        axes.plot(false_positive_rate, true_positive_rate, label=label, **style)
    axes.legend(title="arm, AUROC", loc="lower right", frameon=False, fontsize=9, alignment="left")
    return figure


def plot_precision_recall(predictions_by_arm: Arms, title: str, oracle: str | None = "oracle") -> Figure:
    """Precision against recall; the grey line is the share of positives, which chance reaches."""
    figure = new_figure(f"Precision-recall · {title}")
    axes = _unit_square(figure, "recall (sensitivity)", "precision (positive predictive value)")
    if _told_undefined(axes, predictions_by_arm, "auprc"):
        return figure
    for arm, style in arm_styles(predictions_by_arm, oracle).items():
        labels, probabilities = _columns(predictions_by_arm[arm])
        label = _legend_entry(arm, "auprc", labels, probabilities)
        axes.step(*precision_steps(labels, probabilities), where="pre", label=label, **style)
    prevalence = float(_columns(next(iter(predictions_by_arm.values())))[0].mean())
    axes.axhline(prevalence, label=f"chance  {prevalence:.3f}", **GUIDE)
    axes.legend(title="arm, AUPRC", loc="upper right", frameon=False, fontsize=9, alignment="left")
    return figure


def plot_reliability(predictions_by_arm: Arms, title: str, oracle: str | None = "oracle") -> Figure:
    """Observed rate against mean probability, a panel per arm: ten bins of equal row count, 95% intervals."""
    n_rows = -(-len(predictions_by_arm) // PANELS_PER_ROW)
    n_columns = min(PANELS_PER_ROW, len(predictions_by_arm))
    figure = new_figure(f"Reliability · {title}", size=(3.1 * max(2, n_columns), 3.0 * n_rows + 0.4))
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    highest = 0.0
    for axes, (arm, style) in zip(panels, arm_styles(predictions_by_arm, oracle).items(), strict=False):
        highest = max(highest, _draw_reliability(axes, arm, predictions_by_arm[arm], str(style["color"])))
    limit = min(1.0, 1.05 * highest) if highest else 1.0
    panels[0].set(xlim=(-0.03 * limit, 1.03 * limit), ylim=(-0.03 * limit, 1.03 * limit))
    for axes in panels[len(predictions_by_arm) :]:
        axes.set_visible(False)
    figure.supxlabel("mean predicted probability", fontsize=10)
    figure.supylabel("observed rate", fontsize=10)
    return figure


def plot_lengths(bins: pl.DataFrame, title: str) -> Figure:
    """Densities of narrative length and of tokens per event by split, with the token budget as a line.

    bins: told (a label of what was told in one way, drawn as a row of panels) · budget? (tokens) · of (`tokens`,
    `tokens_per_event`) · split · at_least · below · narratives. Where there is nothing to draw, that is told.
    """
    told = bins.partition_by("told", maintain_order=True)
    figure = new_figure(f"Narrative lengths · {title}", size=(9.0, 3.2 * max(1, len(told)) + 0.3))
    grid = figure.subplots(max(1, len(told)), 2, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks([])
    if not told:
        for axes in grid.flat:
            axes.text(0.5, 0.5, "too few narratives to draw", ha="center", va="center", color="#555555")
    for panels, part in zip(grid, told, strict=False):
        for axes, (of, label) in zip(panels, LENGTH_AXES.items(), strict=True):
            _draw_densities(axes, part.filter(of=of))
            axes.set(xlabel=label, ylabel="density")
        budget = part["budget"][0]
        if budget is not None:
            panels[0].axvline(budget, label=f"budget, {budget:,}", color="#555555", linestyle=":", linewidth=1.4)
        panels[0].legend(frameon=False, fontsize=9)
        if len(told) > 1:
            panels[0].set_title(part["told"][0], loc="left", fontsize=9)
    return figure


def plot_few_shot(results: pl.DataFrame, metric: str, title: str, oracle: str | None = "oracle") -> Figure:
    """A metric against the shots of each class (log scale): means over replicates, ranges as bands, one line per arm.

    results: rows of the results table. All rows (k empty) stand apart at the right; the oracle is a level line.
    """
    figure = new_figure(f"{metric.upper()} by shots · {title}", size=(7.4, 5.0))
    axes = figure.add_subplot(xlabel="train rows of each class (k)", ylabel=metric.upper())
    axes.spines[["top", "right"]].set_visible(False)
    found = curves(results, metric, oracle)
    shots = found["k"].unique().sort(nulls_last=True).to_list()
    counts = [k for k in shots if k is not None]
    places = {k: float(np.log2(k)) for k in counts}
    places[None] = (max(places.values()) if counts else 0.0) + ALL_ROWS_APART
    arms = dict.fromkeys(found["arm"])
    for arm, style in arm_styles(arms, None).items():
        _draw_curve(axes, arm, found.filter((pl.col("arm") == arm) & pl.col("mean").is_not_null()), places, style)
    known = results.filter((pl.col("arm") == oracle) & (pl.col("metric") == metric) & pl.col("value").is_not_null())
    if known.height:
        axes.axhline(known["value"][0], label=str(oracle), **ORACLE_STYLE)
    axes.set_xticks([places[k] for k in shots], [shots_text(k) for k in shots])
    if arms:
        axes.legend(frameon=False, fontsize=9)
    return figure


def precision_steps(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision where recall rises: the very steps that average precision sums."""
    precision, recall, _ = precision_recall_curve(labels, probabilities)
    # scikit-learn goes from recall 1 down to 0 and appends a point (0, 1) that no threshold reaches.
    precision, recall = precision[:-1][::-1], recall[:-1][::-1]
    rises = np.diff(recall, prepend=0) > 0
    return np.r_[0, recall[rises]], np.r_[precision[rises][:1], precision[rises]]


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, in one piece."""
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=150)
    return path


def new_figure(title: str, size: tuple[float, float] = (6.4, 6.2)) -> Figure:
    """An empty figure under its title. size: inches, across and down."""
    # A Figure of its own, not pyplot's: no window system is asked for, and nothing lives on after saving.
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, x=0.02, ha="left")
    return figure


def _unit_square(figure: Figure, x_label: str, y_label: str) -> Axes:
    axes = figure.add_subplot()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x_label, ylabel=y_label, aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _told_undefined(axes: Axes, predictions_by_arm: Arms, metric: str) -> bool:
    reason = why_undefined(metric, _columns(next(iter(predictions_by_arm.values())))[0])
    if reason is None:
        return False
    axes.text(0.5, 0.5, f"undefined\n{reason}", ha="center", va="center", color="#555555")
    return True


def _draw_curve(
    axes: Axes, arm: str, curve: pl.DataFrame, places: Mapping[int | None, float], style: Mapping[str, Any]
) -> None:
    """One arm: its means joined from k to k, and all rows as a point of their own."""
    label: str | None = arm
    for part in (curve.filter(pl.col("k").is_not_null()), curve.filter(pl.col("k").is_null())):
        if part.is_empty():
            continue
        x = [places[k] for k in part["k"]]
        low, mean, high = (part[name].to_numpy() for name in ("lowest", "mean", "highest"))
        axes.plot(x, mean, label=label, marker="o", markersize=4, **style)
        if len(x) > 1:
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        else:
            axes.vlines(x, low, high, color=style["color"], alpha=0.5)
        label = None


def _draw_densities(axes: Axes, bins: pl.DataFrame) -> None:
    """Histograms of area 1 whose bins may differ in width, one per split."""
    for part in bins.partition_by("split", maintain_order=True):
        place = SPLITS.index(part["split"][0]) if part["split"][0] in SPLITS else len(SPLITS)
        edges = np.append(part["at_least"].to_numpy(), part["below"][-1])
        counts = part["narratives"].to_numpy()
        axes.stairs(
            counts / counts.sum() / np.diff(edges),
            edges,
            label=f"{part['split'][0]}, {counts.sum():,}",
            color=COLOURS[place],
            linestyle=LINES[place],
            linewidth=1.6,
        )


def _draw_reliability(axes: Axes, arm: str, table: pl.DataFrame, colour: str) -> float:
    """Draw one arm's panel; give the highest value on either axis, intervals apart."""
    axes.plot([0, 1], [0, 1], **GUIDE)
    axes.spines[["top", "right"]].set_visible(False)
    labels, probabilities = _columns(table)
    axes.set_title(_legend_entry(arm, "ece", labels, probabilities), loc="left", fontsize=8.5)
    if not len(labels):
        return 0.0
    curve = reliability_curve(labels, probabilities)
    x, y = curve["mean_probability"].to_numpy(), curve["observed_rate"].to_numpy()
    spread = np.stack([y - curve["lower"].to_numpy(), curve["upper"].to_numpy() - y]).clip(min=0)
    axes.errorbar(x, y, yerr=spread, color=colour, ecolor="#999999", elinewidth=1, marker="o", markersize=4)
    return float(max(x.max(), y.max()))


def arm_styles(predictions_by_arm: Iterable[str], oracle: str | None) -> dict[str, dict[str, Any]]:
    """{arm: colour, line and width}: the oracle in grey dashes, the others in the palette's order."""
    styles: dict[str, dict[str, Any]] = {}
    rank = 0
    for arm in predictions_by_arm:
        if arm == oracle:
            styles[arm] = ORACLE_STYLE
            continue
        styles[arm] = {
            "color": COLOURS[rank % len(COLOURS)],
            "linestyle": LINES[rank % len(LINES)],
            "linewidth": 1.8,
        }
        rank += 1
    return styles


def _columns(table: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return table["boolean_value"].to_numpy(), table[PROBABILITY].to_numpy()


def _legend_entry(arm: str, metric: str, labels: np.ndarray, probabilities: np.ndarray) -> str:
    value = point_scores(labels, probabilities)[metric]
    shown = "undefined" if value is None else f"{value:.3f}"
    return f"{arm}\nECE {shown}" if metric == "ece" else f"{arm}  {shown}"
