"""What a training loop asks of the thing that is to be learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import nn


class Batch(Protocol):
    """What a module reads at once."""

    @property
    def places(self) -> int:
        """Places of tokens in it, padding included."""
        ...

    @property
    def useful_tokens(self) -> int:
        """Tokens in it that are no padding."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        ...


class Lesson(Protocol):
    """What is learnt: items in batches, their summed loss, and how many units a sum is made of."""

    @property
    def n_items(self) -> int:
        """Items (packed rows or documents) in this epoch."""
        ...

    def collate(self, items: Sequence[int]) -> Any:
        """The batch of these items, a Batch."""
        ...

    def units(self, items: Sequence[int]) -> int:
        """Supervised units (tokens or documents) in these items: what the loss is averaged over."""
        ...

    def loss_sum(self, module: nn.Module, batch: Any, items: Sequence[int]) -> torch.Tensor:
        """The loss summed over the batch's units."""
        ...


@runtime_checkable
class FreshEachEpoch(Protocol):
    """A lesson whose items are made anew for each epoch, and whose number then differs a little."""

    @property
    def fewest_items(self) -> int:
        """Items that every epoch has at least: what the plan counts on."""
        ...

    def start_epoch(self, epoch: int, seed: int) -> None:
        """Make the items of this epoch; the same epoch and seed make the same items."""
        ...


@runtime_checkable
class OfKnownLengths(Protocol):
    """A lesson whose batches are as wide as their longest items need: like lengths together waste least."""

    @property
    def item_lengths(self) -> np.ndarray:
        """Tokens of each item, int [n_items]."""
        ...


def planned_items(lesson: Lesson) -> int:
    """The items of every epoch, or the fewest that one can have."""
    return lesson.fewest_items if isinstance(lesson, FreshEachEpoch) else lesson.n_items


def longest_items(lesson: Lesson, n: int) -> list[int]:
    """The `n` longest items, or any where all are rows of one width."""
    if isinstance(lesson, OfKnownLengths):
        return np.argsort(-lesson.item_lengths, kind="stable")[:n].tolist()
    return list(range(n))
