"""The predictions table: exactly five columns, valid values, the same rows for every arm."""

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.evaluation.predictions import (
    SCHEMA,
    binary_predictions,
    check_rows_match,
    read_predictions,
    rows_hash,
    with_split,
    write_predictions,
)
from epicrisis.settings.problems import InputError

ROWS = pl.DataFrame(
    {
        "subject_id": [1, 1, 2],
        "prediction_time": [datetime(2020, 1, 1), datetime(2021, 1, 1), datetime(2020, 1, 1)],
        "split": ["held_out"] * 3,
        "label": [False, True, True],
    }
)


def test_the_table_is_the_five_columns() -> None:
    table = binary_predictions(ROWS, np.array([0.2, 0.5, 0.1]))
    assert table.schema == SCHEMA
    assert table.columns == [
        *("subject_id", "prediction_time", "boolean_value"),
        *("predicted_boolean_value", "predicted_boolean_probability"),
    ]
    assert table["predicted_boolean_value"].to_list() == [False, True, False]
    assert table["boolean_value"].to_list() == [False, True, True]


def test_scores_per_class_are_taken_too() -> None:
    scores = np.array([[0.8, 0.2], [0.5, 0.5], [0.9, 0.1]])
    assert binary_predictions(ROWS, scores).equals(binary_predictions(ROWS, scores[:, 1]))


def test_written_and_read_again(tmp_path: Path) -> None:
    table = binary_predictions(ROWS, np.array([0.2, 0.5, 1 / 3]))
    path = write_predictions(table, tmp_path / "predictions" / "held_out.parquet")
    assert read_predictions(path).equals(table)
    assert [file.name for file in path.parent.iterdir()] == ["held_out.parquet"]


@pytest.mark.parametrize(
    ("probability", "what"),
    [
        (np.array([0.2, np.nan, 0.1]), "1 rows hold a probability that is NaN"),
        (np.array([0.2, 1.5, -0.1]), "2 rows hold a probability that is NaN or outside"),
        (np.array([0.2, 0.5]), r"3 rows but probabilities of shape \(2,\)"),
    ],
)
def test_bad_probabilities_are_refused(probability: np.ndarray, what: str) -> None:
    with pytest.raises(InputError, match=what):
        binary_predictions(ROWS, probability)


def test_labels_that_are_not_boolean_are_refused() -> None:
    with pytest.raises(InputError, match="label is String"):
        binary_predictions(ROWS.with_columns(label=pl.lit("a")), np.full(3, 0.5))


def test_bad_tables_are_refused_with_all_their_problems(tmp_path: Path) -> None:
    path = tmp_path / "held_out.parquet"
    with pytest.raises(InputError, match="there is no predictions table"):
        read_predictions(path)
    path.write_bytes(b"not a parquet file")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_predictions(path)
    table = binary_predictions(ROWS, np.full(3, 0.5))
    table.drop("predicted_boolean_value").write_parquet(path)
    with pytest.raises(InputError, match="exactly these columns"):
        read_predictions(path)
    pl.concat([table, table[:1].with_columns(boolean_value=pl.lit(None, pl.Boolean))]).write_parquet(path)
    with pytest.raises(InputError) as refused:
        read_predictions(path)
    assert [problem.what for problem in refused.value.problems] == [
        "1 rows hold an empty value",
        "2 rows repeat a subject and time",
    ]


@given(st.permutations(range(3)))
def test_the_hash_of_rows_knows_no_order(order: list[int]) -> None:
    table = binary_predictions(ROWS, np.array([0.2, 0.5, 0.1]))
    assert rows_hash(table[order]) == rows_hash(ROWS) == rows_hash(ROWS[order])


@given(st.integers(0, 2), st.sampled_from(["subject", "time", "label"]))
@settings(max_examples=20)
def test_the_hash_of_rows_sees_any_change(row: int, change: str) -> None:
    here = pl.int_range(pl.len()) == row
    changed = {
        "subject": pl.when(here).then(pl.lit(9)).otherwise("subject_id").alias("subject_id"),
        "time": pl.when(here)
        .then(pl.col("prediction_time").dt.offset_by("1us"))
        .otherwise("prediction_time")
        .alias("prediction_time"),
        "label": pl.when(here).then(~pl.col("label")).otherwise("label").alias("label"),
    }[change]
    assert rows_hash(ROWS.with_columns(changed)) != rows_hash(ROWS)


def test_arms_that_left_out_rows_or_changed_labels_are_named_by_count() -> None:
    whole = binary_predictions(ROWS, np.full(3, 0.5))
    relabelled = whole.with_columns(~pl.col("boolean_value"))
    check_rows_match({"good": whole, "reordered": whole[::-1]}, ROWS)
    with pytest.raises(InputError) as refused:
        check_rows_match({"good": whole, "short": whole[:2], "other": relabelled}, ROWS)
    short, other = refused.value.problems
    assert (short.where, other.where) == ("predictions of short", "predictions of other")
    assert "2 rows for 3 labels: 1 labelled rows are missing, 0 rows have no label" in short.what
    assert "3 carry another label" in other.what


def test_the_split_comes_from_the_cohort() -> None:
    table = binary_predictions(ROWS, np.full(3, 0.5))
    assert with_split(table, ROWS)["split"].to_list() == ["held_out"] * 3
    with pytest.raises(InputError, match="1 rows are not in the cohort"):
        with_split(table, ROWS[:2])
