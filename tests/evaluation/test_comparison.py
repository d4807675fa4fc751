"""Entries side by side: the best by each metric's own direction, groups kept apart, sizes, the report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from epicrisis.evaluation.comparison import (
    Entry,
    Figures,
    Group,
    best_of,
    column,
    comparison_table,
    direction,
    grouped,
    headline,
    metrics_of,
    not_told_apart,
    plot_sizes,
    printed,
    report_text,
    sized,
)

GROUP = Group("demo", "cancer", None, "ab12")
SMALL = Entry(
    "small",
    "behrt",
    GROUP,
    {"held_out/auroc": Figures(0.7, 0.65, 0.75), "held_out/brier": Figures(0.1)},
    n_rows=30,
    n_parameters=500_000,
    n_trained=500_000,
    fit_seconds=90,
    settings={"training.seed": 0, "behrt.layers": 2},
)
LARGE = Entry(
    "large",
    "behrt",
    GROUP,
    {"held_out/auroc": Figures(0.74, 0.7, 0.78), "held_out/brier": Figures(0.2), "held_out/new": Figures(3)},
    n_rows=30,
    n_parameters=15_000_000,
    n_trained=400_000,
    fit_seconds=2.5,
    settings={"training.seed": 0, "behrt.layers": 6, "behrt.path": "/home/someone/vectors"},
)
COUNTS = Entry("counts", "xgboost", GROUP, {"held_out/auroc": Figures(0.6, 0.55, 0.64)}, n_rows=30)
ORACLE = Entry("oracle", "oracle", GROUP, {"held_out/auroc": Figures(0.9)}, n_rows=30, is_oracle=True)
ENTRIES = [SMALL, LARGE, COUNTS, ORACLE]


@pytest.mark.parametrize(
    ("metric", "best"),
    [("held_out/auroc", ["large"]), ("held_out/brier", ["small"]), ("held_out/new", []), ("held_out/none", [])],
)
def test_the_best_goes_by_the_metrics_own_direction_and_is_never_the_oracle(metric: str, best: list[str]) -> None:
    assert [entry.name for entry in best_of(ENTRIES, metric)] == best


def test_all_that_tie_are_best_and_what_is_no_number_never_is() -> None:
    tied = replace(COUNTS, metrics={"held_out/auroc": Figures(0.74)})
    nothing = replace(COUNTS, name="nan", metrics={"held_out/auroc": Figures(float("nan"))})
    assert [entry.name for entry in best_of([nothing, LARGE, tied], "held_out/auroc")] == ["large", "counts"]


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("tuning/loss", False),
        ("held_out/ece_calibrated", False),
        ("held_out/brier@365", False),
        ("held_out/c_index", True),
        ("held_out/auprc:C50", True),
        ("held_out/seconds", None),
    ],
)
def test_every_metric_has_its_direction_or_none(metric: str, higher: bool | None) -> None:
    assert direction(metric) is higher


def test_overlapping_intervals_do_not_tell_models_apart() -> None:
    assert [entry.name for entry in not_told_apart(ENTRIES, LARGE, "held_out/auroc")] == ["small"]
    assert not_told_apart(ENTRIES, SMALL, "held_out/brier") == []


def test_other_rows_or_another_cutoff_are_another_group() -> None:
    other = replace(COUNTS, group=GROUP._replace(rows="cd34"))
    cut = replace(COUNTS, group=GROUP._replace(cutoff_months=12))
    assert [[entry.name for entry in group] for group in grouped([SMALL, other, LARGE, cut]).values()] == [
        ["small", "large"],
        ["counts"],
        ["counts"],
    ]
    assert cut.group.title == "demo · cancer · cutoff 12 months"


def test_the_oracle_of_a_group_is_shown_once() -> None:
    assert [entry.name for entry in grouped([ORACLE, SMALL, ORACLE, LARGE])[GROUP]] == ["oracle", "small", "large"]


def test_the_table_has_a_line_per_model_and_a_column_per_metric_and_bound() -> None:
    of_class = replace(COUNTS, metrics={"held_out/auroc:C50": Figures(0.5), "tuning/auroc": Figures(0.4)})
    table = comparison_table(grouped([SMALL, of_class]))
    assert table["run"].to_list() == ["small", "counts"]
    assert table["held_out/auroc_lower"].to_list() == [0.65, None]
    assert table["held_out/auroc:C50"].to_list() == [None, 0.5]
    assert table["n_parameters"].to_list() == [500_000, None]
    assert metrics_of([SMALL, of_class]) == ["held_out/auroc", "held_out/brier", "tuning/auroc"]


def test_the_report_says_what_is_best_what_overlaps_and_what_has_no_size() -> None:
    report = report_text(grouped(ENTRIES), {GROUP: "plot.png"})
    assert "| small | behrt | 0.700 (0.650 to 0.750) | 0.100 | – | 500,000 | 500,000 | 1:30 |" in report
    best = "- **AUROC** (higher is better): large, 0.740 (0.700 to 0.780); its interval overlaps that of small"
    assert best in report.splitlines()
    assert "- **Brier** (lower is better): small, 0.100" in report.splitlines()
    assert "**new**" not in report
    assert "![AUROC against parameters](plot.png)" in report
    assert "did not record them): counts." in report
    assert "| `behrt.layers` | 2 | 6 |" in report
    assert "training.seed" not in report
    assert "someone" not in report
    assert "groups" not in report


def test_groups_are_announced() -> None:
    report = report_text(grouped([SMALL, replace(LARGE, group=GROUP._replace(rows="cd34"))]), {})
    assert "They fall into 2 groups" in report
    assert "## Group 2: demo · cancer" in report


def test_the_plot_holds_those_that_know_their_size() -> None:
    axes = plot_sizes(ENTRIES, "held_out/auroc", "demo").axes[0]
    assert axes.get_xscale() == "log"
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[500_000, 0.7]], [[15_000_000, 0.74]]]
    assert [text.get_text() for text in axes.texts] == ["small", "large"]
    assert sized(ENTRIES, "held_out/new") == [LARGE]


@pytest.mark.parametrize(
    ("metrics", "first"),
    [
        ({"tuning/loss": 1, "held_out/auroc": 1}, "held_out/auroc"),
        ({"tuning/loss": 1}, "tuning/loss"),
        ({"x": 1}, None),
    ],
)
def test_a_group_is_plotted_by_what_it_has(metrics: dict[str, Any], first: str | None) -> None:
    assert headline([replace(SMALL, metrics={name: Figures(value) for name, value in metrics.items()})]) == first


def test_shots_are_told_and_tuning_is_named() -> None:
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(printed(GROUP, [replace(SMALL, k=8), LARGE]))
    assert "small (k = 8)" in captured.get()
    assert column("tuning/auroc") == "AUROC (tuning)"
