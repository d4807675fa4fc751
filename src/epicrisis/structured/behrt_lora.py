"""Low-rank adapters in the layers of a body, by peft."""

from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import nn

from epicrisis.settings.embedded_codes_section import BehrtSettings

_ATTENTION = r"(attention\.self\.(query|key|value)|attention\.output\.dense)"
_FEED_FORWARD = r"(intermediate\.dense|layer\.\d+\.output\.dense)"


def add_lora(layers: nn.Module, settings: BehrtSettings) -> None:
    """Put adapters of `lora_rank` into the linear maps of attention, and where asked for into those after it.

    The layers' own weights are frozen. Adapters begin doing nothing.
    """
    targets = f"({_ATTENTION}|{_FEED_FORWARD})" if settings.lora_feedforward else _ATTENTION
    assert settings.lora_rank is not None
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        target_modules=rf".*\.{targets}",
    )
    inject_adapter_in_model(config, layers)


def merged_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """All weights by the names that they have without adapters, what these add being added."""
    state = {name: tensor for name, tensor in module.state_dict().items() if ".lora_" not in name}
    for name, layer in module.named_modules():
        if isinstance(layer, Linear):
            weight = f"{name}.base_layer.weight"
            state[weight] = state[weight] + layer.get_delta_weight("default")
    return {name.replace(".base_layer.", "."): tensor.detach() for name, tensor in state.items()}
