"""Sequences of codes laid into batches, each code with its age and its visit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import numpy as np
import torch

from epicrisis.structured.sequences import Sequences, within
from epicrisis.structured.vocabulary import SPECIALS

AgeUnit = Literal["months", "years"]
PAD, CLS, MASK = (SPECIALS.index(name) for name in ("[PAD]", "[CLS]", "[MASK]"))
UNKNOWN_AGE = 0
OLDEST_YEARS = 120
"""Whoever is older counts as this old."""
_DAYS = {"months": 365.25 / 12, "years": 365.25}


def n_ages(unit: AgeUnit) -> int:
    """Ids of ages: that of unknown ones, then 0, 1, 2, … units."""
    return 2 + OLDEST_YEARS * (12 if unit == "months" else 1)


def age_ids(days: np.ndarray, unit: AgeUnit) -> np.ndarray:
    """int64 ids of ages in days; UNKNOWN_AGE where they are 0 (unknown, as in Sequences)."""
    whole = np.floor(days / np.float64(_DAYS[unit])).astype(np.int64)
    return np.where(days == 0, UNKNOWN_AGE, 1 + np.clip(whole, 0, n_ages(unit) - 2))


@dataclass(frozen=True)
class AgeVisitBatch:
    """Records padded on the right, each behind a [CLS].

    tokens, ages, visits: int64 [n, width]; visits count from 1, the oldest that is in sight; 0 is outside of any, and
    [CLS] and pads. lengths: int64 [n], [CLS] included. people: int64 [n, 2], ids of sex and region, 0 for unknown.
    hidden: int64 [k], the places in the flattened [n x width] whose codes are asked for; None where none are.
    """

    tokens: torch.Tensor
    ages: torch.Tensor
    visits: torch.Tensor
    lengths: torch.Tensor
    people: torch.Tensor
    hidden: torch.Tensor | None = None

    @property
    def places(self) -> int:
        return self.tokens.numel()

    @property
    def useful_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def present(self) -> torch.Tensor:
        """bool [n, width]: where there is a token and no pad."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]

    def to(self, device: torch.device) -> Self:
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: part.to(device) for name, part in moved.items() if part is not None})


@dataclass(frozen=True)
class Records:
    """Rows' sequences, and how they are laid into batches.

    people: int64 [n_rows, 2], see AgeVisitBatch. max_length: tokens of a row, [CLS] included: the front and the latest
    events that fit.
    """

    sequences: Sequences
    people: np.ndarray
    age_unit: AgeUnit
    max_length: int

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n_rows]: tokens that a row is laid with, at most."""
        return np.minimum(self.sequences.lengths() + 1, self.max_length)

    def batch(self, rows: Sequence[int], ends: Sequence[int] | None = None) -> AgeVisitBatch:
        """These rows; of each only its first `ends` tokens, where that is given."""
        found = [self.places(row, None if ends is None else ends[place]) for place, row in enumerate(rows)]
        width = 1 + max((len(places) for places in found), default=0)
        tokens, ages, visits = (np.zeros((len(found), width), dtype=np.int64) for _ in range(3))
        tokens[:, 0] = CLS
        for number, places in enumerate(found):
            inside = slice(1, 1 + len(places))
            tokens[number, inside] = self.sequences.tokens[places]
            ages[number, inside] = age_ids(self.sequences.days[places], self.age_unit)
            visits[number, inside] = _from_one(self.sequences.visits[places])
            ages[number, 0] = ages[number, len(places)] if len(places) else UNKNOWN_AGE  # [CLS] is as old as the latest
        lengths = np.array([1 + len(places) for places in found], dtype=np.int64)
        arrays = (tokens, ages, visits, lengths, self.people[np.asarray(rows, dtype=np.int64)])
        return AgeVisitBatch(*map(torch.from_numpy, arrays))

    def places(self, row: int, end: int | None = None) -> np.ndarray:
        """int64: where in the sequences' arrays the tokens of a row stand that are laid; of its first `end` only."""
        whole = self.sequences.row(row)
        stop = whole.stop if end is None else whole.start + end
        events = np.asarray(self.sequences.events[whole.start : stop])
        kept = within(np.array([0, len(events)]), events, self.max_length - 1)
        return whole.start + np.flatnonzero(kept)


def _from_one(visits: np.ndarray) -> np.ndarray:
    """The same counted from the first visit in sight, so that a number never passes that of the tokens."""
    inside = visits > 0
    if not inside.any():
        return np.zeros(len(visits), dtype=np.int64)
    _, ranks = np.unique(visits[inside], return_inverse=True)
    counted = np.zeros(len(visits), dtype=np.int64)
    counted[inside] = ranks + 1
    return counted
