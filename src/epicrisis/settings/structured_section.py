"""The keys of `structured`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from epicrisis.settings.section import Section
from epicrisis.settings.tokenizer_section import TokenizerSettings

Architecture = Literal["gpt2", "bert", "llama", "t5", "mamba", "hyena", "lstm"]
Size = Literal["demo", "tiny", "small", "base", "medium", "large"]
Objective = Literal["next_token", "masked", "spans"]

OBJECTIVES: dict[Architecture, Objective] = {
    "gpt2": "next_token",
    "bert": "masked",
    "llama": "next_token",
    "t5": "spans",
    "mamba": "next_token",
    "hyena": "next_token",
    "lstm": "next_token",
}
"""What each architecture is pretrained on: the one objective that its reading direction allows."""

SIZES: dict[Architecture, tuple[Size, ...]] = {
    "gpt2": ("demo", "base", "medium", "large"),
    "bert": ("demo", "base", "large"),
    "llama": ("demo", "base"),
    "t5": ("demo", "base"),
    "mamba": ("demo", "tiny", "small", "medium", "large"),
    "hyena": ("demo", "tiny", "small", "medium", "large"),
    "lstm": ("demo", "base"),
}
"""The sizes that each architecture has; docs/structured.md says how large they are."""


class StructuredSettings(Section):
    """Models of codes."""

    architecture: Architecture = "gpt2"
    """What reads the sequence of codes."""
    size: Size = "base"
    """How large it is: `demo`, or one of the architecture's published sizes (docs/structured.md)."""
    context: int = Field(1024, ge=16)
    """The most tokens read at once; longer records are cut into windows, classification reads the latest tokens."""
    objective: Objective | None = None
    """What pretraining learns: next_token, masked (bert) or spans (t5); by default what the architecture allows."""
    mask_probability: float = Field(0.15, gt=0, lt=0.6)
    """masked, spans: the share of tokens that is hidden and learnt, other ones in each epoch."""
    tokens_per_batch: int = Field(16_384, ge=16)
    """Tokens that a device holds at once, padding included: of a batch in pretraining, and of one that is only read."""
    checkpoint_tokens: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Pretraining keeps the model after so many tokens, in snapshots/<tokens>; each can be given as `pretrained`."""
    pretrained: Path | None = None
    """A finished pretraining run, or one of its snapshots, to classify with; without one from scratch."""
    pooling: Literal["last", "mean", "max"] | None = None
    """The states that classes are read off; by default the last token's, of bert and t5 the mean of all."""
    finetune: Literal["full", "head", "lora"] = "full"
    """What classification trains: all weights, the head alone, or adapters (section `lora`) with the head."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Share of activations dropped in training; by default what the architecture's authors chose."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    """How events become tokens; keys below."""
