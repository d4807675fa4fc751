"""Many continuations of each of several prompts, a token at a time: every prompt is read once.

Two ways to remember a prompt, behind one protocol. `SharedPrefix` keeps each prompt's keys and values once, and
all its continuations attend to that copy: memory and bandwidth grow with the prompts, not with the samples
(Hydragen, Juravsky et al. 2024, arXiv:2402.05099; Bifurcated Attention, Athiwaratkun et al. 2024,
arXiv:2403.08845). `ExpandedPrefix` copies them for every continuation, for models whose attention is not plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from epicrisis.llm.adapters import causal_model
from epicrisis.llm.prompts import is_prompted
from epicrisis.settings import refuse

SHARED = "epicrisis_shared_prefix"
"""The attention of continuations to their shared prompt, under the name by which transformers finds it."""


class Prefix(Protocol):
    """What was read so far of some continuations, at first `n_samples` of each prompt, in the prompts' order."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token of each continuation, int64 [n]; returns the logits of the next one [n, vocabulary]."""
        ...

    def keep(self, chosen: torch.Tensor) -> None:
        """Go on with these continuations only, int64, ascending."""
        ...


def read_prompts(model: nn.Module, prompts: Sequence[Sequence[int]], n_samples: int) -> Prefix:
    """Read each prompt but its last token, which is the first that `step` takes.

    Raises InputError for adapters that lie before the text, which this reading would leave out.
    """
    if is_prompted(model):
        raise refuse(
            "generation.run",
            "its adapter lies before the text (prefix, prompt, p_tuning) and cannot be continued from",
            "use a run with lora.method: lora",
        )
    causal = causal_model(model)
    kind = SharedPrefix if attends_plainly(causal) else ExpandedPrefix
    return kind(causal, [list(prompt[:-1]) for prompt in prompts], n_samples)


def attends_plainly(causal: PreTrainedModel) -> bool:
    """Whether every layer attends to all that came before by softmax(q k) v alone."""
    config = causal.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    others = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size")
    sinks = any(name.endswith("sinks") for name, _ in causal.named_parameters())
    unusual = sinks or any(getattr(config, name, None) for name in others)
    return bool(causal._supports_attention_backend) and layers == {"full_attention"} and not unusual


@dataclass
class _Shared:
    """The prompts' keys and values, and which continuation is whose.

    keys, values: per layer [n_prompts, n_kv_heads, longest, head_dim]; hidden: bool [n_prompts, longest], padding.
    owner, slot: int64 [n], each continuation's prompt, and its place among that prompt's `most` or fewer.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    hidden: torch.Tensor
    owner: torch.Tensor
    slot: torch.Tensor
    most: int

    def by_prompt(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, heads, group, m] → [n_prompts, heads, most samples * group, m]; missing samples are zeros."""
        _, heads, group, size = rows.shape
        laid = rows.new_zeros(len(self.hidden), self.most, heads, group, size)
        laid[self.owner, self.slot] = rows
        return laid.transpose(1, 2).reshape(len(self.hidden), heads, self.most * group, size)

    def by_row(self, laid: torch.Tensor, group: int) -> torch.Tensor:
        """The way back."""
        n_prompts, heads, _, size = laid.shape
        return laid.view(n_prompts, heads, self.most, group, size).transpose(1, 2)[self.owner, self.slot]


