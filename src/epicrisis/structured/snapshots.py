"""The model as it was after so many tokens of pretraining."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from epicrisis.structured.batches import CodeBatch
from epicrisis.structured.lesson import RecordLesson
from epicrisis.training.plan import Order, Plan


class Snapshots:
    """Counts the tokens that were learnt from, and has the model kept when a number that was asked for is reached.

    wanted: numbers of tokens. keep: called with each of them, once, while the weights are those after the first
    optimiser step that reached it. seen: tokens of the steps before, where a run goes on.
    """

    def __init__(self, wanted: Sequence[int], keep: Callable[[int], None], seen: int = 0):
        self._wanted = sorted(wanted)
        self._keep = keep
        self.seen = seen

    def look(self) -> None:
        """Keep the model where it is due: to be called between steps."""
        while self._wanted and self.seen >= self._wanted[0]:
            self._keep(self._wanted.pop(0))


class CountedLesson:
    """A lesson whose steps are counted: the loop asks for a step's units once, before it changes any weight."""

    def __init__(self, lesson: RecordLesson, snapshots: Snapshots):
        self._lesson = lesson
        self._snapshots = snapshots

    @property
    def n_items(self) -> int:
        return self._lesson.n_items

    @property
    def fewest_items(self) -> int:
        return self._lesson.fewest_items

    def start_epoch(self, epoch: int, seed: int) -> None:
        self._lesson.start_epoch(epoch, seed)

    def collate(self, items: Sequence[int]) -> CodeBatch:
        return self._lesson.collate(items)

    def units(self, items: Sequence[int]) -> int:
        self._snapshots.look()
        self._snapshots.seen += self._lesson.tokens(items)
        return self._lesson.units(items)

    def loss_sum(self, module: nn.Module, batch: CodeBatch, items: Sequence[int]) -> torch.Tensor:
        return self._lesson.loss_sum(module, batch, items)


def tokens_of_steps(lesson: RecordLesson, plan: Plan, seed: int, n_steps: int) -> int:
    """Tokens that the first `n_steps` optimiser steps of a plan learn from. Leaves the lesson in their last epoch."""
    order, total = Order(plan, seed), 0
    for step in range(n_steps):
        lesson.start_epoch(step // plan.steps_per_epoch, seed)
        total += lesson.tokens(order.items(step, lesson.n_items))
    return total
