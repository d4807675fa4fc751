"""What a body is pretrained on: a head that reads its states, and the summed loss of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.t5.modeling_t5 import T5Stack

from epicrisis.corpus.packing import IGNORED
from epicrisis.settings.structured_section import OBJECTIVES
from epicrisis.structured.batches import CodeBatch
from epicrisis.structured.models import Body, present, t5_config

LOGITS_AT_ONCE = 2**25
"""So many logits are held at a time: 128 MB in float32. What is beyond is computed again in the backward pass."""
UNTIED = ("llama",)
"""Architectures whose output layer has weights of its own; elsewhere it is the token embedding."""


class Pretraining(nn.Module):
    """A body and its head: the loss of a batch, summed over what is learnt in it."""

    def __init__(self, body: Body):
        super().__init__()
        self.body = body

    def forward(self, batch: CodeBatch) -> torch.Tensor:
        with self.body.precision(batch.ids.device):
            states = self.read(batch)
            assert batch.labels is not None
            learnt = batch.labels != IGNORED  # logits only where they are scored
            at_once = max(1, LOGITS_AT_ONCE // self.body.embedding.num_embeddings)
            return summed_cross_entropy(self.logits, states[learnt], batch.labels[learnt], at_once)

    def read(self, batch: CodeBatch) -> torch.Tensor:
        """States [n, width of the labels, hidden] that the labels are to be told from."""
        return self.body(batch.ids, batch.lengths)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Over the vocabulary, [..., n_tokens]."""
        raise NotImplementedError


class NextToken(Pretraining):
    """Each token from those before it."""

    def __init__(self, body: Body):
        super().__init__(body)
        embedding = body.embedding
        self.output: nn.Linear | None = None
        if body.config.architecture in UNTIED:
            self.output = nn.Linear(embedding.embedding_dim, embedding.num_embeddings, bias=False)
            nn.init.normal_(self.output.weight, std=0.02)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.output.weight if self.output is not None else self.body.embedding.weight)


class MaskedTokens(Pretraining):
    """Hidden tokens from all others, through BERT's transform before the tied output layer."""

    def __init__(self, body: Body):
        super().__init__(body)
        hidden = body.embedding.embedding_dim
        dense = nn.Linear(hidden, hidden)
        nn.init.normal_(dense.weight, std=0.02)
        nn.init.zeros_(dense.bias)
        self.transform = nn.Sequential(dense, nn.GELU(), nn.LayerNorm(hidden, eps=1e-12))
        self.bias = nn.Parameter(torch.zeros(body.embedding.num_embeddings))

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(self.transform(states), self.body.embedding.weight, self.bias)


class Spans(Pretraining):
    """Hidden spans, written out by T5's decoder, which reads what the encoder made of the rest.

    The embedding is the decoder's and the output layer's too. The decoder serves pretraining alone.
    """

    def __init__(self, body: Body):
        super().__init__(body)
        config = t5_config(body.config)
        config.is_decoder, config.is_encoder_decoder, config.num_layers = True, False, body.config.shape.layers
        self.decoder = T5Stack(config)
        self.decoder.set_input_embeddings(body.embedding)
        self.scale = 1 / math.sqrt(config.d_model)

    def read(self, batch: CodeBatch) -> torch.Tensor:
        assert batch.decoder_ids is not None
        encoded = self.body(batch.ids, batch.lengths)
        return self.decoder(
            input_ids=batch.decoder_ids,
            encoder_hidden_states=encoded,
            encoder_attention_mask=present(batch.ids, batch.lengths).long(),
            use_cache=False,
        ).last_hidden_state

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states * self.scale, self.body.embedding.weight)


def pretraining_of(body: Body, seed: int) -> Pretraining:
    """The body with the head of its architecture's objective; the same seed gives the same head."""
    kinds = {"next_token": NextToken, "masked": MaskedTokens, "spans": Spans}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kinds[OBJECTIVES[body.config.architecture]](body)


def summed_cross_entropy(
    logits: Callable[[torch.Tensor], torch.Tensor],
    states: torch.Tensor,
    targets: torch.Tensor,
    at_once: int,
) -> torch.Tensor:
    """The cross-entropy of targets [n] given states [n, hidden], summed; float32 scalar.

    The logits of a batch are the largest tensor of training: they exist for `at_once` tokens at a time.
    """

    def part_of(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits(states).float(), targets, reduction="sum")

    if len(states) <= at_once:
        return part_of(states, targets)
    total = states.new_zeros((), dtype=torch.float32)
    for some, wanted in zip(states.split(at_once), targets.split(at_once), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(part_of, some, wanted, use_reentrant=False)
        else:
            total = total + part_of(some, wanted)
    return total
