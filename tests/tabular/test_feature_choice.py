"""Every way of counting and of taking numbers, by hand: windows, fading, slopes, and what the columns are called."""

from datetime import datetime, timedelta
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.tabular.test_tabular_arms import NAMES, Log, VisibleEvents

from epicrisis.settings import InputError, settings_from
from epicrisis.tabular import ARMS
from epicrisis.tabular.counts import AGE, CountFeatures, FeatureChoice, fit_features, group_by_code

T0 = datetime(2020, 1, 1)
DAY, MICROSECOND = timedelta(days=1), timedelta(microseconds=1)
YEAR = timedelta(days=365.25)
ONE_ROW = pl.DataFrame({"subject_id": [1], "prediction_time": [T0]})


def visible(*lines: tuple[timedelta | None, str, float | None]) -> pl.LazyFrame:
    """Visible events of subject 1: how long before the prediction time (None: without a time), code, number."""
    schema = {
        **{"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "time": pl.Datetime("us")},
        **{"code": pl.String, "numeric_value": pl.Float32},
    }
    rows = [(1, T0, None if ago is None else T0 - ago, code, number) for ago, code, number in lines]
    return pl.LazyFrame(rows, schema=schema, orient="row").sort("time", nulls_last=False, maintain_order=True)


def columns(events: pl.LazyFrame, rows: pl.DataFrame = ONE_ROW, **choice: Any) -> dict[str, float]:
    """{name: value} of what is there in the first row, as trees read it."""
    table = group_by_code(rows, [events], FeatureChoice(**choice))
    features = fit_features(table, min_subjects=1)
    matrix = features.for_trees(table)
    assert matrix.shape[1] == len(features.names)
    assert features.for_forest(table).shape[1] == len(features.names_with_measured)
    return {features.names[column]: float(matrix[0, column]) for column in matrix[0].indices}


def close(expected: dict[str, float]) -> Any:
    return pytest.approx(expected, rel=1e-6)


def test_a_window_holds_events_up_to_its_first_moment_inclusively() -> None:
    events = visible(
        (timedelta(0), "DX", None),
        (30 * DAY, "DX", None),
        (30 * DAY + MICROSECOND, "DX", None),
        (365 * DAY, "DX", None),
        (366 * DAY, "DX", None),
        (None, "SEX", None),
    )
    assert columns(events, windows_days=(30.0, 365.0, None)) == close(
        {
            "count DX, last 30 days": log(3),
            "count DX, last 365 days": log(5),
            "count DX": log(6),
            "count SEX": log(2),
        }
    )
    assert columns(events, windows_days=(30.0,)) == close({"count DX, last 30 days": log(3)})


def test_seen_or_not() -> None:
    events = visible((DAY, "DX", None), (2 * DAY, "DX", None), (40 * DAY, "OLD", None))
    assert columns(events, counts="binary", windows_days=(30.0, None)) == {
        "seen DX, last 30 days": 1,
        "seen DX": 1,
        "seen OLD": 1,
    }


def test_an_event_of_one_half_life_counts_half_and_of_two_a_quarter() -> None:
    events = visible((10 * DAY, "A", None), (20 * DAY, "A", None), (timedelta(0), "B", None), (None, "SEX", None))
    assert columns(events, counts="recency", half_life_days=10.0, windows_days=(15.0, None)) == close(
        {
            "recent A, last 15 days": log(1.5),
            "recent B, last 15 days": log(2),
            "recent A": log(1.75),
            "recent B": log(2),
            "recent SEX": log(2),
        }
    )
    by_default = columns(visible((365 * DAY, "A", None)), counts="recency")
    assert by_default == close({"recent A": log(1.5)})


def test_numbers_by_hand() -> None:
    """Least squares through (0, 1), (1, 3), (2, 2) rises by a half per year."""
    events = visible((2 * YEAR, "LAB", 1.0), (YEAR, "LAB", 3.0), (timedelta(0), "LAB", 2.0), (DAY, "LAB", float("inf")))
    found = columns(events, value_features=("last", "min", "max", "trend"))
    assert found == close({"count LAB": log(5), "last LAB": 2, "min LAB": 1, "max LAB": 3, "trend LAB": 0.5})
    assert columns(events, value_features=("max",)) == close({"count LAB": log(5), "max LAB": 3})
    assert columns(events, value_features=()) == close({"count LAB": log(5)})


def test_a_trend_needs_two_times() -> None:
    trend = {"value_features": ("trend",)}
    assert "trend LAB" not in columns(visible((DAY, "LAB", 1.0), (DAY, "LAB", 5.0)), **trend)
    assert "trend LAB" not in columns(visible((DAY, "LAB", 1.0), (None, "LAB", 5.0)), **trend)
    assert "trend LAB" not in columns(visible((DAY, "LAB", 1.0), (2 * DAY, "LAB", None)), **trend)
    flat = columns(visible((DAY, "LAB", 4.0), (2 * DAY, "LAB", 4.0)), **trend)
    assert flat["trend LAB"] == 0
    twice = columns(visible((YEAR, "LAB", 1.0), (YEAR, "LAB", 3.0), (timedelta(0), "LAB", 7.0)), **trend)
    assert twice == close({"count LAB": log(4), "trend LAB": 5})


@given(
    st.lists(st.tuples(st.integers(0, 40 * 365), st.floats(-1e3, 1e3, width=32)), min_size=2, max_size=12),
    st.integers(0, 1000),
)
@hypothesis_settings(max_examples=40, deadline=None)
def test_a_trend_is_numpys_slope(numbers: list[tuple[int, float]], seconds: int) -> None:
    ago = [days * DAY + timedelta(seconds=seconds) for days, _ in numbers]
    found = columns(
        visible(*((at, "LAB", value) for at, (_, value) in zip(ago, numbers, strict=True))), value_features=("trend",)
    )
    if len({days for days, _ in numbers}) < 2:
        assert "trend LAB" not in found
        return
    years = np.array([-at / YEAR for at in ago])
    slope = np.polyfit(years - years.mean(), [value for _, value in numbers], 1)[0]
    assert found["trend LAB"] == pytest.approx(slope, rel=1e-4, abs=1e-2)


@given(st.lists(st.tuples(st.integers(0, 500), st.sampled_from("AB")), min_size=1, max_size=20))
@hypothesis_settings(max_examples=30, deadline=None)
def test_fading_lies_between_the_latest_event_and_the_count(events: list[tuple[int, str]]) -> None:
    told = visible(*((days * DAY, code, None) for days, code in events))
    count, fading = columns(told), columns(told, counts="recency", half_life_days=50.0)
    assert columns(told, counts="recency", half_life_days=1e9) == pytest.approx(
        {name.replace("count", "recent"): value for name, value in count.items()}, rel=1e-4
    )
    for name, value in fading.items():
        code = name.removeprefix("recent ")
        latest = min(days for days, of in events if of == code)
        assert log(1 + 2 ** (-latest / 50)) - 1e-6 <= value <= count[f"count {code}"] + 1e-6


def test_columns_in_order_and_whether_a_number_is_there() -> None:
    events = visible((40 * 365.25 * DAY, "MEDS_BIRTH", None), (DAY, "LAB", 0.0), (2 * DAY, "LAB", 0.0))
    choice = FeatureChoice("frequency", None, (30.0, None), ("trend", "min", "last"))
    rows = pl.DataFrame({"subject_id": [1, 2], "prediction_time": [T0, T0]})
    table = group_by_code(rows, [events], choice)
    features = fit_features(table, min_subjects=1)
    assert features.names == (
        "count LAB, last 30 days",
        "count MEDS_BIRTH, last 30 days",
        "count LAB",
        "count MEDS_BIRTH",
        *("trend LAB", "min LAB", "last LAB", f"last {AGE}"),
    )
    measured = ("measured trend LAB", "measured min LAB", f"measured last {AGE}")
    assert features.names_with_measured == (*features.names, *measured)
    found = features.for_forest(table).toarray()
    # subject 2 has nothing: the same zeros, told apart from measured ones
    assert found[0] == pytest.approx([log(3), 0, log(3), log(2), 0, 0, 0, 40, 1, 1, 1])
    assert found[1].tolist() == [0.0] * 11
    assert features.for_linear(table).toarray()[:, -3:].tolist() == [[1, 1, 1], [0, 0, 0]]


def test_the_spread_of_slopes_bears_two_values_a_minute_apart() -> None:
    rows = pl.DataFrame({"subject_id": range(300), "prediction_time": [T0] * 300})
    times = pl.DataFrame({"time": [T0 - YEAR, T0]})
    slopes = rows.join(times, how="cross").with_columns(
        code=pl.lit("LAB"),
        numeric_value=pl.when(pl.col("time") == T0).then(pl.col("subject_id") / 300).otherwise(0.0),
    )
    steep = slopes.with_columns(
        time=pl.when((pl.col("subject_id") == 7) & (pl.col("time") < T0))
        .then(T0 - timedelta(minutes=1))
        .otherwise("time")
    )
    choice = FeatureChoice(value_features=("trend",))
    plain, bent = (fit_features(group_by_code(rows, [table.lazy()], choice)) for table in (slopes, steep))
    assert bent.spread[0] == pytest.approx(plain.spread[0], rel=0.05)


def test_the_choice_is_kept(tmp_path: Path) -> None:
    choice = FeatureChoice("recency", 30.0, (7.5, None), ("min", "trend"))
    table = group_by_code(ONE_ROW, [visible((DAY, "LAB", 1.0), (2 * DAY, "LAB", 3.0))], choice)
    features = fit_features(table, min_subjects=1)
    features.save(tmp_path)
    loaded = CountFeatures.load(tmp_path)
    assert loaded.choice == choice
    assert loaded.names == features.names
    assert np.array_equal(loaded.for_linear(table).toarray(), features.for_linear(table).toarray())


def recent_or_not(n: int = 500) -> tuple[pl.DataFrame, VisibleEvents]:
    """Everyone had DX twice and LAB three times, 1 in the end: who fell ill had DX lately, and LAB rose from a low."""
    generator = np.random.default_rng(0)
    ill = generator.random(n) < 0.5
    splits = np.repeat(["train", "tuning", "held_out"], [n // 2, n // 4, n - n // 2 - n // 4])
    rows = pl.DataFrame({"subject_id": range(n), "prediction_time": [T0] * n, "split": splits, "label": ill})
    lately = rows.select("subject_id", "prediction_time", ago=pl.when("label").then(3).otherwise(900))
    first = rows.select("subject_id", "prediction_time", low=pl.when("label").then(-1.0).otherwise(1.0))
    no_number = pl.lit(None, pl.Float64)
    events = [
        lately.select("subject_id", "prediction_time", "ago", code=pl.lit("DX"), numeric_value=no_number),
        lately.select("subject_id", "prediction_time", ago=pl.lit(400), code=pl.lit("DX"), numeric_value=no_number),
        *(
            first.select("subject_id", "prediction_time", ago=pl.lit(ago), code=pl.lit("LAB"), numeric_value=number)
            for ago, number in ((700, pl.col("low")), (500, pl.lit(1.0)), (2, pl.lit(1.0)))
        ),
    ]
    table = pl.concat(events).with_columns(time=pl.col("prediction_time") - pl.duration(days="ago")).drop("ago")
    return rows, VisibleEvents(table.sort("subject_id", "time", maintain_order=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("choice", "sees"),
    [
        ({"value_features": ("last",)}, False),
        ({"counts": "binary"}, False),
        ({"counts": "recency", "half_life_days": 30.0}, True),
        ({"windows_days": (30.0,), "value_features": ()}, True),
        ({"counts": "binary", "windows_days": (30.0, None)}, True),
        ({"value_features": ("min",)}, True),
        ({"value_features": ("max",)}, False),
        ({"value_features": ("last", "trend")}, True),
    ],
)
def test_each_choice_lets_an_arm_see_what_it_is_for(name: str, choice: dict[str, Any], sees: bool) -> None:
    rows, history = recent_or_not(240)
    fitted = ARMS[name](choice=FeatureChoice(**choice)).fit(rows, history, Log())
    held_out = rows.filter(split="held_out")
    found = fitted.predict(held_out, history)[:, 1]
    ill = held_out["label"].to_numpy()
    if sees:
        assert found[ill].min() > found[~ill].max()
    else:
        assert np.ptp(found) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_eight_train_rows_teach_something(name: str) -> None:
    rows, history = recent_or_not(240)
    few = pl.concat([part.head(4) for part in rows.filter(split="train").partition_by("label")])
    held_out = rows.filter(split="held_out")
    choice = FeatureChoice(windows_days=(30.0,), value_features=("min",))
    fitted = ARMS[name](choice=choice, min_subjects=1).fit(pl.concat([few, held_out]), history, Log())
    found, ill = fitted.predict(held_out, history)[:, 1], held_out["label"].to_numpy()
    assert found[ill].min() > found[~ill].max()


def test_the_settings_reach_the_arm() -> None:
    tree = {"counts": "recency", "half_life_days": 30, "windows_days": [30, None], "value_features": ["trend"]}
    settings = settings_from({"arm": "lightgbm", "tabular": {**tree, "min_subjects": 2}, "training": {"seed": 4}})
    arm = ARMS["lightgbm"].of(settings)
    assert arm.choice == FeatureChoice("recency", 30.0, (30.0, None), ("trend",))
    assert (arm.min_subjects, arm.seed) == (2, 4)


@pytest.mark.parametrize(
    ("tree", "where", "what"),
    [
        ({"half_life_days": 30}, "half_life_days", "only counts that fade have a half-life"),
        ({"counts": "binary", "half_life_days": 30}, "half_life_days", "set tabular.counts: recency"),
        ({"counts": "recency", "half_life_days": 0}, "half_life_days", "greater than 0"),
        ({"windows_days": [30, 30]}, "windows_days", "names one twice"),
        ({"windows_days": []}, "windows_days", "at least 1"),
        ({"windows_days": [-1]}, "windows_days", "greater than 0"),
        ({"value_features": ["last", "last"]}, "value_features", "names one twice"),
        ({"value_features": ["mean"]}, "value_features", "'last', 'min', 'max' or 'trend'"),
        ({"counts": "some"}, "counts", "'binary', 'frequency' or 'recency'"),
    ],
)
def test_what_cannot_be_is_refused(tree: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(InputError) as refused:
        settings_from({"arm": "xgboost", "tabular": tree})
    (problem,) = refused.value.problems
    assert problem.where == f"tabular.{where}"
    assert what in problem.what
