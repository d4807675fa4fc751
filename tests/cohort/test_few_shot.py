"""Shots: nested, balanced, of train and tuning only, the same for the same seed and others for another replicate."""

from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.cohort.few_shot import CUT, Draw, draws, shortfalls, shots
from epicrisis.cohort.task import classes_of_labels, label_matrix
from epicrisis.settings import InputError

T0 = datetime(2020, 1, 1)
KEYS = ["subject_id", "prediction_time"]
LABELS = {
    "binary": (st.booleans(), pl.Boolean),
    "multiclass": (st.sampled_from(["a", "b", "c"]), pl.String),
    "multilabel": (st.lists(st.sampled_from(["a", "b", "c"]), unique=True), pl.List(pl.String)),
}


@st.composite
def cohorts(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(LABELS)) -> pl.DataFrame:
    """Up to 60 rows of any kind of task, some subjects with two; each split has some."""
    label, dtype = LABELS[draw(st.sampled_from(kinds))]
    n = draw(st.integers(9, 60))
    labels = draw(st.lists(label, min_size=n, max_size=n))
    labels[0] = {pl.Boolean: True, pl.String: "a"}.get(dtype, ["a"])  # so that there is some class
    subjects = [number // 2 if number % 5 else number for number in range(n)]
    return pl.DataFrame(
        {
            "subject_id": subjects,
            "prediction_time": [T0 + timedelta(days=number) for number in range(n)],
            "split": [("train", "tuning", "held_out")[subject % 3] for subject in subjects],
            "label": pl.Series(labels, dtype=dtype),
        }
    )


def keys(rows: pl.DataFrame) -> set[tuple]:
    return set(rows.select(KEYS).iter_rows())


@given(cohorts(), st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_shots_of_k_are_among_those_of_twice_k(rows: pl.DataFrame, replicate: int, seed: int) -> None:
    of = [keys(shots(rows, k, replicate, seed)) for k in (1, 2, 4, 8, 64)]
    assert all(fewer <= more for fewer, more in pairwise(of))
    assert of[-1] == keys(rows)
    assert shots(rows, None, None, seed) is rows


@given(cohorts(("binary", "multiclass")), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_each_class_has_k_rows_or_all_there_are(rows: pl.DataFrame, k: int, replicate: int) -> None:
    found = shots(rows, k, replicate, seed=0)
    for split in CUT:
        classes = classes_of_labels(rows)
        there = label_matrix(rows.filter(split=split), classes).sum().row(0)
        drawn = label_matrix(found.filter(split=split), classes).sum().row(0)
        assert drawn == tuple(min(k, n or 0) for n in there)


@given(cohorts(("multilabel",)), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_each_label_has_k_rows_with_and_without_it_or_all_there_are(rows: pl.DataFrame, k: int, replicate: int) -> None:
    found = shots(rows, k, replicate, seed=0)
    for split in CUT:
        there, drawn = (
            label_matrix(part.filter(split=split), classes_of_labels(rows)).to_numpy() for part in (rows, found)
        )
        for side in (lambda has: has, lambda has: ~has):
            assert (side(drawn).sum(axis=0) >= side(there).sum(axis=0).clip(max=k)).all()
        assert len(drawn) <= 2 * k * there.shape[1]


@given(cohorts(), st.integers(1, 6), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_held_out_is_whole_and_splits_stay_apart(rows: pl.DataFrame, k: int, replicate: int) -> None:
    found = shots(rows, k, replicate, seed=0)
    assert found.filter(split="held_out").equals(rows.filter(split="held_out"))
    assert found.join(rows, on=rows.columns, how="semi", nulls_equal=True).equals(found)
    assert not set(found.filter(split="train")["subject_id"]) & set(found.filter(split="tuning")["subject_id"])
    order = rows.select(KEYS).with_row_index().join(found.select(KEYS), on=KEYS, maintain_order="right")
    assert order["index"].is_sorted()


@given(cohorts(), st.integers(1, 6), st.integers(1, 5), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_same_seed_draws_the_same_whatever_the_order_of_rows(
    rows: pl.DataFrame, k: int, replicate: int, seed: int
) -> None:
    found = shots(rows, k, replicate, seed)
    assert found.equals(shots(rows, k, replicate, seed))
    assert keys(shots(rows.sample(fraction=1, shuffle=True, seed=1), k, replicate, seed)) == keys(found)


@pytest.mark.parametrize("dtype", [pl.Boolean, pl.String])
def test_replicates_and_seeds_differ(dtype: type[pl.DataType]) -> None:
    rows = pl.DataFrame(
        {
            "subject_id": range(300),
            "prediction_time": [T0] * 300,
            "split": ["train", "train", "tuning"] * 100,
            "label": pl.Series([number % 2 == 0 for number in range(300)]).cast(dtype),
        }
    )
    drawn = [frozenset(keys(shots(rows, 4, replicate, seed))) for replicate in range(1, 6) for seed in (0, 1)]
    assert len(set(drawn)) == 10
    # train and tuning are not shuffled alike
    train, tuning = (shots(rows, 4, 1, 0).filter(split=split)["subject_id"] // 3 for split in CUT)
    assert set(train) != set(tuning)


def test_what_there_is_too_little_of_is_said_without_saying_how_little() -> None:
    rows = pl.DataFrame(
        {
            "subject_id": range(8),
            "prediction_time": [T0] * 8,
            "split": ["train"] * 5 + ["tuning"] * 3,
            "label": [True, True, False, False, False, True, False, False],
        }
    )
    assert shortfalls(rows, 1) == []
    assert shortfalls(rows, 3) == [
        "train has fewer than 3 rows of true: all of them are shots",
        "tuning has fewer than 3 rows of false: all of them are shots",
        "tuning has fewer than 3 rows of true: all of them are shots",
    ]
    several = rows.with_columns(label=pl.when("label").then(pl.lit(["x", "y"])).otherwise(pl.lit(["y"])))
    assert "train has fewer than 3 rows with x: all of them are shots" in shortfalls(several, 3)
    assert "train has fewer than 3 rows without y: all of them are shots" in shortfalls(several, 3)
    assert not [note for note in shortfalls(several, 3) if note.startswith("train") and "with y" in note]


def test_what_is_run_and_where_it_lies() -> None:
    assert draws([4, "all", 1], 2) == [Draw(1, 1), Draw(1, 2), Draw(4, 1), Draw(4, 2), Draw()]
    assert draws(["all"], 5) == [Draw()]
    assert draws([2], 1) == [Draw(2, 1)]
    assert Draw(8, 2).folder(Path("arms/one")) == Path("arms/one/k-8/replicate-2")
    assert Draw().folder(Path("arms/one")) == Path("arms/one")


def test_labels_without_classes_are_refused() -> None:
    rows = pl.DataFrame({"subject_id": [1], "prediction_time": [T0], "split": ["train"], "label": [1.5]})
    with pytest.raises(InputError, match="shots are counted by class"):
        shots(rows, 1, 1, 0)
