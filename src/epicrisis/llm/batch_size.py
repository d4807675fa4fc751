"""`training.batch_size: auto`: the most sequences that a device holds at once in training.

On a GPU it is tried out: forward and backward on the longest items, in batches that double until memory
runs out, then halfway between the last that fitted and the first that did not. On a CPU nothing can be tried,
since Linux ends a process that takes too much memory; there the estimate of `epicrisis check` decides, with
half of the free RAM. The optimiser step stays what training.effective_batch_size says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from epicrisis.llm.adapters import causal_model, lora_layers
from epicrisis.llm.heads import NextToken
from epicrisis.llm.memory import Shape, kept_bytes, passing_bytes, state_bytes
from epicrisis.settings import refuse
from epicrisis.settings.schema import TrainingSettings
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.lessons import Lesson, longest_items
from epicrisis.training.plan import sequences_per_step

CPU_SHARE = 0.5
"""Of the free RAM, what a batch may take by the estimate, which can be wrong by a factor of two."""
INFERENCE_BATCH = 4
"""Sequences at once where only predictions are wanted and no training has found out how many fit."""


def settle_batch_size(
    module: nn.Module,
    lesson: Lesson,
    training: TrainingSettings,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    tell: Callable[[str], None],
) -> TrainingSettings:
    """The settings with a number for `auto`: the checkpoint's where training goes on from one, else what fits.

    All processes settle on the number of the one with the least memory. Raises InputError where not even one
    sequence fits.
    """
    if training.batch_size != "auto":
        return training
    latest = checkpoints.latest() if training.resume else None
    if latest is not None and latest.batch_size:
        found, how = latest.batch_size, "as in the checkpoint"
    else:
        found, how = _find(module, lesson, training, accelerator)
    step = sequences_per_step(training)
    tell(
        f"batch size {found} ({how}): {step} sequences per optimiser step in "
        f"{-(-step // (found * accelerator.num_processes))} batches on each of {accelerator.num_processes} processes"
    )
    return training.model_copy(update={"batch_size": found})


def inference_batch_size(training: TrainingSettings) -> int:
    """Sequences at once where nothing is trained."""
    return INFERENCE_BATCH if training.batch_size == "auto" else training.batch_size


def largest_that_fits(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that fits, to within an eighth; 0 where not even 1 does.

    It doubles until something does not fit, then halves the gap; what fits is taken to fit when smaller, too.
    """
    best, refused = 0, None
    tried = 1
    while best < limit and (refused is None or refused - best > max(1, best // 8)):
        if fits(tried):
            best = tried
        else:
            refused = tried
            if best == 0:
                return 0
        tried = min(limit, best * 2) if refused is None else (best + refused) // 2
    return best


def _find(module: nn.Module, lesson: Lesson, training: TrainingSettings, accelerator: Accelerator) -> tuple[int, str]:
    step = sequences_per_step(training)
    limit = min(-(-step // accelerator.num_processes), lesson.n_items)
    if accelerator.device.type == "cuda":
        found, how = largest_that_fits(limit, lambda n: _runs(module, lesson, n, training, accelerator)), "tried out"
    else:
        found, how = _by_estimate(module, lesson, training, accelerator, limit), "by an estimate of RAM"
    counts = accelerator.gather(torch.tensor([found], device=accelerator.device))
    found = int(counts.min())
    if found == 0:
        raise refuse(
            "training.batch_size",
            "not even one sequence fits into memory",
            "lower model.max_length, set training.gradient_checkpointing: true, or take a smaller base",
        )
    return found, how if found < limit else f"{how}, all of a step"


def _runs(module: nn.Module, lesson: Lesson, size: int, training: TrainingSettings, accelerator: Accelerator) -> bool:
    """Whether forward and backward on the longest items fit, with room for the optimizer's states."""
    items = longest_items(lesson, size)
    was_training = module.training
    module.train()
    loss: torch.Tensor | None = None
    states: torch.Tensor | None = None
    try:
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        states = torch.empty(int(state_bytes(trained, training)), dtype=torch.uint8, device=accelerator.device)
        with accelerator.autocast():
            loss = lesson.loss_sum(module, lesson.collate(items).to(accelerator.device), items)
        loss.backward()
        return True
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
            raise
        return False
    finally:
        loss = states = None  # noqa: F841  # or the graph would live on
        module.zero_grad(set_to_none=True)
        module.train(was_training)
        clear_device_cache(garbage_collection=True)


def _by_estimate(
    module: nn.Module, lesson: Lesson, training: TrainingSettings, accelerator: Accelerator, limit: int
) -> int:
    """How many of the longest items the free RAM is good for, all but the batch being there already."""
    batch = lesson.collate(longest_items(lesson, 1))
    model = causal_model(module.model)  # type: ignore[arg-type]  # every head holds its model so
    shape = Shape.of(model.config)
    adapter = _rank_and_dropout(module)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    room = CPU_SHARE * psutil.virtual_memory().available / accelerator.num_processes
    room -= 4 * trained + state_bytes(trained, training)
    length = batch.input_ids.shape[1]
    supervised = batch.supervised_tokens if isinstance(module, NextToken) else 0

    def needed(rows: int) -> float:
        passing = passing_bytes(shape, rows * length, rows * supervised, training, *adapter)
        return kept_bytes(shape, rows, length, training, *adapter) + passing

    return bisect_right(range(1, limit + 1), room, key=needed)


def _rank_and_dropout(module: nn.Module) -> tuple[int, bool]:
    """The ranks of all adapters on a layer together, and whether any drops its inputs."""
    layers = lora_layers(module)
    dropouts = (drop for layer in layers for drop in layer.lora_dropout.values())
    return max((sum(layer.r.values()) for layer in layers), default=0), any(
        isinstance(drop, nn.Dropout) and drop.p > 0 for drop in dropouts
    )
