"""Documents of unequal length laid into rows of equal length, without any document seeing another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import torch

IGNORED = -100
"""The label that a loss passes over."""


@dataclass(frozen=True)
class PackedBatch:
    """Rows of several documents each; position_ids restart at every document.

    input_ids, position_ids, labels: int64 [n_rows, length]; labels are IGNORED on padding and on the
    first token of each document (nothing before it belongs to the same patient), or on all of its context.
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
    def places(self) -> int:
        """Places of tokens, padding included."""
        return self.input_ids.numel()

    @property
    def useful_tokens(self) -> int:
        """Tokens of documents."""
        return int((self.position_ids[self.ends[:, 0], self.ends[:, 1]] + 1).sum())

    @property
    def supervised_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Indices of documents per row: longest first, each into the fullest row that still holds it.

    Best-fit decreasing bin packing as used for language-model pretraining by Ding et al. 2024
    (arXiv:2404.10830); among equally full rows the earliest is taken. Rows are kept by their free tokens,
    of which there are few different numbers, so that a million documents take about a second. Raises
    ValueError where a document is longer than the capacity.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and sizes.max() > capacity:
        raise ValueError(f"a document of {sizes.max()} tokens does not fit rows of {capacity}")
    order = np.argsort(-sizes, kind="stable")
    rows: list[list[int]] = []
    having: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by their free tokens, each a heap
    present = 0  # bit f is set where a row has f free tokens
    for index, length in zip(order.tolist(), sizes[order].tolist(), strict=True):
        roomy = present >> length
        if roomy:
            free = length + (roomy & -roomy).bit_length() - 1  # the lowest bit: the fullest row
            row = heappop(having[free])
            if not having[free]:
                present ^= 1 << free
            rows[row].append(index)
        else:
            free, row = capacity, len(rows)
            rows.append([index])
        heappush(having[free - length], row)
        present |= 1 << (free - length)
    return rows


def spread(rows: list[list[int]], at_least: int) -> list[list[int]]:
    """The same documents in `at_least` rows or more: where there are fewer, full rows give documents up.

    Raises ValueError where there are fewer documents than rows are asked for.
    """
    missing = at_least - len(rows)
    if missing <= 0:
        return rows
    if sum(map(len, rows)) < at_least:
        raise ValueError(f"{sum(map(len, rows))} documents cannot fill {at_least} rows")
    given_up: list[list[int]] = []
    kept = []
    for row in rows:
        left = max(1, len(row) - (missing - len(given_up)))
        kept.append(row[:left])
        given_up += [[index] for index in row[left:]]
    return kept + given_up


def tight_rows(lengths: Sequence[int] | np.ndarray, widest: int, width_cost: float) -> list[list[int]]:
    """Indices of a batch's documents per row, so that the rows cost least to compute; no document is cut.

    A place of a row costs 1 + width_cost x the row's width: padding makes few wide rows dear that leave much free, and
    width makes them dear where attention is computed over the whole row. With width_cost 0 all documents go into one
    row, end to end, without any padding. widest: the widest row that may be (a single document may be wider).
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    total, longest = int(sizes.sum()), int(sizes.max(initial=0))
    if width_cost == 0:
        return [list(range(len(sizes)))]
    counts = np.unique(np.geomspace(max(1, -(-total // max(widest, longest))), len(sizes), num=8).round().astype(int))
    capacities = {min(max(longest, -(-total // int(count))), max(widest, longest)) for count in counts}
    found = [best_fit(sizes, capacity) for capacity in sorted(capacities | {longest})]
    found.append([[index] for index in range(len(sizes))])

    def cost(rows: list[list[int]]) -> float:
        width = max(int(sizes[row].sum()) for row in rows)
        return len(rows) * width * (1 + width_cost * width)

    return min(found, key=cost)


def pack(
    documents: Sequence[Sequence[int]] | Sequence[np.ndarray],
    rows: Sequence[Sequence[int]],
    pad_id: int,
    width: int | None = None,
    context: Sequence[int] | None = None,
) -> PackedBatch:
    """Lay documents into the given rows, padded on the right to `width`, or to the fullest row.

    context: of each document, how many of its first tokens are read and not supervised; 1 where not given.
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
            learnt = start + (context[i] if context is not None else 1)
            labels[r, learnt:stop] = input_ids[r, learnt:stop]
            ends[i] = torch.tensor([r, stop - 1])
            start = stop
        position_ids[r, start:] = torch.arange(width - start)
    return PackedBatch(input_ids, position_ids, labels, ends)
