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

_FEWEST_STEPS = 5
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator remembers of each weight's importance, smoothed over steps."""


def is_adalora(model: nn.Module) -> bool:
    """Whether the model's adapter is AdaLoRA's."""
    return isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel)


class RankSharing:
    """An AdaLoRA adapter's ranks, shared out after each optimiser step: a state that checkpoints keep."""

    def __init__(self, model: PeftModel, n_steps: int):
        """All ranks learn for a tenth of the steps, then they are taken away; the last fifth trains what is left."""
        tuner: Any = model.base_model
        config: Any = tuner.peft_config[tuner.trainable_adapter_name]
        config.total_step, config.tinit, config.tfinal = n_steps, n_steps // 10, n_steps // 5
        config.deltaT = max(1, n_steps // 100)
        self._tuner, self._config = tuner, config
        self._own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        self._done = 0

    def after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Share out, if this optimizer moves the adapter; gradients are still there, as the method needs."""
        if any(id(parameter) in self._own for group in optimizer.param_groups for parameter in group["params"]):
            self._done += 1
            self._tuner.update_and_allocate(self._done)

    def state_dict(self) -> dict[str, Any]:
        importance = {name: getattr(self._tuner.rankallocator, name) for name in _IMPORTANCE}
        return {"done": self._done, "ranks": self._config.rank_pattern, **importance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done, self._config.rank_pattern = state["done"], state["ranks"]
        for name in _IMPORTANCE:
            setattr(self._tuner.rankallocator, name, state[name])


@contextmanager
def sharing_ranks(model: nn.Module, n_steps: int) -> Iterator[RankSharing | None]:
    """While it lasts, an AdaLoRA adapter shares its ranks out after each optimiser step; others are left alone.

    Raises InputError for a run too short for that.
    """
    if not is_adalora(model):
        yield None
        return
    if n_steps < _FEWEST_STEPS:
        what = f"AdaLoRA cannot share out its ranks in {n_steps} steps"
        raise refuse("lora.method", what, f"train for {_FEWEST_STEPS} steps or more, or set lora.method: lora")
    sharing = RankSharing(model, n_steps)  # type: ignore[arg-type]  # is_adalora has seen to it
    handle = register_optimizer_step_post_hook(sharing.after_step)
    try:
        yield sharing
    finally:
        handle.remove()


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
