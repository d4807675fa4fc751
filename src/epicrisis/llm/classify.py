"""Classification of narratives: the prompt laid around each, the classes' scores read off its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import PreTrainedTokenizerBase

from epicrisis.corpus.packing import PackedBatch, pack, tight_rows
from epicrisis.corpus.prompt import Prompt, make_prompt
from epicrisis.llm.class_weights import ClassWeights
from epicrisis.llm.heads import LabelTokens


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

    prompt: or a plain question, which stands for the usual prompt. targets: int [n_rows], the index of each row's
    class; of a multilabel task bool [n_rows, n_classes]; None where only predictions are wanted. max_length: the
    longest that a narrative in its prompt can be.
    """

    def __init__(
        self,
        tokens: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt | str,
        max_length: int,
        targets: np.ndarray | None = None,
        n_classes: int = 2,
        *,
        weights: ClassWeights | None = None,
        layout: Layout | None = None,
    ):
        self._tokens = tokens
        self._prompt = prompt if isinstance(prompt, Prompt) else make_prompt(tokenizer, prompt)
        self._pad = tokenizer.pad_token_id
        self._max_length = max_length
        self._targets = targets
        self._layout = layout or Layout()
        self.weights = weights or ClassWeights.even(n_classes)
        self.n_classes = n_classes
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
        return loss_of(module(batch), targets, self.weights)


def loss_of(logits: torch.Tensor, targets: torch.Tensor, weights: ClassWeights) -> torch.Tensor:
    """Cross-entropy, of several labels their mean binary cross-entropy, weighted and summed over rows.

    logits: [n, n_classes]; targets as `QuestionLesson` has them.
    """
    of_classes = torch.as_tensor(weights.values, dtype=logits.dtype, device=logits.device)
    if not weights.multilabel:
        return F.cross_entropy(logits, targets, weight=of_classes, reduction="sum")
    each = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    return (each * torch.where(targets.bool(), of_classes[:, 1], of_classes[:, 0])).mean(dim=1).sum()


def probabilities_of(logits: torch.Tensor, weights: ClassWeights, *, corrected: bool = False) -> torch.Tensor:
    """Probabilities float64 [n, n_classes]: a softmax, or of several labels a logistic function each.

    corrected: for the classes' true shares, where weights made training see others.
    """
    logits = logits.double()
    if corrected:
        logits = logits - torch.as_tensor(weights.shift(), device=logits.device)
    return torch.sigmoid(logits) if weights.multilabel else torch.softmax(logits, dim=-1)


def class_probabilities(
    module: nn.Module,
    lesson: QuestionLesson,
    n_classes: int,
    batch_size: int,
    accelerator: Accelerator,
    *,
    corrected: bool = False,
) -> np.ndarray:
    """Probabilities [n_rows, n_classes] float64; processes share the rows, each is scored exactly once."""
    order = np.argsort(-lesson.lengths, kind="stable")
    mine = order[accelerator.process_index :: accelerator.num_processes]
    probabilities = torch.zeros((lesson.n_items, n_classes), dtype=torch.float64, device=accelerator.device)
    with torch.inference_mode():
        for items in lesson.batches(mine, batch_size):
            logits = module(lesson.collate(items).to(accelerator.device))
            probabilities[items] = probabilities_of(logits, lesson.weights, corrected=corrected)
    return accelerator.reduce(probabilities, "sum").cpu().numpy()


def tuning_metrics(
    module: nn.Module,
    lesson: QuestionLesson,
    batch_size: int,
    accelerator: Accelerator,
    *,
    corrected: bool = False,
    mass: bool = False,
) -> dict[str, float]:
    """The mean loss, and the AUROC where it exists: of several classes or labels the mean of each against the rest.

    The loss is the one that is trained; corrected probabilities are of the true shares, so theirs is not weighted.
    mass: also `answer_mass`, the mean share of the whole vocabulary's probability that the answers have.
    """
    targets, weights = lesson.targets, lesson.weights
    found = class_probabilities(module, lesson, lesson.n_classes, batch_size, accelerator, corrected=corrected)
    logits = np.log(np.clip(found, 1e-12, None))
    if weights.multilabel:
        logits = logits - np.log(np.clip(1 - found, 1e-12, None))
    counted = ClassWeights.even(lesson.n_classes, multilabel=weights.multilabel) if corrected else weights
    loss = loss_of(torch.from_numpy(logits), torch.from_numpy(targets), counted)
    metrics = {"loss": float(loss) / len(targets)}
    has = targets if weights.multilabel else np.eye(lesson.n_classes, dtype=bool)[targets]
    both = has.any(axis=0) & ~has.all(axis=0)
    if both.all() or (weights.multilabel and both.any()):
        metrics["auroc"] = float(np.mean([roc_auc_score(has[:, c], found[:, c]) for c in np.flatnonzero(both)]))
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
