"""The visibility rule: what lies after the bound changes no byte of any history, and what lies before it does."""

from __future__ import annotations

import io
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_meds import write_meds

from epicrisis.cohort import build_cohort, visible

NOON = datetime(2020, 6, 15, 12)
EVENTS = pl.LazyFrame(
    {
        "subject_id": [1, 1, 1, 1, 2],
        "time": [None, datetime(2020, 6, 15), NOON, datetime(2020, 6, 16), NOON],
        "code": ["SEX", "MORNING", "NOON", "NEXT_DAY", "OTHER"],
    }
)


def seen(rows: pl.DataFrame, strict: bool) -> list[str]:
    return visible(EVENTS, rows, strict).collect().sort("subject_id", "prediction_time", "time")["code"].to_list()


def test_static_and_earlier_events_and_those_at_the_time_itself_are_seen() -> None:
    rows = pl.DataFrame({"subject_id": [1], "prediction_time": [NOON]})
    assert seen(rows, strict=False) == ["SEX", "MORNING", "NOON"]


def test_the_strict_bound_excludes_the_time_itself() -> None:
    rows = pl.DataFrame({"subject_id": [1], "prediction_time": [NOON]})
    assert seen(rows, strict=True) == ["SEX", "MORNING"]


def test_the_strict_bound_at_midnight_excludes_the_whole_cutoff_day() -> None:
    rows = pl.DataFrame({"subject_id": [1], "prediction_time": [datetime(2020, 6, 15)]})
    assert seen(rows, strict=True) == ["SEX"]
    assert seen(rows, strict=False) == ["SEX", "MORNING"]


def test_each_row_of_a_subject_has_its_own_history() -> None:
    rows = pl.DataFrame({"subject_id": [1, 1], "prediction_time": [datetime(2020, 6, 14), datetime(2021, 1, 1)]})
    found = visible(EVENTS, rows, strict=False).collect()
    assert found.columns == ["subject_id", "prediction_time", "time", "code"]
    assert found.group_by("prediction_time").len().sort("prediction_time")["len"].to_list() == [1, 4]


# A subject with two predictions; edits may fall anywhere, and the property says which of them may be noticed.
FIRST, SECOND = datetime(2020, 3, 1), datetime(2020, 9, 1)
HISTORY = [
    (1, None, "GENDER//F"),
    (1, "1960-01-01", "MEDS_BIRTH"),
    (1, "2020-02-01", "LOINC//718-7", 13.0),
    (1, "2020-03-01", "ICD10CM//I10"),
    (1, "2020-08-31T23:59:59", "ICD10CM//E11"),
    (1, "2020-10-01", "ICD10CM//C50"),
    (1, "2021-01-01", "LOINC//718-7", 9.0),
    (2, "2020-01-01", "ICD10CM//J45"),
    (2, "2021-01-01", "ICD10CM//J45"),
]
moments = st.datetimes(datetime(2019, 1, 1), datetime(2022, 1, 1)) | st.sampled_from(
    [FIRST, SECOND, SECOND - timedelta(microseconds=1), SECOND + timedelta(microseconds=1)]
)
edits = st.lists(
    st.one_of(
        st.tuples(st.just("add"), moments, st.integers(0, 9)),
        st.tuples(st.just("delete"), st.integers(2, 6), st.just(0)),
        st.tuples(st.just("edit"), st.integers(2, 6), st.integers(0, 9)),
    ),
    max_size=4,
)


def edited(changes: list[tuple]) -> tuple[list[tuple], bool]:
    """The record after the edits, and whether any touched an event dated before the second prediction."""
    record: list[tuple | None] = list(HISTORY)
    touched = False
    for kind, where, value in changes:
        if kind == "add":
            record.append((1, where.isoformat(), f"NEW//{value}", float(value)))
            touched |= where < SECOND
        elif record[where] is not None:
            time = datetime.fromisoformat(HISTORY[where][1])
            record[where] = None if kind == "delete" else (*HISTORY[where][:2], f"EDITED//{value}", 1.0)
            touched |= time < SECOND
    return [event for event in record if event is not None], touched


def history_bytes(events: list[tuple]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        root = write_meds(Path(folder) / "meds", [*events, (1, "2022-06-01", "LAST")], {})
        rows = {"subject_id": [1, 1, 2], "index_date": [FIRST, SECOND, SECOND], "boolean_value": [True, True, False]}
        pl.DataFrame(rows).write_parquet(Path(folder) / "index.parquet")
        cohort = build_cohort(root, index_dates_filepath=Path(folder) / "index.parquet")
        stream = io.BytesIO()
        cohort.history(cohort.rows).events().collect().write_ipc(stream)
        return stream.getvalue()


@given(edits)
@settings(max_examples=60, deadline=None)
def test_no_edit_after_the_bound_changes_a_byte_and_every_edit_before_it_does(changes: list[tuple]) -> None:
    events, touched = edited(changes)
    assert (history_bytes(events) != history_bytes(list(HISTORY))) == touched


@pytest.mark.parametrize(("time", "noticed"), [("2020-08-31T23:59:59", True), ("2020-09-01", False)])
def test_the_property_above_can_fail(time: str, noticed: bool) -> None:
    changed = [*HISTORY, (1, time, "NEW")]
    assert (history_bytes(changed) != history_bytes(list(HISTORY))) == noticed
