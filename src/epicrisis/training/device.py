"""Where a run computes, in which precision, and with which processes: what cannot go together is refused here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, is_deepspeed_available
from bitsandbytes.nn import Params4bit
from torch import nn
from transformers.integrations import unset_hf_deepspeed_config

from epicrisis.settings import InputError, Problem, refuse
from epicrisis.settings.schema import TrainingSettings
from epicrisis.tracking.cores import available_cores


@dataclass(frozen=True)
class Launch:
    """How the processes of a run were launched, as `accelerate launch` tells them, and what they run on.

    fsdp: the version of FSDP, 0 where weights are not sharded. zero: DeepSpeed's stage, 0 without DeepSpeed (or
    -1 where it has a config file of its own). zero_offload: whether it keeps anything in RAM or on disks. zero_init:
    whether it has models spread while they are built.
    """

    on_gpu: bool
    fsdp: int = 0
    fsdp_checkpointing: bool = False
    zero: int = 0
    zero_offload: bool = False
    zero_init: bool = False

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Launch:
        """The launch that this process belongs to."""
        sharded = _is_on(environment, "ACCELERATE_USE_FSDP")
        deepspeed = _is_on(environment, "ACCELERATE_USE_DEEPSPEED")
        stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "-1"))
        places = {environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE") for what in ("OPTIMIZER", "PARAM")}
        return cls(
            on_gpu=torch.cuda.is_available(),
            fsdp=int(environment.get("FSDP_VERSION", "1")) if sharded else 0,
            fsdp_checkpointing=sharded and _is_on(environment, "FSDP_ACTIVATION_CHECKPOINTING"),
            zero=(-1 if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in environment else stage) if deepspeed else 0,
            zero_offload=deepspeed and not places <= {None, "none"},
            zero_init=deepspeed and _is_on(environment, "ACCELERATE_DEEPSPEED_ZERO3_INIT"),
        )


def make_accelerator(training: TrainingSettings) -> Accelerator:
    """The processes and the device of this run; reads what `accelerate launch` has set.

    The precision is the config's alone: bf16 bases compute in bf16 without autocast, fp16 needs scaling. Raises
    InputError for settings that cannot work on this machine or with these processes, before any model is loaded.
    """
    launch = Launch.here()
    problems = launch_problems(training, launch)
    if problems:
        raise InputError(problems)
    # With cpu=True accelerate would pass over DeepSpeed, and else it knows no way to join CPU processes.
    over_gloo = [InitProcessGroupKwargs(backend="gloo")] if launch.zero and not launch.on_gpu else None
    on_cpu = not launch.on_gpu and not launch.zero
    precision = "fp16" if training.fp16 else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu, kwargs_handlers=over_gloo)
    if launch.zero:
        unset_hf_deepspeed_config()  # or transformers would spread a base while it loads it, whatever the flag says
    if accelerator.device.type == "cpu":  # accelerate launch leaves each process one thread
        torch.set_num_threads(max(1, len(available_cores()) // accelerator.num_processes))
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
    if not is_deepspeed_available():
        return [Problem("accelerate", "DeepSpeed is not installed", "pip install 'epicrisis[deepspeed]'")]
    problems = []
    if launch.zero not in (2, 3):
        what = "DeepSpeed is known here with ZeRO-2 and ZeRO-3, and with no config file of its own"
        problems.append(Problem("accelerate", what, "launch with one of configs/accelerate/deepspeed_*.yaml"))
    if launch.zero_offload:
        what = "offloading would put DeepSpeed's own optimizer in the place of the run's"
        fix = "set deepspeed_config.offload_optimizer_device and offload_param_device: none"
        problems.append(Problem("accelerate", what, fix))
    if launch.zero_init:
        what = "models are loaded whole before they are spread"
        problems.append(Problem("accelerate", what, "set deepspeed_config.zero3_init_flag: false"))
    if training.optimizer != "adamw":
        what = f"{training.optimizer} knows no sharded states"
        problems.append(Problem("training.optimizer", what, "set training.optimizer: adamw; ZeRO spreads its states"))
    if training.fp16:
        what = "DeepSpeed would turn the adapter's weights into half precision, too"
        problems.append(Problem("training.fp16", what, "leave it out; bf16: true works"))
    if training.framework == "unsloth":
        problems.append(Problem("training.framework", "Unsloth's kernels know no shards", "set framework: peft"))
    return problems


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
