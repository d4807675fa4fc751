"""Adapters on one base made into one thing: a stack, one exact adapter, merged weights, or an ablation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from epicrisis.llm.adapters import is_quantised, load_adapters, lora_layers
from epicrisis.llm.base_model import load_base, load_tokenizer
from epicrisis.llm.new_tokens import FILE
from epicrisis.llm.updates import Updates, check_one_embedding, others_of, read_updates, side_by_side, write_updates
from epicrisis.settings import Settings, refuse

MANIFEST = "fuse.json"
FUSED = "fused"
MODEL = "model"
TOLERANCE = 1e-5
"""Logits of an exact fusion differ by no more, in float32; where they are larger than 1, by this share of them."""
_COMPANIONS = ("score.safetensors", "narrative.json", "narrator")
"""What lies beside a classifier's adapters, and goes with them."""
_PROBE = (4, 64)


def fuse(
    settings: Settings, sources: Mapping[str, Path], output: Path, accelerator: Accelerator, beside: Path | None = None
) -> dict[str, Any]:
    """Fuse the adapters in these folders as `settings.fuse` says, write `output`, and return its manifest.

    Logits are compared, in float32 and on random tokens, with those of the adapters stacked on the same base;
    what was written is loaded anew for that. beside: the folder whose score head and narrator go with them.
    Raises InputError where the mode cannot be had of these adapters or this base, and, with nothing left
    behind, where a mode that is exact turns out not to be.
    """
    mode = settings.fuse.mode
    _check(settings, sources)
    parts = [] if mode in ("stack", "merge16") else [read_updates(place) for place in sources.values()]
    tokens = new_tokens_file(sources.values())
    stacked = load_adapters(_base(settings, accelerator, tokens), sources).eval()
    expected = logits_on_random_tokens(stacked)
    with stacked.disable_adapter():
        effect = difference(expected, logits_on_random_tokens(stacked))
    output.mkdir(parents=True, exist_ok=True)
    try:
        if mode == "stack":
            told = _write_stack(sources, output)
        elif mode == "cat":
            told = _write_one(side_by_side(parts), sources, output)
        elif mode == "merge16":
            told = _write_merged(settings, stacked, expected, output, accelerator, tokens)
        else:
            told = _write_ablation(settings, stacked, parts, sources, output)
        del stacked
        exact = mode in ("stack", "cat")
        again = _load(settings, output, told, accelerator, torch.float32).eval()
        told["parity"] = _parity(expected, logits_on_random_tokens(again), effect) | told.pop("parity", {})
        told["base"] = settings.model.model_name
        told["exact"] = exact
        told["note"] = _note(mode)
        _check_parity(told)
    except BaseException:
        shutil.rmtree(output)
        raise
    _copy_companions(beside, output)
    (output / MANIFEST).write_text(json.dumps({"mode": mode, **told}, indent=2))
    return {"mode": mode, **told}


def load_fused(settings: Settings, directory: Path, accelerator: Accelerator) -> nn.Module:
    """The model of a folder that `fuse` has written, adapters active and frozen, in the settings' precision."""
    file = directory / MANIFEST
    if not file.is_file():
        raise refuse("model.fused", f"{directory} holds no {MANIFEST}", "give a folder that `fuse` has written")
    return _load(settings, directory, json.loads(file.read_text()), accelerator, None)


def _load(
    settings: Settings, directory: Path, told: Mapping[str, Any], accelerator: Accelerator, dtype: torch.dtype | None
) -> Any:
    if told["model"] is not None:
        if settings.training.load_in_4bit:
            raise refuse(
                "training.load_in_4bit",
                "merged weights would be rounded to 4 bits, and most of what was merged with it",
                "set training.load_in_4bit: false",
            )
        return load_base(_of_merged(settings, directory / told["model"]), accelerator, dtype=dtype)
    places = {name: directory / name for name in told["adapters"]}
    base = load_base(settings, accelerator, new_tokens_file(places.values()), dtype=dtype)
    return load_adapters(base, places)


def _of_merged(settings: Settings, model: Path) -> Settings:
    """The settings with merged weights for their base, which has new tokens' rows in it already."""
    own = {"model_name": str(model), "clinical_adapter": None, "clinical_trainable": False}
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update=own),
            "lora": settings.lora.model_copy(update={"new_code_tokens": None}),
        }
    )


def _base(settings: Settings, accelerator: Accelerator, tokens: Path | None) -> PreTrainedModel:
    return load_base(settings, accelerator, tokens, dtype=torch.float32)


def new_tokens_file(places: Any) -> Path | None:
    """The CSV of new tokens beside one of these adapters."""
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


def _check(settings: Settings, sources: Mapping[str, Path]) -> None:
    mode = settings.fuse.mode
    if mode == "merge16":
        if settings.training.load_in_4bit:
            raise _refuse_merge()
    elif len(sources) < 2:
        raise refuse("fuse.adapters", f"{len(sources)} adapter to fuse", "name two or more, or set fuse.mode: merge16")
    check_one_embedding(sources.values())


def _refuse_merge() -> Exception:
    return refuse(
        "fuse.mode",
        "merged into a 4-bit base, adapters are rounded with it: of an update of 1-2% of a weight hardly any survives",
        "set training.load_in_4bit: false to merge into the 16-bit base, or fuse.mode: cat to keep the 4-bit one",
    )


