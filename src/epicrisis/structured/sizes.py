"""How large each model is, by architecture and size.

The sizes other than `demo` are those of Wornow et al. 2024, Context Clues (arXiv:2412.16178), whose published models
are GPT-2 base and Llama base up to 4,096 tokens, and Mamba tiny and Hyena large up to 16,384; that of T5 base is
Raffel et al. 2020 (arXiv:1910.10683), and the LSTM's is of our own choosing, since the study has none.
"""

from __future__ import annotations

from dataclasses import dataclass

from epicrisis.settings.structured_section import Architecture, Size


@dataclass(frozen=True)
class Shape:
    """layers: in each of T5's two stacks; feed_forward: width between a layer's two products; state: Mamba's."""

    layers: int
    hidden: int
    heads: int = 0
    kv_heads: int = 0
    feed_forward: int = 0
    state: int = 0


SHAPES: dict[tuple[Architecture, Size], Shape] = {
    ("gpt2", "demo"): Shape(2, 64, 4, feed_forward=256),
    ("gpt2", "base"): Shape(12, 768, 12, feed_forward=3072),
    ("gpt2", "medium"): Shape(24, 1024, 16, feed_forward=4096),
    ("gpt2", "large"): Shape(36, 1280, 20, feed_forward=5120),
    ("bert", "demo"): Shape(2, 64, 4, feed_forward=256),
    ("bert", "base"): Shape(12, 768, 12, feed_forward=3072),
    ("bert", "large"): Shape(24, 1024, 16, feed_forward=4096),
    ("llama", "demo"): Shape(2, 64, 4, 2, 224),
    ("llama", "base"): Shape(8, 768, 12, 4, 2688),
    ("t5", "demo"): Shape(2, 64, 4, feed_forward=128),
    ("t5", "base"): Shape(12, 768, 12, feed_forward=2048),
    ("mamba", "demo"): Shape(2, 64, state=8),
    ("mamba", "tiny"): Shape(24, 768, state=16),
    ("mamba", "small"): Shape(48, 1024, state=16),
    ("mamba", "medium"): Shape(48, 1536, state=16),
    ("mamba", "large"): Shape(48, 2048, state=16),
    ("hyena", "demo"): Shape(2, 64, feed_forward=256),
    ("hyena", "tiny"): Shape(2, 128, feed_forward=512),
    ("hyena", "small"): Shape(4, 256, feed_forward=1024),
    ("hyena", "medium"): Shape(8, 256, feed_forward=1024),
    ("hyena", "large"): Shape(16, 768, feed_forward=3072),
    ("lstm", "demo"): Shape(1, 64),
    ("lstm", "base"): Shape(2, 1024),
}

DROPOUT: dict[Architecture, float] = {
    "gpt2": 0.1,
    "bert": 0.1,
    "llama": 0.0,
    "t5": 0.1,
    "mamba": 0.0,
    "hyena": 0.0,
    "lstm": 0.1,
}
"""Where `structured.dropout` is not given."""
