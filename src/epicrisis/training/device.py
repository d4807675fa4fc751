"""Where a run computes, in which precision, and with which processes: what cannot go together is refused here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from bitsandbytes.nn import Params4bit
from torch import nn

from epicrisis.settings import InputError, Problem, refuse
from epicrisis.settings.schema import TrainingSettings


@dataclass(frozen=True)
class Launch:
    """How the processes of a run were launched, as `accelerate launch` tells them, and what they run on.

    fsdp: the version of FSDP, 0 where weights are not sharded. zero: DeepSpeed's stage, 0 without DeepSpeed (or
    -1 where it has a config file of its own).
    """

    on_gpu: bool
    fsdp: int = 0
    fsdp_checkpointing: bool = False
    zero: int = 0

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Launch:
        """The launch that this process belongs to."""
        sharded = _is_on(environment, "ACCELERATE_USE_FSDP")
        deepspeed = _is_on(environment, "ACCELERATE_USE_DEEPSPEED")
        return cls(
            on_gpu=torch.cuda.is_available(),
            fsdp=int(environment.get("FSDP_VERSION", "1")) if sharded else 0,
            fsdp_checkpointing=sharded and _is_on(environment, "FSDP_ACTIVATION_CHECKPOINTING"),
            zero=int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "-1")) if deepspeed else 0,
        )


def make_accelerator(training: TrainingSettings) -> Accelerator:
    """The processes and the device of this run; reads what `accelerate launch` has set.

    The precision is the config's alone: bf16 bases compute in bf16 without autocast, fp16 needs scaling. Raises
    InputError for settings that cannot work on this machine or with these processes, before any model is loaded.
    """
    problems = launch_problems(training, Launch.here())
    if problems:
        raise InputError(problems)
    accelerator = Accelerator(mixed_precision="fp16" if training.fp16 else "no", cpu=not torch.cuda.is_available())
    if accelerator.device.type == "cpu":  # accelerate launch leaves each process one thread
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // accelerator.num_processes))
    return accelerator


def launch_problems(training: TrainingSettings, launch: Launch) -> list[Problem]:
    """What of the settings cannot work with this launch, where it would else fail late or learn nothing."""
    problems = []
    if training.fp16 and not launch.on_gpu:
        problems.append(Problem("training.fp16", "needs a GPU", "leave it out here; bf16: true works on a CPU"))
    if training.optimizer == "paged_adamw_8bit" and not launch.on_gpu:
        what = "paged states are a GPU's, and bitsandbytes would not page them here without a word"
        problems.append(Problem("training.optimizer", what, "set training.optimizer: adamw_8bit or adamw"))
    if launch.fsdp:
        problems += _fsdp_problems(training, launch)
    if launch.zero:
        problems += _deepspeed_problems(training, launch)
    return problems


def check_storage(module: nn.Module, training: TrainingSettings) -> None:
    """Raise InputError where a base's 4-bit weights are stored otherwise than training.quant_storage says."""
    found = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if isinstance(p, Params4bit)}
    if found - {training.quant_storage}:
        what = f"the base's 4-bit weights are stored as {', '.join(sorted(found))}"
        raise refuse("training.quant_storage", what, "leave it out, or take this base as it was before quantisation")


def _fsdp_problems(training: TrainingSettings, launch: Launch) -> list[Problem]:
    problems = []
    if not launch.on_gpu:
        what = "FSDP shards over GPUs, and accelerate would pass over it on a CPU without a word"
        problems.append(Problem("accelerate", what, "use configs/accelerate/cpu_two_processes.yaml"))
    if launch.fsdp < 2:
        what = "FSDP 1 flattens weights, so that adapters could neither be saved nor resumed by name"
        problems.append(Problem("accelerate", what, "set fsdp_config.fsdp_version: 2, as configs/accelerate/ does"))
    dtype = str(compute_dtype(training)).removeprefix("torch.")
    if training.load_in_4bit and training.quant_storage != dtype:
        what = f"4-bit weights stored as {training.quant_storage} cannot be sharded beside {dtype} ones"
        problems.append(Problem("training.quant_storage", what, f"set training.quant_storage: {dtype}"))
    if training.optimizer != "adamw":
        what = f"{training.optimizer} knows no sharded states"
        problems.append(Problem("training.optimizer", what, "set training.optimizer: adamw; FSDP shards its states"))
    if training.gradient_checkpointing and launch.fsdp_checkpointing:
        what = "activations would be recomputed twice, by the model's layers and by FSDP"
        fix = "set fsdp_config.fsdp_activation_checkpointing: false"
        problems.append(Problem("training.gradient_checkpointing", what, fix))
    if training.framework == "unsloth":
        problems.append(Problem("training.framework", "Unsloth's kernels know no shards", "set framework: peft"))
    return problems


def _deepspeed_problems(training: TrainingSettings, launch: Launch) -> list[Problem]:
    if launch.zero == 3 and training.load_in_4bit:
        what = "ZeRO-3 gathers weights by pieces, which 4-bit weights with double quantisation do not survive"
        fix = "set training.load_in_4bit: false, or launch with configs/accelerate/fsdp_qlora.yaml"
        return [Problem("training.load_in_4bit", what, fix)]
    what = "DeepSpeed steps by itself, so that neither accumulation nor resume would be exact"
    return [Problem("accelerate", what, "launch with multi_gpu_ddp.yaml (ZeRO-2's place) or fsdp2.yaml (ZeRO-3's)")]


def _is_on(environment: Mapping[str, str], key: str) -> bool:
    return environment.get(key, "false").lower() in ("true", "1")


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
