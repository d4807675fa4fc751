"""Rows of a cohort as lessons: what every arm of this room learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn

from epicrisis.encoders.windows import Reading, WindowBatch, lay
from epicrisis.training.outcome import Outcome


class RowLesson(ABC):
    """Rows that a module gives an outcome's logits for; an item is a row.

    item_lengths: places that each row takes, int [n_rows]; widest: the most that any row can. targets: as `outcome`
    gives them; None where only predictions are wanted.
    """

    def __init__(self, item_lengths: np.ndarray, widest: int, outcome: Outcome, targets: np.ndarray | None):
        self.item_lengths = item_lengths
        self.outcome = outcome
        self._widest = widest
        self._targets = targets

    @property
    def n_items(self) -> int:
        return len(self.item_lengths)

    @property
    def targets(self) -> np.ndarray:
        """What the rows are; ValueError for a lesson made for predictions only."""
        if self._targets is None:
            raise ValueError("this lesson has no targets: it was made for predictions only")
        return self._targets

    @abstractmethod
    def collate(self, items: Sequence[int]) -> Any:
        """The batch of these rows."""

    def batches(self, items: np.ndarray, batch_size: int) -> Iterator[list[int]]:
        """The rows in batches of like lengths, longest first, each of batch_size x widest places at most."""
        order = items[np.argsort(-self.item_lengths[items], kind="stable")]
        start = 0
        while start < len(order):
            stop = start + max(1, batch_size * self._widest // max(1, int(self.item_lengths[order[start]])))
            yield order[start:stop].tolist()
            start = stop

    def units(self, items: Sequence[int]) -> int:
        return len(items)

    def loss_sum(self, module: nn.Module, batch: Any, items: Sequence[int]) -> torch.Tensor:
        logits = module(batch)
        return self.outcome.loss(logits, torch.as_tensor(self.targets[list(items)], device=logits.device))


class NarrativeRows(RowLesson):
    """Prepared narratives as windows."""

    def __init__(
        self,
        tokens: datasets.Dataset,
        reading: Reading,
        outcome: Outcome,
        targets: np.ndarray | None = None,
    ):
        lengths = np.array([reading.places(n) for n in tokens["n_tokens"]], dtype=np.int64)
        widest = reading.most * (reading.room + reading.frame.n_tokens)
        super().__init__(lengths, widest, outcome, targets)
        self._tokens = tokens
        self._reading = reading

    def collate(self, items: Sequence[int]) -> WindowBatch:
        narratives = self._tokens[list(items)]["input_ids"]
        return lay([self._reading.cut(ids) for ids in narratives], self._reading.frame.pad_id)
