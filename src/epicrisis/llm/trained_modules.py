"""Token embedding and output layer that are trained in full beside an adapter, and saved with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from epicrisis.settings import refuse

_PREFIX = "base_model.model."
"""What PEFT lays before a base's module names in the files of adapters."""


def is_tied(base: PreTrainedModel) -> bool:
    """Whether one matrix serves as token embedding and as output layer."""
    return bool(getattr(base.config, "tie_word_embeddings", False))


def embedding_names(base: PreTrainedModel) -> list[str]:
    """Names of the token embedding and, where it is a matrix of its own, the output layer."""
    inputs = _name_of(base, base.get_input_embeddings())
    return [inputs] if is_tied(base) else [inputs, _name_of(base, base.get_output_embeddings())]


def names_to_train(base: PreTrainedModel, wanted: Sequence[str]) -> list[str]:
    """Names of the modules that `lora.modules_to_train` asks for; InputError where half of a tied pair is asked for."""
    if not wanted:
        return []
    if is_tied(base):
        if set(wanted) != {"embeddings", "head"}:
            what = f"embedding and output layer of this base are one matrix, and only {wanted[0]} is asked for"
            raise refuse("lora.modules_to_train", what, "write [embeddings, head], or leave it out")
        return embedding_names(base)
    modules = {"embeddings": base.get_input_embeddings(), "head": base.get_output_embeddings()}
    return [_name_of(base, modules[part]) for part in dict.fromkeys(wanted)]


def keep_in_float32(model: PeftModel, adapter: str) -> None:
    """Train the adapter's whole modules in float32 whatever the base's precision.

    bfloat16 keeps 8 bits of a weight: the small steps that an embedding takes would be rounded away.
    """
    for _, module in _trained(model, adapter):
        dtype = module.weight.dtype
        if dtype == torch.float32:
            continue
        module.float()
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda _, __, output, dtype=dtype: output.to(dtype))
        else:
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))


def restore_float32(model: PeftModel, adapter: str, directory: Path) -> None:
    """Put the adapter's whole modules back as they were saved: PEFT has loaded them in the base's precision."""
    trained = dict(_trained(model, adapter))
    if not trained:
        return
    keep_in_float32(model, adapter)
    saved = load_file(directory / "adapter_model.safetensors")
    with torch.no_grad():
        for name, module in trained.items():
            key = f"{_PREFIX}{name}.weight"
            if key in saved:  # of a tied pair one may be written for both
                module.weight.copy_(saved[key])


def _trained(model: PeftModel, adapter: str) -> Iterator[tuple[str, Any]]:
    """(name in the base, the adapter's own copy) of each module that it trains in full."""
    base: Any = model.get_base_model()
    for name, module in base.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            yield name, module.modules_to_save[adapter]


def _name_of(base: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in base.named_modules() if module is wanted)
