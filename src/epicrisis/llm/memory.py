"""How much memory a training run will take, from the shapes of its model: an estimate to within a factor of two.

Counted per token and layer is what the backward pass needs again, in the manner of Korthikanti et al. 2022
(arXiv:2205.05198, section 4.1: s·b·h·(34 + 5·a·s/h) bytes for a 16-bit GPT), but for a decoder with gated
MLP, RMS norms, fused attention that keeps no scores (Dao et al. 2022, arXiv:2205.14135), a frozen base and
float32 adapters on all linear layers:

    e·(4·h + 3·f)                  queries, keys, values, attention's output; gate, up and their product
    4·2·h                          what both norms read, in float32
    e·(4·h + f), or 4·(6·h + f)    the linear layers' inputs, for 16-bit bases cast to float32 for each adapter
    4·7·r                          the adapters' inner outputs
    5·(6·h + f)                    with dropout: the dropped inputs and their masks

h: hidden size, f: width of the MLP, r: rank, e: bytes of the compute precision. With gradient checkpointing a layer
keeps its input alone (e·h), and all of the above exists for one layer at a time. While gradients pass through a layer
they take about as much again; that, and the loss over the vocabulary before it, do not exist at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from epicrisis.llm.cross_entropy import LOGITS_AT_ONCE
from epicrisis.settings import Settings
from epicrisis.settings.schema import LoraSettings, TrainingSettings
from epicrisis.training.device import compute_dtype

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Per weight in 4-bit: a scale of 8 bits for 64 weights, and one of 32 bits for 256 scales (QLoRA, section 3)."""
GPU_RUNTIME = 0.6e9
"""Bytes that CUDA and its libraries hold on a GPU before any tensor."""


@dataclass(frozen=True)
class Shape:
    """What of a causal model decides its memory and speed.

    linear: weights of its linear layers but the output head, which 4-bit packs and adapters lie on; other: all
    its other weights, tied ones once; widths: (inputs, outputs) of each linear layer by the end of its name.
    """

    hidden: int
    mlp: int
    layers: int
    vocabulary: int
    linear: int
    other: int
    widths: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        """The shape that a config describes; nothing is loaded or allocated."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        head = model.get_output_embeddings()
        linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        in_linear = sum(module.weight.numel() for module in linear.values())
        text = config.get_text_config()
        return cls(
            hidden=text.hidden_size,
            mlp=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            layers=text.num_hidden_layers,
            vocabulary=text.vocab_size,
            linear=in_linear,
            other=sum(p.numel() for p in model.parameters()) - in_linear,
            widths=tuple((name.rpartition(".")[2], m.in_features, m.out_features) for name, m in linear.items()),
        )

    @property
    def weights(self) -> int:
        """All weights of the model."""
        return self.linear + self.other

    def adapter_weights(self, lora: LoraSettings) -> int:
        """Weights of a LoRA adapter: r·(inputs + outputs) for each layer that it lies on."""
        every = lora.target_modules == "all-linear"
        return sum(lora.r * (i + o) for name, i, o in self.widths if every or name in lora.target_modules)


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs at its peak, by what they hold.

    activations: kept from the forward for the backward pass; passing: held only while a layer, or the loss, is at
    work.
    """

    runtime: float
    weights: float
    adapters: float
    optimizer: float
    activations: float
    passing: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def memory_of(shape: Shape, settings: Settings, *, runtime: float) -> Memory:
    """The peak of one process that trains with these settings and full sequences.

    runtime: bytes held before the model comes, such as GPU_RUNTIME.
    """
    training, trained = settings.training, shape.adapter_weights(settings.lora)
    adapter = settings.lora.r, settings.lora.lora_dropout > 0
    rows = training.batch_size if training.batch_size != "auto" else 1
    tokens = rows * settings.model.max_length
    return Memory(
        runtime=runtime,
        weights=weight_bytes(shape, training),
        adapters=8.0 * trained,  # float32, and their gradients
        optimizer=state_bytes(trained, training),
        activations=kept_bytes(shape, rows, settings.model.max_length, training, *adapter),
        passing=passing_bytes(shape, tokens, tokens if settings.stage == "pretrain" else 0, training, *adapter),
    )


def weight_bytes(shape: Shape, training: TrainingSettings) -> float:
    """The frozen base as it lies in memory."""
    size = compute_dtype(training).itemsize
    return shape.linear * (NF4_BYTES if training.load_in_4bit else size) + shape.other * size


def state_bytes(trained: int, training: TrainingSettings) -> float:
    """AdamW's two moments, in 32 or 8 bits."""
    return (8.0 if training.optimizer == "adamw" else 2.0) * trained


def kept_bytes(shape: Shape, rows: int, length: int, training: TrainingSettings, rank: int, dropout: bool) -> float:
    """What the forward over rows of this length keeps for the backward pass, masks of documents included.

    rank: of the adapters on a layer, added up.
    """
    e = compute_dtype(training).itemsize
    layer = e * shape.hidden if training.gradient_checkpointing else _layer_bytes(shape, e, rank, dropout)
    return rows * (length * shape.layers * layer + (1 + e) * length**2)


def passing_bytes(
    shape: Shape, tokens: int, supervised: int, training: TrainingSettings, rank: int, dropout: bool
) -> float:
    """What is held besides for a while: the largest of the loss's share and a layer's in the backward pass.

    supervised: of `tokens`, how many the loss is taken of over the whole vocabulary.
    """
    e = compute_dtype(training).itemsize
    layer = tokens * _layer_bytes(shape, e, rank, dropout)
    if training.load_in_4bit:  # its weights, unpacked twice in the backward pass
        layer += 2.0 * e * max((i * o for _, i, o in shape.widths), default=0)
    logits = min(supervised * shape.vocabulary, max(LOGITS_AT_ONCE, shape.vocabulary))
    return max(layer, logits * (4.0 if e == 4 else 8.0))  # in float32; and in 16 bits before and after


def _layer_bytes(shape: Shape, e: int, rank: int, dropout: bool) -> float:
    """Bytes per token and layer; see the module's head."""
    h, f = shape.hidden, shape.mlp
    inputs = e * (4 * h + f) if e == 4 else 4 * (6 * h + f)
    return e * (4 * h + 3 * f) + 8 * h + inputs + 28 * rank + (5 * (6 * h + f) if dropout else 0)
