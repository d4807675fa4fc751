"""Events with token columns → sequences: the part that all kinds share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from epicrisis.narrative.coded import NONE
from epicrisis.structured.sequences import KEYS, Sequences, ranges, within

GAP, OPENS, CODE, VALUE, CLOSES = range(5)
"""What an event may be told with, in the order of its tokens: the time before it, [VS], its code, its value, [VE]."""

AGE, YEAR = 1, 2
"""Items of the front that tell when the sequence begins; 0 for all others."""


NO_TIME = int(np.iinfo(np.int64).min)


class Pieces:
    """Token sequences by number: below `n_tokens` a number is that token alone, above one that was added."""

    def __init__(self, n_tokens: int) -> None:
        self._n_tokens = n_tokens
        self._added: list[Sequence[int]] = []

    def add(self, pieces: Sequence[Sequence[int]]) -> np.ndarray:
        """int32 [n_pieces], the numbers of these; each holds at least one token."""
        numbers = np.empty(len(pieces), dtype=np.int32)
        for place, piece in enumerate(pieces):
            if len(piece) == 1:
                numbers[place] = piece[0]
            else:
                numbers[place] = self._n_tokens + len(self._added)
                self._added.append(piece)
        return numbers

    def spell(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int32 [n_tokens] of pieces one after the other, and int64 [n_pieces], how many tokens each has."""
        if not self._added or not (numbers >= self._n_tokens).any():
            return numbers.astype(np.int32, copy=False), np.ones(len(numbers), dtype=np.int64)
        sizes = np.array([len(piece) for piece in self._added])
        flat = np.concatenate([np.arange(self._n_tokens), *map(np.asarray, self._added)]).astype(np.int32)
        size = np.concatenate([np.ones(self._n_tokens, dtype=np.int64), sizes])
        start = np.concatenate([[0], np.cumsum(size)[:-1]])
        return flat[ranges(start[numbers], size[numbers])], size[numbers]


@dataclass(frozen=True)
class Items:
    """Events to be told, and the front's own facts; arrays are [n_items]."""

    row: np.ndarray
    rank: np.ndarray
    """The place at the front; the same, highest number for all dated events."""
    slots: np.ndarray
    """int32 [n_items, 5], numbers of pieces, NONE where nothing stands."""
    time: np.ndarray
    """int64 microseconds; `NO_TIME` at the front."""
    visits: np.ndarray
    begins: np.ndarray
    """int8: AGE, YEAR or 0."""

    def take(self, order: np.ndarray) -> Items:
        """The items in another order."""
        arrays = (self.row, self.rank, self.slots, self.time, self.visits, self.begins)
        return Items(*(array[order] for array in arrays))


def joined(parts: Sequence[Items]) -> Items:
    """All items by row and rank; those of one rank as they come, part after part."""
    names = ("row", "rank", "slots", "time", "visits", "begins")
    whole = Items(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    n_ranks = int(whole.rank.max(initial=0)) + 1
    return whole.take(np.argsort(whole.row.astype(np.int64) * n_ranks + whole.rank, kind="stable"))


def lay_out(
    items: Items, keys: pl.DataFrame, births: np.ndarray, body_rank: int, pieces: Pieces, max_tokens: int | None
) -> tuple[Sequences, np.ndarray]:
    """The sequences of the rows 0 … keys.height - 1, within the budget, and which item each token is of.

    births: int64 [n_rows] microseconds, `NO_TIME` where unknown.
    """
    n_rows = keys.height
    told = items.slots != NONE
    tokens, sizes = pieces.spell(items.slots[told])
    slot_item = np.repeat(np.arange(len(items.row)), told.sum(axis=1))
    item = np.repeat(slot_item, sizes)
    row = items.row[item]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n_rows))]).astype(np.int64)
    numbers = _event_numbers(items, body_rank, n_rows)[item]
    if max_tokens is not None:
        kept = within(bounds, numbers, max_tokens)
        tokens, item, row, numbers = tokens[kept], item[kept], row[kept], numbers[kept]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n_rows))]).astype(np.int64)
    days = _days(items, births)[item]
    return Sequences(keys.select(KEYS), tokens, days, items.visits[item].astype(np.int32), numbers, bounds), item


def _event_numbers(items: Items, body_rank: int, n_rows: int) -> np.ndarray:
    """int32 [n_items]: from 1 for dated events, up to 0 for the front."""
    sizes = np.bincount(items.row, minlength=n_rows)
    n_front = np.bincount(items.row[items.rank < body_rank], minlength=n_rows)
    first = np.cumsum(sizes) - sizes
    return (np.arange(len(items.row)) - (first + n_front - 1)[items.row]).astype(np.int32)


def _days(items: Items, births: np.ndarray) -> np.ndarray:
    """float32 [n_items], age in days; 0 at the front, before birth, and where the birth is unknown."""
    birth = births[items.row]
    dated = (items.time != NO_TIME) & (birth != NO_TIME)
    lived = np.where(dated, items.time - np.where(dated, birth, 0), 0)
    return np.maximum(lived / 86_400e6, 0).astype(np.float32)
