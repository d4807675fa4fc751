"""Narrative lengths: the figures of small tables worked out by hand, bins that hide nobody, packing as in training."""

from __future__ import annotations

import datasets
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epicrisis.corpus.lengths import (
    FEWEST_NARRATIVES,
    epoch_seed,
    length_bins,
    length_statistics,
    length_table,
    lengths_text,
    packing_table,
)
from epicrisis.llm.pretrain import NarrativeLesson
from epicrisis.llm.tiny_models import train_tokenizer

SCHEMA = {
    "split": pl.String,
    "n_tokens": pl.Int32,
    "n_header_tokens": pl.Int32,
    "n_events": pl.Int32,
    "n_events_dropped": pl.Int32,
}

SMALL = pl.DataFrame(
    [
        ("tuning", 100, 10, 0, 0),
        ("train", 40, 10, 10, 0),
        ("train", 60, 10, 20, 10),
        ("train", 50, 10, 12, 2),
        ("train", 50, 10, 10, 0),
    ],
    schema=SCHEMA,
    orient="row",
)


def lengths_of(n_tokens: list[int], header: int = 4, split: str = "train") -> pl.DataFrame:
    rows = [(split, n, min(header, n), max(1, n // 8), 0) for n in n_tokens]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def test_the_table_of_a_small_corpus():
    table = length_table(SMALL, "timeline@2", "some/model")
    assert table.to_dicts() == [
        {
            "split": "train",
            "style": "timeline@2",
            "tokenizer": "some/model",
            "narratives": 4,
            "tokens_mean": 50.0,
            "tokens_median": 50.0,
            "tokens_p90": 60.0,
            "tokens_max": 60,
            "tokens_per_event": 5.0,  # 200 tokens, 40 of 52 events
            "events": 52,
            "events_left_out": 12 / 52,
            "narratives_cut": 0.5,
        },
        {
            "split": "tuning",
            "style": "timeline@2",
            "tokenizer": "some/model",
            "narratives": 1,
            "tokens_mean": 100.0,
            "tokens_median": 100.0,
            "tokens_p90": 100.0,
            "tokens_max": 100,
            "tokens_per_event": None,
            "events": 0,
            "events_left_out": None,
            "narratives_cut": 0.0,
        },
    ]


def test_the_lines_of_a_small_corpus():
    assert lengths_text(SMALL).splitlines() == [
        "train: 4 narratives of 50 tokens on average (at most 60), 5.0 tokens per event kept; 52 events, 12 of them "
        "beyond the token budget",
        "tuning: 1 narratives of 100 tokens on average (at most 100), 0.0 tokens per event kept; 0 events, 0 of them "
        "beyond the token budget",
    ]


def test_sums_beyond_32_bits():
    many = pl.DataFrame([("train", 2_000_000_000, 1, 1_500_000_000, 0)] * 2, schema=SCHEMA, orient="row")
    row = length_statistics(many).row(0, named=True)
    assert (row["events"], row["tokens_mean"]) == (3_000_000_000, 2e9)
    assert row["tokens_per_event"] == pytest.approx(4 / 3)


def test_sparse_neighbours_are_joined():
    # The 1st and 99th percentiles are 100 and 500: bins of 10 tokens, of which only these hold enough.
    lengths = lengths_of([100] * 30 + [205] * 4 + [305] * 7 + [500] * 12)
    bins = length_bins(lengths).filter(of="tokens")
    assert bins.select("at_least", "below", "narratives").rows() == [(100, 110, 30), (110, 310, 11), (310, 500, 12)]


def test_what_is_left_joins_the_last_bin():
    lengths = lengths_of([100] * 30 + [500] * 5)
    bins = length_bins(lengths).filter(of="tokens")
    assert bins.select("at_least", "below", "narratives").rows() == [(100, 500, 35)]


def test_a_split_of_few_is_not_drawn_at_all():
    lengths = pl.concat([lengths_of([100, 200] * 20), lengths_of([150] * (FEWEST_NARRATIVES - 1), split="tuning")])
    assert length_bins(lengths)["split"].unique().to_list() == ["train"]
    assert length_bins(lengths.filter(split="tuning")).is_empty()


@given(st.lists(st.integers(1, 10_000), max_size=200), st.lists(st.integers(1, 10_000), max_size=40))
def test_bins_hold_every_narrative_and_never_few(train, tuning):
    lengths = pl.concat([lengths_of(train), lengths_of(tuning, split="tuning")])
    bins = length_bins(lengths)
    assert (bins["narratives"] >= FEWEST_NARRATIVES).all()
    for of in ("tokens", "tokens_per_event"):
        for split, values in (("train", train), ("tuning", tuning)):
            ours = bins.filter(of=of, split=split)
            assert ours["narratives"].sum() == (len(values) if len(values) >= FEWEST_NARRATIVES else 0)
            assert (ours["below"][:-1] == ours["at_least"][1:]).all()
            assert (ours["at_least"] < ours["below"]).all()


def test_packing_worked_out_by_hand():
    # With EOS 6 + 4 fill one row of 10, 3 lies alone; the record of 24 needs windows of 10, 9 and 5 own tokens.
    table = packing_table(lengths_of([5, 3, 2]), 10)
    assert table.rows() == [("train", 3, 3, 2, 13 / 20)]
    assert packing_table(lengths_of([23]), 10).rows() == [("train", 1, 3, 3, 24 / 30)]


@pytest.mark.parametrize("repeat_header", [False, True])
@pytest.mark.parametrize("seed", [0, -3])
def test_packing_is_that_of_the_lesson(repeat_header, seed):
    n_tokens = np.random.default_rng(0).integers(5, 300, 60).tolist()
    lengths = lengths_of(n_tokens)
    ids = {"input_ids": [[5] * n for n in n_tokens]}
    columns = {name: lengths[name].to_list() for name in ("n_tokens", "n_header_tokens")}
    tokenizer = train_tokenizer(["a text to learn from"] * 3)
    lesson = NarrativeLesson(datasets.Dataset.from_dict(ids | columns), tokenizer, 64, repeat_header=repeat_header)
    for seeds in (None, {"train": epoch_seed(seed, 0)}):
        if seeds:
            lesson.start_epoch(0, seed)
        told = packing_table(lengths, 64, repeat_header=repeat_header, seeds=seeds).row(0, named=True)
        assert {name: told[name] for name in told if name != "split"} == {
            name: figure for name, figure in lesson.packing().items() if name != "supervised_tokens"
        }
