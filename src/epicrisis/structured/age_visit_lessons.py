"""What the models of added embeddings learn from records: outcomes, masked codes, the next visit's codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from epicrisis.structured.age_visit_records import MASK, AgeVisitBatch, Records
from epicrisis.structured.vocabulary import SPECIALS
from epicrisis.training.outcome import Outcome

N_SPECIALS = len(SPECIALS)
_KEPT, _DRAWN = 0.1, 0.2
"""Of the codes that are asked for, a tenth is left as it is and a tenth is another one; the rest is [MASK]."""


class RecordLesson:
    """Records and what becomes of them; an item is a row of the cohort.

    targets: as `outcome` gives them, None where only predictions are wanted.
    """

    def __init__(self, records: Records, outcome: Outcome, targets: np.ndarray | None = None):
        self.records = records
        self.outcome = outcome
        self._targets = targets

    @property
    def n_items(self) -> int:
        return len(self.records)

    @property
    def item_lengths(self) -> np.ndarray:
        return self.records.lengths

    @property
    def targets(self) -> np.ndarray:
        """What the rows are; ValueError for a lesson made for predictions only."""
        if self._targets is None:
            raise ValueError("this lesson has no targets: it was made for predictions only")
        return self._targets

    def collate(self, items: Sequence[int]) -> AgeVisitBatch:
        return self.records.batch(items)

    def batches(self, items: np.ndarray, batch_size: int) -> Iterator[list[int]]:
        """The items in batches of like lengths."""
        order = items[np.argsort(-self.item_lengths[items], kind="stable")]
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size].tolist()

    def units(self, items: Sequence[int]) -> int:
        return len(items)

    def loss_sum(self, module: nn.Module, batch: AgeVisitBatch, items: Sequence[int]) -> torch.Tensor:
        targets = torch.as_tensor(self.targets[list(items)], device=batch.tokens.device)
        return self.outcome.loss(module(batch), targets)


class MaskedLesson:
    """Some codes of each record are hidden and are to be told from the others; an item is a record.

    Which codes are hidden is drawn anew in each epoch, by seed, epoch and record alone; without `dynamic` it is the
    same in all of them. Records without any code are left out. share: of a record's codes, at least one.
    """

    def __init__(self, records: Records, n_codes: int, share: float, *, dynamic: bool = True):
        self.records = records
        self._n_codes = n_codes
        self._share = share
        self._dynamic = dynamic
        self._epoch = (0, 0)
        laid = [_codes_of(records, row) for row in range(len(records))]
        self._n_hidden = np.array([max(1, round(share * n)) if n else 0 for n in laid], dtype=np.int64)
        self._rows = np.flatnonzero(self._n_hidden)

    @property
    def n_items(self) -> int:
        return len(self._rows)

    @property
    def fewest_items(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> np.ndarray:
        """int64 [n_items]: the record of each item."""
        return self._rows

    @property
    def item_lengths(self) -> np.ndarray:
        return self.records.lengths[self._rows]

    def start_epoch(self, epoch: int, seed: int) -> None:
        self._epoch = (seed % 2**32, epoch if self._dynamic else 0)

    def units(self, items: Sequence[int]) -> int:
        return int(self._n_hidden[self._rows[list(items)]].sum())

    def collate(self, items: Sequence[int]) -> AgeVisitBatch:
        rows = self._rows[list(items)]
        batch = self.records.batch(rows.tolist())
        tokens, hidden = batch.tokens.numpy().copy(), []
        for number, row in enumerate(rows.tolist()):
            generator = np.random.default_rng([*self._epoch, row])
            chosen = np.sort(generator.permutation(_maskable(tokens[number]))[: self._n_hidden[row]])
            fate = generator.random(len(chosen))
            others = generator.integers(N_SPECIALS, max(self._n_codes, N_SPECIALS + 1), len(chosen))
            own = tokens[number, chosen]
            tokens[number, chosen] = np.where(fate < _KEPT, own, np.where(fate < _DRAWN, others, MASK))
            hidden.append(number * tokens.shape[1] + chosen)
        places = torch.from_numpy(np.concatenate(hidden))
        return replace(batch, tokens=torch.from_numpy(tokens), hidden=places)

    def answers(self, batch: AgeVisitBatch, items: Sequence[int]) -> torch.Tensor:
        """int64 [k]: the codes that are hidden in the batch of these items."""
        assert batch.hidden is not None
        whole = self.records.batch(self._rows[list(items)].tolist()).tokens
        return whole.to(batch.tokens.device).flatten()[batch.hidden]

    def loss_sum(self, module: nn.Module, batch: AgeVisitBatch, items: Sequence[int]) -> torch.Tensor:
        return F.cross_entropy(module(batch), self.answers(batch, items), reduction="sum")


class NextVisitLesson:
    """A record up to a visit, and which codes the visit after it holds; an item is a record of two visits or more.

    The visit that is to be told is drawn anew in each epoch, by seed, epoch and record alone. Nothing at or after
    its first code is seen. records: whole ones, since each is cut at another visit.
    """

    def __init__(self, records: Records, n_codes: int):
        self.records = records
        self._n_codes = n_codes
        self._epoch = (0, 0)
        self._begins = visit_begins(records)
        self._rows = np.array([row for row, begins in enumerate(self._begins) if len(begins) > 1], dtype=np.int64)

    @property
    def n_items(self) -> int:
        return len(self._rows)

    @property
    def fewest_items(self) -> int:
        return len(self._rows)

    @property
    def item_lengths(self) -> np.ndarray:
        return self.records.lengths[self._rows]

    def start_epoch(self, epoch: int, seed: int) -> None:
        self._epoch = (seed % 2**32, epoch)

    def units(self, items: Sequence[int]) -> int:
        return len(items)

    def cut(self, item: int) -> tuple[int, int]:
        """(tokens that are seen, the visit that is to be told), of this epoch."""
        row = int(self._rows[item])
        begins = self._begins[row]
        drawn = int(np.random.default_rng([*self._epoch, row]).integers(1, len(begins)))
        return int(begins[drawn][1]), int(begins[drawn][0])

    def collate(self, items: Sequence[int]) -> AgeVisitBatch:
        return self.records.batch(self._rows[list(items)].tolist(), [self.cut(item)[0] for item in items])

    def answers(self, items: Sequence[int]) -> torch.Tensor:
        """float32 [n, n_codes]: 1 for the codes of the next visit."""
        answers = torch.zeros(len(items), self._n_codes)
        sequences = self.records.sequences
        for number, item in enumerate(items):
            row = sequences.row(int(self._rows[item]))
            codes = sequences.tokens[row][sequences.visits[row] == self.cut(item)[1]]
            answers[number, torch.from_numpy(codes[codes >= N_SPECIALS].astype(np.int64))] = 1
        return answers

    def loss_sum(self, module: nn.Module, batch: AgeVisitBatch, items: Sequence[int]) -> torch.Tensor:
        logits = module(batch)
        answers = self.answers(items).to(logits.device)
        return F.binary_cross_entropy_with_logits(logits, answers, reduction="none").mean(dim=1).sum()


def visit_begins(records: Records) -> list[list[tuple[int, int]]]:
    """Per record (visit, tokens before its first one) of its visits with known codes, in order of time."""
    sequences = records.sequences
    row_of = np.repeat(np.arange(len(sequences)), sequences.lengths())
    inside = np.flatnonzero((sequences.visits > 0) & (sequences.tokens >= N_SPECIALS))
    pairs = np.stack([row_of[inside], sequences.visits[inside]], axis=1)
    distinct = np.unique(pairs, axis=0)
    # its first token may be one without a code: nothing of the visit may be seen
    of_visits = np.flatnonzero(sequences.visits > 0)
    every, first = np.unique(
        np.stack([row_of[of_visits], sequences.visits[of_visits]], axis=1), axis=0, return_index=True
    )
    start = {(int(row), int(visit)): int(of_visits[place]) for (row, visit), place in zip(every, first, strict=True)}
    begins: list[list[tuple[int, int]]] = [[] for _ in range(len(sequences))]
    for row, visit in distinct.tolist():
        begins[row].append((visit, start[row, visit] - int(sequences.bounds[row])))
    return begins


def _maskable(tokens: np.ndarray) -> np.ndarray:
    """The places of codes, specials left out."""
    return np.flatnonzero(tokens >= N_SPECIALS)


def _codes_of(records: Records, row: int) -> int:
    return int((records.sequences.tokens[records.places(row)] >= N_SPECIALS).sum())
