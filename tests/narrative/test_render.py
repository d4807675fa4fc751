"""Rows in, narratives out: every row once, whatever the order, and whole oldest events go when tokens are short."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.narrative import STYLES, get_style, tell
from epicrisis.settings.problems import InputError
from tests.narrative.histories import EVENT_SCHEMA, NOW, count_words, history, narrator_of, rows_of, tables, told_in

FEW = [
    (None, "GENDER//F"),
    ("1990-01-01", "MEDS_BIRTH"),
    ("2019-01-01", "first event"),
    ("2020-06-01", "second event"),
    ("2020-06-01", "third event"),
    ("2020-06-14", "fourth event"),
]


def test_rows_come_back_in_their_order_each_once_with_or_without_events():
    told = told_in("timeline", pl.concat([history(FEW, 2), history(FEW[2:], 7)]), rows_of(7, 5, 2))
    assert told["subject_id"].to_list() == [7, 5, 2]
    assert told["n_events"].to_list() == [4, 0, 6]
    assert told["narrative"][1] == "Patient: no history."
    assert told["narrative"][0].startswith("17 months before: first event\n")
    assert told.schema["n_events_dropped"] == pl.UInt32


def test_header_alone_where_nothing_is_dated():
    told = told_in("timeline", history(FEW[:2]), rows_of(1))
    assert told["narrative"].item() == "Patient: 30-year-old woman."


@pytest.mark.parametrize(
    ("birth", "age"),
    [
        ("2020-06-15 03:00", "0-month-old"),
        ("2020-05-16", "0-month-old"),
        ("2020-05-15", "1-month-old"),
        ("2018-06-16", "23-month-old"),
        ("2018-06-15", "2-year-old"),
        ("2002-06-16", "17-year-old"),
        ("1957-06-15", "63-year-old"),
    ],
)
def test_age_is_counted_in_completed_months_and_years_at_the_prediction_time(birth, age):
    told = told_in("timeline", history([(birth, "MEDS_BIRTH"), (None, "GENDER//M")]), rows_of(1))
    noun = "man" if age.startswith("63") else "boy"
    assert told["narrative"].item() == f"Patient: {age} {noun}."


@pytest.mark.parametrize(
    ("facts", "header"),
    [
        ([(None, "GENDER//F")], "Patient: woman."),
        ([("1990-01-01", "MEDS_BIRTH")], "Patient: 30 years old."),
        ([("2019-05-01", "MEDS_BIRTH")], "Patient: 13 months old."),
        ([(None, "GENDER//X")], "Patient: sex: X."),
        ([(None, "MEDS_BIRTH")], "Patient: no history."),
        ([(None, "RACE//white"), (None, "ETHNICITY//irish")], "Patient: race: White; Irish."),
    ],
)
def test_header_tells_what_is_known_and_nothing_else(facts, header):
    assert told_in("timeline", history(facts), rows_of(1))["narrative"].item() == header


@pytest.mark.parametrize(
    ("before", "heading"),
    [
        (timedelta(0), "last hour"),
        (timedelta(minutes=59), "last hour"),
        (timedelta(hours=1), "1 hour before"),
        (timedelta(hours=23, minutes=59), "23 hours before"),
        (timedelta(days=1), "1 day before"),
        (timedelta(days=13, hours=23), "13 days before"),
        (timedelta(days=14), "2 weeks before"),
        (timedelta(days=60), "8 weeks before"),
        (timedelta(days=61), "2 months before"),
        (timedelta(days=730), "23 months before"),
        (timedelta(days=731), "2 years before"),
        (timedelta(days=36525), "100 years before"),
    ],
)
def test_headings_round_down_to_whole_units(before, heading):
    told = told_in("timeline", history([(str(NOW - before), "an event")]), rows_of(1))
    assert told["narrative"].item() == f"{heading}: an event"


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)))
def test_what_is_older_never_reads_as_nearer(hours):
    lengths = {"hour": 1, "day": 24, "week": 168, "month": 730.5, "year": 8766}

    def told_hours(distance: int) -> float:
        event = history([(str(NOW - timedelta(hours=distance)), "an event")])
        heading = told_in("timeline", event, rows_of(1))["narrative"].item().partition(" before")[0]
        number, _, unit = heading.partition(" ")
        return int(number) * lengths[unit.rstrip("s")] if number.isdigit() else 0.0

    near, far = sorted(hours)
    assert told_hours(near) <= told_hours(far) <= far


def many(seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events of 30 rows at whole hours, and the rows; ties in time keep an order of their own."""
    numbers = pl.int_range(600, eager=True)
    hour = (numbers * 7919 + seed) % 5000
    frame = pl.DataFrame({"subject_id": numbers % 30, "hour": hour, "n": numbers}).sort("subject_id", "hour", "n")
    events = frame.select(
        pl.col("subject_id").cast(pl.Int64),
        prediction_time=pl.lit(NOW),
        time=pl.lit(NOW) - pl.duration(hours=5000 - pl.col("hour") // 40 * 40),
        code=pl.format("event {}", pl.col("n") % 17),
        numeric_value=pl.when(pl.col("n") % 3 == 0).then(pl.col("n") / 10).cast(pl.Float32),
        text_value=pl.lit(None, pl.String),
        unit=pl.lit("mg"),
    )
    return events.sort("subject_id", "time", maintain_order=True), rows_of(*range(30))


@pytest.mark.parametrize("style", STYLES)
def test_order_of_rows_and_of_subjects_in_the_history_changes_nothing(style):
    events, rows = many()
    told = told_in(style, events, rows)
    blocks = events.partition_by("subject_id", maintain_order=True)
    moved = pl.concat(blocks[::-1]).sort("time", maintain_order=True)
    again = told_in(style, moved, rows.sample(fraction=1, shuffle=True, seed=1))
    assert again.sort("subject_id").equals(told)


def events_told(text: str) -> list[str]:
    pieces = [re.sub(r"^.* before: | \(.*", "", piece) for piece in text.replace("\n", "; ").split("; ")]
    return [piece for piece in pieces if "event" in piece]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("max_tokens", [1, 8, 20, 60, 150, 10_000])
def test_budget_keeps_the_latest_events_whole(style, max_tokens):
    events, rows = many()
    whole = told_in(style, events, rows)
    cut = told_in(style, events, rows, max_tokens=max_tokens)
    assert (cut["n_events"] == 20).all()
    newest_first = get_style(style).sections[-1].newest_first
    for full, short, dropped in zip(whole["narrative"], cut["narrative"], cut["n_events_dropped"], strict=True):
        assert (dropped == 0) == (full == short)
        all_events = events_told(full)
        if dropped and dropped == len(all_events):
            assert short == get_style(style).cut
            continue
        assert count_words(pa.array([short], pa.large_string()))[0] <= max_tokens
        kept = all_events[: len(all_events) - dropped] if newest_first else all_events[dropped:]
        assert events_told(short) == kept


def test_the_least_important_section_goes_first():
    facts = [(None, "GENDER//F"), ("2020-06-01", "old"), ("2020-06-02", "lab", 5.0, "mg"), ("2020-06-14", "new")]
    told = {
        budget: told_in("visits", history(facts), rows_of(1), max_tokens=budget)["narrative"].item()
        for budget in (30, 21, 12, 3)
    }
    assert told[30].splitlines() == [
        *["# Patient", "woman.", "# Latest values", "lab 5 mg (13 days before)"],
        *["# Visits, latest first", "## 1 day before", "new", "## 2 weeks before", "old"],
    ]
    assert told[21] == told[30].removesuffix("\n## 2 weeks before\nold")
    assert told[12] == told[21].removesuffix("\n# Visits, latest first\n## 1 day before\nnew")
    assert told[3] == "# Patient\nwoman."


def test_each_code_once_with_its_latest_value():
    lab = [("2020-06-01", "lab", 5.0), ("2020-06-01", "cough"), ("2020-06-14", "lab", 7.0), ("2020-06-14", "lab", 8.0)]
    told = told_in("recent_unique", history(lab), rows_of(1))
    assert told["narrative"].item() == "1 day before: lab 8\n2 weeks before: cough"
    assert told.select("n_events", "n_events_dropped").row(0) == (4, 0)


def test_a_visit_is_told_forwards_and_the_latest_visit_first():
    events = [
        ("2020-01-01 09:00", "VISIT_START//inpatient"),
        ("2020-01-03 09:00", "cough"),
        ("2020-01-04 09:00", "VISIT_END//inpatient"),
        ("2020-01-05 09:00", "call"),
        ("2020-01-06 09:00", "another call"),
        ("2020-05-01 09:00", "VISIT_START//inpatient"),
        ("2020-05-03 09:00", "rash"),
        ("2020-06-03 09:00", "long after a visit whose end is not recorded"),
    ]
    told = told_in("visits", history(events), rows_of(1))["narrative"].item()
    assert told.splitlines() == [
        "# Visits, latest first",
        "## 12 days before",
        "long after a visit whose end is not recorded",
        "## 6 weeks before",
        "inpatient visit starts; rash",
        "## 5 months before",
        "another call",
        "## 5 months before",
        "call",
        "## 5 months before",
        "inpatient visit starts; cough; inpatient visit ends",
    ]


def test_values_are_flagged_where_their_range_is_known(tmp_path):
    lookups = tables(tmp_path, lab="code,term,unit,low,high\nNA,Sodium,mmol/L,135,145\nK,Potassium,mmol/L,3.5,5\n")
    events = [
        *[("2020-06-14", "NA", 130.0, "mmol/L"), ("2020-06-14", "K", 5.0, "mmol/L"), ("2020-06-13", "CL", 100.0)],
        *[("2020-06-13", "K", 9.0, "mmol/L"), ("2020-06-12", "Other", 1.0, "mg/dL")],
    ]
    told = told_in("visits", history(events), rows_of(1), lookups)["narrative"].item()
    assert told.splitlines() == [
        "# Latest values",
        "Potassium 5 mmol/L (normal, 1 day before)",
        "Sodium 130 mmol/L (low, 1 day before)",
        "CL 100 (2 days before)",
        "Other 1 mg/dL (3 days before)",
    ]


def test_budget_cuts_where_the_sum_of_the_parts_says():
    # Header 4; each heading 4, as in "1 day before:"; each event 2; ";" between events of one group 1.
    for max_tokens, kept in ((9, 0), (10, 1), (15, 1), (16, 2), (18, 2), (19, 3), (24, 3), (25, 4)):
        told = told_in("timeline", history(FEW), rows_of(1), max_tokens=max_tokens)
        assert told["n_events_dropped"].item() == 4 - kept
        assert told["narrative"].item().startswith("Patient: 30-year-old woman.")
        assert len(events_told(told["narrative"].item())) == kept


def test_a_group_cut_in_two_keeps_its_heading():
    told = told_in("timeline", history(FEW), rows_of(1), max_tokens=16)
    assert told["narrative"].item() == (
        "Patient: 30-year-old woman.\n2 weeks before: third event\n1 day before: fourth event"
    )


def test_a_gap_after_nothing_is_not_told():
    told = told_in("flat", history(FEW), rows_of(1), max_tokens=15)
    assert told["narrative"].item() == "Demographic Gender Female; Demographic Age 30; fourth event"


def test_each_distinct_piece_is_counted_once():
    counted: list[str] = []

    def count(texts: pa.LargeStringArray) -> np.ndarray:
        counted.extend(texts.to_pylist())
        return count_words(texts)

    events, rows = many()
    events = events.with_columns(code=pl.lit("same"), numeric_value=pl.lit(None, pl.Float32))
    told = tell(events, rows, narrator_of(events), count_tokens=count, max_tokens=10_000)
    assert told.table["n_events_dropped"].sum() == 0
    assert len(counted) == len(set(counted))
    assert {text for text in counted if "same" in text} == {" same;", " same\n", " same"}


def test_pieces_are_cut_where_tokenizers_cut():
    events, rows = many()
    for style in STYLES:
        assembly = tell(events, rows, narrator_of(events, style=style)).assembly
        texts = assembly.texts.to_pylist()
        assert len(set(texts)) == len(texts)
        for start, stop in pairwise(assembly.bounds):
            pieces = [texts[piece] for piece in assembly.pieces[start:stop]]
            assert not any(piece.endswith(" ") for piece in pieces)
            assert not pieces[0].startswith(" ")
            for before, after in pairwise(pieces):
                assert after[0].isspace() != before.endswith("\n")
                assert after.lstrip(" ") == after[after.startswith(" ") :]


def test_events_of_several_prediction_times_stay_apart():
    early = datetime(2019, 6, 15)
    both = pl.concat([history(FEW[:3], now=early), history(FEW)])
    rows = pl.concat([rows_of(1), rows_of(1, now=early)])
    told = told_in("timeline", both, rows)
    assert told["narrative"][1] == "Patient: 29-year-old woman.\n5 months before: first event"
    assert told["n_events"].to_list() == [6, 3]


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="1 rows repeat"):
        told_in("timeline", history(FEW), rows_of(1, 1))
    with pytest.raises(InputError, match="no tokenizer"):
        tell(history(FEW), rows_of(1), narrator_of(history(FEW)), max_tokens=10)
    with pytest.raises(ValueError, match="1 events after"):
        told_in("timeline", history([("2021-01-01", "later")]), rows_of(1))


def test_no_rows_and_no_events_give_an_empty_table():
    told = told_in("timeline", pl.LazyFrame(schema=EVENT_SCHEMA), rows_of())
    assert told.height == 0
    assert told.columns == ["subject_id", "prediction_time", "narrative", "n_events", "n_events_dropped", "style"]


def test_styles_are_found_by_name_and_refused_in_another_version():
    assert get_style("timeline@2") is get_style("timeline")
    with pytest.raises(InputError, match="choose one of: timeline, flat, recent_unique, visits"):
        get_style("novel")
    with pytest.raises(InputError, match="timeline@1 is asked for"):
        get_style("timeline@1")


def test_gaps_need_the_oldest_events_first():
    for style in ("recent_unique", "visits"):
        with pytest.raises(InputError, match=f"{style} tells the latest events first"):
            narrator_of(history(FEW), style=style, dates="gap")
