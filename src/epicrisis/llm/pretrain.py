"""Continued pretraining on narratives: packed windows, next-token loss per supervised token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from epicrisis.corpus.packing import PackedBatch, best_fit, pack


class NarrativeLesson:
    """Whole narratives, each ended by EOS, packed once into windows; an item is a window."""

    def __init__(self, tokens: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self._tokens = tokens
        self._eos, self._pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self._max_length = max_length
        lengths = np.asarray(tokens["n_tokens"]) + 1  # EOS
        self._windows = best_fit(lengths.tolist(), max_length)
        # Every token of a document but its first is predicted from the one before it.
        self._units = [int(sum(lengths[i] - 1 for i in window)) for window in self._windows]
        self.useful_share = float(lengths.sum()) / (len(self._windows) * max_length)

    @property
    def n_items(self) -> int:
        return len(self._windows)

    def collate(self, items: Sequence[int]) -> PackedBatch:
        wanted = [self._windows[item] for item in items]
        flat = [document for window in wanted for document in window]
        documents = [[*ids, self._eos] for ids in self._tokens[flat]["input_ids"]]
        bounds = np.cumsum([0] + [len(window) for window in wanted]).tolist()
        rows = [list(range(start, stop)) for start, stop in pairwise(bounds)]
        return pack(documents, rows, self._pad, width=self._max_length)

    def units(self, items: Sequence[int]) -> int:
        return sum(self._units[item] for item in items)

    def loss_sum(self, module: nn.Module, batch: PackedBatch, items: Sequence[int]) -> torch.Tensor:
        return module(batch)


def token_loss(
    module: nn.Module, lesson: NarrativeLesson, batch_size: int, accelerator: Accelerator
) -> dict[str, float]:
    """Loss and perplexity per supervised token over the whole lesson, the same for any number of processes."""
    total = torch.zeros((), device=accelerator.device, dtype=torch.float64)
    mine = list(range(lesson.n_items))[accelerator.process_index :: accelerator.num_processes]
    with torch.inference_mode():
        for start in range(0, len(mine), batch_size):
            items = mine[start : start + batch_size]
            total += lesson.loss_sum(module, lesson.collate(items).to(accelerator.device), items).double()
    loss = float(accelerator.reduce(total, "sum")) / lesson.units(range(lesson.n_items))
    return {"loss": loss, "perplexity": math.exp(min(loss, 50.0))}
