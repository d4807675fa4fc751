"""Curves over shots by hand, drawn as they are; class metrics under their headings; few subjects not counted out."""

import polars as pl
import pytest
from tests.evaluation.test_class_predictions import cohort

from epicrisis.evaluation.few_shot import curve_table, curves, curves_text
from epicrisis.evaluation.judge import RESULTS_SCHEMA, Scope, judge
from epicrisis.evaluation.plots import plot_few_shot
from epicrisis.evaluation.predictions import class_predictions
from epicrisis.evaluation.report import ReportContent, heading, render
from epicrisis.narrative.coverage import hide_few


def results(*lines: tuple[str, int | None, int | None, float | None], metric: str = "auroc") -> pl.DataFrame:
    """arm, k, replicate, value."""
    rows = [{"arm": arm, "k": k, "replicate": r, "metric": metric, "value": value} for arm, k, r, value in lines]
    return pl.DataFrame(rows, schema=RESULTS_SCHEMA)


RESULTS = pl.concat(
    [
        results(("b", 1, 1, 0.5), ("b", 1, 2, 0.75), ("a", 1, 1, None), ("a", 1, 2, 0.5), ("b", 8, 1, None)),
        results(("oracle", None, None, 0.9), ("b", None, None, 0.8), ("a", None, None, 0.7)),
        results(("b", 1, 1, 0.1), metric="auprc"),
    ]
)


def test_means_and_ranges_over_replicates() -> None:
    assert curves(RESULTS, "auroc").rows() == [
        ("b", 1, 2, 0.625, 0.5, 0.75),
        ("b", 8, 0, None, None, None),
        ("b", None, 1, 0.8, 0.8, 0.8),
        ("a", 1, 1, 0.5, 0.5, 0.5),
        ("a", None, 1, 0.7, 0.7, 0.7),
    ]
    assert curves(RESULTS, "auprc").rows() == [("b", 1, 1, 0.1, 0.1, 0.1)]


def test_the_table_has_a_column_for_each_k() -> None:
    table = curve_table(RESULTS, "auroc")
    assert table.columns == ["arm", "1", "8", "all"]
    assert table.rows() == [("b", "0.625 (0.500 to 0.750)", "undefined", "0.800"), ("a", "0.500", None, "0.700")]
    text = curves_text(RESULTS, "auroc")
    assert "AUROC by shots of each class" in text
    assert "0.625" in text
    assert "(" not in text


def test_curves_are_drawn_with_all_rows_apart() -> None:
    figure = plot_few_shot(RESULTS, "auroc", "demo")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "8", "all"]
    assert axes.get_xticks() == pytest.approx([0, 3, 4.5])
    lines = [line.get_xydata().tolist() for line in axes.lines]
    assert lines[:4] == [[[0, 0.625]], [[4.5, 0.8]], [[0, 0.5]], [[4.5, 0.7]]]
    assert axes.lines[4].get_ydata()[0] == 0.9  # the oracle, level
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["b", "a", "oracle"]
    band = plot_few_shot(
        results(("b", 1, 1, 0.4), ("b", 1, 2, 0.6), ("b", 4, 1, 0.7), ("b", 4, 2, 0.9)), "auroc", "demo"
    ).axes[0]
    assert band.lines[0].get_xydata().ravel() == pytest.approx([0, 0.5, 2, 0.8])
    corners = {tuple(point) for point in band.collections[0].get_paths()[0].vertices.tolist()}
    assert {(0, 0.4), (0, 0.6), (2, 0.7), (2, 0.9)} <= corners


def test_nothing_to_draw_is_drawn_too() -> None:
    assert plot_few_shot(results(), "auroc", "demo").axes[0].lines[:] == []


@pytest.mark.parametrize(("kind", "noun"), [("multiclass", "class"), ("multilabel", "label")])
def test_metrics_of_classes_have_headings_and_are_explained(kind: str, noun: str) -> None:
    rows, probabilities = cohort(kind)[:2]
    table = class_predictions(rows, "xyz", probabilities)
    page = render(ReportContent(judge({"arm": table}, rows, Scope("demo", "task"), n_resamples=20)))
    for part in (
        *("AUROC weighted", "AUROC micro", "AUPRC weighted", "AUPRC micro", "rows with it"),
        *(f"Each {noun} against the rest", "left out of the means", ", each against the rest"),
    ):
        assert part in page, part
    assert "auroc" not in page
    assert heading("ece:C50") == "ECE of C50"
    assert heading("auprc_micro:") == "AUPRC micro"
    assert heading("oracle_lift_share") == "share of oracle's lift"


def test_few_subjects_are_not_counted_out() -> None:
    table = pl.DataFrame(
        {
            "vocabulary": ["A", "B", "C"],
            "n_events": [500, 90, 9],
            "n_subjects": [40, 9, 9],
            "n_subjects_unread": [3, 0, 9],
            "words": [0.5, 1.0, 0.0],
        }
    )
    assert hide_few(table).rows() == [
        ("A", "500", "40", "<10", 0.5),
        ("B", "90", "<10", "0", 1.0),
        ("C", "<10", "<10", "<10", 0.0),
    ]
