"""One phrase per event, whatever codes, values and units it has."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.narrative import get_style, load_lookups
from epicrisis.narrative.book import build_book
from epicrisis.narrative.phrases import phrase_rows, value_text
from tests.narrative.histories import EVENT_SCHEMA, codes_table

LOOKUPS = load_lookups(codes=codes_table(("LOINC//2524-7", "Lactate", None), ("LOINC//0-0", "Anion gap 4", None)))
BOOK = build_book(pl.Series(["LOINC//2524-7", "LOINC//0-0"]), LOOKUPS, get_style("timeline"))
WORDS = ("low", "average", "high")

SCHEMA = {key: EVENT_SCHEMA[key] for key in ("code", "numeric_value", "text_value", "unit")}


def phrases(*events: tuple) -> list[str]:
    """The phrase of each (code, numeric_value, text_value, unit)."""
    frame = pl.DataFrame(events, schema=SCHEMA, orient="row", strict=False)
    digits = pl.coalesce(pl.when(pl.col("numeric_value").is_finite()).then(value_text()), pl.lit(""))
    keys = frame.select(pl.exclude("numeric_value"), value_class=pl.lit(None, pl.Int16), has_number=digits != "")
    rows = phrase_rows(keys, BOOK)
    numbers = frame.select(digits.replace("", None)).to_series()
    return (
        rows.select(pl.concat_str("before", numbers, "after", separator=" ", ignore_nulls=True)).to_series().to_list()
    )


@pytest.mark.parametrize(
    ("event", "phrase"),
    [
        (("LOINC//2524-7", 11.2, None, "mmol/L"), "Lactate 11.2 mmol/L"),
        (("LOINC//2524-7", 0.0, None, "mmol/L"), "Lactate 0 mmol/L"),
        (("LOINC//2524-7", -0.0, None, "mmol/L"), "Lactate 0 mmol/L"),
        (("LOINC//2524-7", 120.0, None, None), "Lactate 120"),
        (("LOINC//2524-7", -2.5, None, "mmol/L"), "Lactate -2.5 mmol/L"),
        (("LOINC//2524-7", 1.5e-7, None, "mmol/L"), "Lactate 1.5e-7 mmol/L"),
        (("LOINC//2524-7", float("nan"), None, "mmol/L"), "Lactate"),
        (("LOINC//2524-7", float("nan"), "high", "mmol/L"), "Lactate: high"),
        (("LOINC//2524-7", float("inf"), None, None), "Lactate"),
        (("LOINC//2524-7", 0.0, "___", "mmol/L"), "Lactate 0 mmol/L"),
        (("LOINC//2524-7", None, "<0.5", "mmol/L"), "Lactate: <0.5 mmol/L"),
        (("LOINC//2524-7", None, "negative", "mmol/L"), "Lactate: negative"),
        (("LOINC//2524-7", None, "NONE", None), "Lactate: NONE"),
        (("LOINC//2524-7", None, "___", "mmol/L"), "Lactate"),
        (("LOINC//2524-7", None, "nan", "nan"), "Lactate"),
        (("LOINC//2524-7", None, "two;\nlines", None), "Lactate: two, lines"),
        (("LOINC//0-0", 9.0, None, "mEq/L"), "Anion gap 4: 9 mEq/L"),
        (("LOINC//0-0", None, "9", "mEq/L"), 'Anion gap 4: "9" mEq/L'),
        (("LOINC//0-0", None, "9", '"'), 'Anion gap 4: "9"'),
        (("LOINC//2524-7", None, "9", "mEq/L"), "Lactate: 9 mEq/L"),
        (("LOINC//2524-7", None, "> 9", "mEq/L"), "Lactate: > 9 mEq/L"),
        (("LOINC//2524-7", None, "5 days", "mEq/L"), 'Lactate: "5 days"'),
        (("LOINC//2524-7", None, '"', None), 'Lactate: """'),
        (("LOINC//2524-7", 9.0, "high", " ; "), "Lactate 9 ,"),
        (("LAB//RESULT//1//mg/dL", 5.5, None, "mmol/L"), "LAB//RESULT//1//mg/dL 5.5 mmol/L"),
        (("SUBJECT_WEIGHT_AT_INFUSION//KG", 84.0, None, None), "weight at infusion 84 kg"),
        (("Blood Pressure", None, "110/70", None), "blood pressure: 110/70 mmHg"),
        (("DRG//APR//133", None, "RESPIRATORY FAILURE", None), "diagnosis-related group: RESPIRATORY FAILURE"),
        ((";", None, None, None), ","),
        (("\n", None, None, None), "unnamed code [%0A]"),
        (("", 1.0, None, None), "unnamed code [] 1"),
        ((None, 1.0, None, None), "unnamed code 1"),
    ],
)
def test_phrase(event, phrase):
    assert phrases(event) == [phrase]


