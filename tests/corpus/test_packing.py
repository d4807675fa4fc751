"""Documents in rows: every document once, none cut, none seen by another."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epicrisis.corpus.packing import IGNORED, best_fit, pack


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_every_document_lies_in_exactly_one_row_that_holds_it(lengths):
    rows = best_fit(lengths, 50)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 50 for row in rows)


def test_best_fit_fills_the_fullest_row_first():
    assert best_fit([6, 5, 4, 4], 10) == [[0, 2], [1, 3]]


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="11 tokens"):
        best_fit([3, 11], 10)


def test_a_packed_batch_written_out():
    batch = pack([[5, 6, 7], [8, 9], [4]], [[0, 1], [2]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert batch.labels.tolist() == [[IGNORED, 6, 7, IGNORED, 9], [IGNORED] * 5]
    assert batch.ends.tolist() == [[0, 2], [0, 4], [1, 0]]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=20))
def test_supervised_tokens_are_all_but_each_documents_first(documents):
    batch = pack(documents, best_fit([len(d) for d in documents], 12), pad_id=0)
    assert batch.supervised_tokens == sum(len(d) - 1 for d in documents)
    last = batch.input_ids[batch.ends[:, 0], batch.ends[:, 1]]
    assert torch.equal(last, torch.tensor([d[-1] for d in documents]))
