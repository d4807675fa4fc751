"""The training loop that every arm with gradients shares, in all of its stages."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from epicrisis.settings import refuse
from epicrisis.settings.schema import TrainingSettings
from epicrisis.settings.watched import HIGHER_IS_BETTER, is_better
from epicrisis.tracking.progress import (
    Bar,
    Stopwatch,
    bar,
    duration,
    peak_memory_gb,
    say,
    say_where_time_went,
)
from epicrisis.tracking.stop_request import StopRequest, stop_request
from epicrisis.training.checkpoints import Checkpoints, Position
from epicrisis.training.device import check_storage
from epicrisis.training.lessons import FreshEachEpoch, Lesson, OfKnownLengths, planned_items
from epicrisis.training.optimizers import make_optimizer, make_schedule
from epicrisis.training.parameters import parameter_counts
from epicrisis.training.plan import Order, Plan, items_of_step, make_plan
from epicrisis.training.random_state import random_state, seed_process, set_random_state
from epicrisis.training.signals import Interrupted, Stopped, interruptible
from epicrisis.training.steps import Steps, prepare_steps

__all__ = ["FreshEachEpoch", "Lesson", "Plan", "items_of_step", "make_plan", "train"]

_IN_STEPS = ("data", "forward", "backward", "optimizer")
"""The parts of the time that tokens per second are counted over."""


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

    training: with a number for batch_size. `evaluate` gives metrics on tuning, `loss` among them; `log` takes them
    with the step. With `training.resume` it goes on from the latest whole checkpoint, exactly as if it had never
    stopped; otherwise all random numbers are seeded here. Asked to stop by a signal, it saves a checkpoint and
    raises Stopped (exit code 0).
    Raises InputError for a metric_for_best that `evaluate` does not give.
    """

    def tell(text: str) -> None:
        if accelerator.is_main_process:
            say(f"{title}: {text}")

    assert training.batch_size != "auto"
    plan = make_plan(planned_items(lesson), training)
    optimizer = make_optimizer(module, training)
    schedule = make_schedule(optimizer, plan, training)
    check_storage(module, training)
    sizes = parameter_counts(module)
    steps = prepare_steps(module, optimizer, training, accelerator)
    position, counted = Position(), Counted()
    if training.resume:
        position, kept = checkpoints.restore(module, steps.optimizer, schedule)
        counted = Counted(**kept)
    if position.step == 0:
        seed_process(training.seed, accelerator.process_index)
        log(step=0, **sizes)
    position = replace(position, batch_size=training.batch_size)
    with stop_request() as request, bar(title, plan.n_steps, shown=accelerator.is_main_process) as progress:
        progress.advance(position.step)
        trainer = _Trainer(
            *(module, steps, lesson, training, accelerator, checkpoints, schedule, plan),
            *(evaluate, log, tell, request, progress, position, counted),
        )
        return trainer.run(title)


@dataclass
class Counted:
    """What one process has added up since it last logged.

    loss: summed over `units`, a tensor until somebody reads it; useful, places: tokens without and with padding.
    """

    loss: Any = 0.0
    units: float = 0
    useful: float = 0
    places: float = 0

    def __add__(self, other: Counted) -> Counted:
        return Counted(
            self.loss + other.loss, self.units + other.units, self.useful + other.useful, self.places + other.places
        )


