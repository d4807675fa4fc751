"""The bodies that read codes: one class around transformers' models, Hyena and the LSTM."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaModel,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)

from epicrisis.settings.structured_section import OBJECTIVES, Architecture, Size, StructuredSettings
from epicrisis.structured.hyena import Hyena
from epicrisis.structured.lstm import Lstm
from epicrisis.structured.sizes import DROPOUT, SHAPES, Shape
from epicrisis.structured.vocabulary import SPECIALS

PAD, BOS, EOS = (SPECIALS.index(name) for name in ("[PAD]", "[BOS]", "[EOS]"))
BY_PLACE = ("gpt2", "bert", "llama", "hyena")
"""Architectures that know, or have seen, no place beyond the context that they were made for."""
BIDIRECTIONAL = ("bert", "t5")
"""Architectures in which a token's state holds what comes after it."""


@dataclass(frozen=True)
class BodyConfig:
    """All that a body is made of, as plain JSON.

    vocabulary: token ids that it knows, those that only pretraining uses included. context: places that it knows.
    """

    architecture: Architecture
    size: Size
    vocabulary: int
    context: int
    dropout: float

    @classmethod
    def of(cls, settings: StructuredSettings, vocabulary: int) -> BodyConfig:
        """What the settings come to for a vocabulary of so many tokens."""
        dropout = DROPOUT[settings.architecture] if settings.dropout is None else settings.dropout
        return cls(settings.architecture, settings.size, vocabulary, settings.context, dropout)

    @property
    def shape(self) -> Shape:
        return SHAPES[self.architecture, self.size]

    @property
    def causal(self) -> bool:
        return self.architecture not in BIDIRECTIONAL

    @property
    def next_token(self) -> bool:
        return OBJECTIVES[self.architecture] == "next_token"

    def saved(self) -> dict[str, Any]:
        """As plain JSON, for `BodyConfig(**saved)`."""
        return asdict(self)


class Body(nn.Module):
    """Token ids to states.

    Sequences are padded on the right. Nothing of a causal body comes from the right, so it needs no mask; the
    others are told which tokens are there. autocast: the precision of products, None for the weights' own.
    """

    def __init__(self, config: BodyConfig, autocast: torch.dtype | None = None):
        super().__init__()
        self.config = config
        self.autocast = autocast
        self.net = make_net(config)

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        return self.net.get_input_embeddings() if isinstance(self.net, PreTrainedModel) else self.net.embedding  # type: ignore[return-value]

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """States [n, width, hidden] of ids [n, width], of which each row's first `lengths` are tokens."""
        with self.precision(ids.device):
            if not hasattr(self.net, "config"):
                return self.net(ids)
            if self.config.causal:  # of ids without a mask transformers would warn, though nothing reads padding
                return self.net(inputs_embeds=self.embedding(ids), use_cache=False).last_hidden_state
            return self.net(input_ids=ids, attention_mask=present(ids, lengths).long()).last_hidden_state

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """What products are computed in; where nothing is asked for, what surrounds them has its way."""
        return nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)

    def checkpoint_activations(self) -> None:
        """Recompute activations layer by layer in the backward pass. Raises ValueError for an LSTM."""
        if isinstance(self.net, PreTrainedModel):
            self.net.gradient_checkpointing_enable({"use_reentrant": False})
        elif isinstance(self.net, Hyena):
            self.net.checkpointing = True
        else:
            raise ValueError("torch's LSTM computes all its layers at once")


def build_model(settings: StructuredSettings, vocabulary: int, seed: int, autocast: torch.dtype | None = None) -> Body:
    """An untrained body of these settings; the same seed gives the same weights."""
    return build_body(BodyConfig.of(settings, vocabulary), seed, autocast)


def build_body(config: BodyConfig, seed: int, autocast: torch.dtype | None = None) -> Body:
    """An untrained body; the same seed gives the same weights, and no other random number is used up."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Body(config, autocast)


def present(ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Which places hold a token, bool [n, width]."""
    return torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]


def make_net(config: BodyConfig) -> nn.Module:
    """The network itself: transformers' model without any head, or one of ours."""
    shape = config.shape
    tokens: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    match config.architecture:
        case "gpt2":
            return GPT2Model(_gpt2(config, shape, tokens))
        case "bert":
            return BertModel(_bert(config, shape, tokens), add_pooling_layer=False)
        case "llama":
            return LlamaModel(_llama(config, shape, tokens))
        case "t5":
            return T5EncoderModel(t5_config(config))
        case "mamba":
            return MambaModel(_mamba(config, shape, tokens))
        case "hyena":
            width = (shape.hidden, shape.layers, shape.feed_forward)
            return Hyena(config.vocabulary, config.context, *width, config.dropout)
        case "lstm":
            return Lstm(config.vocabulary, shape.hidden, shape.layers, config.dropout)


def t5_config(config: BodyConfig) -> T5Config:
    """Of the encoder, and of the decoder that pretraining puts on it."""
    shape = config.shape
    return T5Config(
        vocab_size=config.vocabulary,
        d_model=shape.hidden,
        d_kv=shape.hidden // shape.heads,
        d_ff=shape.feed_forward,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        num_heads=shape.heads,
        dropout_rate=config.dropout,
        pad_token_id=PAD,
        eos_token_id=EOS,
        use_cache=False,
    )


def _gpt2(config: BodyConfig, shape: Shape, tokens: dict[str, Any]) -> GPT2Config:
    return GPT2Config(
        vocab_size=config.vocabulary,
        n_positions=config.context,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.feed_forward,
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        use_cache=False,
        **tokens,
    )


def _bert(config: BodyConfig, shape: Shape, tokens: dict[str, Any]) -> BertConfig:
    return BertConfig(
        vocab_size=config.vocabulary,
        max_position_embeddings=config.context,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        **tokens,
    )


def _mamba(config: BodyConfig, shape: Shape, tokens: dict[str, Any]) -> MambaConfig:
    return MambaConfig(
        vocab_size=config.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        state_size=shape.state,
        use_cache=False,
        **tokens,
    )


def _llama(config: BodyConfig, shape: Shape, tokens: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=config.vocabulary,
        max_position_embeddings=config.context,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.feed_forward,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        attention_dropout=config.dropout,
        use_cache=False,
        **tokens,
    )
