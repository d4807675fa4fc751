"""Finished runs side by side: which may be compared, what is best, how performance goes with size, and a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl
from matplotlib.figure import Figure
from rich.table import Table

from epicrisis.evaluation.plots import COLOURS, new_figure
from epicrisis.evaluation.report import heading
from epicrisis.settings.watched import higher_is_better
from epicrisis.tracking.progress import duration

HEADLINES = ("held_out/c_index", "held_out/auroc", "tuning/auroc", "tuning/loss")
"""What a group is plotted by: the first of these that one of its runs has."""

_SHOWN_DIFFERENCES = 40
_ONLY_IN_FILES = ("held_out/brier_calibrated", "held_out/ece_calibrated", "held_out/oracle_lift_share")
"""Too much for a terminal's width."""


class Figures(NamedTuple):
    """A metric's value with its 95% interval, where it has one."""

    value: float
    lower: float | None = None
    upper: float | None = None

    def __str__(self) -> str:
        between = f" ({self.lower:.3f} to {self.upper:.3f})" if self.lower is not None else ""
        return f"{self.value:.3f}{between}"


class Group(NamedTuple):
    """What runs must share for their numbers to mean the same. rows: a hash of the judged rows and their labels."""

    dataset: str
    task: str
    cutoff_months: int | None
    rows: str

    @property
    def title(self) -> str:
        """For a heading: data set, task and, where there is one, the cutoff."""
        cutoff = "" if self.cutoff_months is None else f" · cutoff {self.cutoff_months} months"
        return f"{self.dataset} · {self.task}{cutoff}"


@dataclass(frozen=True)
class Entry:
    """A model that is compared: a single run, or an arm of a benchmark.

    metrics: by `<split>/<metric>`. n_rows: judged. k: shots of each class that it learnt from, None for all.
    n_parameters, n_trained, fit_seconds: None where not known. settings: its hyperparameters, keys with dots.
    is_oracle: true risks, which no model can beat and which are never the best.
    """

    name: str
    arm: str
    group: Group
    metrics: Mapping[str, Figures]
    n_rows: int | None = None
    k: int | None = None
    n_parameters: int | None = None
    n_trained: int | None = None
    fit_seconds: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_oracle: bool = False


def grouped(entries: Iterable[Entry]) -> dict[Group, list[Entry]]:
    """The entries of each group, in the order given; the oracle of a group once."""
    groups: dict[Group, list[Entry]] = {}
    for entry in entries:
        group = groups.setdefault(entry.group, [])
        if not (entry.is_oracle and any(other.is_oracle for other in group)):
            group.append(entry)
    return groups


def metrics_of(entries: Iterable[Entry], *, of_classes: bool = False) -> list[str]:
    """All metrics of these entries, held_out before tuning; those of single classes only where asked for."""
    names = dict.fromkeys(name for entry in entries for name in entry.metrics if of_classes or ":" not in name)
    return sorted(names, key=lambda name: not name.startswith("held_out/"))


def best_of(entries: Iterable[Entry], metric: str) -> list[Entry]:
    """The entries with the best value; none of a metric whose better direction is not known, several where they tie."""
    higher = direction(metric)
    known = [entry for entry in entries if metric in entry.metrics and not entry.is_oracle]
    known = [entry for entry in known if entry.metrics[metric].value == entry.metrics[metric].value]
    if higher is None or not known:
        return []
    best = (max if higher else min)(entry.metrics[metric].value for entry in known)
    return [entry for entry in known if entry.metrics[metric].value == best]


def direction(metric: str) -> bool | None:
    """Whether more of the metric is better; None where nobody says so."""
    return higher_is_better(metric.removesuffix("_calibrated"))


def not_told_apart(entries: Iterable[Entry], best: Entry, metric: str) -> list[Entry]:
    """The other entries whose interval overlaps that of the best."""
    top = best.metrics[metric]
    others = (entry for entry in entries if entry is not best and not entry.is_oracle and metric in entry.metrics)
    return [entry for entry in others if _overlap(top, entry.metrics[metric])]


