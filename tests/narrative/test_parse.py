"""The way back: what a narrative tells is what was in the history, up to the declared precision."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import date, datetime, timedelta
from operator import mul

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.narrative import Narrator, Style, get_style, load_lookups, make_narrator, render
from epicrisis.narrative.book import build_book
from epicrisis.narrative.parse import EVENT_SCHEMA, parse
from epicrisis.narrative.patterns import MISSING
from epicrisis.narrative.times import STEPS, GapLabel, code_words, distance_codes, gap_words, told_before, told_gaps
from epicrisis.narrative.values import CLASS_WORDS
from epicrisis.settings.problems import InputError
from tests.narrative.histories import EVENT_SCHEMA as HISTORY_SCHEMA
from tests.narrative.histories import NOW, codes_table, rows_of
from tests.narrative.nasty import GAPS, described, float32s, texts, vocabularies
from tests.narrative.test_golden import GOLDEN, LOOKUPS, PATIENTS

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def read(text: str, vocabulary: dict[str, str], style: str = "timeline", **how) -> pl.DataFrame:
    lookups = load_lookups(codes=codes_table(*((code, words, None) for code, words in vocabulary.items())))
    codes = pl.Series([*vocabulary, "MEDS_BIRTH", "GENDER//F", "GENDER//M", "RACE//WHITE"])
    book = build_book(codes, lookups, get_style(style))
    return parse([text], book, get_style(style), **how)


VOCABULARY = {"A//1": "Lactate", "A//2": "Anion gap 4", "A//3": "rash", "A//4": "race"}


def test_timeline_is_read_line_by_line():
    text = "Patient: 63-year-old woman; rash.\n2 years before: rash; rash\n3 months before: Lactate 1e-7 mmol/L"
    read_back = read(text, VOCABULARY)
    assert dict(read_back.schema) == EVENT_SCHEMA
    columns = ("position", "section", "group", "code", "numeric_value", "unit", "phrase")
    assert read_back.select(columns).rows() == [
        (0, "header", None, "MEDS_BIRTH", 63.0, "year", "63-year-old woman"),
        (1, "header", None, "GENDER//F", None, None, "63-year-old woman"),
        (2, "header", None, "A//3", None, None, "rash"),
        (3, "body", 0, "A//3", None, None, "rash"),
        (4, "body", 0, "A//3", None, None, "rash"),
        (5, "body", 1, "A//1", pytest.approx(1e-7), "mmol/L", "Lactate 1e-7 mmol/L"),
    ]
    assert read_back["at_least"][3] == timedelta(days=730.5)
    assert read_back["below"][3] == timedelta(days=3 * 365.25)
    assert read_back["date"].null_count() == 6


def test_flat_is_read_item_by_item():
    text = (
        "Demographic Gender Female; Demographic Age 8 months; Demographic Race White; "
        "rash; 3 days later; rash; 12 hours later; Lactate: NEG; 10 years or more later; rash"
    )
    labels = (GapLabel(timedelta(days=3653), None, "10 years or more later"),)
    read_back = read(text, VOCABULARY, "flat", gaps=labels)
    assert read_back.select("section", "group", "code", "text_value", "at_least", "below").rows() == [
        ("header", None, "GENDER//F", None, None, None),
        ("header", None, "MEDS_BIRTH", None, None, None),
        ("header", None, "RACE//WHITE", None, None, None),
        ("body", 0, "A//3", None, None, None),
        ("body", 1, "A//3", None, 3 * DAY, 4 * DAY),
        ("body", 2, "A//1", "NEG", 12 * HOUR, 13 * HOUR),
        ("body", 3, "A//3", None, timedelta(days=3653), None),
    ]
    assert read_back.row(1, named=True)["numeric_value"] == 8
    assert read_back.row(1, named=True)["unit"] == "month"


@pytest.mark.parametrize(
    ("phrase", "code", "number", "text", "unit"),
    [
        ("Lactate", "A//1", None, None, None),
        ("Lactate 0", "A//1", 0.0, None, None),
        ("Lactate -2.5 mmol/L", "A//1", -2.5, None, "mmol/L"),
        ("Lactate 1e+22 10^9/L x 2", "A//1", float(np.float32(1e22)), None, "10^9/L x 2"),
        ("Lactate: 5", "A//1", None, "5", None),
        ("Lactate: 5 mg", "A//1", None, "5", "mg"),
        ("Lactate: <0.5 mmol/L", "A//1", None, "<0.5", "mmol/L"),
        ("Lactate: > 0.5 mmol/L", "A//1", None, "> 0.5", "mmol/L"),
        ('Lactate: "5 days"', "A//1", None, "5 days", None),
        ('Lactate: """', "A//1", None, '"', None),
        ("Lactate: a: b 5", "A//1", None, "a: b 5", None),
        ("Lactate: very high", "A//1", None, "very high", None),
        ("Anion gap 4", "A//2", None, None, None),
        ("Anion gap 4: 9 mEq/L", "A//2", 9.0, None, "mEq/L"),
        ('Anion gap 4: "9" mEq/L', "A//2", None, "9", "mEq/L"),
        ("Anion gap 4: 1e39", "A//2", None, "1e39", None),
        ("Anion gap 4 9", None, None, None, None),
        ("Lactate mmol/L", None, None, None, None),
        ("Lactate 1e39", None, None, None, None),
        ("Lactates", None, None, None, None),
        ("lactate 5", None, None, None, None),
    ],
)
def test_phrases_are_taken_apart(phrase, code, number, text, unit):
    row = read(f"last hour: {phrase}", VOCABULARY).row(0, named=True)
    assert (row["code"], row["numeric_value"], row["text_value"], row["unit"]) == (code, number, text, unit)
    assert row["phrase"] == phrase
    assert (row["at_least"], row["below"]) == (timedelta(0), HOUR)


