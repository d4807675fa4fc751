"""Adapters that lie before the text: virtual tokens (prompt, p_tuning), or keys and values (prefix)."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import nn

from epicrisis.corpus.packing import PackedBatch


def is_prompted(model: nn.Module) -> bool:
    """Whether the model's adapter lies before the text rather than beside its layers."""
    return isinstance(model, PeftModel) and any(config.is_prompt_learning for config in model.peft_config.values())


def prompted_states(model: PeftModel, batch: PackedBatch) -> torch.Tensor:
    """The decoder's last hidden states [n_rows, length, hidden] with the prompt before each document.

    PEFT lays its prompt before a row, which here holds several documents, so each is given a row of its own
    and its states are laid back into their places. Padding gets states of zero.
    """
    places, is_text = _places(batch)
    ids = batch.input_ids.flatten()[places]
    states = _read_after_prompt(model, ids, is_text)
    n_rows, length = batch.input_ids.shape
    packed = states.new_zeros(n_rows * length, states.shape[-1])
    return packed.index_put((places[is_text],), states[is_text]).reshape(n_rows, length, -1)


def _places(batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each document's tokens are in the flattened batch, int64 [n_documents, longest], and which are tokens."""
    last = batch.ends[:, 0] * batch.input_ids.shape[1] + batch.ends[:, 1]
    lengths = batch.position_ids.flatten()[last] + 1
    steps = torch.arange(int(lengths.max()), device=last.device)
    is_text = steps < lengths[:, None]
    return torch.where(is_text, (last - lengths + 1)[:, None] + steps, last[:, None]), is_text


def _read_after_prompt(model: PeftModel, ids: torch.Tensor, is_text: torch.Tensor) -> torch.Tensor:
    """Hidden states of rows of one document each, padded on the right; [n_documents, longest, hidden]."""
    n, longest = ids.shape
    config: Any = model.active_peft_config
    before = config.num_virtual_tokens
    prompt = model.get_prompt(n)
    seen = torch.cat([is_text.new_ones(n, before), is_text], dim=1).long()
    base: Any = model.get_base_model()
    decoder = base.get_decoder()
    if config.peft_type == PeftType.PREFIX_TUNING:
        positions = torch.arange(before, before + longest, device=ids.device).expand(n, -1)
        output = decoder(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=prompt, use_cache=True
        )
        return output.last_hidden_state
    embedded = decoder.get_input_embeddings()(ids)
    output = decoder(
        inputs_embeds=torch.cat([prompt.to(embedded.dtype), embedded], dim=1), attention_mask=seen, use_cache=False
    )
    return output.last_hidden_state[:, before:]
