"""The low-rank updates in files of LoRA adapters: read, laid side by side into one adapter, written."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from epicrisis.llm.new_tokens import FILE
from epicrisis.settings import refuse

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_PARTS = (".lora_A.weight", ".lora_B.weight")
_PLAIN_BEGINNINGS = (True, False, "gaussian", "eva", "loftq")
"""Ways to begin an adapter that leave the base's weights as they are."""


@dataclass(frozen=True)
class Updates:
    """What an adapter adds to a base.

    pairs: per layer A [r, n_in] and B [n_out, r]; the layer's weight grows by B·A, the adapter's scale being in A.
    others: tensors by their name in the file: modules trained in full, rows of new tokens.
    config: what PEFT keeps of the adapter.
    """

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]
    others: dict[str, torch.Tensor]
    config: dict[str, Any]

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(len(first) for first, _ in self.pairs.values())


def read_updates(directory: Path) -> Updates:
    """A LoRA adapter's updates. InputError where it is more than that, so that no sum of updates could be it."""
    config = json.loads((directory / CONFIG).read_text())
    check_additive(config, directory)
    tensors = load_file(directory / WEIGHTS)
    layers = [name.removesuffix(_PARTS[0]) for name in tensors if name.endswith(_PARTS[0])]
    pairs = {}
    for layer in layers:
        first, second = (tensors.pop(layer + part).float() for part in _PARTS)
        name = layer.removeprefix(_PREFIX)
        pairs[name] = (first * _scale(config, name, len(first)), second)
    if odd := sorted(name for name in tensors if ".lora_" in name):
        raise _not_additive(directory, f"has {odd[0]}")
    return Updates(pairs, tensors, config)


def check_additive(config: dict[str, Any], directory: Path) -> None:
    """Raise InputError for an adapter that does not simply add B·A to the weights of linear layers."""
    if config["peft_type"] != "LORA":
        raise _not_additive(directory, f"is of the kind {config['peft_type']}")
    if config.get("use_dora"):
        raise _not_additive(directory, "is a DoRA adapter, which rescales the base's weights")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise _not_additive(directory, "trains biases")
    if config.get("init_lora_weights", True) not in _PLAIN_BEGINNINGS:
        raise _not_additive(directory, f"began as {config['init_lora_weights']}, which changes the base's weights")


def _not_additive(directory: Path, why: str) -> Exception:
    fix = "set fuse.mode: stack, or merge16 on a base of 16 bits"
    return refuse("fuse.adapters", f"{directory} {why}: no LoRA adapter adds the same", fix)


def _scale(config: dict[str, Any], layer: str, rank: int) -> float:
    pattern: dict[str, float] = config.get("alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(list(pattern), layer), float(config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def side_by_side(parts: Sequence[Updates]) -> Updates:
    """One adapter that adds what all of these add: Σ B_i·A_i = [B_1 … B_n]·[A_1; …; A_n]; ranks add up.

    Ranks, scales and layers may differ from adapter to adapter; where a layer lacks ranks there are zeros.
    """
    rank = sum(part.rank for part in parts)
    layers = dict.fromkeys(layer for part in parts for layer in part.pairs)
    pairs = {}
    for layer in layers:
        there = [part.pairs[layer] for part in parts if layer in part.pairs]
        first, second = torch.cat([a for a, _ in there]), torch.cat([b for _, b in there], dim=1)
        missing = rank - len(first)
        pairs[layer] = (
            torch.nn.functional.pad(first, (0, 0, 0, missing)),
            torch.nn.functional.pad(second, (0, missing)),
        )
    return Updates(pairs, others_of(parts), parts[0].config | _also_trained(parts))


def others_of(parts: Sequence[Updates]) -> dict[str, torch.Tensor]:
    """What the adapters hold beside updates; of which `check_one_embedding` lets one hold something."""
    return {name: tensor for part in parts for name, tensor in part.others.items()}


def check_one_embedding(directories: Iterable[Path]) -> None:
    """Raise InputError where more than one adapter has an embedding, output layer or new tokens of its own."""
    configs = [json.loads((directory / CONFIG).read_text()) for directory in directories]
    having = [config for config in configs if config.get("modules_to_save") or config.get("trainable_token_indices")]
    if len(having) > 1:
        what = f"{len(having)} of the adapters have embeddings or an output layer of their own, and a model has one"
        raise refuse("fuse.adapters", what, "leave all but one of them out")


def _also_trained(parts: Sequence[Updates]) -> dict[str, Any]:
    """The keys of a config that tell PEFT of modules and tokens, from whichever adapter has them."""
    keys = ("modules_to_save", "trainable_token_indices", "ensure_weight_tying")
    return {key: next((part.config[key] for part in parts if part.config.get(key)), None) for key in keys}


def write_updates(updates: Updates, directory: Path, sources: Sequence[Path]) -> None:
    """The updates as one LoRA adapter of scale 1, with what lies beside its sources' files."""
    directory.mkdir(parents=True)
    rank = updates.rank
    plain = {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": sorted(updates.pairs),
        "exclude_modules": None,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "inference_mode": True,
        "ensure_weight_tying": bool(updates.config.get("ensure_weight_tying")),
    }
    (directory / CONFIG).write_text(json.dumps({**updates.config, **plain}, indent=2))
    tensors = dict(updates.others)
    for layer, pair in updates.pairs.items():
        tensors |= {_PREFIX + layer + part: tensor.contiguous() for part, tensor in zip(_PARTS, pair, strict=True)}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    for name in ("base.json", FILE):
        for source in sources:
            if (source / name).is_file():
                shutil.copy(source / name, directory / name)