@pytest.mark.parametrize(
    ("phrase", "value_class", "text"),
    [("Lactate: very high", 4, None), ('Lactate: "very high"', None, "very high"), ("Lactate: higher", None, "higher")],
)
def test_classes_are_read_where_their_words_are_known(phrase, value_class, text):
    row = read(f"last hour: {phrase}", VOCABULARY, class_words=CLASS_WORDS["words"]).row(0, named=True)
    assert (row["code"], row["value_class"], row["text_value"]) == ("A//1", value_class, text)


@pytest.mark.parametrize(
    ("header", "persons"),
    [
        ("woman", [("GENDER//F", None, None)]),
        ("8-month-old boy", [("MEDS_BIRTH", 8.0, "month"), ("GENDER//M", None, None)]),
        ("1 month old", [("MEDS_BIRTH", 1.0, "month")]),
        ("30 years old", [("MEDS_BIRTH", 30.0, "year")]),
        ("race: White", [("RACE//WHITE", None, None)]),
        ("rash; woman", [("A//3", None, None), (None, None, None)]),
    ],
)
def test_persons_are_read_at_the_beginning_of_the_header(header, persons):
    read_back = read(f"Patient: {header}.", VOCABULARY)
    assert read_back.select("code", "numeric_value", "unit").rows() == persons
    assert set(read_back["section"]) == {"header"}


def test_calendar_dates_are_read():
    text = "Patient: woman.\n2020-03-02: rash\n2020-06-03: rash; rash"
    march, june = date(2020, 3, 2), date(2020, 6, 3)
    assert read(text, VOCABULARY, dates="calendar")["date"].to_list() == [None, march, june, june]
    flat = "2020-03-02; rash; 2020-06-03; rash; rash"
    read_back = read(flat, VOCABULARY, "flat", dates="calendar")
    assert read_back.select("date", "group").rows() == [(march, 0), (june, 1), (june, 1)]


def test_narratives_that_tell_nothing_have_no_events():
    book = build_book(pl.Series(["A//1"]), load_lookups(), get_style("timeline"))
    told = ["Patient: no history.", "", "last hour: A//1", "Patient: history left out."]
    read_back = parse(pl.DataFrame({"narrative": told}), book, get_style("timeline"))
    assert read_back.select("narrative", "position", "code").rows() == [(2, 0, "A//1")]