def _padded(
    prompts: list[list[int]], side: Literal["left", "right"], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [n_prompts, longest] with zeros on one side, a column at least; and the prompts' lengths."""
    lengths = [len(prompt) for prompt in prompts]
    width = max(1, *lengths)
    padding = [[0] * (width - length) for length in lengths]
    if side == "right":
        rows = [prompt + zeros for prompt, zeros in zip(prompts, padding, strict=True)]
    else:
        rows = [zeros + prompt for prompt, zeros in zip(prompts, padding, strict=True)]
    return torch.tensor(rows, dtype=torch.long, device=device), torch.tensor(lengths, device=device)


class SharedPrefix:
    """Prompts kept once, padded on the right, where no token of theirs can attend to the padding."""

    def __init__(self, causal: PreTrainedModel, prompts: list[list[int]], n_samples: int):
        self._causal = causal
        ids, lengths = _padded(prompts, "right", causal.device)
        device, width = causal.device, ids.shape[1]
        read: Any = DynamicCache(config=causal.config)
        causal(input_ids=ids, past_key_values=read, use_cache=True, logits_to_keep=1)
        owner = torch.arange(len(prompts), device=device).repeat_interleave(n_samples)
        self._shared = _Shared(
            [layer.keys for layer in read.layers],
            [layer.values for layer in read.layers],
            torch.arange(width, device=device) >= lengths[:, None],
            owner,
            torch.arange(n_samples, device=device).repeat(len(prompts)),
            n_samples,
        )
        self._positions = lengths[owner]
        self._own = DynamicCache(config=causal.config)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        config = self._causal.config
        usual = config._attn_implementation
        config._attn_implementation = SHARED
        try:
            output = self._causal(
                input_ids=tokens[:, None],
                position_ids=self._positions[:, None],
                past_key_values=self._own,
                use_cache=True,
                shared_prefix=self._shared,
            )
        finally:
            config._attn_implementation = usual
        self._positions = self._positions + 1
        return output.logits[:, -1]

    def keep(self, chosen: torch.Tensor) -> None:
        self._own.batch_select_indices(chosen)
        self._positions = self._positions[chosen]
        shared, owners = self._shared, self._shared.owner[chosen]
        still, owner, counts = owners.unique_consecutive(return_inverse=True, return_counts=True)
        begins = counts.cumsum(0) - counts
        self._shared = _Shared(
            shared.keys if len(still) == len(shared.hidden) else [part[still] for part in shared.keys],
            shared.values if len(still) == len(shared.hidden) else [part[still] for part in shared.values],
            shared.hidden[still],
            owner,
            torch.arange(len(owner), device=owner.device) - begins[owner],
            int(counts.max()),
        )


class ExpandedPrefix:
    """Prompts padded on the left, their keys and values copied for each continuation."""

    def __init__(self, causal: PreTrainedModel, prompts: list[list[int]], n_samples: int):
        self._causal = causal
        ids, lengths = _padded(prompts, "left", causal.device)
        width = ids.shape[1]
        told = torch.arange(width, device=causal.device) >= width - lengths[:, None]
        positions = (told.cumsum(1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=causal.config)
        causal(
            input_ids=ids,
            attention_mask=told.long(),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache.batch_repeat_interleave(n_samples)
        self._told = told.long().repeat_interleave(n_samples, dim=0)
        self._positions = lengths.repeat_interleave(n_samples)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._told = torch.cat([self._told, self._told.new_ones(len(tokens), 1)], dim=1)
        output = self._causal(
            input_ids=tokens[:, None],
            attention_mask=self._told,
            position_ids=self._positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._positions = self._positions + 1
        return output.logits[:, -1]

    def keep(self, chosen: torch.Tensor) -> None:
        self._cache.batch_select_indices(chosen)
        self._told, self._positions = self._told[chosen], self._positions[chosen]


def shared_prefix_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    *,
    shared_prefix: _Shared,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """One query of each continuation over its prompt's keys and its own, in one softmax.

    query: [n, heads, 1, d]; key, value: the continuation's own so far, [n, kv_heads, t, d]; returns [n, 1, heads, d].
    Own keys need no mask: all continuations have the same number of them, and none lies ahead.
    """
    n, heads, _one, size = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    query = query.reshape(n, kv_heads, group, size)
    far_keys, far_values = shared_prefix.keys[module.layer_idx], shared_prefix.values[module.layer_idx]
    far = shared_prefix.by_row(shared_prefix.by_prompt(query) @ far_keys.transpose(2, 3), group)
    far = far.masked_fill_(shared_prefix.hidden[shared_prefix.owner][:, None, None], float("-inf"))
    near = query @ key.transpose(2, 3)
    weights = torch.softmax(torch.cat([far, near], dim=-1) * scaling, dim=-1, dtype=torch.float32).to(query.dtype)
    far_weights, near_weights = weights.split([far.shape[-1], near.shape[-1]], dim=-1)
    seen = shared_prefix.by_row(shared_prefix.by_prompt(far_weights) @ far_values, group)
    return (seen + near_weights @ value).reshape(n, 1, heads, size), None


AttentionInterface.register(SHARED, shared_prefix_attention)
