"""MEDS label folders: which task a table says, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from epicrisis.cohort.labels import read_labels
from epicrisis.settings.problems import InputError

Write = Callable[..., Path]
A, B, C = "2020-01-01", "2020-02-01", "2020-03-01"


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        read_labels(folder)
    return str(error.value)


def test_booleans_are_a_binary_task(labels: Write) -> None:
    read = read_labels(labels([(2, A, True), (1, B, False), (1, A, True)]))
    assert (read.task.name, read.task.kind, read.task.classes) == ("stroke", "binary", ("false", "true"))
    assert read.rows.rows() == [
        (1, datetime(2020, 1, 1), True),
        (1, datetime(2020, 2, 1), False),
        (2, datetime(2020, 1, 1), True),
    ]


def test_the_filled_one_of_all_value_columns_counts(labels: Write) -> None:
    empty = {"integer_value": [None, None], "float_value": pl.Series([None, None], dtype=pl.Float64)}
    folder = labels([(1, A, True), (2, A, False)], **empty, categorical_value=[None, None], extra=["x", "y"])
    assert read_labels(folder).rows.schema["label"] == pl.Boolean


def test_integers_are_classes_in_numeric_order(labels: Write) -> None:
    read = read_labels(labels([(1, A, 10), (2, A, 9), (3, A, 9)], "integer_value"))
    assert (read.task.kind, read.task.classes) == ("multiclass", ("9", "10"))
    assert read.rows["label"].to_list() == ["10", "9", "9"]


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical])
def test_words_one_per_row_are_multiclass(labels: Write, dtype: type) -> None:
    folder = labels([(1, A, None)], categorical_value=pl.Series(["x"], dtype=dtype))
    labels([(1, A, "long"), (2, A, "short")], "categorical_value")
    read = read_labels(folder)
    assert (read.task.kind, read.task.classes) == ("multiclass", ("long", "short"))
    assert read.rows["label"].to_list() == ["long", "short"]


def test_several_rows_per_subject_and_time_are_multilabel(labels: Write) -> None:
    rows = [(1, A, "I10"), (1, A, "E11"), (2, A, "I10"), (3, A, None)]
    read = read_labels(labels(rows, "categorical_value"))
    assert (read.task.kind, read.task.classes) == ("multilabel", ("E11", "I10"))
    assert read.rows["label"].to_list() == [["E11", "I10"], ["I10"], []]
    assert "1 of 3 rows have more than one label" in read.notes[0]


def test_lists_are_multilabel(labels: Write) -> None:
    read = read_labels(labels([(1, A, ["b", "a"]), (2, A, []), (3, A, ["a"])], "categorical_value"))
    assert read.task.kind == "multilabel"
    assert read.rows["label"].to_list() == [["a", "b"], [], ["a"]]


def test_files_of_a_task_are_read_together_however_nested(labels: Write) -> None:
    folder = labels([(1, A, True)])
    (folder / "deep").mkdir()
    other = pl.DataFrame({"patient_id": [2], "prediction_time": [datetime(2020, 1, 1)], "boolean_value": [False]})
    other.with_columns(pl.col("prediction_time").cast(pl.Datetime("ns"))).write_parquet(folder / "deep" / "1.parquet")
    assert read_labels(folder).rows.height == 2


def test_repeated_rows_count_once_and_are_noted(labels: Write) -> None:
    read = read_labels(labels([(1, A, True), (1, A, True), (2, A, False)]))
    assert read.rows.height == 2
    assert read.notes == ["1 repeated label rows were counted once"]


def test_conflicting_rows_are_counted(labels: Write) -> None:
    assert "1 (subject, time) pairs have rows with conflicting labels" in refusal(labels([(1, A, True), (1, A, False)]))
    assert "conflicting labels" in refusal(labels([(1, A, 1), (1, A, 2)], "integer_value"))


def test_floats_are_refused_with_a_way_out(labels: Write) -> None:
    message = refusal(labels([(1, A, 1.5), (2, A, 2.5)], "float_value"))
    assert "regression" in message
    assert "bin the values into categorical_value" in message


def test_two_filled_columns_are_ambiguous(labels: Write) -> None:
    message = refusal(labels([(1, A, True), (2, A, None)], integer_value=[None, 3]))
    assert "ambiguous: boolean_value, integer_value" in message


def test_nulls_are_counted(labels: Write) -> None:
    message = refusal(labels([(1, A, True), (2, None, None), (3, None, True)]))
    assert "2 rows have a null prediction_time" in message
    assert "1 rows have a null boolean_value" in message
    assert "1 rows have a null categorical_value" in refusal(labels([(1, A, "x"), (2, A, None)], "categorical_value"))
    assert "every label value is null" in refusal(labels([(1, A, None)]))


def test_wrong_columns_are_named(labels: Write, tmp_path: Path) -> None:
    folder = labels([(1, A, True)])
    pl.DataFrame({"subject_id": ["a"], "when": [1]}).write_parquet(folder / "0.parquet")
    message = refusal(folder)
    for column in ("subject_id", "prediction_time", "boolean_value or integer_value"):
        assert f"0.parquet: column {column}" in message
    (folder / "0.parquet").write_bytes(b"nothing")
    assert "0.parquet: cannot be read as Parquet" in refusal(folder)


def test_missing_and_empty_folders_are_refused(labels: Write, tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "no label files" in refusal(tmp_path)
    schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime, "boolean_value": pl.Boolean}
    pl.DataFrame(schema=schema).write_parquet(labels([(1, A, True)]) / "0.parquet")
    assert "hold no rows" in refusal(tmp_path / "labels" / "stroke")
