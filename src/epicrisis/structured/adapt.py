"""What of a body classification trains: all of it, nothing, or adapters."""

from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from epicrisis.settings import Settings, refuse
from epicrisis.settings.schema import LoraSettings
from epicrisis.structured.models import Body

_ONLY = {"mamba": ("in_proj",)}
"""Mamba's kernels read the weights of its other layers past their modules, where an adapter would do nothing."""
_NEVER = ("filter",)
"""Hyena's filter networks are computed once for all tokens: they are no layer between states."""


def adapt(body: Body, settings: Settings) -> None:
    """Freeze what `structured.finetune` does not train, and put adapters in where it asks for them.

    Raises InputError for lora.target_modules that name no layer of this body.
    """
    finetune = settings.structured.finetune
    if finetune == "full":
        return
    body.requires_grad_(False)
    if finetune == "head":
        return
    lora = settings.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=lora.lora_dropout,
        target_modules=adapted_layers(body, lora),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=True if lora.init_lora_weights == "default" else lora.init_lora_weights,  # type: ignore[arg-type]
        fan_in_fan_out=body.config.architecture == "gpt2",  # GPT-2 keeps its matrices transposed
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        inject_adapter_in_model(config, body.net)


def adapted_layers(body: Body, lora: LoraSettings) -> list[str]:
    """Full names of the layers within the network that get an adapter. Raises InputError where there are none."""
    linear = linear_layers(body)
    if lora.target_modules == "all-linear":
        chosen = linear
    else:
        chosen = [name for name in linear if name.rpartition(".")[2] in lora.target_modules]
    if not chosen:
        known = sorted({name.rpartition(".")[2] for name in linear})
        what = f"names no linear layer of {body.config.architecture}"
        raise refuse("lora.target_modules", what, f"choose among {', '.join(known)}, or set it to all-linear")
    return chosen


def linear_layers(body: Body) -> list[str]:
    """The linear layers between states, by their full names within the network."""
    only = _ONLY.get(body.config.architecture)
    return [
        name
        for name, module in body.net.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not set(_NEVER) & set(name.split("."))
        and (only is None or name.rpartition(".")[2] in only)
    ]
