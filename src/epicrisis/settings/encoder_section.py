"""The keys of `encoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from epicrisis.settings.section import Section


class EncoderSettings(Section):
    """The arms encoder, frozen_encoder and event_encoder, on the text encoder that model.model_name names."""

    finetune: Literal["full", "lora", "head"] = "full"
    """What is trained: all weights, an adapter as `lora` describes and the head, or the head alone."""
    pooling: Literal["cls", "mean"] = "cls"
    """What the head reads: the first token's state (event_encoder: a summary place's), or the mean over all."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of what the head reads that is dropped in training (event_encoder: also inside the model)."""
    long: Literal["truncate", "chunk"] = "truncate"
    """Records longer than model.max_length: the latest events only, or several windows whose states are pooled."""
    max_chunks: int = Field(8, ge=2)
    """chunk: the most windows of a record; of what is longer the oldest events go."""
    chunk_pooling: Literal["mean", "max"] = "mean"
    """chunk: how the windows' states become the record's."""
    embedding_batch: int = Field(32, ge=1)
    """frozen_encoder, event_encoder: windows or phrases that the frozen encoder reads at once."""
    event_model: Literal["encoder", "decoder"] = "encoder"
    """event_encoder: each event sees all others, or only those before it."""
    max_events: int = Field(512, ge=2)
    """event_encoder: the latest events that are read, undated facts and birth included."""
    width: int = Field(128, ge=8)
    """event_encoder: size of its states."""
    layers: int = Field(4, ge=1)
    """event_encoder: its depth."""
    heads: int = Field(4, ge=1)
    """event_encoder: attention heads; they share the width evenly."""
    times: bool = True
    """event_encoder: whether it is told when events were; without, an encoder reads a bag of events."""
    numbers: bool = True
    """event_encoder: whether it is told measured numbers, which narrative.values: words or deciles put into phrases."""
    mask_share: float = Field(0.3, gt=0, lt=1)
    """event_encoder, pretraining an encoder: share of the events that are hidden and found again."""
    temperature: float = Field(0.1, gt=0)
    """event_encoder, pretraining: what cosines to candidate phrases are divided by; smaller is stricter."""
    pretrained: Path | None = None
    """event_encoder: a finished run, of pretraining as a rule, that weights, narrator and scales come from."""
