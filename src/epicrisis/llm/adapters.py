"""A clinical adapter and a downstream adapter on one base: attached, stacked, frozen, saved, checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from epicrisis.llm.backends.peft import lora_config
from epicrisis.settings import refuse
from epicrisis.settings.schema import LoraSettings

CLINICAL = "clinical"
DOWNSTREAM = "downstream"
_PROBE = 64


def stack(
    base: PreTrainedModel, clinical_dir: Path, lora: LoraSettings, *, clinical_trainable: bool, seed: int
) -> PeftModel:
    """A new downstream adapter over a trained clinical one, both active.

    Their updates add: W x + s_c B_c A_c x + s_d B_d A_d x. The clinical adapter is frozen, its dropout with
    it, unless `clinical_trainable`. The two-step framework of Gema et al. 2023 (arXiv:2307.03042).
    Raises InputError where the clinical adapter was trained on another base.
    """
    directory = adapter_directory(clinical_dir)
    check_base(base, directory)
    model = PeftModel.from_pretrained(base, str(directory), adapter_name=CLINICAL, is_trainable=clinical_trainable)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(DOWNSTREAM, lora_config(lora))
    activate(model, trainable=(CLINICAL, DOWNSTREAM) if clinical_trainable else (DOWNSTREAM,))
    return model


def load_stacked(base: PreTrainedModel, directory: Path) -> PeftModel:
    """The adapters of a finished run, `clinical` (where there is one) and `downstream`, active and frozen."""
    names = [name for name in (CLINICAL, DOWNSTREAM) if (directory / name / "adapter_config.json").is_file()]
    if not names:
        raise refuse(str(directory), "holds no adapter", "give the directory of a finished run")
    check_base(base, directory / names[-1])
    model = PeftModel.from_pretrained(base, str(directory / names[0]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(directory / name), adapter_name=name)
    activate(model, trainable=())
    return model


def activate(model: PeftModel, trainable: tuple[str, ...]) -> None:
    """Switch every adapter of the model on, and let only `trainable` learn.

    PEFT makes all the adapters trainable that it activates, hence the freezing afterwards.
    """
    names = list(model.peft_config)
    model.base_model.set_adapter(names)  # type: ignore[operator]  # PEFT forwards to its tuner
    for name in names:
        model.set_requires_grad(name, name in trainable)
        if name not in trainable:
            _silence_dropout(model, name)


def _silence_dropout(model: PeftModel, name: str) -> None:
    for layer in lora_layers(model):
        if name in layer.lora_dropout:
            layer.lora_dropout[name] = nn.Identity()


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """The modules that carry adapters."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def adapter_directory(path: Path) -> Path:
    """The folder that holds adapter_config.json: the path itself or a run directory's clinical adapter."""
    for candidate in (path, path / "adapters" / CLINICAL, path / CLINICAL):
        if (candidate / "adapter_config.json").is_file():
            return candidate
    raise refuse(
        "model.clinical_adapter",
        f"{path} holds no adapter (no adapter_config.json)",
        "give the directory of a finished pretraining run",
    )


def save_adapter(model: PeftModel, name: str, directory: Path, model_name: str) -> None:
    """One adapter as safetensors and JSON, with a probe of the base that it belongs to."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(directory), selected_adapters=[name])
    nested = directory / name
    for file in nested.iterdir() if nested.is_dir() else ():
        file.replace(directory / file.name)
    if nested.is_dir():
        nested.rmdir()
    (directory / "README.md").unlink(missing_ok=True)
    base = {"model_name": model_name, "probe": base_probe(model).tolist()}
    (directory / "base.json").write_text(json.dumps(base))


def base_probe(model: nn.Module) -> np.ndarray:
    """Evenly spaced weights of the token embedding and the last norm, float32 [2 x 64].

    Neither is ever quantised, so the probe tells bases apart whatever the precision they were loaded in.
    """
    causal = causal_model(model)
    weights = [causal.get_input_embeddings().weight, causal.get_decoder().norm.weight]
    return np.stack([_evenly(weight.detach().flatten().float().cpu()) for weight in weights])


def _evenly(values: torch.Tensor) -> np.ndarray:
    return values[torch.linspace(0, len(values) - 1, _PROBE).long()].numpy()


def check_base(model: nn.Module, directory: Path) -> None:
    """Raise InputError where the adapter in `directory` was trained on another base than this one."""
    file = directory / "base.json"
    if not file.is_file():  # an adapter from elsewhere: PEFT itself checks the shapes
        return
    saved = json.loads(file.read_text())
    expected, found = np.array(saved["probe"], dtype=np.float32), base_probe(model)
    if not np.allclose(expected, found, rtol=0.02, atol=1e-3):
        raise refuse(
            "model.clinical_adapter",
            f"was trained on another base ({saved['model_name']}) than model.model_name",
            "use the same base in both stages, or pretrain again",
        )


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside, adapters and all."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]
