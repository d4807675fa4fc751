"""Framed sequences as padded batches, and which sequences make a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from epicrisis.corpus.packing import IGNORED
from epicrisis.settings.structured_section import Objective
from epicrisis.structured.vocabulary import SPECIALS

PAD, BOS, EOS, CLS, SEP = (SPECIALS.index(name) for name in ("[PAD]", "[BOS]", "[EOS]", "[CLS]", "[SEP]"))
FRAMES: dict[Objective, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "next_token": ((BOS,), ()),
    "masked": ((CLS,), (SEP,)),
    "spans": ((), (EOS,)),
}
"""What stands before and after a row's tokens."""
STRETCH = 50
"""Batches' worth of windows that are sorted by length together: more waste less padding and mix less."""


@dataclass(frozen=True)
class CodeBatch:
    """Sequences padded on the right.

    ids: int64 [n, width]; lengths: int64 [n]. labels: int64 [n, width], IGNORED wherever nothing is learnt. With a
    decoder, decoder_ids are what it reads and labels what it learns, both int64 [n, width of the targets], and
    decoder_lengths says how many of them there are.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor | None = None
    decoder_ids: torch.Tensor | None = None
    decoder_lengths: torch.Tensor | None = None

    def to(self, device: torch.device) -> CodeBatch:
        parts: dict[str, torch.Tensor | None] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: None if part is None else part.to(device) for name, part in parts.items()}
        return CodeBatch(**moved)

    @property
    def places(self) -> int:
        """Places of tokens, padding included, the decoder's as well."""
        return self.ids.numel() + (0 if self.decoder_ids is None else self.decoder_ids.numel())

    @property
    def useful_tokens(self) -> int:
        """Tokens that are no padding, the decoder's as well."""
        return int(self.lengths.sum()) + (0 if self.decoder_lengths is None else int(self.decoder_lengths.sum()))


def frame(tokens: np.ndarray, objective: Objective) -> np.ndarray:
    """A row's tokens as its model reads them for classification, int64: after [BOS], in [CLS] [SEP], or before [EOS].

    Nothing of the model that learns next tokens is read off [EOS], which it only ever writes.
    """
    before, after = FRAMES[objective]
    return np.array([*before, *tokens.tolist(), *after], dtype=np.int64)


def frame_width(objective: Objective) -> int:
    """Places that `frame` adds."""
    before, after = FRAMES[objective]
    return len(before) + len(after)


def padded(sequences: Sequence[np.ndarray], fill: int) -> torch.Tensor:
    """Sequences side by side, int64 [n, longest], with `fill` behind the shorter ones."""
    table = np.full((len(sequences), max(map(len, sequences))), fill, dtype=np.int64)
    for row, sequence in zip(table, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(table)


def lengths_of(sequences: Sequence[np.ndarray]) -> torch.Tensor:
    """int64 [n]."""
    return torch.tensor([len(sequence) for sequence in sequences], dtype=torch.long)


def plain_batch(sequences: Sequence[np.ndarray]) -> CodeBatch:
    """Sequences that are only read."""
    return CodeBatch(padded(sequences, PAD), lengths_of(sequences))


def causal_batch(sequences: Sequence[np.ndarray]) -> CodeBatch:
    """Sequences of which each token but the first is learnt from those before it."""
    ids = padded(sequences, PAD)
    labels = padded([np.append(sequence[1:], IGNORED) for sequence in sequences], IGNORED)
    return CodeBatch(ids, lengths_of(sequences), labels)


def budget_batches(lengths: np.ndarray, budget: int, seed: Sequence[int] | None = None) -> list[np.ndarray]:
    """Which sequences make each batch: int64 places, all once; no batch is wider times longer than `budget`.

    Sequences of like lengths come together. seed: what mixes them, such as (seed, epoch), within stretches of
    STRETCH batches' worth; with None all are sorted, which needs the fewest batches. A sequence longer than the
    budget makes a batch by itself.
    """
    order = np.arange(len(lengths))
    if seed is None:
        return _cut(order[np.argsort(-lengths, kind="stable")], lengths, budget)
    np.random.default_rng(seed).shuffle(order)
    stretch = np.cumsum(lengths[order]) // (STRETCH * budget)
    order = order[np.lexsort((-lengths[order], stretch))]  # sorted within its stretch, ties stay shuffled
    ends = np.flatnonzero(np.diff(np.sort(stretch))) + 1
    return [batch for part in np.split(order, ends) for batch in _cut(part, lengths, budget)]


def _cut(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Sequences, longest first, cut into batches as full as the first one's length lets them be."""
    batches, start = [], 0
    while start < len(order):
        stop = start + max(1, budget // max(1, int(lengths[order[start]])))
        batches.append(order[start:stop])
        start = stop
    return batches


def at_least(batches: list[np.ndarray], wanted: int) -> list[np.ndarray]:
    """The same sequences in `wanted` batches or more: where there are fewer, the fullest are halved.

    Raises ValueError where there are fewer sequences than that.
    """
    missing = wanted - len(batches)
    if missing > sum(len(batch) - 1 for batch in batches):
        raise ValueError(f"{sum(map(len, batches))} sequences cannot make {wanted} batches")
    batches = list(batches)
    while len(batches) < wanted:
        fullest = max(range(len(batches)), key=lambda place: len(batches[place]))
        half = len(batches[fullest]) // 2
        batches.append(batches[fullest][half:])
        batches[fullest] = batches[fullest][:half]
    return batches