def test_same_label_keeps_each_values_own_unit():
    assert phrases(("LOINC//2524-7", 5.5, None, "mmol/L"), ("LOINC//2524-7", 99.0, None, "mg/dL")) == [
        "Lactate 5.5 mmol/L",
        "Lactate 99 mg/dL",
    ]


float32s = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(float32s, st.sampled_from([None, "", "mg/dL", "10^9/L", "%", "mm Hg"])), max_size=20))
def test_printed_value_is_the_float32_value_and_stands_next_to_its_unit(values):
    told = phrases(*(("LOINC//2524-7", value, None, unit) for value, unit in values))
    for (value, unit), phrase in zip(values, told, strict=True):
        if not math.isfinite(value):
            assert phrase == "Lactate"
            continue
        number, _, printed_unit = phrase.removeprefix("Lactate ").partition(" ")
        assert np.float32(number) == np.float32(value)
        assert not number.endswith(".0")
        assert printed_unit == (unit or "")


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        (("LOINC//2524-7", True, None, None, "mg"), "Lactate", "mg"),
        (("LOINC//2524-7", True, None, None, None), "Lactate", None),
        (("LOINC//0-0", True, None, None, None), "Anion gap 4:", None),
        (("LOINC//2524-7", False, 2, None, "mg"), "Lactate: high", None),
        (("LOINC//0-0", False, 0, "text", None), "Anion gap 4: low", None),
        (("LOINC//2524-7", False, None, "high", None), 'Lactate: "high"', None),
        (("LOINC//2524-7", False, None, "highest", None), "Lactate: highest", None),
        (("LOINC//2524-7", False, None, None, "mg"), "Lactate", None),
    ],
)
def test_classes_are_told_in_words_and_a_number_has_a_place(key, before, after):
    schema = {"code": str, "has_number": bool, "value_class": pl.Int16, "text_value": str, "unit": str}
    row = phrase_rows(pl.DataFrame([key], schema=schema, orient="row"), BOOK, class_words=WORDS)
    assert row.columns == [*schema, "before", "after", "vocabulary", "role"]
    assert row.row(0) == (*key, before, after, "LOINC", "")


texts = st.one_of(st.none(), st.text(max_size=12), st.sampled_from(["NaN", "None", "nan", "a; b", "1\n2", "UNK//x"]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, st.one_of(st.none(), float32s), texts, texts), min_size=1, max_size=8))
def test_every_event_has_one_phrase_that_no_separator_cuts(events):
    told = phrases(*events)
    assert len(told) == len(events)
    for phrase in told:
        assert phrase
        assert phrase == " ".join(phrase.split())
        assert ";" not in phrase


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.none(), float32s), st.sampled_from([None, "", "NaN", "None", "nan", "null"]), texts)
def test_what_is_missing_is_never_printed(value, text, unit):
    phrase = phrases(("LOINC//2524-7", value, text, None))[0]
    assert not {"NaN", "None", "nan", "null", "inf", "-inf"} & set(phrase.split())
    if value is None or not math.isfinite(value):
        assert phrases(("LOINC//2524-7", value, text, unit)) == ["Lactate"]
