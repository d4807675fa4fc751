"""What train_throughput.py's contestants train on: a base and an adapter of random weights, long-tailed narratives."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file

from epicrisis.corpus.packing import best_fit
from shapes import config_of, weight_shapes, write_base
from train_cases import RANK, TARGETS, adapter_key

ROWS = 8
"""Packed rows of an optimiser step; a padded step holds as many narratives as these do on average."""
HELD_OUT = 24
VOCABULARY = 8192


@dataclass(frozen=True)
class Ground:
    """What all contestants train on: a folder with base, tokens and adapter, and how the narratives are."""

    folder: Path
    max_length: int
    documents: int
    step_documents: int
    tokens: int


def lay_ground(folder: Path, shape: str, max_length: int, steps: int, dtype: torch.dtype) -> Ground:
    """Make base, narratives and the adapter's first weights, or take those that lie in the folder already.

    Lengths are log-normal (a median of a quarter of `max_length`, sigma 1) and cut at `max_length`, EOS included.
    """
    config = config_of(shape, VOCABULARY)
    drawn = np.random.default_rng(0).lognormal(np.log(0.25), 1.0, 100 * ROWS * steps) * max_length
    lengths = np.clip(drawn, 8, max_length).astype(int)
    # As many as fill the rows of all steps: then packed and padded runs take the same number of steps.
    n_documents = int(np.searchsorted(np.cumsum(lengths), ROWS * steps * max_length))
    while len(best_fit(lengths[:n_documents], max_length)) > ROWS * steps:
        n_documents -= 1
    lengths = lengths[: n_documents + HELD_OUT]
    if not (folder / "tokens.json").is_file():
        write_base(config, folder / "base", dtype)
        save_file(_first_weights(config), folder / "adapter.safetensors")
        _write_narratives(folder, lengths, max_length)
    step_documents = math.ceil(n_documents / steps)
    return Ground(folder, max_length, n_documents, step_documents, int(lengths[:n_documents].sum()))


def _first_weights(config: Any) -> dict[str, torch.Tensor]:
    """LoRA's usual beginning: A drawn, B zero."""
    drawn, generator = {}, torch.Generator().manual_seed(0)
    for name, shape in weight_shapes(config).items():
        if name.rpartition(".")[0].endswith(TARGETS):
            place = adapter_key(name)
            bound = shape[1] ** -0.5
            drawn[f"{place}.lora_A"] = torch.empty(RANK, shape[1]).uniform_(-bound, bound, generator=generator)
            drawn[f"{place}.lora_B"] = torch.zeros(shape[0], RANK)
    return drawn


def _write_narratives(folder: Path, lengths: np.ndarray, max_length: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from epicrisis.corpus.tokens import encode_narratives
    from epicrisis.narrative import render
    from records import make_events, narrator_for, rows_of

    per_subject = max_length // 2
    events = make_events(len(lengths) * per_subject, per_subject)
    texts = render(events, rows_of(events), narrator_for("timeline"))["narrative"].to_list()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    bpe.train_from_iterator(
        texts[:100], trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder / "base")
    ids = encode_narratives(tokenizer, texts)
    cut = [one[: length - 1] for one, length in zip(ids, lengths.tolist(), strict=True)]
    short = sum(len(one) < length - 1 for one, length in zip(cut, lengths.tolist(), strict=True))
    if short:
        raise ValueError(f"{short} narratives are shorter than drawn")
    table = pl.DataFrame({"input_ids": cut, "n_tokens": [len(one) for one in cut]})
    table[:-HELD_OUT].write_parquet(folder / "train.parquet")
    table[-HELD_OUT:].write_parquet(folder / "held_out.parquet")
    known = {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    (folder / "tokens.json").write_text(json.dumps(known))
