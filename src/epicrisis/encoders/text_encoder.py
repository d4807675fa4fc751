"""The text encoder and its tokenizer: where they come from, and what is made sure of before they are used."""

from __future__ import annotations

import hashlib
from inspect import signature
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from epicrisis.encoders.embedded import EMBEDDED, embedded_encoder
from epicrisis.encoders.windows import Reading, frame_of
from epicrisis.settings import Settings, refuse
from epicrisis.training.model_sources import cache_directory, hub_name_or_folder

LEAST_ROOM = 16
"""Tokens of text that a window must have room for."""

_FROM_TWO = ("roberta", "roberta-prelayernorm", "xlm-roberta", "camembert", "mpnet", "longformer")
"""Model types whose positions count on from 2, behind their padding token's."""


def encoder_source(settings: Settings, accelerator: Accelerator) -> str:
    """A hub name, or the folder of a local or embedded encoder, which is built on first use."""
    model = settings.model
    if model.model_name in EMBEDDED:
        with accelerator.main_process_first():
            return str(embedded_encoder(model.model_name, cache_directory(model)))
    return hub_name_or_folder(model.model_name)


def check_encoder(source: str) -> PreTrainedConfig:
    """The encoder's config. Raises InputError for a decoder, and for a model of an encoder and a decoder."""
    config = AutoConfig.from_pretrained(source)
    causal = any("CausalLM" in name for name in config.architectures or ()) or getattr(config, "is_decoder", False)
    if causal or getattr(config, "is_encoder_decoder", False):
        what = f"a {config.model_type} model is no encoder: its tokens do not all see each other"
        raise refuse("model.model_name", what, "name an encoder such as a BERT, or set arm: llm")
    return config


def positions_of(config: PreTrainedConfig) -> int | None:
    """The longest sequence that the encoder has positions for; None where it counts distances and not positions."""
    most = getattr(config, "max_position_embeddings", None)
    if not most or most < 0:
        return None
    return int(most) - (2 if config.model_type in _FROM_TWO else 0)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    return tokenizer


def load_encoder(source: str, settings: Settings, accelerator: Accelerator) -> PreTrainedModel:
    """The encoder in float32, on this process's device, without BERT's pooler, which nothing here reads.

    Weights stay in float32, so that small steps are not rounded away; `autocast_of` lowers the precision in which
    they compute.
    """
    asked = settings.model.attn_implementation
    kind: Any = MODEL_MAPPING.get(type(AutoConfig.from_pretrained(source)), AutoModel)
    options = {"add_pooling_layer": False} if "add_pooling_layer" in signature(kind).parameters else {}
    encoder: Any = AutoModel.from_pretrained(
        source, dtype=torch.float32, attn_implementation="sdpa" if asked == "auto" else asked, **options
    )
    if settings.training.gradient_checkpointing:
        encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return encoder.to(accelerator.device)


def reading_of(settings: Settings, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Reading:
    """How narratives are laid before this encoder.

    Raises InputError where model.max_length is more than its positions, or leaves no room for text.
    """
    length, most = settings.model.max_length, positions_of(config)
    if most is not None and length > most:
        what = f"{length} tokens are more than the {most} positions that {settings.model.model_name} has"
        raise refuse("model.max_length", what, f"set it to {most} or less; encoder.long: chunk reads longer records")
    frame = frame_of(tokenizer)
    room = length - frame.n_tokens
    if room < LEAST_ROOM:
        what = f"{length} leaves no room for text beside {frame.n_tokens} special tokens"
        raise refuse("model.max_length", what, f"make it {frame.n_tokens + LEAST_ROOM} or more")
    return Reading(frame, room, settings.encoder.max_chunks if settings.encoder.long == "chunk" else 1)


def weights_fingerprint(module: nn.Module) -> str:
    """A hash of a module's weights: what was computed with it, or trained on it, belongs to no other."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
