"""Causal models of known shapes with random weights, made on the spot: nothing is downloaded.

`small` and `tiny` are for a CPU; the others have the shapes that their makers published (llm/known_bases.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from epicrisis.llm.known_bases import base_config

PUBLISHED = {"llama-3.1-8b": "meta-llama/Llama-3.1-8B", "mistral-7b": "mistralai/Mistral-7B-v0.3"}
_TINY = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4}
_SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
SHAPES = ("tiny", *PUBLISHED)
"""What --shape takes."""
LONGEST = 4096
"""Positions of the models made here."""
SHARD_BYTES = 4e9


def config_of(shape: str, vocabulary: int = 8192) -> PreTrainedConfig:
    """A shape's config; `vocabulary` is that of `tiny` and `small`, and the least of the others."""
    if shape in PUBLISHED:
        config = base_config(PUBLISHED[shape])
        assert config is not None  # it is among the published ones
        config.max_position_embeddings = LONGEST
        if config.vocab_size < vocabulary:
            raise ValueError(f"{shape} has {config.vocab_size} tokens, and {vocabulary} are asked for")
    else:
        values: dict[str, Any] = _TINY if shape == "tiny" else _SMALL
        config = LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, max_position_embeddings=LONGEST, **values)
    config.architectures = ["MistralForCausalLM" if config.model_type == "mistral" else "LlamaForCausalLM"]
    return config


def write_base(config: PreTrainedConfig, folder: Path, dtype: torch.dtype, seed: int = 0) -> Path:
    """A checkpoint of this shape with random weights, written shard by shard so that it never lies in memory whole."""
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(seed)
    places: dict[str, str] = {}
    total = 0
    for number, names in enumerate(_shards(config, dtype)):
        file = f"model-{number:05d}.safetensors"
        weights = {name: _random(name, shape, generator, device).to(dtype).cpu() for name, shape in names.items()}
        save_file(weights, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
        total += sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.dtype = dtype
    config.save_pretrained(folder)
    return folder


def weight_shapes(config: PreTrainedConfig) -> dict[str, torch.Size]:
    """The shape of each weight in a checkpoint, by name."""
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).state_dict()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: weight.shape for name, weight in weights.items() if name not in tied}


def load_shape(shape: str, folder: Path, vocabulary: int = 8192) -> PreTrainedModel:
    """A model of this shape as a run would load it: NF4 and bf16 on a GPU, float32 on a CPU; it does not learn."""
    from epicrisis.llm.base_model import load_base
    from epicrisis.settings import settings_from
    from epicrisis.training.device import make_accelerator

    on_gpu = torch.cuda.is_available()
    write_base(config_of(shape, vocabulary), folder, torch.bfloat16 if on_gpu else torch.float32)
    model = {"model_name": str(folder), "max_length": LONGEST}
    training = {"load_in_4bit": on_gpu, "bf16": on_gpu}
    settings = settings_from({"model": model, "training": training}, check_files=False)
    return load_base(settings, make_accelerator(settings.training)).eval()


def _shards(config: PreTrainedConfig, dtype: torch.dtype) -> Iterator[dict[str, torch.Size]]:
    shard: dict[str, torch.Size] = {}
    held = 0.0
    for name, shape in weight_shapes(config).items():
        size = shape.numel() * dtype.itemsize
        if shard and held + size > SHARD_BYTES:
            yield shard
            shard, held = {}, 0.0
        shard[name] = shape
        held += size
    yield shard


def _random(name: str, shape: torch.Size, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, device=device) if "norm" in name else torch.zeros(shape, device=device)
    return torch.randn(shape, generator=generator, device=device) * 0.02
