"""The output layer, and next-token cross-entropy whose memory does not grow with vocabulary times tokens.

Logits of a batch are the largest tensor of training: 8,192 tokens of a 128,256-word vocabulary are 4 GB in float32,
and as much again for their gradient. Here they exist for some tokens at a time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

LOGITS_AT_ONCE = 2**25
"""So many logits are held at a time: 128 MB in float32."""


class OutputLayer:
    """A causal model's output layer with what its architecture does to the logits, in float32."""

    def __init__(self, model: PreTrainedModel):
        self.module: Any = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._cap = getattr(config, "final_logit_softcapping", None)  # Gemma
        scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
        self._scale = scale / (getattr(config, "logits_scaling", None) or 1.0)  # Cohere, Falcon-H1; Granite

    @property
    def is_plain(self) -> bool:
        """Whether logits are nothing but the product with a frozen matrix: no adapter, nothing to train."""
        module = self.module
        hooked = getattr(module, "_forward_hooks", {}) or getattr(module, "_forward_pre_hooks", {})
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        return type(module) is nn.Linear and frozen and not hooked and self._cap is None and self._scale == 1.0

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] of hidden states [..., hidden]."""
        return self._adjusted(self.module(hidden))

    def of_tokens(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [..., n_tokens] of these tokens [n_tokens] alone.

        Where the layer carries an adapter or is trained, its whole product is taken, so that these take part.
        """
        if type(self.module) is not nn.Linear or self.module._forward_pre_hooks or self.module._forward_hooks:
            return self(hidden)[..., tokens]
        weight, bias = self.module.weight[tokens], self.module.bias
        logits = F.linear(hidden.to(weight.dtype), weight, None if bias is None else bias[tokens])
        return self._adjusted(logits)

    def log_normaliser(self, hidden: torch.Tensor) -> torch.Tensor:
        """The log of the sum of all tokens' exponentiated logits, float32 [n], for hidden states [n, hidden]."""
        return torch.cat([self._normaliser(part) for part in hidden.split(self.tokens_at_once())])

    def _normaliser(self, hidden: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return checkpoint(lambda part: self(part).logsumexp(-1), hidden, use_reentrant=False)
        return self(hidden).logsumexp(-1)

    def tokens_at_once(self, n_logits: int = LOGITS_AT_ONCE) -> int:
        """How many tokens' logits may be held at a time."""
        weight = getattr(self.module, "weight", None)
        width = weight.shape[0] if weight is not None and weight.ndim == 2 else 2**17
        return max(1, n_logits // width)

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        if self._scale != 1.0:
            logits = logits * self._scale
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)


def summed_cross_entropy(
    layer: OutputLayer, hidden: torch.Tensor, targets: torch.Tensor, n_logits: int = LOGITS_AT_ONCE
) -> torch.Tensor:
    """The cross-entropy of `targets` [n] given hidden states [n, hidden], summed over tokens; float32 scalar.

    A frozen plain layer's gradient is taken together with the loss, in one pass over the logits; any other layer
    (an adapter on it, or trained itself) has them computed again in the backward pass, so that it learns as ever.
    """
    size = layer.tokens_at_once(n_logits)
    if layer.is_plain:
        return _OfFrozenLayer.apply(hidden, targets, layer.module.weight, layer.module.bias, size)
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(_sum_of, layer, part, wanted, use_reentrant=False)
        else:
            total = total + _sum_of(layer, part, wanted)
    return total


def _sum_of(layer: OutputLayer, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(layer(hidden), targets, reduction="sum")


class _OfFrozenLayer(torch.autograd.Function):
    """Cross-entropy under a matrix that does not learn: its only gradient, that of the states, is as small as they."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        size: int,
    ) -> torch.Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        learns = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if learns else None
        for start in range(0, len(hidden), size):
            part = hidden[start : start + size].to(weight.dtype)
            wanted = targets[start : start + size, None]
            logits = F.linear(part, weight, bias).float()
            # One buffer throughout: a second one of this size costs more time than the arithmetic on it.
            logits.sub_(logits.amax(-1, keepdim=True))
            own = logits.gather(1, wanted)
            errors = logits.exp_()
            mass = errors.sum(-1, keepdim=True)
            total += (mass.log() - own).sum()
            if gradient is not None:
                errors.div_(mass)  # the probabilities, minus one at the target
                errors.scatter_add_(1, wanted, errors.new_full(wanted.shape, -1.0))
                gradient[start : start + size] = errors.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # A loss is often divided by its tokens: that share is not rounded to the states' precision before it is used.
        return (gradient.float() * upstream[0]).to(gradient.dtype), None, None, None, None
