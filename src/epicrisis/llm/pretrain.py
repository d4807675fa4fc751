"""Continued pretraining on narratives: packed windows, next-token loss per supervised token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from epicrisis.corpus.packing import PackedBatch, best_fit, pack, spread
from epicrisis.corpus.telling import Telling
from epicrisis.corpus.windows import CARRIED, cut
from epicrisis.settings import refuse


def whole_records(telling: Telling) -> Telling:
    """The same telling without a token budget: no event of a record is left out."""
    return replace(telling, max_tokens=None)


class NarrativeLesson:
    """Narratives, each ended by EOS, packed into rows; an item is a row.

    A narrative that fits a row stays whole. A longer one is cut into windows (corpus/windows.py): in a fixed way
    until an epoch is started, and elsewhere in each epoch from then on. In every epoch each token of each
    narrative is supervised exactly once, but its first, which nothing comes before. Positions count from 0 in
    each window. Token ids stay in the memory-mapped table, of which a batch reads its own windows.

    tokens: input_ids, n_tokens and, where headers are repeated, n_header_tokens (BOS and header).
    """

    def __init__(
        self,
        tokens: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        repeat_header: bool = False,
    ):
        self._records = tokens.select_columns(["input_ids"]).with_format("arrow")
        self._eos, self._pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self._max_length = max_length
        self._lengths = _column(tokens, "n_tokens") + 1  # EOS
        self._headers = _header_lengths(tokens) if repeat_header else np.zeros_like(self._lengths)
        self.fewest_items = 0
        self._started: tuple[int, int] | None = None
        self._lay_out()
        # No cut makes fewer windows than this one, so every epoch's can be spread over as many rows.
        self.fewest_items = self.n_items

    @property
    def n_items(self) -> int:
        return len(self._rows)

    @property
    def item_lengths(self) -> np.ndarray:
        """Tokens in each row."""
        return self._fills

    def start_epoch(self, epoch: int, seed: int) -> None:
        """Cut long narratives elsewhere and pack anew; the same epoch and seed give the same rows."""
        wanted = (seed % 2**32, epoch)  # numpy takes no negative seed
        if wanted != self._started and self._lengths.max(initial=0) > self._max_length:
            self._started = wanted
            self._lay_out()

    def _lay_out(self) -> None:
        self._windows = cut(self._lengths, self._headers, self._max_length, self._started)
        self._context = self._windows.context
        self._rows = spread(best_fit(self._windows.lengths, self._max_length), self.fewest_items)
        flat = np.fromiter(chain.from_iterable(self._rows), dtype=np.int64, count=len(self._windows))
        begins = np.cumsum([0] + [len(row) for row in self._rows])[:-1]
        self._units = np.add.reduceat(self._windows.supervised[flat], begins)
        self._fills = np.add.reduceat(self._windows.lengths[flat], begins)

    def collate(self, items: Sequence[int]) -> PackedBatch:
        wanted = [self._rows[item] for item in items]
        flat = [window for row in wanted for window in row]
        bounds = np.cumsum([0] + [len(row) for row in wanted]).tolist()
        rows = [list(range(start, stop)) for start, stop in pairwise(bounds)]
        documents = [self._read(window) for window in flat]
        return pack(documents, rows, self._pad, context=self._context[flat].tolist())

    def _read(self, window: int) -> np.ndarray:
        """A window's token ids with its context before and, at its document's end, EOS after them; int64."""
        cuts = self._windows
        document, start, stop, header = (
            int(part[window]) for part in (cuts.document, cuts.start, cuts.stop, cuts.header)
        )
        record = self._records[document : document + 1]["input_ids"].chunk(0).flatten()  # a view, nothing is read yet
        own = record[max(start - CARRIED, 0) : min(stop, len(record))]
        end = np.full(int(stop == self._lengths[document]), self._eos)
        return np.concatenate([record[:header].to_numpy(), own.to_numpy(), end], dtype=np.int64)

    def units(self, items: Sequence[int]) -> int:
        return int(self._units[np.asarray(items)].sum())

    def loss_sum(self, module: nn.Module, batch: PackedBatch, items: Sequence[int]) -> torch.Tensor:
        return module(batch)

    def packing(self) -> dict[str, float]:
        """How the narratives lie in this epoch's rows.

        rows_full: of the rows' places, those with a narrative's tokens; the rest is free, which is not computed
        where rows that are as full are batched together, or repeated context.
        """
        return {
            "documents": len(self._lengths),
            "windows": len(self._windows),
            "rows": self.n_items,
            "supervised_tokens": int(self._units.sum()),
            "rows_full": float(self._lengths.sum()) / (self.n_items * self._max_length),
        }


def packing_text(packing: dict[str, float]) -> str:
    """One line that says how narratives were packed."""
    return (
        f"{packing['documents']:,} narratives in {packing['windows']:,} windows, packed into {packing['rows']:,} rows "
        f"({packing['rows_full']:.1%} full), {packing['supervised_tokens']:,} tokens to learn from"
    )


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


def _header_lengths(tokens: datasets.Dataset) -> np.ndarray:
    if "n_header_tokens" not in tokens.column_names:
        raise refuse(
            "narrative.repeat_header",
            "the prepared tokens do not say how long each header is",
            "prepare them again, in a new training.output_dir",
        )
    return _column(tokens, "n_header_tokens")


def _column(tokens: datasets.Dataset, name: str) -> np.ndarray:
    """A column of whole numbers, int64 [n_rows]."""
    return tokens.select_columns([name]).with_format("arrow")[:][name].to_numpy().astype(np.int64)
