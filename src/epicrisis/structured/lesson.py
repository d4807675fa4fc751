"""What pretraining learns from: windows of whole records, in batches of so many tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from epicrisis.corpus.windows import CARRIED, Windows, cut
from epicrisis.settings import refuse
from epicrisis.settings.structured_section import OBJECTIVES, StructuredSettings
from epicrisis.structured.batches import BOS, EOS, CodeBatch, at_least, budget_batches, causal_batch, frame_width
from epicrisis.structured.corruption import masked_batch, n_masked, n_span_targets, n_span_tokens, n_spans, span_batch
from epicrisis.structured.sequences import Sequences


def n_sentinels(settings: StructuredSettings) -> int:
    """Token ids beyond the vocabulary that the objective needs: one for each span of the longest window."""
    if OBJECTIVES[settings.architecture] != "spans":
        return 0
    return int(n_spans(settings.context - 1, settings.mask_probability))


class RecordLesson:
    """Records as sequences of tokens; an item is a batch of windows.

    A record that fits the context stays whole. A longer one is cut into windows, in a fixed way until an epoch is
    started and elsewhere in each epoch from then on. Records that learn next tokens stand between [BOS] and [EOS],
    and each of their tokens is learnt exactly once in every epoch; of the others each token lies in one window, of
    which other tokens are hidden in each epoch. What is hidden depends on the seed, the epoch and the batch alone.

    vocabulary: of the tokenizer, whose ids end where T5's sentinels begin.
    """

    def __init__(self, sequences: Sequences, settings: StructuredSettings, vocabulary: int):
        self._settings = settings
        self._objective = OBJECTIVES[settings.architecture]
        self._vocabulary = vocabulary
        self._tokens = sequences.tokens
        told = sequences.lengths() > 0
        self._begins = sequences.bounds[:-1][told]
        self._sizes = sequences.lengths()[told]
        if not len(self._sizes):
            raise refuse("data", "no subject has any event to learn from", "check that the labels' times leave some")
        self.fewest_items = 0
        self._started: tuple[int, int] | None = None
        self._lay_out()
        self.fewest_items = self.n_items

    @property
    def n_items(self) -> int:
        return len(self._batches)

    def start_epoch(self, epoch: int, seed: int) -> None:
        """Cut and mix anew; the same epoch and seed give the same batches."""
        wanted = (seed % 2**32, epoch)  # numpy takes no negative seed
        if wanted != self._started:
            self._started = wanted
            self._lay_out()

    def _lay_out(self) -> None:
        context, none = self._settings.context, np.zeros_like(self._sizes)
        if self._objective == "next_token":
            windows = cut(self._sizes + 2, none, context, self._started)  # [BOS], [EOS]
        else:
            windows = cut(self._sizes, none, context - frame_width(self._objective), self._started)
        self._windows = _kept(windows, self._learnt(windows) > 0)
        self._units = self._learnt(self._windows)
        widths = self._widths()
        batches = budget_batches(widths, self._settings.tokens_per_batch, self._started)
        self._batches = at_least(batches, self.fewest_items)
        self._read_tokens = widths

    def _learnt(self, windows: Windows) -> np.ndarray:
        """Tokens that are learnt in each window, int64 [n_windows]; 0 where it is too short for that."""
        own, share = windows.stop - windows.start, self._settings.mask_probability
        if self._objective == "next_token":
            return windows.supervised
        if self._objective == "masked":
            return n_masked(own, share)
        return np.where(own > 1, n_span_targets(own, share), 0)

    def _widths(self) -> np.ndarray:
        """Places that each window takes, int64 [n_windows]; of T5 in both stacks."""
        windows, share = self._windows, self._settings.mask_probability
        own = windows.stop - windows.start
        if self._objective == "next_token":
            return windows.lengths
        if self._objective == "masked":
            return own + self._context + frame_width("masked")
        return own - n_span_tokens(own, share) + n_spans(own, share) + 1 + n_span_targets(own, share)

    @property
    def _context(self) -> np.ndarray:
        return np.where(self._windows.start > 0, CARRIED, 0)

    def collate(self, items: Sequence[int]) -> CodeBatch:
        places = np.concatenate([self._batches[item] for item in items])
        if self._objective == "next_token":
            return causal_batch([self._framed(place) for place in places.tolist()])
        random = np.random.default_rng([*(self._started or (0,)), *items])
        share = self._settings.mask_probability
        if self._objective == "spans":
            return span_batch([self._own(place, 0) for place in places.tolist()], share, self._vocabulary, random)
        context = self._context[places]
        pairs = zip(places.tolist(), context.tolist(), strict=True)
        sequences = [self._own(place, carried) for place, carried in pairs]
        return masked_batch(sequences, context, share, self._vocabulary, random)

    def _own(self, window: int, carried: int) -> np.ndarray:
        """A window's tokens and `carried` tokens before them."""
        begin = self._begins[self._windows.document[window]]
        return self._tokens[begin + self._windows.start[window] - carried : begin + self._windows.stop[window]]

    def _framed(self, window: int) -> np.ndarray:
        """A window of a record between [BOS] and [EOS], which it holds where it begins or ends the record; int64."""
        windows, document = self._windows, self._windows.document[window]
        size, begin = self._sizes[document], self._begins[document]
        first, stop = max(windows.start[window] - CARRIED, 0), windows.stop[window]
        own = self._tokens[begin + max(first - 1, 0) : begin + min(stop - 1, size)]
        before = np.full(int(first == 0), BOS)
        after = np.full(int(stop == size + 2), EOS)
        return np.concatenate([before, own, after], dtype=np.int64)

    def units(self, items: Sequence[int]) -> int:
        return int(sum(self._units[self._batches[item]].sum() for item in items))

    def tokens(self, items: Sequence[int]) -> int:
        """Tokens that these batches read, without padding; of T5 in both stacks."""
        return int(sum(self._read_tokens[self._batches[item]].sum() for item in items))

    def loss_sum(self, module: nn.Module, batch: CodeBatch, items: Sequence[int]) -> torch.Tensor:
        return module(batch)

    def layout(self) -> dict[str, float]:
        """How the records lie in this epoch's batches; useful_token_share: the places that are no padding."""
        places = sum(len(batch) * int(self._read_tokens[batch].max()) for batch in self._batches)
        return {
            "records": len(self._sizes),
            "windows": len(self._windows),
            "batches": self.n_items,
            "supervised_tokens": int(self._units.sum()),
            "useful_token_share": float(self._read_tokens.sum()) / places,
        }


def _kept(windows: Windows, keep: np.ndarray) -> Windows:
    return Windows(*(part[keep] for part in (windows.document, windows.start, windows.stop, windows.header)))


def token_loss(module: nn.Module, lesson: RecordLesson, accelerator: Accelerator) -> dict[str, float]:
    """Loss and perplexity per learnt token over the whole lesson, the same for any number of processes."""
    total = torch.zeros((), device=accelerator.device, dtype=torch.float64)
    with torch.inference_mode():
        for item in range(accelerator.process_index, lesson.n_items, accelerator.num_processes):
            total += lesson.loss_sum(module, lesson.collate([item]).to(accelerator.device), [item]).double()
    loss = float(accelerator.reduce(total, "sum")) / lesson.units(range(lesson.n_items))
    return {"loss": loss, "perplexity": math.exp(min(loss, 50.0))}
