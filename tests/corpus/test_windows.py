"""Long documents in windows: every token once, cut elsewhere in each epoch, and no header given away."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epicrisis.corpus.windows import cut


@st.composite
def corpora(draw):
    """Lengths, header lengths of at most that, a capacity, and a seed or None."""
    lengths = draw(st.lists(st.integers(1, 90), min_size=1, max_size=12))
    headers = [draw(st.integers(0, length)) for length in lengths]
    seed = draw(st.none() | st.tuples(st.integers(0, 5), st.integers(0, 5)))
    return np.array(lengths), np.array(headers), draw(st.integers(3, 40)), seed


def table(windows):
    columns = (windows.document, windows.start, windows.stop, windows.header, windows.lengths, windows.context)
    return [list(map(int, row)) for row in zip(*columns, strict=True)]


def test_windows_written_out():
    # document, start, stop, header, tokens in the row, of which context
    assert table(cut(np.array([10, 3, 6]), np.zeros(3, int), 6)) == [
        [0, 0, 6, 0, 6, 1],
        [0, 6, 10, 0, 5, 1],
        [1, 0, 3, 0, 3, 1],
        [2, 0, 6, 0, 6, 1],
    ]


def test_windows_with_their_header_written_out():
    assert table(cut(np.array([13]), np.array([2]), 6)) == [
        [0, 0, 6, 0, 6, 1],
        [0, 6, 9, 2, 6, 3],
        [0, 9, 12, 2, 6, 3],
        [0, 12, 13, 2, 4, 3],
    ]


def test_of_a_long_header_half_a_window_is_repeated():
    assert cut(np.array([13]), np.array([12]), 8).header.tolist() == [0, 4, 4]


def test_nothing_is_cut_of_nothing():
    assert len(cut(np.array([], int), np.array([], int), 8, (0, 0))) == 0


def test_a_window_without_room_is_refused():
    with pytest.raises(ValueError, match="windows of 2 tokens"):
        cut(np.array([5]), np.array([0]), 2)


@given(corpora())
def test_every_token_is_a_windows_own_once_and_is_learnt_once_but_for_each_documents_first(corpus):
    lengths, headers, capacity, seed = corpus
    windows = cut(lengths, headers, capacity, seed)
    own = [np.zeros(length, int) for length in lengths]
    learnt = [np.zeros(length, int) for length in lengths]
    for document, start, stop, supervised in zip(
        windows.document, windows.start, windows.stop, windows.supervised, strict=True
    ):
        own[document][start:stop] += 1
        learnt[document][stop - supervised : stop] += 1
    assert all((tokens == 1).all() for tokens in own)
    assert all(tokens[0] == 0 and (tokens[1:] == 1).all() for tokens in learnt)


@given(corpora())
def test_windows_fit_and_their_context_holds_nothing_that_they_learn(corpus):
    lengths, headers, capacity, seed = corpus
    windows = cut(lengths, headers, capacity, seed)
    later = windows.start > 0
    assert (windows.lengths <= capacity).all()
    assert (windows.stop > windows.start).all()
    assert (windows.header[~later] == 0).all()
    assert (windows.header[later] == np.minimum(headers, capacity // 2)[windows.document][later]).all()
    carried = windows.start[later] - 1
    assert (carried >= windows.header[later]).all(), "the header and the token before the window must not overlap"


@given(corpora())
def test_documents_that_fit_stay_whole(corpus):
    lengths, headers, capacity, seed = corpus
    windows = cut(lengths, headers, capacity, seed)
    counts = np.bincount(windows.document)
    assert ((counts == 1) == (lengths <= capacity)).all()


@given(corpora())
def test_the_fixed_cut_makes_the_fewest_windows(corpus):
    lengths, headers, capacity, seed = corpus
    fixed, moved = (np.bincount(cut(lengths, headers, capacity, s).document) for s in (None, seed))
    assert (fixed <= moved).all()
    assert (moved <= fixed + 1).all()


def test_two_epochs_differ_and_the_same_one_repeats():
    lengths, headers = np.full(20, 100), np.zeros(20, int)
    first, second, again = (table(cut(lengths, headers, 30, (7, epoch))) for epoch in (0, 1, 0))
    assert first == again
    assert first != second
    assert first != table(cut(lengths, headers, 30, (8, 0)))


def test_in_one_epoch_documents_are_cut_at_different_places_and_every_place_is_taken():
    windows = cut(np.full(500, 100), np.full(500, 3), 10, (0, 0))
    assert set(windows.start[windows.start > 0].tolist()) == set(range(5, 100))