def test_a_text_that_breaks_off_is_read_up_to_there():
    read_back = read("rash; Lactate 5\n2 days before: rash; Lac\n1 day before:", VOCABULARY)
    assert read_back.select("code", "phrase").rows() == [
        ("A//3", "rash"),
        ("A//1", "Lactate 5"),
        ("A//3", "rash"),
        (None, "Lac"),
    ]


def test_what_cannot_be_read_back_is_refused():
    book = build_book(pl.Series(["A//1"]), load_lookups(), get_style("timeline"))
    with pytest.raises(InputError, match="visits@1 tells several codes alike"):
        parse([], book, get_style("visits"))
    with pytest.raises(InputError, match="one of timeline@2, not of flat@2"):
        parse([], book, get_style("flat"))


@pytest.mark.parametrize("style", ["timeline", "flat"])
@pytest.mark.parametrize("patient", PATIENTS)
def test_golden_narratives_are_read_back(patient, style):
    codes = pl.Series([code for events in PATIENTS.values() for _, code, *_ in events]).unique()
    book = build_book(codes, LOOKUPS, get_style(style))
    text = (GOLDEN / f"{patient}.{style}.txt").read_text(encoding="utf-8").rstrip("\n")
    read_back = parse([text], book, get_style(style), gaps=LOOKUPS.gaps)
    assert sorted(read_back["code"]) == sorted(code for _, code, *_ in PATIENTS[patient])
    values = [value for _, _, *rest in PATIENTS[patient] for value in rest[:1]]
    body = read_back.filter(section="body")
    assert body["numeric_value"].drop_nulls().to_list() == [
        np.float32(value) for value in values if not isinstance(value, str)
    ]
    assert body["text_value"].drop_nulls().to_list() == [value for value in values if isinstance(value, str)]


DURATIONS = st.timedeltas(timedelta(0), timedelta(days=40_000))
WHOLE_UNITS = st.builds(mul, st.sampled_from([step.unit for step in STEPS]), st.integers(1, 100))
ALMOST_WHOLE = WHOLE_UNITS.map(lambda duration: duration - timedelta(microseconds=1))


@settings(max_examples=100, deadline=None)
@given(st.lists(DURATIONS | WHOLE_UNITS | ALMOST_WHOLE, min_size=1, max_size=20))
def test_told_distances_and_gaps_hold_the_real_ones(durations):
    series = pl.Series("gap", durations, dtype=pl.Duration("us"))
    words = distance_codes(series).to_frame().select(code_words("gap")).to_series()
    before = told_before((words + " before").fill_null("last hour"))
    assert (before["at_least"] <= series).all(ignore_nulls=False)
    assert (series < before["below"]).all(ignore_nulls=False)
    for labels in (GAPS, (), GAPS[4:8]):
        told = gap_words(series, labels).drop_nulls()
        later = told_gaps(told["words"], labels)
        assert (later["at_least"] <= told["gap"]).all(ignore_nulls=False)
        assert ((told["gap"] < later["below"]) | later["below"].is_null()).all(ignore_nulls=False)


def semicolons_in_headers(style: Style) -> Style:
    """The style with `;` between the facts of its header, which no fact can hold."""
    return replace(style, sections=(replace(style.sections[0], separator=";"), *style.sections[1:]))


def narrator_of(vocabulary: dict[str, str], style: str, dates: str) -> Narrator:
    codes = pl.Series([*vocabulary, "THE//LAST"])
    return make_narrator(codes, described(vocabulary), semicolons_in_headers(get_style(style)), dates)


def folded(text: str | None) -> str | None:
    told = " ".join((text or "").replace(";", ",").split())
    return None if told in MISSING else told


