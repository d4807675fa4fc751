"""Pretraining a model of codes on the records of the train subjects."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import torch
from accelerate import Accelerator
from torch import nn

from epicrisis.cohort import History
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, refuse
from epicrisis.settings.schema import TrainingSettings
from epicrisis.structured.coding import Coder, make_coder, split_of
from epicrisis.structured.lesson import RecordLesson, n_sentinels, token_loss
from epicrisis.structured.models import build_model
from epicrisis.structured.objectives import Pretraining, pretraining_of
from epicrisis.structured.snapshots import CountedLesson, Snapshots, tokens_of_steps
from epicrisis.structured.store import save_model, weights_of
from epicrisis.tracking.progress import say
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.device import compute_dtype, make_accelerator
from epicrisis.training.loop import make_plan, train
from epicrisis.training.plan import Plan


class Run(Protocol):
    """What an arm needs of a run directory."""

    @property
    def dir(self) -> Path:
        """The run's folder."""
        ...

    def log(self, **fields: Any) -> None:
        """Append one line to the run's history."""
        ...


def pretrain(settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, run: Run) -> dict[str, float]:
    """Pretrain a model of codes from scratch on the rows' whole visible records; writes `<run>/model/`.

    rows: one row per subject of the splits train and tuning. Returns loss and perplexity on tuning before and
    after, and how the train records lie in batches.
    """
    accelerator = make_accelerator(settings.training)
    training = batches_as_items(settings.training, accelerator)
    coder = make_coder(settings, lookups, rows, history, run.dir / "sequences" / "tokenizer", accelerator)
    lesson, tuning = (_lesson(settings, coder, split_of(rows, split), history, run) for split in ("train", "tuning"))
    module = make_pretraining(settings, coder.vocabulary)
    checkpoints = Checkpoints(run.dir / "checkpoints", settings.training.save_total_limit, accelerator)
    snapshots = _snapshots(settings, training, lesson, module, coder, run, checkpoints)
    lesson.start_epoch(0, training.seed)
    layout = lesson.layout()
    if accelerator.is_main_process:
        say(f"pretrain: {layout_text(layout)}")
    module.to(accelerator.device)

    def evaluate(module: nn.Module) -> dict[str, float]:
        snapshots.look()
        return token_loss(module, tuning, accelerator)

    before = token_loss(module.eval(), tuning, accelerator)
    counted, log = CountedLesson(lesson, snapshots), run.log if accelerator.is_main_process else _log_nothing
    train(module, counted, training, accelerator, checkpoints, title="pretrain", evaluate=evaluate, log=log)
    after = token_loss(module.eval(), tuning, accelerator)
    _keep(module, settings, coder, run.dir / "model", snapshots.seen)
    return {
        "loss_before": before["loss"],
        "perplexity_before": before["perplexity"],
        "loss": after["loss"],
        "perplexity": after["perplexity"],
        "parameters": sum(weight.numel() for weight in module.parameters()),
        "vocabulary": coder.vocabulary,
        "tokens": snapshots.seen,
        **layout,
    }


def make_pretraining(settings: Settings, vocabulary: int) -> Pretraining:
    """An untrained body with its pretraining head, for a tokenizer of so many ids."""
    code, training = settings.structured, settings.training
    body = build_model(code, vocabulary + n_sentinels(code), training.seed, autocast_of(training))
    if training.gradient_checkpointing:
        body.checkpoint_activations()
    return pretraining_of(body, training.seed)


def autocast_of(training: TrainingSettings) -> torch.dtype | None:
    """The precision of products: weights stay float32, since they are trained in full."""
    return torch.bfloat16 if compute_dtype(training) == torch.bfloat16 else None


def batches_as_items(training: TrainingSettings, accelerator: Accelerator) -> TrainingSettings:
    """The loop's settings where an item is a whole batch of tokens, of which a device holds one at once.

    Raises InputError where a step's batches cannot occupy all processes.
    """
    batches, processes = training.gradient_accumulation_steps, accelerator.num_processes
    if batches % processes:
        what = f"{batches} batches make a step, and they cannot be shared evenly by {processes} processes"
        fix = f"set it to a multiple of {processes}: pretraining models of codes gives processes whole batches"
        raise refuse("training.gradient_accumulation_steps", what, fix)
    return training.model_copy(update={"batch_size": 1, "effective_batch_size": None})


def layout_text(layout: dict[str, float]) -> str:
    """One line that says how records were laid out."""
    return (
        f"{layout['records']:,} records in {layout['windows']:,} windows, {layout['batches']:,} batches "
        f"({layout['useful_token_share']:.1%} useful), {layout['supervised_tokens']:,} tokens to learn from"
    )


def _lesson(settings: Settings, coder: Coder, rows: pl.DataFrame, history: History, run: Run) -> RecordLesson:
    sequences = coder.encode(rows, history, run.dir / "sequences" / rows["split"][0])
    return RecordLesson(sequences, settings.structured, coder.vocabulary)


def _snapshots(
    settings: Settings,
    training: TrainingSettings,
    lesson: RecordLesson,
    module: nn.Module,
    coder: Coder,
    run: Run,
    checkpoints: Checkpoints,
) -> Snapshots:
    """What `checkpoint_tokens` asks for, less what a resumed run has kept already."""
    folder, wanted = run.dir / "snapshots", settings.structured.checkpoint_tokens
    plan = make_plan(lesson.fewest_items, training)
    _refuse_beyond(wanted, lesson, plan, training.seed)
    at = checkpoints.latest() if training.resume else None
    if not training.resume and coder.accelerator.is_main_process:
        for leftover in (folder, run.dir / "model"):
            shutil.rmtree(leftover, ignore_errors=True)
    seen = tokens_of_steps(lesson, plan, training.seed, at.step) if at else 0

    def keep(tokens: int) -> None:
        _keep(module, settings, coder, folder / str(tokens), tokens)

    due = [tokens for tokens in wanted if tokens > seen or not (folder / str(tokens) / "config.json").is_file()]
    return Snapshots(due, keep, seen)


def _refuse_beyond(wanted: tuple[int, ...], lesson: RecordLesson, plan: Plan, seed: int) -> None:
    total = tokens_of_steps(lesson, plan, seed, plan.n_steps) if wanted else 0
    if wanted and max(wanted) > total:
        what = f"{max(wanted):,} tokens are never reached: {plan.n_steps} steps read {total:,}"
        raise refuse("structured.checkpoint_tokens", what, "ask for fewer tokens, or train longer")


def _keep(module: nn.Module, settings: Settings, coder: Coder, directory: Path, tokens: int) -> None:
    weights = weights_of(module)
    if coder.accelerator.is_main_process:
        body = module.body.config.saved()  # type: ignore[union-attr, operator]
        reading = {"tokenizer": settings.structured.tokenizer.model_dump(mode="json")}
        about = {"stage": "pretrain", "body": body, "reading": reading, "tokens": tokens}
        save_model(directory, weights, about, coder.tokenizer)
    coder.accelerator.wait_for_everyone()


def _log_nothing(**_: Any) -> None:
    """What the processes beside the main one log."""
