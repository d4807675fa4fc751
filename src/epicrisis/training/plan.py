"""How many optimiser steps a run takes, and which items each of them holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from epicrisis.settings.schema import TrainingSettings

STRETCH = 50
"""Steps whose items are sorted by length together: more waste less padding and mix less."""


@dataclass(frozen=True)
class Plan:
    """How many optimiser steps there are, and what each holds.

    n_items: items of an epoch, or the fewest that one can have where they are made anew for each.
    """

    n_items: int
    step_items: int
    n_steps: int
    warmup_steps: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.n_items / self.step_items)


def sequences_per_step(training: TrainingSettings) -> int:
    """Items of one optimiser step over all processes, whatever a device holds at once."""
    if training.effective_batch_size is not None:
        return training.effective_batch_size
    assert training.batch_size != "auto"  # settings have seen to it
    return training.batch_size * training.gradient_accumulation_steps


def make_plan(n_items: int, training: TrainingSettings) -> Plan:
    """Steps and warm-up that the settings come to for this many items."""
    step_items = sequences_per_step(training)
    n_steps = math.ceil(math.ceil(n_items / step_items) * training.epochs)
    if training.max_steps is not None:
        n_steps = min(n_steps, training.max_steps)
    ratio_steps = round(n_steps * training.warmup_ratio)
    warmup = training.warmup_steps if training.warmup_steps is not None else ratio_steps
    return Plan(n_items, step_items, n_steps, min(warmup, n_steps))


def items_of_step(plan: Plan, step: int, seed: int, n_items: int | None = None) -> list[int]:
    """The items of one optimiser step; see Order."""
    return Order(plan, seed).items(step, n_items)


class Order:
    """A fresh order of the items in each epoch, the same for the same seed.

    A step's items do not depend on the number of processes, so neither does what is learnt.
    lengths: gives those of the epoch's items, where a step is to hold items of like lengths (longest first within
    it). Then stretches of the shuffled items are sorted by length before they are cut into steps, and the steps
    are shuffled; an epoch still holds every item once.
    """

    def __init__(self, plan: Plan, seed: int, lengths: Callable[[], np.ndarray] | None = None):
        self._plan = plan
        self._seed = seed
        self._lengths = lengths
        self._drawn: tuple[int, int] | None = None
        self._order = np.zeros(0, dtype=np.int64)

    def items(self, step: int, n_items: int | None = None) -> list[int]:
        """The items of one optimiser step.

        n_items: those of the step's epoch, plan.n_items or more; where there are more, the epoch takes no
        more steps, and some steps take an item more. So every epoch begins at a step that the plan knows.
        """
        plan = self._plan
        epoch, within = divmod(step, plan.steps_per_epoch)
        n_items = plan.n_items if n_items is None else n_items
        if self._drawn != (epoch, n_items):
            self._drawn, self._order = (epoch, n_items), self._draw(epoch, n_items)
        planned = (min(passed * plan.step_items, plan.n_items) for passed in (within, within + 1))
        first, last = (items * n_items // plan.n_items for items in planned)
        return self._order[first:last].tolist()

    def _draw(self, epoch: int, n_items: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(n_items, generator=generator).numpy()
        if self._lengths is None:
            return order
        return _alike_together(order, self._lengths(), self._plan.step_items, generator)


def _alike_together(order: np.ndarray, lengths: np.ndarray, step_items: int, generator: torch.Generator) -> np.ndarray:
    whole = len(order) // step_items * step_items
    stretches = [
        order[start : min(start + STRETCH * step_items, whole)] for start in range(0, whole, STRETCH * step_items)
    ]
    steps = np.concatenate([_longest_first(stretch, lengths) for stretch in stretches] or [order[:0]])
    steps = steps.reshape(-1, step_items)
    shuffled = steps[torch.randperm(len(steps), generator=generator).numpy()]
    return np.concatenate([shuffled.ravel(), _longest_first(order[whole:], lengths)])


def _longest_first(items: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return items[np.argsort(-lengths[items], kind="stable")]
