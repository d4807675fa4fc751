"""What AdaLoRA needs of training beyond gradients: ranks shared out step by step, singular vectors kept apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import AdaLoraModel, PeftModel
from peft.tuners.adalora import AdaLoraLayer
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from epicrisis.settings import refuse
from epicrisis.training.checkpoints import Checkpoints

_FEWEST_STEPS = 5


def is_adalora(model: nn.Module) -> bool:
    """Whether the model's adapter is AdaLoRA's."""
    return isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel)


@contextmanager
def sharing_ranks(model: nn.Module, n_steps: int) -> Iterator[None]:
    """While it lasts, an AdaLoRA adapter shares its ranks out after each optimiser step; others are left alone.

    All ranks learn for a tenth of the steps, then they are taken away towards the target, and the last fifth
    trains what is left. Raises InputError for a run too short for that.
    """
    if not is_adalora(model):
        yield
        return
    if n_steps < _FEWEST_STEPS:
        what = f"AdaLoRA cannot share out its ranks in {n_steps} steps"
        raise refuse("lora.method", what, f"train for {_FEWEST_STEPS} steps or more, or set lora.method: lora")
    tuner: Any = model.base_model
    config = tuner.peft_config[tuner.trainable_adapter_name]
    config.total_step, config.tinit, config.tfinal = n_steps, n_steps // 10, n_steps // 5
    config.deltaT = max(1, n_steps // 100)
    own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    done = 0

    def share_out(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal done
        if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            done += 1
            tuner.update_and_allocate(done)

    handle = register_optimizer_step_post_hook(share_out)  # gradients are still there, as the method needs
    try:
        yield
    finally:
        handle.remove()


def refuse_resuming(module: nn.Module, checkpoints: Checkpoints) -> None:
    """Raise InputError where training would go on from a checkpoint that cannot tell how ranks were shared out."""
    if is_adalora(getattr(module, "model", module)) and checkpoints.latest() is not None:
        raise refuse(
            "training.resume",
            "how far AdaLoRA has shared out its ranks is not kept in checkpoints",
            "begin anew with training.overwrite_output_dir=true, or use lora.method: lora",
        )


def has_shared_out(model: PeftModel, adapter: str) -> bool:
    """Whether the adapter's final ranks are settled."""
    config: Any = model.peft_config[adapter]
    return bool(config.rank_pattern)


def distance_from_orthogonal(model: PeftModel) -> torch.Tensor:
    """AdaLoRA's penalty: how far singular vectors are from orthogonal, averaged over matrices, times its weight."""
    tuner: Any = model.base_model
    name = tuner.trainable_adapter_name
    layers: list[Any] = [module for module in model.modules() if isinstance(module, AdaLoraLayer)]
    distances = []
    for layer in layers:
        for vectors in (layer.lora_A[name], layer.lora_B[name].T):
            gram = vectors @ vectors.T
            distances.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
    return tuner.peft_config[name].orth_reg_weight * torch.stack(distances).mean()
