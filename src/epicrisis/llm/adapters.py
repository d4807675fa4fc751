"""A clinical adapter and a downstream adapter on one base: attached, stacked, frozen, saved, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import TrainableTokensWrapper
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from epicrisis.llm.adalora import has_shared_out, is_adalora
from epicrisis.llm.methods import lora_config
from epicrisis.llm.new_tokens import FILE, new_tokens_of, rows_of_base
from epicrisis.llm.prompts import is_prompted
from epicrisis.llm.trained_modules import keep_in_float32, restore_float32
from epicrisis.settings import refuse
from epicrisis.settings.schema import LoraSettings

CLINICAL = "clinical"
DOWNSTREAM = "downstream"
_PROBE = 64


def stack(
    base: PreTrainedModel, clinical_dir: Path, lora: LoraSettings, *, clinical_trainable: bool, seed: int
) -> PeftModel:
    """A new downstream adapter over a trained clinical one, both active; lora.method none: the clinical one alone.

    Their updates add: W x + s_c B_c A_c x + s_d B_d A_d x. The clinical adapter is frozen, its dropout with
    it, unless `clinical_trainable`. The two-step framework of Gema et al. 2023 (arXiv:2307.03042).
    Raises InputError where the clinical adapter was trained on another base, or lets none lie over it.
    """
    directory = adapter_directory(clinical_dir)
    check_base(base, directory)
    check_stackable(directory, lora)
    model = PeftModel.from_pretrained(base, str(directory), adapter_name=CLINICAL, is_trainable=clinical_trainable)
    restore_float32(model, CLINICAL, directory)
    if lora.method != "none":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.add_adapter(DOWNSTREAM, lora_config(base, lora))
        keep_in_float32(model, DOWNSTREAM)
    learning = ((CLINICAL,) if clinical_trainable else ()) + ((DOWNSTREAM,) if lora.method != "none" else ())
    activate(model, trainable=learning)
    return model


def check_stackable(directory: Path, lora: LoraSettings) -> None:
    """Raise InputError where no downstream adapter of these settings can lie over the adapter in `directory`."""
    saved = json.loads((directory / "adapter_config.json").read_text())
    if saved["peft_type"] != "LORA":
        raise refuse(
            "model.clinical_adapter",
            f"a {saved['peft_type']} adapter: a downstream adapter can be added to LoRA's only",
            "pretrain with lora.method: lora",
        )
    if lora.modules_to_train and (saved.get("modules_to_save") or saved.get("trainable_token_indices")):
        raise refuse(
            "lora.modules_to_train",
            "the clinical adapter has an embedding or output layer of its own, and only one can be used",
            "leave it out here; model.clinical_trainable: true trains the clinical adapter's on",
        )


def load_stacked(base: PreTrainedModel, directory: Path) -> PeftModel:
    """The adapters of a finished run, `clinical` (where there is one) and `downstream`, active and frozen."""
    names = adapters_in(directory)
    if not names:
        raise refuse(str(directory), "holds no adapter", "give the directory of a finished run")
    return load_adapters(base, {name: directory / name for name in names})


def adapters_in(directory: Path) -> list[str]:
    """Which of the adapters `clinical` and `downstream` lie in this folder."""
    return [name for name in (CLINICAL, DOWNSTREAM) if (directory / name / "adapter_config.json").is_file()]


def load_adapters(base: PreTrainedModel, places: Mapping[str, Path]) -> PeftModel:
    """The adapters of these names and folders, all active and frozen, each after those before it."""
    model: PeftModel | None = None
    for name, place in places.items():
        check_base(base, place)
        if model is None:
            model = PeftModel.from_pretrained(base, str(place), adapter_name=name)
        elif any(isinstance(module, TrainableTokensWrapper) for module in model.modules()):
            _load_updates(model, name, place)
        else:
            model.load_adapter(str(place), adapter_name=name)
        restore_float32(model, name, place)
    assert model is not None
    activate(model, trainable=())
    return model


def activate(model: PeftModel, trainable: tuple[str, ...]) -> None:
    """Switch every adapter of the model on, and let only `trainable` learn.

    PEFT makes all the adapters trainable that it activates, hence the freezing afterwards.
    """
    names = list(model.peft_config)
    if is_prompted(model):
        model.set_adapter(names[0])  # such an adapter is alone
        model.prompt_encoder.requires_grad_(names[0] in trainable)
        return
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


def adapter_directory(path: Path, where: str = "model.clinical_adapter") -> Path:
    """The folder that holds adapter_config.json: the path itself or a run directory's clinical adapter.

    where: the key that names the path, for the InputError where there is none.
    """
    for candidate in (path, path / "adapters" / CLINICAL, path / CLINICAL):
        if (candidate / "adapter_config.json").is_file():
            return candidate
    raise refuse(
        where,
        f"{path} holds no adapter (no adapter_config.json)",
        "give the directory of a finished pretraining run",
    )


def save_adapter(model: PeftModel, name: str, directory: Path, model_name: str) -> None:
    """One adapter as safetensors and JSON, with a probe of the base that it belongs to.

    Whole modules that it trains and the rows of new tokens are in it, and beside it which tokens those are.
    """
    if is_adalora(model) and not has_shared_out(model, name):
        raise RuntimeError("this AdaLoRA adapter was trained without sharing out its ranks (see sharing_ranks)")
    directory.mkdir(parents=True, exist_ok=True)
    if _lies_over_new_tokens(model, name):
        _save_updates(model, name, directory)
    else:
        # Of a vocabulary that has grown PEFT would save both matrices; the new rows are in the adapter already.
        model.save_pretrained(str(directory), selected_adapters=[name], save_embedding_layers=False)
    nested = directory / name
    for file in nested.iterdir() if nested.is_dir() else ():
        file.replace(directory / file.name)
    if nested.is_dir():
        nested.rmdir()
    (directory / "README.md").unlink(missing_ok=True)
    table = new_tokens_of(causal_model(model))
    if table is not None:
        table.select("token", "description").write_csv(directory / FILE)
    write_base(model, directory, model_name)


def _lies_over_new_tokens(model: PeftModel, name: str) -> bool:
    """Whether another adapter trains new tokens and this one none."""
    wrappers = [module for module in model.modules() if isinstance(module, TrainableTokensWrapper)]
    return any(name not in wrapper.token_adapter.trainable_tokens_delta for wrapper in wrappers)


def _save_updates(model: PeftModel, name: str, directory: Path) -> None:
    """A LoRA adapter that trains nothing but its updates, as PEFT would write it.

    PEFT itself (0.21.2) asks every adapter for rows of new tokens as soon as one has them, and fails.
    """
    tensors = {
        key.replace(f".{name}.", "."): tensor.detach().cpu().contiguous()
        for key, tensor in model.state_dict().items()
        if ".lora_" in key and f".{name}." in key
    }
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    model.peft_config[name].save_pretrained(str(directory), auto_mapping_dict=None)


def _load_updates(model: PeftModel, name: str, directory: Path) -> None:
    """A LoRA adapter that trains nothing but its updates, over one that trains new tokens; see `_save_updates`."""
    config = LoraConfig.from_pretrained(str(directory))
    if config.trainable_token_indices or config.modules_to_save:
        what = "trains embeddings of its own over an adapter with new tokens"
        raise refuse(str(directory), what, "leave one of the two adapters out")
    model.add_adapter(name, config)
    saved = load_file(directory / "adapter_model.safetensors")
    own = {key: p for key, p in model.named_parameters() if ".lora_" in key and f".{name}." in key}
    if odd := saved.keys() ^ {key.replace(f".{name}.", ".") for key in own}:
        raise refuse(str(directory), f"does not fit this base ({min(odd)})", "use the base that it was trained on")
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.copy_(saved[key.replace(f".{name}.", ".")])


def write_base(model: nn.Module, directory: Path, model_name: str) -> None:
    """Write base.json: which base the adapter in `directory` belongs to."""
    base = causal_model(model)
    rows = rows_of_base(base, _embedding(base).shape[0])
    told = {"model_name": model_name, "in_4bit": is_quantised(model), "rows": rows}
    (directory / "base.json").write_text(json.dumps({**told, "probe": base_probe(model, rows).tolist()}))


def base_probe(model: nn.Module, rows: int | None = None) -> np.ndarray:
    """Evenly spaced weights of the token embedding and the last norm, float32 [2 x 64].

    Neither is ever quantised, so the probe tells bases apart whatever the precision they were loaded in.
    rows: look at so many rows of the embedding only, which leaves rows of new tokens out.
    """
    causal = causal_model(model)
    weights = [_embedding(causal)[:rows], causal.get_decoder().norm.weight]
    return np.stack([_evenly(weight.detach().flatten().float().cpu()) for weight in weights])


def _embedding(base: PreTrainedModel) -> torch.Tensor:
    """The base's own token embedding [n_tokens, hidden], whatever an adapter has put in its place."""
    module: Any = base.get_input_embeddings()
    return getattr(module, "original_module", module).weight


def is_quantised(model: nn.Module) -> bool:
    """Whether the base's weights are held in 4 or 8 bits."""
    return any(isinstance(module, Linear4bit | Linear8bitLt) for module in model.modules())


def _evenly(values: torch.Tensor) -> np.ndarray:
    return values[torch.linspace(0, len(values) - 1, _PROBE).long()].numpy()


def check_base(model: nn.Module, directory: Path) -> None:
    """Raise InputError where the adapter in `directory` was trained on another base than this one."""
    file = directory / "base.json"
    if not file.is_file():  # an adapter from elsewhere: PEFT itself checks the shapes
        return
    saved = json.loads(file.read_text())
    expected, found = np.array(saved["probe"], dtype=np.float32), base_probe(model, saved.get("rows"))
    if not np.allclose(expected, found, rtol=0.02, atol=1e-3):
        raise refuse(
            "model.clinical_adapter",
            f"was trained on another base ({saved['model_name']}) than model.model_name",
            "use the same base in both stages, or pretrain again",
        )


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside, adapters and all."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]
