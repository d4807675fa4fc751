"""Canaries sing when a number that says nothing of health tells cases from controls."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from epicrisis.evaluation.canaries import canaries, canary_table, history_scalars


def test_scalars_by_hand() -> None:
    rows = pl.DataFrame({"subject_id": [1, 2, 3], "prediction_time": [datetime(1970, 1, 11)] * 3})
    events = pl.LazyFrame(
        {
            "subject_id": [1, 1, 1, 2],
            "prediction_time": [datetime(1970, 1, 11)] * 4,
            "time": [None, datetime(1970, 1, 2), datetime(1970, 1, 8, 12), None],
        }
    )
    found = history_scalars(events, rows)
    assert found["record_length"].to_list() == [3, 1, 0]
    assert found["last_date"].to_list() == [2.5, None, None]
    assert found["calendar_date"].to_list() == [10, 10, 10]


def cohort(leak: bool, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows and scalars; with `leak`, cases' records end 100 to 130 days before the time."""
    generator = np.random.default_rng(seed)
    n = 900
    labels = generator.random(n) < 0.3
    times = [datetime(2020, 1, 1) + timedelta(days=int(d)) for d in generator.integers(0, 900, n)]
    splits = np.repeat(["train", "tuning", "held_out"], [500, 100, 300])
    rows = pl.DataFrame({"subject_id": range(n), "prediction_time": times, "split": splits, "label": labels})
    gaps = generator.uniform(0, 300, n)
    scalars = rows.select("subject_id", "prediction_time").with_columns(
        record_length=pl.Series(generator.poisson(40, n), dtype=pl.Float64),
        last_date=pl.Series(np.where(labels & leak, 100 + gaps / 10, gaps)),
        calendar_date=pl.Series(generator.uniform(0, 900, n)),
    )
    return scalars, rows


def test_a_leak_in_the_last_date_is_found() -> None:
    # Cases end around day 100, controls anywhere from 0 to 300: a straight line would see nothing.
    found = {canary.name: canary for canary in canaries(*cohort(leak=True), n_resamples=300)}
    assert found["last_date"].sings
    assert found["last_date"].auroc.value > 0.85
    assert not found["record_length"].sings
    assert not found["calendar_date"].sings


def test_a_clean_cohort_keeps_them_quiet() -> None:
    table = canary_table(canaries(*cohort(leak=False), n_resamples=300))
    assert table["excludes_half"].to_list() == [False, False, False]
    assert table["auroc"].to_list() == pytest.approx([0.5] * 3, abs=0.08)


def test_missing_numbers_and_missing_classes_are_borne() -> None:
    scalars, rows = cohort(leak=True)
    gaps = scalars.with_columns(last_date=pl.when(pl.int_range(pl.len()) % 7 > 0).then("last_date"))
    assert canaries(gaps, rows, n_resamples=50)[1].sings
    no_case = rows.with_columns(label=pl.col("label") & (pl.col("split") != "held_out"))
    assert canaries(scalars, no_case, n_resamples=50)[0].auroc.reason == "one class only: 0 of 300 rows are positive"
    no_train = rows.with_columns(label=pl.col("label") & (pl.col("split") != "train"))
    assert canaries(scalars, no_train, n_resamples=50)[0].auroc.reason == "the train rows are of one class only"
