"""Rows of a cohort as lessons for class losses: what every arm of this room learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from epicrisis.encoders.windows import Reading, WindowBatch, lay
from epicrisis.training.class_losses import class_metrics, class_probabilities, loss_of
from epicrisis.training.class_weights import ClassWeights


class RowLesson(ABC):
    """Rows that a module gives class logits for; an item is a row.

    item_lengths: places that each row takes, int [n_rows]; widest: the most that any row can. targets: int [n_rows],
    the index of each row's class; of a multilabel task bool [n_rows, n_classes]; None where only predictions are
    wanted.
    """

    def __init__(self, item_lengths: np.ndarray, widest: int, weights: ClassWeights, targets: np.ndarray | None):
        self.item_lengths = item_lengths
        self.weights = weights
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
        return loss_of(logits, torch.as_tensor(self.targets[list(items)], device=logits.device), self.weights)


class NarrativeRows(RowLesson):
    """Prepared narratives as windows."""

    def __init__(
        self,
        tokens: datasets.Dataset,
        reading: Reading,
        weights: ClassWeights,
        targets: np.ndarray | None = None,
    ):
        lengths = np.array([reading.places(n) for n in tokens["n_tokens"]], dtype=np.int64)
        widest = reading.most * (reading.room + reading.frame.n_tokens)
        super().__init__(lengths, widest, weights, targets)
        self._tokens = tokens
        self._reading = reading

    def collate(self, items: Sequence[int]) -> WindowBatch:
        narratives = self._tokens[list(items)]["input_ids"]
        return lay([self._reading.cut(ids) for ids in narratives], self._reading.frame.pad_id)


def row_metrics(
    module: nn.Module, lesson: RowLesson, batch_size: int, accelerator: Accelerator, *, corrected: bool
) -> dict[str, float]:
    """Loss and AUROC on the lesson's rows; see `class_losses.class_metrics`."""
    found = class_probabilities(module, lesson, batch_size, accelerator, corrected=corrected)
    return class_metrics(found, lesson.targets, lesson.weights, corrected=corrected)
