"""An adapter that begins by mending what rounding the base to 4 bits has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers.utils import cached_file

from epicrisis.settings import refuse

_WHERE = "lora.init_lora_weights"
_SMALL = 2048
"""Up to this size a residual is decomposed exactly."""


@torch.no_grad()
def mend_rounding(model: PeftModel, adapter: str, source: str) -> None:
    """Let every layer's s·B·A begin as the best rank-r approximation of W − dequantised(W).

    LoftQ with one step, of which no layer's own weight is changed (Li et al. 2023, arXiv:2310.08659). PEFT's
    function for it leaves the adapter's scale s out, so that with alpha ≠ r it would miss, and needs a GPU.
    source: the folder or hub name of the base. Raises InputError where its unrounded weights are not at hand.
    """
    files = _weight_files(source)
    base: Any = model.get_base_model()
    for name, layer in base.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.lora_A:
            continue
        first: Any = layer.lora_A[adapter].weight
        second: Any = layer.lora_B[adapter].weight
        quantised: Any = layer.get_base_layer().weight
        rounded = bnb.functional.dequantize_4bit(quantised.data, quantised.quant_state).float()
        residual = _read(files, f"{name}.weight").to(rounded.device).float() - rounded
        left, size, right = _largest_parts(residual, layer.r[adapter])
        n = len(size)  # a rank beyond the layer's own has nothing left to mend
        first.zero_()[:n] = size.sqrt()[:, None] * right
        second.zero_()[:, :n] = left * size.sqrt() / layer.scaling[adapter]


def _largest_parts(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Singular vectors and values [m, r], [r], [r, n] of the r largest parts."""
    if min(matrix.shape) <= _SMALL:
        left, size, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        left, size, right = torch.svd_lowrank(matrix, q=rank + 16, niter=6)
        right = right.T
    return left[:, :rank], size[:rank], right[:rank]


def _weight_files(source: str) -> dict[str, str]:
    """The safetensors file of each of the base's weights."""
    index = cached_file(source, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    if index is not None:
        names = json.loads(Path(index).read_text())["weight_map"]
        return {name: str(cached_file(source, file)) for name, file in names.items()}
    single = cached_file(source, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    if single is None:
        raise refuse(_WHERE, "LoftQ needs the base's unrounded weights as safetensors", "choose another base")
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), str(single))


def _read(files: dict[str, str], name: str) -> torch.Tensor:
    if name not in files:
        raise refuse(_WHERE, f"the base's files hold no {name}", "use default: LoftQ cannot be had on this base")
    with safe_open(files[name], framework="pt") as file:
        weight = file.get_tensor(name)
    if not weight.is_floating_point():
        raise refuse(_WHERE, "the base's own files are rounded already", "choose a base of 16 bits, or use default")
    return weight