def as_told(code: str, value: float | str | None, unit: str | None) -> tuple:
    """code · numeric_value · text_value · unit as a narrative can tell them."""
    own_unit = folded(unit) or ("mg/dL" if code == "LAB//RESULT//1//mg/dL" else None)
    if isinstance(value, float) and math.isfinite(value):
        return code, float(np.float32(value)) + 0.0, None, own_unit
    text = folded(value) if isinstance(value, str) else None
    measured = text is not None and re.fullmatch(r"([<>=~≤≥+-]+ ?)?\.?\d\S*", text)
    return code, None, text, own_unit if measured else None


offsets = st.sampled_from([HOUR / 4, HOUR / 2, HOUR, 5 * HOUR, DAY, 6 * DAY, 40 * DAY, 800 * DAY])
units = st.sampled_from([None, "", "mg/dL", "10^9/L", "mm Hg", "24 h", "a: b", "9", "%", "x;y", "UNK"])
events_of = st.lists(
    st.tuples(st.one_of(st.none(), offsets), st.integers(0, 7), st.one_of(st.none(), float32s, texts), units),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(vocabularies, events_of, st.sampled_from(["timeline", "flat"]), st.sampled_from(["relative", "gap", "calendar"]))
def test_parse_of_render_is_the_history(vocabulary, drawn, style, dates):
    codes = sorted(vocabulary)
    events = [(back, codes[which % len(codes)], value, unit) for back, which, value, unit in drawn]
    # The last fact of a header loses the full stops at its end.
    static = [event for event in events if event[0] is None] + [(None, "THE//LAST", None, None)]
    dated = sorted((event for event in events if event[0] is not None), key=lambda event: -event[0])
    narrator = narrator_of(vocabulary, style, dates)
    told = render(history_of(static + dated), rows_of(1), narrator)["narrative"]
    read_back = parse(told, narrator.book, narrator.style, dates=dates, gaps=narrator.gaps)
    values = read_back.select("code", "numeric_value", "text_value", "unit").rows()
    assert values == [as_told(*event[1:]) for event in static + dated]
    if style == "timeline":
        assert read_back["section"].to_list() == ["header"] * len(static) + ["body"] * len(dated)
    times = [NOW - back for back, *_ in dated]
    check_times(read_back.tail(len(dated)), times, dates if style == "timeline" or dates != "relative" else "gap")


def history_of(events: list[tuple]) -> pl.LazyFrame:
    rows = []
    for back, code, value, unit in events:
        number = value if isinstance(value, float) else None
        text = value if isinstance(value, str) else None
        rows.append((1, NOW, NOW - back if back is not None else None, code, number, text, unit))
    return pl.LazyFrame(rows, schema=HISTORY_SCHEMA, orient="row")


def check_times(body: pl.DataFrame, times: list[datetime], dates: str) -> None:
    """body: the events at these times, in order."""
    if dates == "calendar":
        assert body["date"].to_list() == [time.date() for time in times]
        return
    for place, (at_least, below, group) in enumerate(body.select("at_least", "below", "group").iter_rows()):
        first = body["group"].to_list().index(group)
        passed = NOW - times[place] if dates == "relative" else times[first] - times[max(first - 1, 0)]
        if at_least is None:
            assert dates == "gap"
            assert first == 0 or group is None
            continue
        assert at_least <= passed
        assert below is None or passed < below


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(texts, st.text(max_size=30)), max_size=5),
    st.sampled_from(["timeline", "flat"]),
    st.sampled_from(["relative", "gap", "calendar"]),
)
def test_any_text_can_be_read(parts, style, dates):
    book = build_book(pl.Series(["a", "9", "woman"]), described({"a": "a", "9": "9"}), get_style(style))
    written = ["".join(parts), "; ".join(parts), "Patient: " + "; ".join(parts), "\nlast hour: ".join(parts)]
    read_back = parse(written, book, get_style(style), dates=dates, gaps=GAPS)
    assert read_back["phrase"].null_count() == 0
    assert read_back["numeric_value"].is_finite().all()
    assert read_back["narrative"].is_sorted()
    starts = read_back["narrative"].is_first_distinct()
    assert (read_back["position"].diff().filter(~starts) == 1).all()
    assert (read_back["position"].filter(starts) == 0).all()
