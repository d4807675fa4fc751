"""A model's folder: config.json, model.safetensors and tokenizer/."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from epicrisis.settings import refuse
from epicrisis.settings.structured_section import StructuredSettings
from epicrisis.settings.tokenizer_section import TokenizerSettings
from epicrisis.structured.models import BY_PLACE, BodyConfig
from epicrisis.structured.tokenizers import CodeTokenizer
from epicrisis.tracking.run_directory import replacing
from epicrisis.training.sharding import full

BODY = "body."
"""What the names of a body's weights begin with, in pretraining as in classification."""


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights, each shared one once; of a sharded module every process must ask."""
    return {name: full(weight.detach()).cpu().contiguous().clone() for name, weight in module.named_parameters()}


def save_model(
    directory: Path, weights: dict[str, torch.Tensor], about: Mapping[str, Any], tokenizer: CodeTokenizer
) -> None:
    """Write a model's folder; config.json, which makes it one, last."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(directory / "tokenizer")
    with replacing(directory / "model.safetensors") as part:
        save_file(weights, part)
    with replacing(directory / "config.json") as part:
        part.write_text(json.dumps({**about, "tokenizer": tokenizer.label}, indent=2) + "\n", encoding="utf-8")


def model_directory(run: Path) -> Path:
    """Where a run, a snapshot, or a model's folder itself has its model. Raises InputError where there is none."""
    for directory in (run / "model", run):
        if (directory / "config.json").is_file() and (directory / "model.safetensors").is_file():
            return directory
    raise refuse("structured.pretrained", f"{run} holds no model", "name a finished run of arm structured, or pretrain")


def read_about(directory: Path) -> dict[str, Any]:
    """What config.json says of the model. Raises InputError where it is no model of this kind."""
    try:
        about = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        BodyConfig(**about["body"])
    except (OSError, ValueError, KeyError, TypeError):
        what = "holds no model that this version knows"
        raise refuse(str(directory), what, "name the folder of a finished run of arm structured") from None
    return about


def body_config(directory: Path) -> BodyConfig:
    """Of a model's body."""
    return BodyConfig(**read_about(directory)["body"])


def check_pretrained(settings: StructuredSettings) -> None:
    """Raise InputError where `structured.pretrained` is no model, or another than the other keys describe."""
    if settings.pretrained is None:
        return
    found = body_config(model_directory(settings.pretrained))
    for key in ("architecture", "size"):
        asked, is_ = getattr(settings, key), getattr(found, key)
        if asked != is_:
            what = f"{asked}, and the pretrained model is {is_}"
            raise refuse(f"structured.{key}", what, f"set it to {is_}, or name another structured.pretrained")
    fitted = read_about(model_directory(settings.pretrained)).get("reading", {}).get("tokenizer")
    if settings.tokenizer != TokenizerSettings() and settings.tokenizer.model_dump(mode="json") != fitted:
        what = "is not how the pretrained model's events became tokens"
        raise refuse("structured.tokenizer", what, "leave it out: the pretrained model brings its tokenizer")
    if found.architecture in BY_PLACE and settings.context > found.context:
        what = f"{settings.context}, and the pretrained {found.architecture} knows {found.context} places"
        raise refuse("structured.context", what, f"set it to {found.context} or less")


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], where: Path) -> None:
    """Put all weights into a module that has exactly these. Raises InputError where it has others."""
    own = dict(module.named_parameters())
    odd = own.keys() ^ weights.keys()
    odd |= {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
    if odd:
        what = f"{len(odd)} weights are not those of this model, e.g. {min(odd)}"
        raise refuse(str(where), what, "use the settings of the config.yaml of its run")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])


def load_body(body: nn.Module, directory: Path) -> None:
    """A body's weights out of a pretrained model's folder; its head stays behind."""
    weights = load_file(directory / "model.safetensors")
    own = {name.removeprefix(BODY): weight for name, weight in weights.items() if name.startswith(BODY)}
    load_weights(body, own, directory)
