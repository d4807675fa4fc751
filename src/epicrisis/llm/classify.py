"""Classification of narratives: the prompt laid around each, the classes' scores read off its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from epicrisis.cohort.task import BINARY_CLASSES
from epicrisis.corpus.packing import PackedBatch, pack, tight_rows
from epicrisis.corpus.prompt import Prompt, make_prompt
from epicrisis.llm.heads import LabelTokens
from epicrisis.training.class_weights import ClassWeights
from epicrisis.training.outcome import ClassOutcome, Outcome, row_metrics


@dataclass(frozen=True)
class Layout:
    """How the documents of a batch lie in rows.

    packed: several in a row, where the base keeps them apart; else each has a row of its own. width_cost: of
    `packing.tight_rows`.
    """

    packed: bool = True
    width_cost: float = 1 / 1024


class QuestionLesson:
    """Narratives in their prompt; an item is one row of the cohort.

    prompt: or a plain question, which stands for the usual prompt. targets: what the rows are, as `outcome` tells it;
    None where only predictions are wanted. max_length: the longest that a narrative in its prompt can be. outcome: two
    classes of equal weight where none is given.
    """

    def __init__(
        self,
        tokens: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt | str,
        max_length: int,
        targets: np.ndarray | None = None,
        *,
        outcome: Outcome | None = None,
        layout: Layout | None = None,
    ):
        self._tokens = tokens
        self._prompt = prompt if isinstance(prompt, Prompt) else make_prompt(tokenizer, prompt)
        self._pad = tokenizer.pad_token_id
        self._max_length = max_length
        self._targets = targets
        self._layout = layout or Layout()
        self.outcome = outcome or ClassOutcome("binary", BINARY_CLASSES, ClassWeights.even(2))
        self.lengths = np.asarray(tokens["n_tokens"]) + self._prompt.n_tokens

    @property
    def n_items(self) -> int:
        return len(self._tokens)

    @property
    def item_lengths(self) -> np.ndarray:
        """Tokens of each item, prompt included."""
        return self.lengths

    @property
    def targets(self) -> np.ndarray:
        """What the rows are; ValueError for a lesson made for predictions only."""
        if self._targets is None:
            raise ValueError("this lesson has no targets: it was made for predictions only")
        return self._targets

    def collate(self, items: Sequence[int]) -> PackedBatch:
        documents = [self._prompt.lay(ids) for ids in self._tokens[list(items)]["input_ids"]]
        lengths = [len(document) for document in documents]
        if self._layout.packed:
            rows = tight_rows(lengths, self._max_length, self._layout.width_cost)
        else:
            rows = [[document] for document in range(len(documents))]
        return pack(documents, rows, self._pad)

    def batches(self, items: np.ndarray, batch_size: int) -> Iterator[list[int]]:
        """The items in batches of like lengths, longest first, each of batch_size x max_length tokens at most."""
        order = items[np.argsort(-self.lengths[items], kind="stable")]
        room = batch_size * self._max_length
        start = 0
        while start < len(order):
            # rows are at most as wide as the batch's first document, padding included
            stop = start + max(1, room // int(self.lengths[order[start]]))
            yield order[start:stop].tolist()
            start = stop

    def units(self, items: Sequence[int]) -> int:
        return len(items)

    def loss_sum(self, module: nn.Module, batch: PackedBatch, items: Sequence[int]) -> torch.Tensor:
        targets = torch.as_tensor(self.targets[list(items)], device=batch.input_ids.device)
        return self.outcome.loss(module(batch), targets)


def tuning_metrics(
    module: nn.Module,
    lesson: QuestionLesson,
    batch_size: int,
    accelerator: Accelerator,
    *,
    mass: bool = False,
) -> dict[str, float]:
    """What the lesson's outcome tells of its rows; of answers also `answer_mass`, where asked for.

    answer_mass: the mean share of the whole vocabulary's probability that the answers have.
    """
    metrics = row_metrics(module, lesson, batch_size, accelerator)
    if mass and isinstance(module, LabelTokens):
        metrics["answer_mass"] = answer_mass(module, lesson, batch_size, accelerator)
    return metrics


def answer_mass(module: LabelTokens, lesson: QuestionLesson, batch_size: int, accelerator: Accelerator) -> float:
    """The answers' share of the whole vocabulary's probability after the prompt, averaged over rows.

    A base that has not learnt to answer has little: its renormalised probabilities compare unlikely words.
    """
    mine = np.arange(lesson.n_items)[accelerator.process_index :: accelerator.num_processes]
    total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    with torch.inference_mode():
        for items in lesson.batches(mine, batch_size):
            total += module.log_probabilities(lesson.collate(items).to(accelerator.device)).double().exp().sum()
    return float(accelerator.reduce(total, "sum")) / lesson.n_items
