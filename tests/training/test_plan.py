"""Which items each step takes: every item once an epoch, like lengths together, whatever the processes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.settings.schema import TrainingSettings
from epicrisis.training.plan import Order, items_of_step, make_plan


def test_the_effective_batch_size_goes_before_what_a_device_holds() -> None:
    plan = make_plan(100, TrainingSettings(batch_size=3, effective_batch_size=10))
    assert (plan.step_items, plan.n_steps) == (10, 10)
    assert make_plan(100, TrainingSettings(batch_size="auto", effective_batch_size=10)) == plan


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=70), size=st.integers(1, 9), seed=st.integers(-5, 5))
def test_items_grouped_by_length_are_still_each_item_once_in_every_epoch(
    lengths: list[int], size: int, seed: int
) -> None:
    plan = make_plan(len(lengths), TrainingSettings(batch_size=size, epochs=2))
    order = Order(plan, seed, lambda: np.array(lengths))
    steps = [order.items(step) for step in range(plan.n_steps)]
    per_epoch = plan.steps_per_epoch
    for epoch in (steps[:per_epoch], steps[per_epoch:]):
        assert sorted(item for step in epoch for item in step) == list(range(len(lengths)))
        assert [len(step) for step in epoch[:-1]] == [size] * (per_epoch - 1)
    again = Order(plan, seed, lambda: np.array(lengths))
    assert [again.items(step) for step in reversed(range(plan.n_steps))] == steps[::-1]


def test_batches_of_like_lengths_carry_few_pads_and_come_in_another_order_each_epoch() -> None:
    lengths = np.random.default_rng(0).integers(20, 500, size=2000)
    plan = make_plan(len(lengths), TrainingSettings(batch_size=8, epochs=2))
    order = Order(plan, 0, lambda: lengths)

    def useful_share(steps: list[list[int]]) -> float:
        return sum(lengths[step].sum() for step in steps) / sum(lengths[step].max() * len(step) for step in steps)

    grouped = [order.items(step) for step in range(plan.n_steps)]
    plain = [items_of_step(plan, step, 0) for step in range(plan.n_steps)]
    assert useful_share(grouped) > 0.95 > 0.7 > useful_share(plain)
    longest = [int(lengths[step].max()) for step in grouped]
    assert longest[:250] != longest[250:]
    assert longest != sorted(longest, reverse=True)


def test_within_a_step_the_longest_come_first_so_that_every_process_gets_like_lengths() -> None:
    lengths = np.array([5, 9, 1, 7, 3, 8])
    plan = make_plan(6, TrainingSettings(batch_size=6))
    assert Order(plan, 0, lambda: lengths).items(0) == [1, 5, 3, 0, 4, 2]