def merge(model: PeftModel) -> PreTrainedModel:
    """The base with its active adapters added to its weights; InputError where the base is quantised."""
    if is_quantised(model):
        raise _refuse_merge()
    return model.merge_and_unload()  # type: ignore[operator]  # PEFT forwards to its tuner


def logits_on_random_tokens(model: nn.Module) -> torch.Tensor:
    """Logits, float32 [4, 64, n_tokens], on token ids that are the same for every model of one vocabulary."""
    config: Any = model.config
    ids = torch.randint(config.vocab_size, _PROBE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids.to(next(model.parameters()).device)).logits.float().cpu()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest absolute difference."""
    return float((one - other).abs().max())


def _parity(expected: torch.Tensor, found: torch.Tensor, effect: float) -> dict[str, float]:
    """How far logits are from the stacked adapters': absolutely, and beside what the adapters do at all."""
    apart = difference(expected, found)
    return {
        "max_abs_difference": apart,
        "max_abs_logit": float(expected.abs().max()),
        "adapters_effect": effect,
        "share_of_effect": apart / effect if effect else 0.0,
    }


def _check_parity(told: dict[str, Any]) -> None:
    if not told["exact"]:
        return
    parity = told["parity"]
    parity["tolerance"] = TOLERANCE * max(1.0, parity["max_abs_logit"])
    if not parity["max_abs_difference"] <= parity["tolerance"]:
        raise refuse(
            "fuse.mode",
            f"what was fused differs from the stacked adapters by {parity['max_abs_difference']:.1e} in its logits",
            "use fuse.mode: stack, and please report it",
        )


def _note(mode: str) -> str:
    if mode == "stack":
        return "exact: the adapters themselves, loaded one after the other"
    if mode == "cat":
        return "exact: one LoRA adapter whose update is the sum of the adapters' updates"
    if mode == "merge16":
        return "exact but for rounding the merged weights to 16 bits; see parity"
    return "ablation, not exact: another update than the sum of the adapters' updates"


def _write_stack(sources: Mapping[str, Path], output: Path) -> dict[str, Any]:
    for name, place in sources.items():
        (output / name).mkdir()
        for file in (file for file in place.iterdir() if file.is_file()):
            shutil.copy(file, output / name / file.name)
    return {"adapters": list(sources), "model": None}


def _write_one(updates: Updates, sources: Mapping[str, Path], output: Path) -> dict[str, Any]:
    write_updates(updates, output / FUSED, list(sources.values()))
    return {"adapters": [FUSED], "model": None, "rank": updates.rank}


def _write_merged(
    settings: Settings,
    stacked: PeftModel,
    expected: torch.Tensor,
    output: Path,
    accelerator: Accelerator,
    tokens: Path | None,
) -> dict[str, Any]:
    """Weights merged in float32, then rounded to 16 bits once."""
    dtype = torch.float16 if settings.training.fp16 else torch.bfloat16
    merged: Any = merge(stacked)
    unrounded = difference(expected, logits_on_random_tokens(merged))
    merged.to(dtype).save_pretrained(output / MODEL)
    load_tokenizer(settings.model, accelerator, tokens).save_pretrained(output / MODEL)
    kept = str(dtype).removeprefix("torch.")
    return {"adapters": [], "model": MODEL, "dtype": kept, "parity": {"max_abs_difference_unrounded": unrounded}}


def _write_ablation(
    settings: Settings, stacked: PeftModel, parts: Sequence[Updates], sources: Mapping[str, Path], output: Path
) -> dict[str, Any]:
    """What PEFT's add_weighted_adapter makes of the adapters.

    ties: Yadav et al. 2023 (arXiv:2306.01708); dare: Yu et al. 2023 (arXiv:2311.03099), without ties. Where
    ranks differ both act on B·A instead of on B and A, and the result is cut to the largest rank by SVD.
    """
    mode, _, rank = settings.fuse.mode.partition(":")
    kind = {"ties": "ties", "dare": "dare_linear", "svd": "svd"}[mode]
    if mode != "svd" and len({part.rank for part in parts}) > 1:
        kind += "_svd"
    new_rank = int(rank) if rank else max(part.rank for part in parts)
    # PEFT gives the new adapter alpha = r and the first one's rsLoRA, which makes its scale sqrt(r), not 1.
    weight = new_rank**-0.5 if parts[0].config.get("use_rslora") else 1.0
    with torch.random.fork_rng():
        torch.manual_seed(settings.training.seed)
        stacked.add_weighted_adapter(  # type: ignore[operator]
            list(sources),
            [weight] * len(sources),
            FUSED,
            combination_type=kind,
            svd_rank=new_rank,
            density=None if mode == "svd" else settings.fuse.density,
        )
    updates = Updates(_pairs_of(stacked, FUSED), others_of(parts), side_by_side(parts).config)
    return {**_write_one(updates, sources, output), "combination_type": kind}


def _pairs_of(model: PeftModel, adapter: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    base: Any = model.get_base_model()
    layers = {id(layer) for layer in lora_layers(model)}
    return {
        name: (
            layer.lora_A[adapter].weight.detach().float().cpu() * layer.scaling[adapter],
            layer.lora_B[adapter].weight.detach().float().cpu(),
        )
        for name, layer in base.named_modules()
        if id(layer) in layers and adapter in layer.lora_A
    }


def _copy_companions(beside: Path | None, output: Path) -> None:
    for name in _COMPANIONS if beside is not None else ():
        source = beside / name  # type: ignore[operator]
        if source.is_dir():
            shutil.copytree(source, output / name)
        elif source.is_file():
            shutil.copy(source, output / name)
