"""What bases look like, without their weights: from a folder, the hub's cache, or what is published about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlamaConfig, MistralConfig, PreTrainedConfig

from epicrisis.llm.embedded import EMBEDDED
from epicrisis.llm.tiny_models import SHAPE, VOCABULARY

_LLAMA_2_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
_MISTRAL_7B = {**_LLAMA_2_7B, "intermediate_size": 14336, "num_key_value_heads": 8}
_LLAMA_3_8B = {**_MISTRAL_7B, "vocab_size": 128256}
_PUBLISHED: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama-2-7b": (LlamaConfig, _LLAMA_2_7B),
    "llama-3-8b": (LlamaConfig, _LLAMA_3_8B),
    "llama-3.1-8b": (LlamaConfig, _LLAMA_3_8B),
    "llama-3.2-1b": (
        LlamaConfig,
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3.2-3b": (
        LlamaConfig,
        {
            "vocab_size": 128256,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3.1-70b": (
        LlamaConfig,
        {
            "vocab_size": 128256,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
    ),
    "mistral-7b-v0.1": (MistralConfig, {**_MISTRAL_7B, "vocab_size": 32000}),
    "mistral-7b-v0.3": (MistralConfig, {**_MISTRAL_7B, "vocab_size": 32768}),
}
"""Shapes as the makers' own config.json and reports (arXiv:2307.09288, 2407.21783, 2310.06825) give them."""


def base_config(model_name: str) -> PreTrainedConfig | None:
    """The architecture of a base; None where nothing here knows it and the hub cannot be asked."""
    if model_name in EMBEDDED:
        kind = MistralConfig if model_name.endswith("mistral") else LlamaConfig
        return kind(vocab_size=VOCABULARY, **SHAPE)
    if Path(model_name).expanduser().is_dir():
        return AutoConfig.from_pretrained(Path(model_name).expanduser())
    return _from_hub(model_name, local_files_only=True) or _published(model_name) or _from_hub(model_name)


def _published(model_name: str) -> PreTrainedConfig | None:
    name = model_name.rpartition("/")[2].lower().removeprefix("meta-")
    for ending in ("-instruct", "-hf", "-bnb-4bit", "-chat"):
        name = name.replace(ending, "")
    kind, values = _PUBLISHED.get(name, (None, {}))
    return kind(**values) if kind else None


def _from_hub(model_name: str, **options: Any) -> PreTrainedConfig | None:
    try:
        return AutoConfig.from_pretrained(model_name, **options)
    except (OSError, ValueError):
        return None
