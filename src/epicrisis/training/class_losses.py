"""Losses, probabilities and tuning metrics of classifiers, for tasks of every kind: two classes, several, or labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from epicrisis.cohort.task import TaskKind, label_matrix
from epicrisis.training.class_weights import ClassWeights


def targets_of(rows: pl.DataFrame, kind: TaskKind, classes: tuple[str, ...]) -> np.ndarray:
    """What each row is: class indices int64 [n_rows], of several labels bool [n_rows, n_classes]."""
    has = label_matrix(rows, classes).to_numpy()
    return has if kind == "multilabel" else has.argmax(axis=1).astype(np.int64)


def fitted_weights(
    asked: Literal["none", "balanced"] | Sequence[float], rows: pl.DataFrame, kind: TaskKind, classes: tuple[str, ...]
) -> ClassWeights:
    """The weights that `training.class_weights` comes to on these train rows; a class that none has counts as one's."""
    has = targets_of(rows, kind, classes)
    if has.ndim == 1:
        has = np.concatenate([has, np.setdiff1d(np.arange(len(classes)), has)])
    return ClassWeights.fit(asked, has)


def loss_of(logits: torch.Tensor, targets: torch.Tensor, weights: ClassWeights) -> torch.Tensor:
    """Cross-entropy, of several labels their mean binary cross-entropy, weighted and summed over rows.

    logits: [n, n_classes]; targets: as `targets_of` gives them.
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


def class_metrics(
    probabilities: np.ndarray, targets: np.ndarray, weights: ClassWeights, *, corrected: bool = False
) -> dict[str, float]:
    """The mean loss, and the AUROC where it exists: of several classes or labels the mean of each against the rest.

    The loss is the one that is trained; corrected probabilities are of the true shares, so theirs is not weighted.
    """
    n_classes = len(weights.values)
    logits = np.log(np.clip(probabilities, 1e-12, None))
    if weights.multilabel:
        logits = logits - np.log(np.clip(1 - probabilities, 1e-12, None))
    counted = ClassWeights.even(n_classes, multilabel=weights.multilabel) if corrected else weights
    loss = loss_of(torch.from_numpy(logits), torch.from_numpy(targets), counted)
    metrics = {"loss": float(loss) / len(targets)}
    has = targets if weights.multilabel else np.eye(n_classes, dtype=bool)[targets]
    both = has.any(axis=0) & ~has.all(axis=0)
    if both.all() or (weights.multilabel and both.any()):
        each = [roc_auc_score(has[:, c], probabilities[:, c]) for c in np.flatnonzero(both)]
        metrics["auroc"] = float(np.mean(each))
    return metrics
