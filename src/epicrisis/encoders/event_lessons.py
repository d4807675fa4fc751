"""Rows of events as lessons: to tell what becomes of them, or to find what was hidden in them or comes next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from epicrisis.encoders.event_model import EventBatch, EventPretraining
from epicrisis.encoders.event_table import EventTable
from epicrisis.encoders.lesson import RowLesson
from epicrisis.training.outcome import Outcome


class Events:
    """The events of some rows, in batches. vectors: float32 [n_phrases, d]; numbers: float32 [n_events], scaled."""

    def __init__(self, table: EventTable, vectors: np.ndarray, numbers: np.ndarray):
        self.table = table
        self._vectors = vectors
        self._numbers = numbers

    def batch(self, items: Sequence[int], hidden: Sequence[np.ndarray] | None = None) -> EventBatch:
        """hidden: bool [n_events] of each row, what is to be found; none where not given."""
        table, rows = self.table, np.asarray(items)
        counts = table.n_events[rows]
        shape = (len(rows), max(1, int(counts.max(initial=0))))
        mask = np.arange(shape[1]) < counts[:, None]
        at = (table.bounds[rows][:, None] + np.arange(shape[1]))[mask]
        distinct, phrase = np.unique(table.phrase[at], return_inverse=True)
        if not len(distinct):
            distinct = np.zeros(1, dtype=np.int64)
        number, days = self._numbers[at], table.days[at]
        known = np.concatenate(hidden) if hidden is not None else np.zeros(len(at), dtype=bool)

        def spread(values: np.ndarray, kind: type) -> torch.Tensor:
            whole: np.ndarray = np.zeros(shape, dtype=kind)
            whole[mask] = values
            return torch.from_numpy(whole)

        none = self._vectors[:1] if len(self._vectors) else np.zeros((1, self._vectors.shape[1]), dtype=np.float32)
        return EventBatch(
            torch.from_numpy(self._vectors[distinct] if len(self._vectors) else none),
            spread(phrase, np.int64),
            spread(np.nan_to_num(number), np.float32),
            spread(~np.isnan(number), bool),
            spread(np.nan_to_num(days), np.float32),
            spread(~np.isnan(days), bool),
            torch.from_numpy(mask),
            spread(known, bool),
        )


class EventRows(RowLesson):
    """Rows of events and what becomes of them."""

    def __init__(self, events: Events, max_events: int, outcome: Outcome, targets: np.ndarray | None = None):
        super().__init__(events.table.n_events + 1, max_events + 1, outcome, targets)
        self._events = events

    def collate(self, items: Sequence[int]) -> EventBatch:
        return self._events.batch(items)


class EventsToFind:
    """Rows with two events or more, of which some are hidden, others in each epoch; an item is a row.

    share: of the events of a row that are hidden, at least one; None for a decoder, which is asked for each next one.
    """

    def __init__(self, events: Events, share: float | None):
        self._rows = np.flatnonzero(events.table.n_events >= 2)
        self._events = events
        self._share = share
        self._seed = (0, 0)
        self.item_lengths = events.table.n_events[self._rows]

    @property
    def n_items(self) -> int:
        return len(self._rows)

    @property
    def fewest_items(self) -> int:
        return self.n_items

    def start_epoch(self, epoch: int, seed: int) -> None:
        self._seed = (seed % 2**32, epoch)

    def _hidden(self, item: int) -> np.ndarray:
        n = int(self.item_lengths[item])
        hidden = np.zeros(n, dtype=bool)
        if self._share is not None:
            draws = np.random.default_rng([*self._seed, item]).permutation(n)
            hidden[draws[: min(n - 1, max(1, round(self._share * n)))]] = True
        return hidden

    def collate(self, items: Sequence[int]) -> EventBatch:
        return self._events.batch(self._rows[list(items)].tolist(), [self._hidden(item) for item in items])

    def units(self, items: Sequence[int]) -> int:
        """Events that are asked for."""
        if self._share is None:
            return int((self.item_lengths[list(items)] - 1).sum())
        return int(sum(self._hidden(item).sum() for item in items))

    def loss_sum(self, module: nn.Module, batch: EventBatch, items: Sequence[int]) -> torch.Tensor:
        return module(batch)


def finding_metrics(
    module: EventPretraining, lesson: EventsToFind, batch_size: int, accelerator: Accelerator
) -> dict[str, float]:
    """loss: the mean over the events asked for; accuracy: the share of them whose phrase is the nearest candidate.

    Both depend on the batches, whose phrases are the candidates: compare figures of one batch_size only. Processes
    share the batches.
    """
    starts = range(0, lesson.n_items, batch_size)
    mine = starts[accelerator.process_index :: accelerator.num_processes]
    totals = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    with torch.inference_mode():
        for start in mine:
            items = list(range(start, min(start + batch_size, lesson.n_items)))
            logits, wanted = module.scores(lesson.collate(items).to(accelerator.device))
            loss = nn.functional.cross_entropy(logits, wanted, reduction="sum").double()
            right = (logits.argmax(dim=1) == wanted).sum().double()
            totals += torch.stack([loss, right, torch.tensor(float(len(wanted)), device=loss.device).double()])
    loss_sum, right_sum, n = accelerator.reduce(totals, "sum").tolist()
    return {"loss": loss_sum / n, "accuracy": right_sum / n}
