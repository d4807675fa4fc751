"""Learning curves: a metric against the shots of each class, its mean over replicates with their range."""

from __future__ import annotations

import polars as pl
from rich.console import Console
from rich.table import Table

METRICS = ("auroc", "auprc")
"""What curves are drawn of."""


def curves(results: pl.DataFrame, metric: str, oracle: str | None = "oracle") -> pl.DataFrame:
    """arm · k (null: all rows) · replicates · mean · lowest · highest, arms in their order, from few shots to many.

    results: rows of the results table. Replicates in which the metric does not exist are not counted; an arm and k
    without any have null for the rest. The oracle learns nothing, and has no curve.
    """
    order = pl.DataFrame({"arm": results["arm"].unique(maintain_order=True)}).with_row_index("place")
    of_metric = results.filter((pl.col("metric") == metric) & pl.col("arm").ne_missing(oracle))
    value = pl.col("value")
    found = of_metric.group_by("arm", "k").agg(
        replicates=value.count().cast(pl.Int64), mean=value.mean(), lowest=value.min(), highest=value.max()
    )
    return found.join(order, on="arm").sort("place", "k", nulls_last=True).drop("place")


def shots_text(k: int | None) -> str:
    """`8`, or `all`."""
    return "all" if k is None else str(k)


def curve_table(results: pl.DataFrame, metric: str) -> pl.DataFrame:
    """One line per arm and a column of text for each k: `0.712 (0.684 to 0.731)`, the mean and the range."""
    found = curves(results, metric)
    columns = [shots_text(k) for k in found["k"].unique().sort(nulls_last=True)]
    cells: dict[str, dict[str, str]] = {}
    for arm, k, replicates, mean, lowest, highest in found.iter_rows():
        text = "undefined" if mean is None else f"{mean:.3f}"
        text += f" ({lowest:.3f} to {highest:.3f})" if replicates > 1 else ""
        cells.setdefault(arm, {})[shots_text(k)] = text
    rows = [{"arm": arm, **{name: of_arm.get(name) for name in columns}} for arm, of_arm in cells.items()]
    return pl.DataFrame(rows, schema=dict.fromkeys(("arm", *columns), pl.String))


def curves_text(results: pl.DataFrame, metric: str, width: int = 120) -> str:
    """The means as plain text, for SUMMARY.txt."""
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as captured:
        print_curves(results, metric, console)
    return captured.get().rstrip()


def print_curves(results: pl.DataFrame, metric: str, console: Console | None = None) -> None:
    """Print the means over replicates, one line per arm."""
    table = Table(title=f"{metric.upper()} by shots of each class, mean of replicates", title_justify="left")
    found = curve_table(results, metric)
    for name in found.columns:
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=name != "arm")
    for arm, *cells in found.iter_rows():
        table.add_row(arm, *("–" if cell is None else cell.partition(" ")[0] for cell in cells))
    (console or Console()).print(table)