def comparison_table(groups: Mapping[Group, Sequence[Entry]]) -> pl.DataFrame:
    """One line per entry: its group, what it is, its size, and each metric with `_lower` and `_upper`."""
    entries = [entry for group in groups.values() for entry in group]
    names = metrics_of(entries, of_classes=True)
    lines = [_line(number, entry, names) for number, group in enumerate(groups.values(), 1) for entry in group]
    measured = [f"{name}{ending}" for name in names for ending in ("", "_lower", "_upper")]
    counts = dict.fromkeys(("cutoff_months", "n_rows", "k", "n_parameters", "n_trainable_parameters"), pl.Int64())
    schema = {"group": pl.Int64(), **dict.fromkeys(("run", "arm", "dataset", "task"), pl.String()), "rows": pl.String()}
    return pl.DataFrame(
        lines, schema={**schema, **counts, "fit_seconds": pl.Float64(), **dict.fromkeys(measured, pl.Float64())}
    )


def printed(group: Group, entries: Sequence[Entry]) -> Table:
    """The group as a table for a terminal: the best of each metric in bold, the first one's interval beside it."""
    shown = shown_metrics(entries)
    table = Table(title=f"{group.title}: {_rows_text(entries)}", title_justify="left")
    table.add_column("run", overflow="fold")
    for name in (*map(column, shown), "parameters", "trained", "fit"):
        table.add_column(name, justify="right")
    best = {name: best_of(entries, name) for name in shown}
    for entry in entries:
        values = [_value(entry, name) for name in shown]
        cells = [value if place == 0 else value.partition(" ")[0] for place, value in enumerate(values)]
        bold = [
            f"[bold]{cell}[/bold]" if entry in best[name] else cell for name, cell in zip(shown, cells, strict=True)
        ]
        table.add_row(label(entry), *bold, *_size_cells(entry))
    return table


def shown_metrics(entries: Sequence[Entry]) -> list[str]:
    """What a terminal has room for: those of held_out, or else all."""
    names = [name for name in metrics_of(entries) if name.startswith("held_out/")] or metrics_of(entries)
    return [name for name in names if name not in _ONLY_IN_FILES]


