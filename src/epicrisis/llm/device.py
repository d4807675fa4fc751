"""Where a run computes, and in which precision."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator

from epicrisis.settings import refuse
from epicrisis.settings.schema import TrainingSettings


def make_accelerator(training: TrainingSettings) -> Accelerator:
    """The processes and the device of this run; reads what `accelerate launch` has set.

    The precision is the config's alone: bf16 bases compute in bf16 without autocast, fp16 needs scaling.
    """
    if training.fp16 and not torch.cuda.is_available():
        raise refuse("training.fp16", "needs a GPU", "leave it out here; bf16: true works on a CPU")
    accelerator = Accelerator(mixed_precision="fp16" if training.fp16 else "no", cpu=not torch.cuda.is_available())
    if accelerator.device.type == "cpu":  # accelerate launch leaves each process one thread
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // accelerator.num_processes))
    return accelerator


def compute_dtype(training: TrainingSettings) -> torch.dtype:
    """bfloat16 or float16 where asked for, bfloat16 by itself where the machine has it, else float32."""
    if training.fp16:
        return torch.float16
    wanted = machine_has_bf16() if training.bf16 == "auto" else training.bf16
    return torch.bfloat16 if wanted else torch.float32


def machine_has_bf16() -> bool:
    """Whether the GPU, or in its absence the CPU, multiplies bfloat16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # torch has no public name for it
    return bool(has_amx())
