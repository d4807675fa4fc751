"""Feature matrices with their labels, for tasks of every kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy import sparse
from sklearn.metrics import roc_auc_score

from epicrisis.cohort.task import TaskKind
from epicrisis.tracking.cores import available_cores

Tried = dict[str, float]
"""Tuning AUROC by what was tried."""
Part = TypeVar("Part")


@dataclass(frozen=True)
class Examples:
    """matrix: CSR [n_rows, n_columns]; labels: bool [n_rows, n_classes], which class each row has."""

    matrix: sparse.csr_matrix
    labels: np.ndarray

    def scaled(self, scale: np.ndarray) -> Examples:
        """The same with each column divided by its scale."""
        return replace(self, matrix=self.matrix.multiply(1 / scale).tocsr())

    def targets(self, kind: TaskKind) -> np.ndarray:
        """int64 [n_rows]: the index of each row's class."""
        return self.labels[:, 1].astype(np.int64) if kind == "binary" else self.labels.argmax(axis=1)

    def of_label(self, label: int) -> Examples:
        """Whether or not rows have one label, as a binary task."""
        has = self.labels[:, label]
        return replace(self, labels=np.stack([~has, has], axis=1))

    def each_label(self) -> Iterator[tuple[int, Examples]]:
        """(label, its binary task) for every label."""
        return ((label, self.of_label(label)) for label in range(self.labels.shape[1]))

    def has_every_class(self, kind: TaskKind) -> bool:
        """Whether each class is there, and in a multilabel task is not everywhere."""
        some = self.labels.any(axis=0)
        return bool((some & ~self.labels.all(axis=0)).all()) if kind == "multilabel" else bool(some.all())


def fit_parts(
    train: Examples,
    tuning: Examples | None,
    kind: TaskKind,
    fit: Callable[[Examples, Examples | None, TaskKind], tuple[Part, Tried]],
) -> tuple[tuple[Part, ...], Tried]:
    """One model, or of several labels a binary one for each, whose Tried is told after the label's number."""
    if kind != "multilabel":
        model, tried = fit(train, tuning, kind)
        return (model,), tried
    fitted = [fit(one, tuning and tuning.of_label(label), "binary") for label, one in train.each_label()]
    tried = {f"{label} {what}": score for label, (_, scores) in enumerate(fitted) for what, score in scores.items()}
    return tuple(model for model, _ in fitted), tried


def joined(found: Sequence[np.ndarray], kind: TaskKind) -> np.ndarray:
    """Probabilities [n_rows, n_classes] from those of each part: two of each label, else of all classes at once."""
    return np.stack([one[:, 1] for one in found], axis=1) if kind == "multilabel" else found[0]


def mean_auroc(labels: np.ndarray, scores: np.ndarray, kind: TaskKind) -> float:
    """The AUROC, of several classes the mean of each against the rest. scores: [n, n_classes], or [n, 1] if binary."""
    if kind == "binary":
        return float(roc_auc_score(labels[:, 1], scores[:, -1]))
    return float(np.mean([roc_auc_score(labels[:, c], scores[:, c]) for c in range(labels.shape[1])]))


def two_classes(probability: np.ndarray) -> np.ndarray:
    """[n, 2] of the classes (False, True) from the probabilities of the second."""
    positive = probability.reshape(-1)
    return np.stack([1 - positive, positive], axis=1)


def threads() -> int:
    """How many threads a library may use that does not ask OpenMP itself."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(available_cores()))
