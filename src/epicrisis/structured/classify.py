"""Classification of sequences of codes: class scores read off a body's pooled states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from epicrisis.settings.structured_section import OBJECTIVES, Architecture, StructuredSettings
from epicrisis.structured.batches import CodeBatch, budget_batches, frame, frame_width, plain_batch
from epicrisis.structured.models import BIDIRECTIONAL, Body, present
from epicrisis.structured.sequences import Sequences
from epicrisis.training.outcome import Outcome

Pooling = Literal["last", "mean", "max"]


class Classifier(nn.Module):
    """An outcome's logits by a linear layer on the pooled states of a body.

    A body of which nothing is trained is only read: without dropout, and without gradients.
    """

    def __init__(self, body: Body, n_outputs: int, pooling: Pooling, seed: int):
        super().__init__()
        self.body = body
        self._pooling = pooling
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.score = nn.Linear(body.config.shape.hidden, n_outputs)
        nn.init.zeros_(self.score.bias)

    @property
    def body_learns(self) -> bool:
        """Whether any weight of the body is trained."""
        return any(weight.requires_grad for weight in self.body.parameters())

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if not self.body_learns:
            self.body.eval()
        return self

    def forward(self, batch: CodeBatch) -> torch.Tensor:
        """Logits, float32 [n, n_outputs]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.body_learns):
            states = self.body(batch.ids, batch.lengths).float()
        return self.score(pooled(states, batch, self._pooling))


def pooled(states: torch.Tensor, batch: CodeBatch, pooling: Pooling) -> torch.Tensor:
    """One state for each sequence, [n, hidden]: its last token's, or the mean or maximum over its tokens."""
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), batch.lengths - 1]
    there = present(batch.ids, batch.lengths)[..., None]
    if pooling == "mean":
        return (states * there).sum(dim=1) / batch.lengths[:, None]
    return states.masked_fill(~there, -torch.inf).amax(dim=1)


def pooling_of(settings: StructuredSettings) -> Pooling:
    """What is asked for, or the last state where that has read everything, else the mean."""
    return settings.pooling or default_pooling(settings.architecture)


def default_pooling(architecture: Architecture) -> Pooling:
    """By the direction of reading."""
    return "mean" if architecture in BIDIRECTIONAL else "last"


class RowLesson:
    """Rows of the cohort as sequences; an item is a row.

    targets: as `outcome` gives them; None where only predictions are wanted.
    """

    def __init__(
        self,
        sequences: Sequences,
        settings: StructuredSettings,
        outcome: Outcome,
        targets: np.ndarray | None = None,
    ):
        self._sequences = sequences
        self._objective = OBJECTIVES[settings.architecture]
        self._tokens_per_batch = settings.tokens_per_batch
        self._targets = targets
        self.outcome = outcome
        self.item_lengths = sequences.lengths() + frame_width(self._objective)

    @property
    def n_items(self) -> int:
        return len(self._sequences)

    @property
    def targets(self) -> np.ndarray:
        """What the rows are; ValueError for a lesson made for predictions only."""
        if self._targets is None:
            raise ValueError("this lesson has no targets: it was made for predictions only")
        return self._targets

    def collate(self, items: Sequence[int]) -> CodeBatch:
        tokens = self._sequences.tokens
        return plain_batch([frame(tokens[self._sequences.row(int(item))], self._objective) for item in items])

    def batches(self, items: np.ndarray, batch_size: int) -> Iterator[list[int]]:
        """The items in batches of like lengths, longest first, of structured.tokens_per_batch places at most."""
        for batch in budget_batches(self.item_lengths[items], self._tokens_per_batch):
            yield items[batch].tolist()

    def units(self, items: Sequence[int]) -> int:
        return len(items)

    def loss_sum(self, module: nn.Module, batch: CodeBatch, items: Sequence[int]) -> torch.Tensor:
        targets = torch.as_tensor(self.targets[list(items)], device=batch.ids.device)
        return self.outcome.loss(module(batch), targets)
