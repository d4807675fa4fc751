"""Classification of narratives: the question laid after each, the answers' scores read off its end."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import PreTrainedTokenizerBase

from epicrisis.corpus.packing import PackedBatch, best_fit, pack
from epicrisis.corpus.tokens import encode_prompt


class QuestionLesson:
    """Narratives with the question after them; an item is one row of the cohort.

    classes: int [n_rows], the index of each row's class; None where only predictions are wanted.
    """

    def __init__(
        self,
        tokens: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        question: str,
        max_length: int,
        classes: np.ndarray | None = None,
        n_classes: int = 2,
    ):
        self._tokens = tokens
        self._prompt = encode_prompt(tokenizer, question)
        self._pad = tokenizer.pad_token_id
        self._max_length = max_length
        self._classes = classes
        self.n_classes = n_classes
        self.lengths = np.asarray(tokens["n_tokens"]) + len(self._prompt)

    @property
    def n_items(self) -> int:
        return len(self._tokens)

    @property
    def classes(self) -> np.ndarray:
        """Class indices [n_rows]; ValueError for a lesson made for predictions only."""
        if self._classes is None:
            raise ValueError("this lesson has no classes: it was made for predictions only")
        return self._classes

    def collate(self, items: Sequence[int]) -> PackedBatch:
        documents = [ids + self._prompt for ids in self._tokens[list(items)]["input_ids"]]
        rows = best_fit([len(document) for document in documents], self._max_length)
        return pack(documents, rows, self._pad, width=self._max_length if len(rows) > 1 else None)

    def units(self, items: Sequence[int]) -> int:
        return len(items)

    def loss_sum(self, module: nn.Module, batch: PackedBatch, items: Sequence[int]) -> torch.Tensor:
        targets = torch.as_tensor(self.classes[list(items)], device=batch.input_ids.device)
        return F.cross_entropy(module(batch), targets, reduction="sum")


def class_probabilities(
    module: nn.Module, lesson: QuestionLesson, n_classes: int, batch_size: int, accelerator: Accelerator
) -> np.ndarray:
    """Probabilities [n_rows, n_classes] float64; processes share the rows, each is scored exactly once."""
    order = np.argsort(-lesson.lengths, kind="stable")  # like lengths together: least padding
    mine = order[accelerator.process_index :: accelerator.num_processes]
    probabilities = torch.zeros((lesson.n_items, n_classes), dtype=torch.float64, device=accelerator.device)
    with torch.inference_mode():
        for start in range(0, len(mine), batch_size):
            items = mine[start : start + batch_size].tolist()
            logits = module(lesson.collate(items).to(accelerator.device))
            probabilities[items] = torch.softmax(logits.double(), dim=-1)
    return accelerator.reduce(probabilities, "sum").cpu().numpy()


def tuning_metrics(
    module: nn.Module, lesson: QuestionLesson, batch_size: int, accelerator: Accelerator
) -> dict[str, float]:
    """Mean cross-entropy, and AUROC where the task is binary and both classes are there."""
    classes, n_classes = lesson.classes, lesson.n_classes
    probabilities = class_probabilities(module, lesson, n_classes, batch_size, accelerator)
    chosen = np.clip(probabilities[np.arange(len(classes)), classes], 1e-12, None)
    metrics = {"loss": float(-np.log(chosen).mean())}
    if probabilities.shape[1] == 2 and len(np.unique(classes)) == 2:
        metrics["auroc"] = float(roc_auc_score(classes, probabilities[:, 1]))
    return metrics