def plot_sizes(entries: Sequence[Entry], metric: str, title: str) -> Figure:
    """A metric with its interval against the number of parameters (log scale); entries of unknown size are left out."""
    figure = new_figure(f"Performance against size · {title}", size=(7.4, 4.8))
    axes = figure.add_subplot(xlabel="parameters", ylabel=column(metric), xscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    for place, entry in enumerate(sized(entries, metric)):
        figures, colour, size = entry.metrics[metric], COLOURS[place % len(COLOURS)], entry.n_parameters or 0
        if figures.lower is not None and figures.upper is not None:
            axes.vlines(size, figures.lower, figures.upper, color=colour, alpha=0.5)
        axes.plot(size, figures.value, marker="o", linestyle="none", color=colour)
        axes.annotate(label(entry), (size, figures.value), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.margins(x=0.2, y=0.15)
    return figure


def sized(entries: Iterable[Entry], metric: str) -> list[Entry]:
    """The entries that have the metric and know their size."""
    return [entry for entry in entries if entry.n_parameters and metric in entry.metrics]


def headline(entries: Sequence[Entry]) -> str | None:
    """The metric that a group is plotted by; None where it has none of them."""
    return next((name for name in HEADLINES if any(name in entry.metrics for entry in entries)), None)


def report_text(groups: Mapping[Group, Sequence[Entry]], plots: Mapping[Group, str]) -> str:
    """REPORT.md: the groups one after the other, with what is best and how far that can be relied on.

    plots: the file name of each group's plot of performance against size, where there is one.
    """
    n = sum(len(entries) for entries in groups.values())
    lines = [f"# {n} models compared", ""]
    if len(groups) > 1:
        lines += [
            f"They fall into {len(groups)} groups that differ in data, task, cutoff or judged rows. Numbers of "
            "different groups are answers to different questions: compare within a group only.",
            "",
        ]
    for number, (group, entries) in enumerate(groups.items(), 1):
        lines += [f"## {f'Group {number}: ' if len(groups) > 1 else ''}{group.title}", ""]
        lines += _group_lines(group, entries, plots.get(group))
    return "\n".join(lines).rstrip() + "\n"


def _group_lines(group: Group, entries: Sequence[Entry], plot: str | None) -> list[str]:
    names, main = metrics_of(entries), headline(entries)
    table = [[label(e), e.arm, *(_value(e, name) for name in names), *_size_cells(e)] for e in entries]
    lines = [f"{_rows_text(entries).capitalize()}; rows `{group.rows}`.", ""]
    lines += [*markdown(["run", "arm", *map(column, names), "parameters", "trained", "fit"], table), ""]
    lines += ["### Best by metric", "", *_best_lines(entries, names), ""]
    left_out = [] if main is None else [e for e in entries if e not in sized(entries, main) and not e.is_oracle]
    if plot is not None:
        lines += ["### Performance against size", "", f"![{column(main or '')} against parameters]({plot})", ""]
    if left_out:
        why = "a model without counted parameters, or a run that did not record them"
        lines += [f"Without a known size ({why}): {', '.join(map(label, left_out))}.", ""]
    differences = _differences(entries)
    if differences:
        lines += ["### What differs between the runs", "", *differences, ""]
    return lines


def _best_lines(entries: Sequence[Entry], names: Sequence[str]) -> list[str]:
    lines = []
    for name in names:
        best = best_of(entries, name)
        if not best:
            continue
        way = "higher" if direction(name) else "lower"
        others = [entry for entry in not_told_apart(entries, best[0], name) if entry not in best]
        doubt = f"; its interval overlaps that of {', '.join(map(label, others))}" if others else ""
        winners = ", ".join(map(label, best))
        lines.append(f"- **{column(name)}** ({way} is better): {winners}, {best[0].metrics[name]}{doubt}")
    if any(figures.lower is not None for entry in entries for figures in entry.metrics.values()):
        lines += [
            "",
            "Intervals are 95%, over resampled patients. Where two overlap this table does not say which model is "
            "better: run both in one benchmark with `benchmark.reference`, which compares them on the same resamples.",
        ]
    return lines or ["No metric here has a known better direction."]


def _differences(entries: Sequence[Entry]) -> list[str]:
    """A table of the hyperparameters that several entries have, with different values."""
    models = [entry for entry in entries if entry.settings]
    values: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for entry in models for key in entry.settings):
        known = [entry.settings[key] for entry in models if key in entry.settings]
        if len(known) > 1 and any(value != known[0] for value in known):
            values[key] = [_short(entry.settings[key]) if key in entry.settings else "–" for entry in models]
    rows = [[f"`{key}`", *cells] for key, cells in values.items()]
    more = [f"\n{len(rows) - _SHOWN_DIFFERENCES} more keys differ."] if len(rows) > _SHOWN_DIFFERENCES else []
    return [*markdown(["key", *map(label, models)], rows[:_SHOWN_DIFFERENCES]), *more] if rows else []


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def label(entry: Entry) -> str:
    """What a table calls the entry."""
    return entry.name if entry.k is None else f"{entry.name} (k = {entry.k})"


def column(metric: str) -> str:
    """A metric as a heading: `AUROC`, and `loss (tuning)`."""
    split, _, name = metric.partition("/")
    return heading(name) if split == "held_out" else f"{heading(name)} ({split})"


def _line(number: int, entry: Entry, names: Sequence[str]) -> dict[str, Any]:
    group = entry.group
    told: dict[str, Any] = {"group": number, "run": entry.name, "arm": entry.arm, **group._asdict()}
    told |= {"n_rows": entry.n_rows, "k": entry.k, "n_parameters": entry.n_parameters}
    told |= {"n_trainable_parameters": entry.n_trained, "fit_seconds": entry.fit_seconds}
    for name in names:
        figures = entry.metrics.get(name)
        told |= {name: None, f"{name}_lower": None, f"{name}_upper": None}
        if figures is not None:
            told |= {name: figures.value, f"{name}_lower": figures.lower, f"{name}_upper": figures.upper}
    return told


def _rows_text(entries: Sequence[Entry]) -> str:
    judged = {entry.n_rows for entry in entries if entry.n_rows is not None}
    models = sum(not entry.is_oracle for entry in entries)
    rows = f" on {max(judged):,} held_out rows" if judged else ""
    return f"{models} {'model' if models == 1 else 'models'}{rows}"


def _value(entry: Entry, name: str) -> str:
    return str(entry.metrics[name]) if name in entry.metrics else "–"


def _size_cells(entry: Entry) -> list[str]:
    sizes = ["–" if n is None else f"{n:,}" for n in (entry.n_parameters, entry.n_trained)]
    seconds = entry.fit_seconds
    took = "–" if seconds is None else f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
    return [*sizes, took]


def _short(value: Any) -> str:
    """A setting's value; of a path its last part."""
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) and value.startswith("/") else str(value)


def _overlap(one: Figures, other: Figures) -> bool:
    if one.lower is None or one.upper is None or other.lower is None or other.upper is None:
        return False
    return one.lower <= other.upper and other.lower <= one.upper
