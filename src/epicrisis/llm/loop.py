"""The training loop that pretraining, classification and the embedded bases share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn
from transformers import get_scheduler

from epicrisis.corpus.packing import PackedBatch
from epicrisis.llm.checkpoints import Checkpoints, Position
from epicrisis.settings.schema import TrainingSettings
from epicrisis.tracking.progress import StepTimer, bar, peak_memory_gb, say


class Lesson(Protocol):
    """What is learnt: items in batches, their summed loss, and how many units a sum is made of."""

    @property
    def n_items(self) -> int:
        """Items (packed rows or documents) in one epoch."""
        ...

    def collate(self, items: Sequence[int]) -> PackedBatch:
        """The batch of these items."""
        ...

    def units(self, items: Sequence[int]) -> int:
        """Supervised units (tokens or documents) in these items: what the loss is averaged over."""
        ...

    def loss_sum(self, module: nn.Module, batch: PackedBatch, items: Sequence[int]) -> torch.Tensor:
        """The loss summed over the batch's units."""
        ...


@dataclass(frozen=True)
class Plan:
    """How many optimiser steps there are, and what each holds."""

    n_items: int
    step_items: int
    n_steps: int
    warmup_steps: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.n_items / self.step_items)


def make_plan(n_items: int, training: TrainingSettings) -> Plan:
    """Steps and warm-up that the settings come to for this many items."""
    step_items = training.batch_size * training.gradient_accumulation_steps
    n_steps = math.ceil(math.ceil(n_items / step_items) * training.epochs)
    if training.max_steps is not None:
        n_steps = min(n_steps, training.max_steps)
    ratio_steps = round(n_steps * training.warmup_ratio)
    warmup = training.warmup_steps if training.warmup_steps is not None else ratio_steps
    return Plan(n_items, step_items, n_steps, min(warmup, n_steps))


