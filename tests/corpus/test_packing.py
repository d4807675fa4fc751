"""Documents in rows: every document once, none cut, none seen by another."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.corpus.packing import IGNORED, best_fit, pack, spread, tight_rows


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_every_document_lies_in_exactly_one_row_that_holds_it(lengths):
    rows = best_fit(lengths, 50)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 50 for row in rows)


def test_best_fit_fills_the_fullest_row_first():
    assert best_fit([6, 5, 4, 4], 10) == [[0, 2], [1, 3]]


@given(st.lists(st.integers(0, 30), max_size=80))
def test_best_fit_takes_the_fullest_row_that_holds_a_document_and_of_these_the_first(lengths):
    rows, free = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        holding = [row for row in range(len(rows)) if free[row] >= lengths[index]]
        if not holding:
            rows.append([])
            free.append(30)
        row = min(holding, key=lambda row: (free[row], row)) if holding else len(rows) - 1
        rows[row].append(index)
        free[row] -= lengths[index]
    assert best_fit(lengths, 30) == best_fit(np.array(lengths), 30) == rows


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(0, 40))
def test_documents_spread_over_more_rows_stay_in_one_row_each(lengths, at_least):
    packed = best_fit(lengths, 20)
    if at_least > len(lengths):
        with pytest.raises(ValueError, match=f"cannot fill {at_least} rows"):
            spread(packed, at_least)
        return
    rows = spread(packed, at_least)
    assert len(rows) == max(len(packed), at_least)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(rows)


def test_rows_give_up_no_more_documents_than_are_missing():
    assert spread([[0, 1, 2], [3], [4, 5]], 3) == [[0, 1, 2], [3], [4, 5]]
    assert spread([[0, 1, 2], [3], [4, 5]], 4) == [[0, 1], [3], [4, 5], [2]]
    assert spread([[0, 1, 2], [3], [4, 5]], 6) == [[0], [3], [4], [1], [2], [5]]


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="11 tokens"):
        best_fit([3, 11], 10)


def test_a_packed_batch_written_out():
    batch = pack([[5, 6, 7], [8, 9], [4]], [[0, 1], [2]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert batch.labels.tolist() == [[IGNORED, 6, 7, IGNORED, 9], [IGNORED] * 5]
    assert batch.ends.tolist() == [[0, 2], [0, 4], [1, 0]]


def test_context_is_read_and_not_supervised():
    batch = pack([[5, 6, 7, 8], [9, 4]], [[1, 0]], pad_id=0, context=[3, 1])
    assert batch.input_ids.tolist() == [[9, 4, 5, 6, 7, 8]]
    assert batch.labels.tolist() == [[IGNORED, 4, IGNORED, IGNORED, IGNORED, 8]]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=20))
def test_supervised_tokens_are_all_but_each_documents_first(documents):
    batch = pack(documents, best_fit([len(d) for d in documents], 12), pad_id=0)
    assert batch.supervised_tokens == sum(len(d) - 1 for d in documents)
    last = batch.input_ids[batch.ends[:, 0], batch.ends[:, 1]]
    assert torch.equal(last, torch.tensor([d[-1] for d in documents]))


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=25), width_cost=st.sampled_from([0.0, 1e-4, 1e-2]))
@settings(max_examples=80, deadline=None)
def test_tight_rows_hold_every_document_once_and_cost_no_more_than_one_each(lengths, width_cost):
    rows = tight_rows(lengths, 400, width_cost)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))

    def cost(rows):
        width = max(sum(lengths[i] for i in row) for row in rows)
        return len(rows) * width * (1 + width_cost * width)

    assert cost(rows) <= cost([[i] for i in range(len(lengths))])
    if width_cost == 0:
        assert len(rows) == 1  # end to end: no padding at all
    else:
        assert max(sum(lengths[i] for i in row) for row in rows) <= 400


def test_tight_rows_by_hand():
    assert tight_rows([60, 50, 40, 50], 1000, 0.001) == [[0, 2], [1, 3]]
    assert tight_rows([90, 90, 90], 1000, 0.1) == [[0], [1], [2]]  # width is dear: nothing to gain by sharing
    assert len(tight_rows([90, 90, 10], 1000, 1e-9)) == 1
