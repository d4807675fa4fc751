"""Modules that pretrain a body of added embeddings, and how well they do on tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from sklearn.metrics import average_precision_score
from torch import nn

from epicrisis.structured.age_visit_lessons import MaskedLesson, NextVisitLesson
from epicrisis.structured.age_visit_model import AgeVisitBody, MaskedCodeHead, RecordHead
from epicrisis.structured.age_visit_records import AgeVisitBatch
from epicrisis.training.lessons import Lesson


class MaskedCodes(nn.Module):
    """A body and logits [k, n_codes] of the hidden codes of a batch."""

    def __init__(self, body: AgeVisitBody):
        super().__init__()
        self.body = body
        self.head = MaskedCodeHead(body.shape, body.embeddings.codes)

    def forward(self, batch: AgeVisitBatch) -> torch.Tensor:
        return self.of_states(self.body(batch), batch)

    def of_states(self, states: torch.Tensor, batch: AgeVisitBatch) -> torch.Tensor:
        assert batch.hidden is not None
        return self.head(states.flatten(0, 1)[batch.hidden], self.body.embeddings.codes)


class NextVisitCodes(nn.Module):
    """A body and logits [n, n_codes] of what the next visit of each record holds."""

    def __init__(self, body: AgeVisitBody):
        super().__init__()
        self.body = body
        self.head = RecordHead(body.shape, len(body.embeddings.codes.weight))

    def forward(self, batch: AgeVisitBatch) -> torch.Tensor:
        return self.head(self.body(batch), batch.lengths)


def masked_metrics(
    module: nn.Module, lesson: MaskedLesson, batch_size: int, accelerator: Accelerator
) -> dict[str, float]:
    """loss and perplexity per hidden code, the same for any number of processes."""
    loss = mean_loss(module, lesson, batch_size, accelerator)
    return {"loss": loss, "perplexity": math.exp(min(loss, 50.0))}


def next_visit_metrics(
    module: nn.Module, lesson: NextVisitLesson, batch_size: int, accelerator: Accelerator
) -> dict[str, float]:
    """loss and perplexity per code, and average_precision: of each record's ranking of codes, averaged (Li et al.)."""
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    with torch.inference_mode():
        for items in shares(lesson, batch_size, accelerator):
            batch = lesson.collate(items).to(accelerator.device)
            sums[0] += lesson.loss_sum(module, batch, items).double()
            truth, found = lesson.answers(items).numpy(), module(batch).float().cpu().numpy()
            sums[1] += sum(average_precision_score(t, f) for t, f in zip(truth, found, strict=True))
    loss, precision = (accelerator.reduce(sums, "sum") / lesson.n_items).tolist()
    return {"loss": loss, "perplexity": math.exp(min(loss, 50.0)), "average_precision": precision}


def mean_loss(module: nn.Module, lesson: Lesson, batch_size: int, accelerator: Accelerator) -> float:
    """The lesson's loss per unit, over all of its items."""
    total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    with torch.inference_mode():
        for items in shares(lesson, batch_size, accelerator):
            total += lesson.loss_sum(module, lesson.collate(items).to(accelerator.device), items).double()
    return float(accelerator.reduce(total, "sum")) / lesson.units(range(lesson.n_items))


def shares(lesson: Lesson, batch_size: int, accelerator: Accelerator) -> list[Sequence[int]]:
    """This process's batches."""
    mine = list(range(lesson.n_items))[accelerator.process_index :: accelerator.num_processes]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