@dataclass
class _Trainer:
    """A run of the loop: what it works on, and how far it is."""

    module: nn.Module
    steps: Steps
    lesson: Lesson
    training: TrainingSettings
    accelerator: Accelerator
    checkpoints: Checkpoints
    schedule: Any
    plan: Plan
    evaluate: Callable[[nn.Module], dict[str, float]]
    log: Callable[..., None]
    tell: Callable[[str], None]
    request: StopRequest
    progress: Bar
    position: Position
    counted: Counted

    def __post_init__(self) -> None:
        lesson = self.lesson
        lengths = (lambda: lesson.item_lengths) if isinstance(lesson, OfKnownLengths) else None
        self.order = Order(self.plan, self.training.seed, lengths if self.training.group_by_length else None)
        self.watch = Stopwatch(on_gpu=self.accelerator.device.type == "cuda")
        self.alone = self.accelerator.num_processes == 1 and not self.steps.in_lockstep
        self.eval_steps = self.training.eval_steps or self.plan.steps_per_epoch
        self.save_steps = self.training.save_steps or self.eval_steps
        self.first_step = self.saved_step = self.position.step
        self.seconds_logged = 0.0
        self.norm: torch.Tensor | None = None

    def run(self, title: str) -> Position:
        self.module.train()
        try:
            with interruptible(self.module, self.request) if self.alone else nullcontext():
                self._look_for_the_metric()
                self._between_steps(title)
                while self.position.step < self.plan.n_steps:
                    self._step()
                    self._between_steps(title)
        except Interrupted:
            self._leave()
        self._tell_time(title)
        self.steps.finish()
        best = self.position.best_step
        if self.training.keep_best and best < self.position.step and self.checkpoints.load_best(self.module, best):
            self.tell(f"kept the weights of step {best} (best tuning {self.training.metric_for_best})")
        return self.position

    def _step(self) -> None:
        """One optimiser step. Interrupted, it leaves everything as it was before, random numbers included."""
        before = random_state()
        try:
            if isinstance(self.lesson, FreshEachEpoch):
                self.lesson.start_epoch(self.position.step // self.plan.steps_per_epoch, self.training.seed)
            items = self.order.items(self.position.step, self.lesson.n_items)
            counted = self._gradients(items)
        except Interrupted:
            self.steps.optimizer.zero_grad(set_to_none=True)
            set_random_state(before)
            raise
        with self.watch.part("optimizer"):
            self.norm = self.steps.move()
            self.schedule.step()
        self.counted = self.counted + counted
        self.position = replace(self.position, step=self.position.step + 1)
        self.progress.advance()

    def _gradients(self, items: list[int]) -> Counted:
        """One optimiser step's gradients, and what this process counted.

        The loss is divided by the supervised units of the whole step, over all micro-batches and processes,
        so that neither accumulation nor the number of processes changes the gradient.
        """
        accelerator, lesson = self.accelerator, self.lesson
        total = lesson.units(items)
        counted = Counted(units=total)
        batches = self._batches(items)
        loss_sum = torch.zeros((), device=accelerator.device)
        for number, batch_items in enumerate(batches):
            counts = bool(batch_items)
            # Data parallelism averages gradients; this weight makes it a sum. Where this process has no items left, it
            # takes part in what the others do together, and adds nothing.
            weight = accelerator.num_processes / total if counts else 0.0
            batch_items = batch_items or items[:1]
            with self.watch.part("data"):
                batch = lesson.collate(batch_items)
                if counts:
                    counted.useful += batch.useful_tokens
                    counted.places += batch.places
                batch = batch.to(accelerator.device)
            is_last = number == len(batches) - 1
            with self.steps.micro_batch(is_last):
                with self.watch.part("forward"), accelerator.autocast():
                    loss = lesson.loss_sum(self.steps.ready, batch, batch_items)
                with self.watch.part("backward"):
                    self.steps.backward(loss * weight)
            if counts:
                loss_sum += loss.detach()
        return replace(counted, loss=loss_sum)

    def _batches(self, items: list[int]) -> list[list[int]]:
        """This process's share of a step's items, as many at once as the device holds; the last may be empty.

        Processes in lockstep must do as many batches as each other, others at least one.
        """
        index, processes, size = (
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.training.batch_size,
        )
        assert size != "auto"
        mine = items[index::processes]
        most = math.ceil(math.ceil(len(items) / processes) / size)
        number = most if self.steps.in_lockstep else max(1, math.ceil(len(mine) / size))
        return [mine[start : start + size] for start in range(0, number * size, size)]

    def _between_steps(self, title: str) -> None:
        """Log, evaluate and save where that is due and not yet done."""
        step = self.position.step
        last = step == self.plan.n_steps
        if self.counted.units and (step % self.training.logging_steps == 0 or last):
            self._log_interval(title)
        if step and self.position.evaluated_step < step and (step % self.eval_steps == 0 or last):
            self._evaluate(title)
        if self.saved_step < step and (step % self.save_steps == 0 or last or self._epoch_to_keep() is not None):
            self._save()
        if self._asked_to_stop() and not last:
            raise Interrupted

    def _evaluate(self, title: str) -> dict[str, float]:
        before = random_state()
        try:
            metrics = self._metrics()
        except Interrupted:
            set_random_state(before)
            raise
        step, watched = self.position.step, self.training.metric_for_best
        self.log(step=step, **{f"eval/{name}": value for name, value in metrics.items()})
        shown = " | ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.tell(f"step {step} | tuning: {shown}")
        self.position = replace(self.position, evaluated_step=step)
        if is_better(watched, metrics[watched], self.position.best_value):
            self.position = replace(self.position, best_value=metrics[watched], best_step=step)
            if self.training.keep_best:
                with self.watch.part("saving"):
                    self.checkpoints.save_best(self.module, step)
        return metrics

    def _metrics(self) -> dict[str, float]:
        self.module.eval()
        try:
            with self.watch.part("evaluation"), self.steps.whole():
                return self.evaluate(self.module)
        finally:
            self.module.train()

    def _look_for_the_metric(self) -> None:
        """Raise InputError before the first step where evaluations do not give what decides which weights are best.

        Every evaluation gives a loss; anything else is looked for in one evaluation of the untrained model.
        """
        watched = self.training.metric_for_best
        if watched == "loss" or self.position.step:
            return
        metrics = self._metrics() if watched in HIGHER_IS_BETTER else {}
        if watched not in metrics:
            raise refuse(
                "training.metric_for_best",
                f"evaluations on this tuning split give no {watched!r}",
                f"one of {', '.join(metrics) or ', '.join(HIGHER_IS_BETTER)}; auroc needs both classes among its rows",
            )

    def _save(self) -> None:
        with self.watch.part("saving"):
            counted = {name: float(value) for name, value in vars(self.counted).items()}
            state = (self.module, self.steps.optimizer, self.schedule, self.position)
            self.checkpoints.save(*state, counted, epoch=self._epoch_to_keep())
        self.saved_step = self.position.step

    def _epoch_to_keep(self) -> int | None:
        """The epoch that has just ended, if its checkpoint is to be kept; the first is 1."""
        epoch, rest = divmod(self.position.step, self.plan.steps_per_epoch)
        every = self.training.keep_every_epochs
        return epoch if epoch and not rest and every is not None and epoch % every == 0 else None

    def _asked_to_stop(self) -> bool:
        """Whether any process was: all must stop after the same step."""
        if self.alone:
            return self.request.asked
        asked = torch.tensor(float(self.request.asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum"))

    def _leave(self) -> None:
        step = self.position.step
        if self.saved_step < step:
            self._save()
        self.log(step=step, event="stopped", signal=self.request.signal)
        saved = "a checkpoint is saved" if step else "nothing was learnt yet"
        self.tell(
            f"stopped by {self.request.signal or 'a signal'} after step {step} of {self.plan.n_steps}; {saved}. "
            "To go on: the same command with training.resume=true"
        )
        raise Stopped

    def _log_interval(self, title: str) -> None:
        step, n_steps, counted = self.position.step, self.plan.n_steps, self.counted
        parts = self.watch.seconds()
        spent = sum(parts.get(part, 0.0) for part in _IN_STEPS)
        own = [float(counted.loss), counted.useful, counted.places, peak_memory_gb()]
        gathered = self.accelerator.gather(torch.tensor([own], device=self.accelerator.device, dtype=torch.float64))
        loss, useful, places, _ = gathered.sum(dim=0).tolist()
        fields = {
            "train/loss": loss / counted.units,
            "train/learning_rate": self.schedule.get_last_lr()[0],
            "train/grad_norm": float(self.norm) if self.norm is not None else 0.0,
            "train/tokens_per_second": useful / max(spent - self.seconds_logged, 1e-9),
            "train/useful_token_share": useful / max(places, 1),
            "train/peak_memory_gb": float(gathered[:, 3].max()),
            "train/seconds_left": self.watch.left(step - self.first_step, n_steps - step),
        }
        self.seconds_logged, self.counted = spent, Counted()
        self.log(step=step, **fields)
        self.tell(
            f"step {step}/{n_steps} | loss {fields['train/loss']:.4f} | lr {fields['train/learning_rate']:.2e}"
            f" | {fields['train/tokens_per_second']:,.0f} tokens/s | {fields['train/peak_memory_gb']:.2f} GB"
            f" | {duration(fields['train/seconds_left'])} left"
        )

    def _tell_time(self, title: str) -> None:
        seconds = {name: round(spent, 3) for name, spent in self.watch.seconds().items()}
        if self.position.step == self.first_step:
            return
        self.log(step=self.position.step, **{f"seconds/{name}": spent for name, spent in seconds.items()})
        if self.accelerator.is_main_process:
            say_where_time_went(title, seconds)
