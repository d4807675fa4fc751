"""Documents of any length cut into windows that fit a row, elsewhere in each epoch.

A document that fits stays whole. A longer one is cut at a first place and from there on in equal steps; the first
place moves from epoch to epoch, so that no event always stands where its past has just been cut off. Every token
is a window's own exactly once. What a window lays before its own tokens is its context, which is read and not
learnt again: the token before it (so that the first of its own tokens is predicted from something), and, where
asked for, the document's header before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CARRIED = 1
"""Tokens of the window before that a later window begins with, after the header."""


@dataclass(frozen=True)
class Windows:
    """Windows of documents, by document and then by place.

    document, start, stop: int64 [n_windows], the tokens start ≤ i < stop of that document are the window's own.
    header: int64 [n_windows], how many of the document's first tokens are repeated before them; 0 in the
    window that holds them anyway.
    """

    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    header: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    @property
    def context(self) -> np.ndarray:
        """Tokens at the window's beginning that are read and not learnt, int64 [n_windows].

        1 for a document's first window: nothing comes before its first token, which is only read.
        """
        return np.where(self.start > 0, self.header + CARRIED, 1)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in a row, context included, int64 [n_windows]."""
        return self.stop - self.start + np.where(self.start > 0, self.context, 0)

    @property
    def supervised(self) -> np.ndarray:
        """Tokens that are learnt, int64 [n_windows]: over all windows, each document's tokens but its first."""
        return self.lengths - self.context


def cut(lengths: np.ndarray, headers: np.ndarray, capacity: int, seed: Sequence[int] | None = None) -> Windows:
    """Windows of at most `capacity` tokens, context included, that hold every token of every document once.

    lengths: int [n_documents], 1 or more; headers: int [n_documents], the tokens that each document's later
    windows begin with, 0 for none; of a header longer than half a window its first half window is repeated.
    seed: what decides where documents are cut, such as (seed, epoch): the same seed cuts at the same places.
    With None the first window is full, which gives each document the fewest windows it can have.

    A header is never cut: no window learns a token that it was shown in the header. Raises ValueError for a
    capacity below 3, which leaves no room beside the context.
    """
    if capacity < 3:
        raise ValueError(f"windows of {capacity} tokens have no room beside their context")
    lengths = np.asarray(lengths, dtype=np.int64)
    headers = np.minimum(np.asarray(headers, dtype=np.int64), capacity // 2)
    step = capacity - headers - CARRIED  # a later window's own tokens
    phase = np.zeros_like(lengths) if seed is None else np.random.default_rng(seed).integers(0, step)
    first = np.where(lengths > capacity, capacity - phase, lengths)
    counts = 1 - (first - lengths) // step  # the rest divided by the step, rounded up
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    stop = first[document] + number * step[document]
    return Windows(
        document=document,
        start=np.where(number > 0, stop - step[document], 0),
        stop=np.minimum(stop, lengths[document]),
        header=np.where(number > 0, headers[document], 0),
    )
