"""Logistic regression on dense vectors: the head of a frozen encoder, its strength chosen on tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from epicrisis.settings import refuse
from epicrisis.settings.watched import is_better
from epicrisis.training.outcome import ClassOutcome

GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty that are tried."""


@dataclass(frozen=True)
class LinearHead:
    """centre, scale: float32 [width], what vectors are standardised with; coefficients: float32 [n_classes, width];
    intercept: float32 [n_classes]; of two classes each has half of the logit, of either sign."""

    centre: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercept: np.ndarray

    def logits(self, vectors: np.ndarray) -> torch.Tensor:
        """float32 [n, n_classes]."""
        return torch.from_numpy((vectors - self.centre) / self.scale @ self.coefficients.T + self.intercept)

    def arrays(self) -> dict[str, np.ndarray]:
        """For a safetensors file."""
        return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in vars(self).items()}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> LinearHead:
        """What `arrays` gave."""
        return cls(**arrays)


def fit_head(
    vectors: Mapping[str, np.ndarray],
    targets: Mapping[str, np.ndarray],
    outcome: ClassOutcome,
    *,
    metric: str,
    seed: int,
) -> tuple[LinearHead, dict[str, dict[str, float]]]:
    """Fit on train, choose C by `metric` (loss or auroc) on tuning, the smaller on a tie.

    vectors, targets: by split. Gives the head, and the tuning metrics of each C. Raises InputError for a metric
    that this tuning split does not give.
    """
    centre, scale = vectors["train"].mean(axis=0), vectors["train"].std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1.0).astype(np.float32)
    standard = (vectors["train"] - centre) / scale
    tried: dict[str, dict[str, float]] = {}
    best: tuple[float | None, LinearHead | None] = (None, None)
    for c in GRID:
        head = LinearHead(centre, scale, *_fitted(standard, targets["train"], outcome, c, seed))
        tried[f"{c:g}"] = outcome.metrics(head.logits(vectors["tuning"]), targets["tuning"])
        if metric not in tried[f"{c:g}"]:
            what = f"the tuning split gives no {metric!r}"
            raise refuse("training.metric_for_best", what, "use loss; auroc needs both classes among its rows")
        if is_better(metric, tried[f"{c:g}"][metric], best[0]):
            best = (tried[f"{c:g}"][metric], head)
    assert best[1] is not None
    return best[1], tried


def _fitted(
    standard: np.ndarray, targets: np.ndarray, outcome: ClassOutcome, c: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [n_classes, width] and intercepts [n_classes]; of several labels each is fitted by itself."""
    values = outcome.weights.values
    if outcome.kind == "multilabel":
        each = [
            _one(standard, has, np.where(has, with_it, without), c, seed)
            for has, (without, with_it) in zip(targets.T, values, strict=True)
        ]
        return np.concatenate([one[0] for one in each]), np.concatenate([one[1] for one in each])
    coefficients, intercept = _one(standard, targets, values[targets], c, seed)
    if len(coefficients) == 1:  # two classes: scikit-learn keeps one row, the second's
        return np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-intercept, intercept]) / 2
    return coefficients, intercept


def _one(
    standard: np.ndarray, targets: np.ndarray, weights: np.ndarray, c: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    fitted = LogisticRegression(C=c, max_iter=2000, random_state=seed).fit(standard, targets, sample_weight=weights)
    return fitted.coef_.astype(np.float32), fitted.intercept_.astype(np.float32)
