"""Labels that are days to an event: read as a survival task, or refused with the rows that are wrong counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from epicrisis.cohort import build_cohort, rows_fingerprint
from epicrisis.cohort.labels import read_labels
from epicrisis.cohort.task import FOLLOWED, classes_of_labels, follow_up, kind_of_labels, label_matrix
from epicrisis.settings.problems import InputError

Write = Callable[..., Path]
A, B = "2020-01-01", "2020-02-01"


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        read_labels(folder)
    return str(error.value)


def test_days_with_event_observed_are_a_survival_task(labels: Write) -> None:
    folder = labels([(2, A, 30.0), (1, B, 0.0), (1, A, 400.5)], "float_value", event_observed=[True, True, False])
    read = read_labels(folder)
    assert (read.task.name, read.task.kind, read.task.classes) == ("stroke", "survival", ())
    assert read.rows.schema["label"] == FOLLOWED
    assert kind_of_labels(read.rows) == "survival"
    days, observed = follow_up(read.rows)
    assert days.tolist() == [400.5, 0.0, 30.0]
    assert observed.tolist() == [False, True, True]


def test_repeated_rows_count_once_and_others_conflict(labels: Write) -> None:
    read = read_labels(labels([(1, A, 3.0), (1, A, 3.0)], "float_value", event_observed=[True, True]))
    assert read.rows.height == 1
    message = refusal(labels([(1, A, 3.0), (1, A, 3.0)], "float_value", event_observed=[True, False]))
    assert "1 (subject, time) pairs have rows with conflicting labels" in message


def test_what_are_no_days_is_counted(labels: Write) -> None:
    days = [-1.0, np.nan, np.inf, 5.0]
    rows = [(subject, A, value) for subject, value in enumerate(days)]
    assert "3 rows have a float_value that is negative, NaN or infinite" in refusal(
        labels(rows, "float_value", event_observed=[True] * 4)
    )


def test_nulls_are_counted(labels: Write) -> None:
    message = refusal(labels([(1, A, 3.0), (2, A, None)], "float_value", event_observed=[None, True]))
    assert "1 rows have a null float_value" in message
    assert "1 rows have a null event_observed" in message


def test_floats_alone_are_refused_with_event_observed_as_a_way_out(labels: Write) -> None:
    for others in ({}, {"event_observed": pl.Series([None], dtype=pl.Boolean)}):
        message = refusal(labels([(1, A, 1.5)], "float_value", **others))
        assert "add a Boolean column event_observed" in message


def test_an_event_observed_of_another_type_is_named(labels: Write) -> None:
    assert "column event_observed is missing or of a wrong type" in refusal(
        labels([(1, A, 1.5)], "float_value", event_observed=["yes"])
    )


def test_times_to_an_event_have_no_classes(labels: Write) -> None:
    rows = read_labels(labels([(1, A, 1.5)], "float_value", event_observed=[True])).rows
    for ask in (lambda: classes_of_labels(rows), lambda: label_matrix(rows, ())):
        with pytest.raises(InputError, match="times to an event"):
            ask()


def test_a_cohort_of_them_and_what_its_rows_hash_to(meds: Write, labels: Write) -> None:
    root = meds([(1, A, "X"), (2, A, "X"), (1, B, "Y"), (2, B, "Y")])

    def cohort(days: float, observed: bool) -> str:
        folder = labels([(1, A, days), (2, A, 9.0)], "float_value", event_observed=[observed, True])
        built = build_cohort(root, labels_dir=folder)
        assert built.task.kind == "survival"
        return rows_fingerprint(built.rows)

    assert cohort(3.0, True) == cohort(3.0, True)
    assert len({cohort(3.0, True), cohort(3.0, False), cohort(4.0, True)}) == 3
