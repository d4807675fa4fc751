"""Documents of unequal length laid into rows of equal length, without any document seeing another."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch

IGNORED = -100
"""The label that a loss passes over."""


@dataclass(frozen=True)
class PackedBatch:
    """Rows of several documents each; position_ids restart at every document.

    input_ids, position_ids, labels: int64 [n_rows, length]; labels are IGNORED on padding and on the
    first token of each document (nothing before it belongs to the same patient).
    ends: int64 [n_documents, 2], the (row, column) of each document's last token, in the order given.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    ends: torch.Tensor

    def to(self, device: torch.device) -> PackedBatch:
        moved = (getattr(self, name).to(device) for name in ("input_ids", "position_ids", "labels", "ends"))
        return PackedBatch(*moved)

    @property
    def supervised_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of documents per row: longest first, each into the fullest row that still holds it.

    Best-fit decreasing bin packing as used for language-model pretraining by Ding et al. 2024
    (arXiv:2404.10830). Raises ValueError where a document is longer than the capacity.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in order:
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"a document of {length} tokens does not fit rows of {capacity}")
        at = bisect_left(room, (length, -1))
        if at == len(room):
            rows.append([index])
            insort(room, (capacity - length, len(rows) - 1))
        else:
            free, row = room.pop(at)
            rows[row].append(index)
            insort(room, (free - length, row))
    return rows


def pack(
    documents: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], pad_id: int, width: int | None = None
) -> PackedBatch:
    """Lay documents into the given rows, padded on the right to `width`, or to the fullest row.

    The padding of a row counts positions of its own from 0, so that to attention it is one more document.
    A fixed width is kind to kernels that are compiled or cached for each shape they meet.
    """
    width = width or max(sum(len(documents[i]) for i in row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    position_ids = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    ends = torch.zeros((len(documents), 2), dtype=torch.long)
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            stop = start + len(documents[i])
            input_ids[r, start:stop] = torch.as_tensor(documents[i])
            position_ids[r, start:stop] = torch.arange(stop - start)
            labels[r, start + 1 : stop] = input_ids[r, start + 1 : stop]
            ends[i] = torch.tensor([r, stop - 1])
            start = stop
        position_ids[r, start:] = torch.arange(width - start)
    return PackedBatch(input_ids, position_ids, labels, ends)
