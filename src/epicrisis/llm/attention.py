"""How attention is computed, and that documents of one row do not see each other whatever computes it.

transformers tells documents of a row apart by position_ids that restart: with SDPA, eager and flex attention in any
batch, with FlashAttention in batches of one row only (transformers 5.17, modeling_flash_attention_utils). Hence
`read_rows`, through which every packed batch goes.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers import PreTrainedModel

from epicrisis.settings import refuse

Implementation = Literal["sdpa", "eager", "flex_attention", "flash_attention_2"]
FLASH_VERSION = "2.8.3"
_PROBE_LENGTH = 8


def choose_attention(asked: str, device: torch.device, dtype: torch.dtype, *, learning: bool = False) -> Implementation:
    """The implementation that `model.attn_implementation` comes to on this machine.

    auto: FlashAttention on a GPU that has it installed and computes in 16 bits, which passes padding and other
    documents over; else SDPA, which is exact everywhere. Raises InputError for one that cannot run here.
    """
    flash = find_spec("flash_attn") is not None
    on_gpu, halves = device.type == "cuda", dtype in (torch.float16, torch.bfloat16)
    if asked == "auto":
        return "flash_attention_2" if flash and on_gpu and halves else "sdpa"
    where = "model.attn_implementation"
    if asked == "flash_attention_2":
        if not on_gpu:
            raise refuse(where, "FlashAttention needs a GPU, and there is none here", "set it to sdpa or auto")
        if not flash:
            fix = f"pip install flash-attn=={FLASH_VERSION} --no-build-isolation, or set it to auto"
            raise refuse(where, "FlashAttention is not installed", fix)
        if not halves:
            raise refuse(where, f"FlashAttention cannot compute in {dtype}", "set training.bf16: true, or choose sdpa")
    if asked == "flex_attention" and not on_gpu and learning:
        raise refuse(where, "flex_attention has no gradient on a CPU", "set it to sdpa; predicting works with both")
    return next(name for name in get_args(Implementation) if name == asked)


def attention_of(model: PreTrainedModel) -> str:
    """Which implementation this model runs on."""
    return str(model.config._attn_implementation)


def passes_blocks_over(model: PreTrainedModel) -> bool:
    """Whether attention costs only what documents of a row see, however long the row is."""
    return attention_of(model) in ("flash_attention_2", "flex_attention")


def read_rows(
    model: PreTrainedModel, input_ids: torch.Tensor, position_ids: torch.Tensor, mask: Any = None
) -> torch.Tensor:
    """The decoder's last hidden states [n_rows, length, hidden] of rows of documents whose position_ids restart.

    mask: in place of the one that position_ids imply, as the implementation takes it.
    """
    decoder = model.get_decoder()
    shape = input_ids.shape
    if attention_of(model) == "flash_attention_2":  # one row, end to end, is the only packing it knows
        input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
    more = {} if mask is None else {"attention_mask": mask}
    states = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False, **more).last_hidden_state
    return states.reshape(*shape, -1)


def documents_are_apart(model: PreTrainedModel) -> bool:
    """Whether a document's hidden states are the same whatever stands before it in the row.

    Two rows of two documents are read twice; between the readings only the first documents change.
    """
    ids = torch.arange(4 * _PROBE_LENGTH, device=model.device).reshape(2, -1) % model.config.vocab_size
    changed = torch.cat([ids[:, :_PROBE_LENGTH].flip(1), ids[:, _PROBE_LENGTH:]], dim=1)
    positions = torch.arange(_PROBE_LENGTH, device=model.device).repeat(2, 2)
    was_training = model.training
    model.eval()  # dropout would make the two readings differ
    with torch.no_grad():
        first, second = (read_rows(model, read, positions) for read in (ids, changed))
    model.train(was_training)
    after = slice(_PROBE_LENGTH, None)
    return torch.allclose(first[:, after].float(), second[:, after].float(), atol=1e-3, rtol=1e-3)


def as_mask(model: PreTrainedModel, seen: torch.Tensor) -> Any:
    """What each token sees, bool [n_rows, length, length], as this model's attention takes it.

    Raises InputError for an implementation that takes no such mask.
    """
    implementation = attention_of(model)
    if implementation == "sdpa":
        return seen[:, None]
    if implementation == "eager":
        dtype = model.get_decoder().get_input_embeddings().weight.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[
            :, None
        ]
    if implementation == "flex_attention":
        n_rows, length, _ = seen.shape
        return create_block_mask(
            lambda row, _, query, key: seen[row, query, key], n_rows, None, length, length, device=seen.device
        )
    raise refuse(
        "model.answers",
        "answers that begin with the same token are told apart by branches, which this attention cannot mask",
        "choose words that begin differently, model.head: score, or model.attn_implementation: sdpa",
    )


def attention_weight(model: nn.Module) -> float:
    """Cost of one more token of row width, relative to all else that a token costs; for `packing.tight_rows`.

    A token costs about 24 h^2 multiplications in a layer of width h, and 4 h for each token that it is compared
    with (Narayanan et al. 2021, arXiv:2104.04473); nothing where other documents are passed over.
    """
    base: Any = model
    if passes_blocks_over(base):
        return 0.0
    return 1 / (6 * base.config.get_text_config().hidden_size)
