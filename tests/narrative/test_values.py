"""Which class a value has, at the boundaries above all, and when a reference range says something."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epicrisis.narrative.lookups import load_lookups
from epicrisis.narrative.values import (
    CLASS_WORDS,
    MIN_VALUES,
    Kind,
    ValueClasses,
    count_values,
    fit_classes,
    flag_values,
    merge_values,
    range_table,
)
from epicrisis.settings.problems import InputError
from tests.narrative.histories import tables

LAB = "LOINC//2160-0"
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ANY_FLOATS = st.floats(width=32)
FEW_FLOATS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 7.25, 100.0])
KINDS = st.sampled_from(list(CLASS_WORDS))


def measured(*values: float | None, code: str = LAB, unit: str | None = None) -> pl.DataFrame:
    schema = {"code": pl.String, "numeric_value": pl.Float32, "unit": pl.String}
    return pl.DataFrame([(code, value, unit) for value in values], schema=schema, orient="row")


def fitted(*values: float, kind: Kind = "words", min_values: int = 1) -> ValueClasses:
    return fit_classes(count_values(measured(*values)), kind, min_values)


def indices(classes: ValueClasses, values: list[float], code: str = LAB, unit: str | None = None) -> np.ndarray:
    keys = pl.DataFrame({"code": [code], "unit": [unit]}, schema={"code": pl.String, "unit": pl.String})
    return classes.classify(keys, np.zeros(len(values), dtype=np.int32), np.array(values, dtype=np.float32))


def told(classes: ValueClasses, *values: float, code: str = LAB, unit: str | None = None) -> list[str | None]:
    return [None if k < 0 else classes.words[k] for k in indices(classes, list(values), code, unit)]


def test_a_hundred_values_are_cut_at_their_percentiles():
    classes = fitted(*range(1, 101))
    assert told(classes, 1, 5, 6, 25, 26, 75, 76, 95, 96, 100) == [
        "very low",
        "very low",
        "low",
        "low",
        "average",
        "average",
        "high",
        "high",
        "very high",
        "very high",
    ]
    deciles = fitted(*range(1, 101), kind="deciles")
    assert told(deciles, 1, 10, 11, 90, 91, 100) == [
        "decile 1",
        "decile 1",
        "decile 2",
        "decile 9",
        "decile 10",
        "decile 10",
    ]


def test_a_mid_rank_on_a_percentile_is_low_but_no_longer_very_low_and_high_but_not_yet_very_high():
    # Ten different values have the mid-ranks 5 %, 15 %, …, 95 %; two of them lie on a cut of the words.
    assert told(fitted(*range(10)), 0, 1, 2, 7, 8, 9) == ["low", "low", "average", "average", "high", "high"]
    assert told(fitted(*range(10), kind="deciles"), 0, 4, 9) == ["decile 1", "decile 5", "decile 10"]
    # Two values of four each: 25 % is average; two of two: 75 % is average.
    assert told(fitted(1, 1, 2, 3), 1) == ["average"]
    assert told(fitted(1, 2, 3, 3), 3) == ["average"]


def test_a_value_on_many_percentiles_has_the_class_of_its_mid_rank():
    mostly_zero = [0.0] * 90 + [1.0] * 6 + [2.0] * 4
    assert told(fitted(*mostly_zero), 0, 1, 2) == ["average", "high", "very high"]
    assert told(fitted(*mostly_zero, kind="deciles"), 0, 1, 2) == ["decile 5", "decile 10", "decile 10"]
    yes_or_no = [0.0] * 50 + [1.0] * 50
    assert told(fitted(*yes_or_no, kind="deciles"), 0, 1) == ["decile 3", "decile 8"]
    mostly_high = [-1.0] * 3 + [8.0] * 97
    assert told(fitted(*mostly_high), -1, 8) == ["very low", "average"]


def test_values_that_train_does_not_have_are_ranked_among_those_it_has():
    classes = fitted(*[0.0] * 30, *[10.0] * 70, kind="deciles")
    # Below, between (30 % lie below) and above all train values.
    assert told(classes, -3, 0, 4, 10, 11) == ["decile 1", "decile 2", "decile 4", "decile 7", "decile 10"]
    assert told(fitted(*[0.0] * 90, *[1.0] * 10), -0.5, 0.5, 1.5) == ["very low", "high", "very high"]


def test_values_are_compared_at_four_significant_digits():
    classes = fitted(*[100.04] * 50, *[100.0] * 40, *[200.0] * 10)
    assert classes.edges["n"].to_list() == [100]
    assert told(classes, 99.99, 99.996, 100.0, 100.04, 100.06) == ["very low", "average", "average", "average", "high"]


@pytest.mark.parametrize("kind", CLASS_WORDS)
def test_a_constant_has_no_classes(kind):
    assert fitted(*[5.0] * 100, kind=kind).edges.is_empty()
    assert fitted(*[5.0001, 5.0, 4.9999] * 100, kind=kind).edges.is_empty()
    assert fitted(0.0, -0.0, kind=kind).edges.is_empty()
    assert told(fitted(*[5.0] * 100, kind=kind), 4, 5, 6) == [None, None, None]


def test_values_that_are_all_of_one_class_have_none_to_tell():
    # Mid-ranks 25 % and 75 %, both average; as deciles they differ.
    assert fitted(*[0.0] * 50, *[1.0] * 50).edges.is_empty()
    assert fitted(*[0.0] * 50, *[1.0] * 50, kind="deciles").edges.height == 1


def test_too_few_or_unseen_have_no_class():
    events = pl.concat(
        [
            measured(*range(MIN_VALUES), code="A"),
            measured(*range(MIN_VALUES - 1), float("nan"), float("inf"), None, code="B"),
        ]
    )
    classes = fit_classes(count_values(events), "words")
    assert told(classes, 0, 19, code="A") == ["very low", "very high"]
    assert told(classes, 0, 19, code="B") == [None, None]
    assert told(classes, 0, code="never seen") == [None]
    assert told(classes, 0, code="A", unit="mg/dL") == [None]


def test_no_number_has_no_class():
    classes = fitted(*range(100))
    assert told(classes, float("nan"), float("inf"), float("-inf"), 99.0) == [None, None, None, "very high"]


def test_units_are_never_pooled_and_are_told_units():
    events = pl.concat(
        [
            measured(*range(100), unit="mmol/L"),
            measured(*range(1000, 1100), unit="umol/L"),
            measured(*range(-100, 0), unit=None),
            measured(*range(100), unit="mmol/L "),
            measured(*range(-100, 0), unit="UNK"),
        ]
    )
    classes = fit_classes(count_values(events), "words")
    assert classes.edges.select("code", "unit", "n").rows() == [
        (LAB, None, 200),
        (LAB, "mmol/L", 200),
        (LAB, "umol/L", 100),
    ]
    assert told(classes, 50, unit="mmol/L") == ["average"]
    assert told(classes, 50, unit=" mmol/L") == ["average"]
    assert told(classes, 50, unit="umol/L") == ["very low"]
    assert told(classes, 50, unit=None) == ["very high"]
    assert told(classes, 50, unit="___") == ["very high"]
    assert told(classes, 50, unit="mg/dL") == [None]


def test_events_find_their_classes_by_their_keys():
    events = pl.concat([measured(*range(100), code="A"), measured(*range(0, -100, -1), code="B", unit="mV")])
    classes = fit_classes(count_values(events), "words")
    keys = pl.DataFrame({"code": ["B", "C", "A"], "unit": ["mV", None, None]})
    key_of_event = np.array([2, 0, 1, 2, -1, 0], dtype=np.int32)
    found = classes.classify(keys, key_of_event, np.array([99, 0, 50, 0, 50, -99], dtype=np.float32))
    assert found.dtype == np.int16
    assert found.tolist() == [4, 4, -1, 0, -1, 0]
    assert classes.classify(keys, key_of_event[:0], np.array([], dtype=np.float32)).shape == (0,)
    for strange in (3, -2):
        with pytest.raises(ValueError, match="3 keys"):
            classes.classify(keys, np.array([strange], dtype=np.int32), np.array([0], dtype=np.float32))


def test_many_events_are_classed_as_few():
    classes = fitted(*range(100), kind="deciles")
    values = np.random.default_rng(0).uniform(-5, 105, 300_000).astype(np.float32)
    found = indices(classes, values.tolist())
    some = np.random.default_rng(1).integers(0, len(values), 200)
    assert found[some].tolist() == indices(classes, values[some].tolist()).tolist()
    assert np.bincount(found).min() > 0.08 * len(values)


@pytest.mark.parametrize("other", ["tuning", "held_out", None])
def test_other_splits_than_train_are_refused(other):
    events = measured(1.0, 2.0, 3.0)
    mixed = events.with_columns(split=pl.Series(["train", "train", other]))
    with pytest.raises(InputError, match="1 rows are not of the train split"):
        count_values(mixed)
    counts = count_values(events.with_columns(split=pl.lit("train")))
    assert counts["n"].sum() == 3
    with pytest.raises(InputError, match="train split"):
        fit_classes(counts.with_columns(split=pl.lit(other, pl.String)), "words")


def test_counts_are_of_four_digits_per_code_and_unit():
    events = pl.concat(
        [
            measured(1.00004, 1.0, -0.0, 0.0, float("nan"), float("-inf"), None, code="B"),
            measured(123456.0, code="A", unit="g"),
            measured(5.0, code="A", unit=" g"),
        ]
    )
    assert count_values(events).rows() == [
        ("A", "g", 5.0, 1),
        ("A", "g", 123500.0, 1),
        ("B", None, 0.0, 2),
        ("B", None, 1.0, 2),
    ]
    assert merge_values([]).equals(count_values(measured()))
    assert fit_classes(merge_values([]), "words").edges.is_empty()


def test_classes_are_saved_and_loaded(tmp_path):
    events = pl.concat([measured(*np.linspace(-3, 0.1, 77)), measured(*range(30), code='é "x"', unit="%")])
    classes = fit_classes(count_values(events), "deciles")
    classes.save(tmp_path / "fitted" / "values.json")
    again = ValueClasses.load(tmp_path / "fitted" / "values.json")
    assert (again.kind, again.split) == ("deciles", "train")
    assert again.edges.equals(classes.edges)
    assert again.fingerprint() == classes.fingerprint()
    assert [path.name for path in (tmp_path / "fitted").iterdir()] == ["values.json"]
    assert fit_classes(count_values(events), "words").fingerprint() != classes.fingerprint()
    assert fit_classes(count_values(events[1:]), "deciles").fingerprint() != classes.fingerprint()
    nothing = fit_classes(merge_values([]), "words")
    nothing.save(tmp_path / "nothing.json")
    assert ValueClasses.load(tmp_path / "nothing.json").edges.equals(nothing.edges)


SOUND = {"code": "A", "unit": None, "n": 50, "edges": [1.0, 2.0, 2.0, 3.0]}


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {"kind": "words", "split": "train"},
        {"kind": "quartiles", "split": "train", "classes": []},
        {"kind": "words", "split": "held_out", "classes": []},
        {"kind": "words", "split": "train", "classes": [{**SOUND, "edges": [1.0, 2.0]}]},
        {"kind": "words", "split": "train", "classes": [{**SOUND, "edges": None}]},
        {"kind": "words", "split": "train", "classes": [{**SOUND, "edges": [1.0, 3.0, 2.0, 4.0]}]},
        {"kind": "words", "split": "train", "classes": [{**SOUND, "edges": [1.0, None, 2.0, 4.0]}]},
        {"kind": "words", "split": "train", "classes": [{**SOUND, "edges": ["a", "b", "c", "d"]}]},
        {"kind": "words", "split": "train", "classes": [SOUND, SOUND]},
    ],
)
def test_a_file_without_sound_classes_is_refused(tmp_path, tree):
    path = tmp_path / "values.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"values\.json"):
        ValueClasses.load(path)


def test_a_missing_or_broken_file_is_refused_and_a_sound_one_read(tmp_path):
    path = tmp_path / "values.json"
    with pytest.raises(InputError, match="no value classes here"):
        ValueClasses.load(path)
    path.write_text("{broken")
    with pytest.raises(InputError, match="holds no value classes"):
        ValueClasses.load(path)
    path.write_text(json.dumps({"kind": "words", "split": "train", "classes": [SOUND]}))
    assert told(ValueClasses.load(path), 0, 1, 2, 3, code="A") == ["very low", "low", "high", "very high"]


def mid_rank_class(value: float, train: list[float], kind: Kind) -> int:
    """The definition, word for word."""
    percent = 100 * (sum(x < value for x in train) + sum(x == value for x in train) / 2) / len(train)
    if kind == "deciles":
        return min(int(percent // 10), 9)
    return int(percent >= 5) + int(percent >= 25) + int(percent > 75) + int(percent > 95)


@given(st.lists(FEW_FLOATS, min_size=1, max_size=200), st.lists(FEW_FLOATS, min_size=1), KINDS)
def test_the_class_is_that_of_the_mid_rank(train, values, kind):
    expected = [mid_rank_class(value, train, kind) for value in values]
    several = len({mid_rank_class(value, train, kind) for value in train}) > 1
    found = indices(fitted(*train, kind=kind), values)
    assert found.tolist() == (expected if several else [-1] * len(values))


@given(st.lists(ANY_FLOATS, min_size=1, max_size=60), st.lists(ANY_FLOATS, min_size=1, max_size=60), KINDS)
def test_order_is_kept_and_classes_are_within_range(train, values, kind):
    found = indices(fitted(*train, kind=kind), values)
    assert found.min() >= -1
    assert found.max() < len(CLASS_WORDS[kind])
    finite = np.isfinite(np.array(values))
    assert (found[~finite] == -1).all()
    assert len(set(found[finite] == -1)) <= 1
    in_order = found[finite][np.argsort(np.array(values)[finite], kind="stable")]
    assert (np.diff(in_order) >= 0).all()


@given(st.lists(FLOATS, min_size=1, max_size=60), st.integers(2, 5), KINDS)
def test_the_same_values_several_times_over_have_the_same_classes(train, times, kind):
    once, more = fitted(*train, kind=kind), fitted(*train * times, kind=kind)
    assert once.edges.drop("n").equals(more.edges.drop("n"))


@given(st.lists(st.tuples(st.sampled_from("AB"), ANY_FLOATS, st.sampled_from([None, "g", "g "]), st.integers(0, 2))))
def test_counts_of_shards_add_up_to_the_count_of_all(events):
    schema = {"code": pl.String, "numeric_value": pl.Float32, "unit": pl.String, "shard": pl.Int64}
    whole = pl.DataFrame(events, schema=schema, orient="row")
    shards = [count_values(whole.filter(pl.col("shard") == shard)) for shard in range(3)]
    assert merge_values(shards).equals(count_values(whole))


@given(st.lists(FLOATS, min_size=4, max_size=60), KINDS)
def test_extreme_train_values_give_finite_ascending_edges(train, kind):
    extremes = [float(x) for x in (np.finfo(np.float32).max, np.finfo(np.float32).min, 1e-45, -1e-45)]
    edges = fitted(*train, *extremes, kind=kind).edges["edges"].to_list()
    for ascending in edges:
        assert np.isfinite(ascending).all()
        assert (np.diff(ascending) >= 0).all()


def test_the_largest_float32_has_a_class_and_the_least_ones_are_zero():
    largest = float(np.finfo(np.float32).max)
    classes = fitted(*[-largest] * 3, *[0.0] * 94, *[largest] * 3)
    assert told(classes, -largest, -1e-45, 0, 1e-45, largest) == [
        "very low",
        "average",
        "average",
        "average",
        "very high",
    ]


RANGES = "code,term,unit,low,high\n2160-0,Creatinine,mg/dL,0.7,1.3\n718-7,Hemoglobin,g/dL,12,\n4548-4,HbA1c,,,5.7\n"


def flags(ranges: pl.DataFrame, *events: tuple[str, float, str | None]) -> list[int]:
    """The flag of each (code, value, unit)."""
    schema = {"code": pl.String, "value": pl.Float32, "unit": pl.String}
    frame = pl.DataFrame(events, schema=schema, orient="row")
    key_of_event = np.arange(frame.height, dtype=np.int32)
    return flag_values(frame.select("code", "unit"), key_of_event, frame["value"].to_numpy(), ranges).tolist()


def test_both_ends_of_a_range_are_normal(tmp_path):
    ranges = range_table(pl.Series([LAB, "LOINC//718-7", "LOINC//4548-4"]), tables(tmp_path, lab=RANGES))
    events = [(LAB, value, "mg/dL") for value in (0.69, 0.7, 1.0, 1.3, 1.31, float("nan"), float("inf"), -1.0)]
    assert flags(ranges, *events) == [0, 1, 1, 1, 2, -1, -1, 0]
    one_sided = [("LOINC//718-7", value, "g/dL") for value in (11.9, 12.0, 1e30)]
    assert flags(ranges, *one_sided) == [0, 1, 1]
    assert flags(ranges, *[("LOINC//4548-4", value, None) for value in (-1e30, 5.7, 5.8)]) == [1, 1, 2]


def test_a_range_says_nothing_about_another_unit(tmp_path):
    ranges = range_table(pl.Series([LAB, "LOINC//4548-4"]), tables(tmp_path, lab=RANGES))
    units = ("mg/dL", " mg/dL\n", "MG/DL", "umol/L", None, "", "UNK")
    assert flags(ranges, *[(LAB, 1.0, unit) for unit in units]) == [1, 1, -1, -1, -1, -1, -1]
    # A range without a unit is one of numbers without a unit.
    assert flags(ranges, *[("LOINC//4548-4", 6.0, unit) for unit in (None, "%")]) == [2, -1]


def test_an_event_without_a_unit_has_the_one_in_its_code(tmp_path):
    code = "LAB//RESULT//50912//mg/dL"
    lookups = tables(tmp_path, lab="code,term,unit,low,high\n50912,Creatinine,mg/dL,0.7,1.3\n")
    ranges = range_table(pl.Series([code, "LAB//RESULT//50912//umol/L"]), lookups)
    assert ranges.select("code", "unit", "own_unit").rows() == [
        (code, "mg/dL", "mg/dL"),
        ("LAB//RESULT//50912//umol/L", "mg/dL", "umol/L"),
    ]
    assert flags(ranges, (code, 2.0, None), (code, 2.0, "mg/dL"), (code, 2.0, "umol/L")) == [2, 2, -1]
    other = "LAB//RESULT//50912//umol/L"
    assert flags(ranges, (other, 2.0, None), (other, 2.0, "mg/dL")) == [-1, 2]


def test_range_table_finds_bare_and_full_codes(tmp_path):
    lookups = tables(
        tmp_path,
        lab="code,term,unit,low,high\n"
        "2160-0,Creatinine,mg/dL,0.7,1.3\n"
        "LOINC//2160-0,Creatinine,mg/dL,0.6,1.2\n"
        "LOINC//718-7,Hemoglobin,g/dL,12,16\n"
        "2345-7,Glucose,mg/dL,70,99\n"
        "C61,no laboratory's,mg/dL,1,2\n"
        "1-1,without a range,mg/dL,,\n",
    )
    codes = pl.Series([LAB, "LOINC//718-7", "2345-7", "LOINC//2345-7", "ICD10CM//C61", "LOINC//1-1", LAB, None])
    assert range_table(codes, lookups).rows() == [
        ("2345-7", "mg/dL", 70.0, 99.0, None),
        (LAB, "mg/dL", pytest.approx(0.6), pytest.approx(1.2), None),
        ("LOINC//2345-7", "mg/dL", 70.0, 99.0, None),
        ("LOINC//718-7", "g/dL", 12.0, 16.0, None),
    ]


def test_without_a_laboratory_table_nothing_is_flagged():
    ranges = range_table(pl.Series([LAB]), load_lookups())
    assert ranges.is_empty()
    assert flags(ranges, (LAB, 1.0, "mg/dL")) == [-1]


def test_an_event_without_a_key_has_no_flag(tmp_path):
    ranges = range_table(pl.Series([LAB]), tables(tmp_path, lab=RANGES))
    keys = pl.DataFrame({"code": [LAB], "unit": ["mg/dL"]})
    flagged = flag_values(keys, np.array([0, -1], dtype=np.int32), np.array([9, 9], dtype=np.float32), ranges)
    assert flagged.dtype == np.int8
    assert flagged.tolist() == [2, -1]
    with pytest.raises(ValueError, match="1 keys"):
        flag_values(keys, np.array([1], dtype=np.int32), np.array([9], dtype=np.float32), ranges)


def test_a_range_whose_low_is_above_its_high_is_refused(tmp_path):
    lookups = tables(tmp_path, lab="code,term,unit,low,high\n2160-0,Creatinine,mg/dL,1.3,0.7\n")
    with pytest.raises(InputError, match="1 codes have a low above their high"):
        range_table(pl.Series([LAB]), lookups)
