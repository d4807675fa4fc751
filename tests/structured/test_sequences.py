"""Sequences written out by hand: what a row is, what a budget keeps, what comes back from disk."""

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epicrisis.settings.problems import InputError
from epicrisis.structured.sequences import PER_TOKEN, Sequences, concatenate, empty
from epicrisis.structured.vocabulary import SPECIALS, Vocabulary

T0 = datetime(2020, 1, 1)


def sequences(*rows: list[int]) -> Sequences:
    """Rows given as their event numbers; tokens count up from 10."""
    events = np.array([number for row in rows for number in row], dtype=np.int32)
    tokens = np.arange(10, 10 + len(events), dtype=np.int32)
    bounds = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    ids = list(range(1, len(rows) + 1))
    keys = pl.DataFrame(
        {"subject_id": ids, "prediction_time": [T0] * len(rows)},
        schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")},
    )
    return Sequences(keys, tokens, tokens.astype(np.float32), np.maximum(events, 0), events, bounds)


def test_latest_keeps_the_front_and_whole_events() -> None:
    found = sequences([-1, 0, 1, 1, 2, 2, 2, 3], [1, 2], [])
    kept = found.latest(7)
    assert kept.events.tolist() == [-1, 0, 2, 2, 2, 3, 1, 2]
    assert kept.tokens.tolist() == [10, 11, 14, 15, 16, 17, 18, 19]
    assert kept.lengths().tolist() == [6, 2, 0]
    # Event 2 would need six tokens together with the front and event 3: one too many.
    assert found.latest(5).events[kept.row(0).start : 3].tolist() == [-1, 0, 3]


def test_a_front_that_is_too_long_loses_its_last_events() -> None:
    found = sequences([-2, -1, -1, 0, 1])
    assert found.latest(3).events.tolist() == [-2, -1, -1]
    assert found.latest(2).events.tolist() == [-2, 1]


def test_an_event_longer_than_the_budget_is_left_out() -> None:
    assert sequences([1, 1, 1]).latest(2).lengths().tolist() == [0]


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="budget"):
        sequences([1]).latest(0)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 3), max_size=3), st.lists(st.integers(1, 4), max_size=8)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 20),
)
def test_latest_always_keeps_a_suffix_of_whole_events(rows: list[tuple[list[int], list[int]]], budget: int) -> None:
    numbered = [
        [number for number, size in enumerate(front + body, start=1 - len(front)) for _ in range(size)]
        for front, body in rows
    ]
    found = sequences(*numbered)
    kept = found.latest(budget)
    assert (kept.lengths() <= budget).all()
    for index in range(len(found)):
        before, after = found.events[found.row(index)].tolist(), kept.events[kept.row(index)].tolist()
        told = set(after)
        assert [number for number in before if number in told] == after
        body = [number for number in dict.fromkeys(before) if number > 0]
        dropped = [number for number in body if number not in told]
        assert dropped == body[: len(dropped)]
        if dropped:  # the next older event would not have fitted
            assert len(after) + before.count(dropped[-1]) > budget


def test_rows_are_found_by_their_keys_and_by_place() -> None:
    found = sequences([1, 1], [], [1])
    assert found.tokens[found.row(2)].tolist() == [12]
    assert found.tokens[found.row(-1)].tolist() == [12]
    with pytest.raises(IndexError):
        found.row(3)
    chosen = found.select(found.keys[[2, 0]])
    assert chosen.tokens.tolist() == [12, 10, 11]
    assert chosen.lengths().tolist() == [1, 2]
    assert chosen.keys["subject_id"].to_list() == [3, 1]
    with pytest.raises(ValueError, match="1 rows have no sequence"):
        found.select(found.keys.with_columns(pl.col("subject_id") + 1))


def test_saved_and_loaded_memory_mapped(tmp_path: Path) -> None:
    for name, found in (("some", sequences([0, 1], [], [1])), ("none", sequences([], []))):
        found.save(tmp_path / name)
        loaded = Sequences.load(tmp_path / name)
        assert isinstance(loaded.tokens, np.memmap) or not len(loaded.tokens)
        assert loaded.keys.equals(found.keys)
        for array, kind in PER_TOKEN.items():
            assert getattr(loaded, array).dtype == kind
            assert getattr(loaded, array).tolist() == getattr(found, array).tolist()
        assert loaded.bounds.tolist() == found.bounds.tolist()
        assert loaded.latest(1).lengths().tolist() == found.latest(1).lengths().tolist()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    sequences([1, 1], [1]).save(tmp_path)
    np.save(tmp_path / "days.npy", np.zeros(2, dtype=np.float32))
    with pytest.raises(InputError, match="do not belong together"):
        Sequences.load(tmp_path)
    (tmp_path / "visits.npy").unlink()
    with pytest.raises(InputError, match=r"visits\.npy is missing"):
        Sequences.load(tmp_path)


def test_concatenated() -> None:
    one, other = sequences([1, 1], []), sequences([1])
    whole = concatenate([one, other, empty(other.keys)])
    assert whole.lengths().tolist() == [2, 0, 1, 0]
    assert whole.tokens.tolist() == [10, 11, 10]


def test_a_vocabulary_begins_with_the_specials_and_knows_unknowns(tmp_path: Path) -> None:
    vocabulary = Vocabulary((*SPECIALS, "A", "B"))
    assert (vocabulary.id("A"), vocabulary.id("[PAD]"), vocabulary.id("C")) == (7, 0, 1)
    assert len(vocabulary) == 9
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary
    with pytest.raises(ValueError, match="begins"):
        Vocabulary(("A",))
    with pytest.raises(ValueError, match="once"):
        Vocabulary((*SPECIALS, "A", "A"))
    (tmp_path / "vocabulary.json").write_text("[1")
    with pytest.raises(InputError, match="no vocabulary"):
        Vocabulary.load(tmp_path / "vocabulary.json")