def items_of_step(plan: Plan, step: int, seed: int) -> list[int]:
    """The items of one optimiser step: a fresh order each epoch, the same for the same seed.

    The step's items do not depend on the number of processes, so neither does what is learnt.
    """
    epoch, within = divmod(step, plan.steps_per_epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(plan.n_items, generator=generator)
    return order[within * plan.step_items : (within + 1) * plan.step_items].tolist()


def train(
    module: nn.Module,
    lesson: Lesson,
    training: TrainingSettings,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    *,
    title: str,
    evaluate: Callable[[nn.Module], dict[str, float]],
    log: Callable[..., None],
) -> Position:
    """Train what requires gradients in `module` until the plan ends; return the final position.

    `evaluate` gives metrics on tuning, `loss` among them; `log` takes them with the step. With
    `training.resume` it goes on from the latest whole checkpoint, exactly as if it had never stopped.
    """
    plan = make_plan(lesson.n_items, training)
    optimizer, schedule = _optimizer_and_schedule(module, plan, training)
    position = checkpoints.restore(module, optimizer, schedule) if training.resume else Position()
    ready, optimizer = accelerator.prepare(module, optimizer)
    eval_steps = training.eval_steps or plan.steps_per_epoch
    save_steps = training.save_steps or eval_steps
    timer = StepTimer(position.step, plan.n_steps)
    window: list[tuple[float, int]] = []
    module.train()
    with bar(title, plan.n_steps - position.step, shown=accelerator.is_main_process) as progress:
        while position.step < plan.n_steps:
            items = items_of_step(plan, position.step, training.seed)
            loss, tokens = _step(ready, lesson, items, training, accelerator)
            norm = accelerator.clip_grad_norm_(ready.parameters(), training.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            position = replace(position, step=position.step + 1)
            timer.count(tokens)
            window.append((loss, lesson.units(items)))
            progress.advance()
            last = position.step == plan.n_steps
            if position.step % training.logging_steps == 0 or last:
                fields = _interval(window, accelerator, schedule.get_last_lr()[0], float(norm), timer)
                _say_interval(title, position.step, plan.n_steps, fields, timer, accelerator)
                log(step=position.step, **fields)
                window.clear()
            if position.step % eval_steps == 0 or last:
                position = _evaluate(module, position, training, accelerator, checkpoints, evaluate, log, title)
            if position.step % save_steps == 0 or last:
                checkpoints.save(module, optimizer, schedule, position)
    if training.keep_best and position.best_step < position.step and checkpoints.load_best(module):
        _say(accelerator, f"{title}: kept the weights of step {position.best_step} (lowest tuning loss)")
    return position


def _optimizer_and_schedule(module: nn.Module, plan: Plan, training: TrainingSettings):
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=training.learning_rate, weight_decay=training.weight_decay)
    schedule = get_scheduler(training.lr_scheduler_type, optimizer, plan.warmup_steps, plan.n_steps)
    return optimizer, schedule


def _step(
    ready: nn.Module,
    lesson: Lesson,
    items: list[int],
    training: TrainingSettings,
    accelerator: Accelerator,
) -> tuple[float, int]:
    """One optimiser step's gradients; returns this process's summed loss and its tokens.

    The loss is divided by the supervised units of the whole step, over all micro-batches and processes, so
    that neither accumulation nor the number of processes changes the gradient.
    """
    total = lesson.units(items)
    mine = items[accelerator.process_index :: accelerator.num_processes]
    size = training.batch_size
    batches = [mine[start : start + size] for start in range(0, len(mine), size)]
    weight = accelerator.num_processes / total  # data parallelism averages gradients; this makes it a sum
    if not batches:  # fewer items than processes: take part in the averaging with nothing to say
        batches, weight = [items[:1]], 0.0
    loss_sum, tokens = 0.0, 0
    for number, batch_items in enumerate(batches):
        batch = lesson.collate(batch_items).to(accelerator.device)
        is_last = number == len(batches) - 1
        with accelerator.autocast(), _maybe_no_sync(accelerator, ready, is_last):
            loss = lesson.loss_sum(ready, batch, batch_items)
            accelerator.backward(loss * weight)
        loss_sum += loss.item() * (weight > 0)
        tokens += batch.input_ids.numel() * (weight > 0)
    return loss_sum, tokens


def _maybe_no_sync(accelerator: Accelerator, ready: nn.Module, is_last: bool):
    return torch.enable_grad() if is_last else accelerator.no_sync(ready)


def _interval(
    window: list[tuple[float, int]], accelerator: Accelerator, rate: float, norm: float, timer: StepTimer
) -> dict[str, float]:
    loss_sum = torch.tensor(sum(loss for loss, _ in window), device=accelerator.device)
    units = sum(units for _, units in window)
    loss = float(accelerator.reduce(loss_sum, "sum")) / units
    return {
        "train/loss": loss,
        "train/learning_rate": rate,
        "train/grad_norm": norm,
        "train/tokens_per_second": timer.rate() * accelerator.num_processes,
    }


def _evaluate(module, position, training, accelerator, checkpoints, evaluate, log, title) -> Position:
    module.eval()
    metrics = evaluate(module)
    module.train()
    log(step=position.step, **{f"eval/{name}": value for name, value in metrics.items()})
    shown = " | ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    _say(accelerator, f"{title} step {position.step} | tuning: {shown}")
    if metrics["loss"] < position.best_loss:
        position = replace(position, best_loss=metrics["loss"], best_step=position.step)
        if training.keep_best:
            checkpoints.save_best(module)
    return position


def _say_interval(title, step, n_steps, fields, timer, accelerator) -> None:
    _say(
        accelerator,
        f"{title} step {step}/{n_steps} | loss {fields['train/loss']:.4f} | lr {fields['train/learning_rate']:.2e}"
        f" | {fields['train/tokens_per_second']:,.0f} tokens/s | {peak_memory_gb():.1f} GB"
        f" | {timer.remaining(step)} left",
    )


def _say(accelerator: Accelerator, text: str) -> None:
    if accelerator.is_main_process:
        say(text)
