"""Logistic regression on counts: L2, max-abs scaled, its strength chosen on the tuning rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import sparse
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from epicrisis.cohort.task import TaskKind
from epicrisis.tabular.counts import CountFeatures, RowCodes
from epicrisis.tabular.examples import Examples, Tried, mean_auroc, two_classes
from epicrisis.tracking.run_directory import replacing

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FIXED_C = 0.1


@dataclass(frozen=True)
class LogisticModel:
    """Coefficients on the max-abs scaled columns of `for_linear`.

    coefficients: float64 [n_outputs, n_columns], intercept [n_outputs]: one output for a binary task, one for each
    class or label else. kind: several classes share a softmax, labels have a logistic function each. c: the
    strength chosen, or each label's own.
    """

    scale: np.ndarray
    coefficients: np.ndarray
    intercept: np.ndarray
    c: tuple[float, ...]
    kind: TaskKind = "binary"

    @property
    def chosen(self) -> dict[str, Any]:
        """The strength; of several labels, each one's."""
        return {"C": self.c[0] if len(self.c) == 1 else self.c}

    def probability(self, features: CountFeatures, table: RowCodes) -> np.ndarray:
        """[n_rows, n_classes]."""
        logits = self._logits(features.for_linear(table).multiply(1 / self.scale).tocsr())
        if self.kind == "multiclass":
            return softmax(logits, axis=1)
        return two_classes(expit(logits)) if self.kind == "binary" else expit(logits)

    def _logits(self, scaled: sparse.csr_matrix) -> np.ndarray:
        return scaled @ self.coefficients.T + self.intercept

    def save(self, folder: Path) -> None:
        """Write model.safetensors and model.json."""
        arrays = {
            "scale": self.scale,
            "coefficients": np.ascontiguousarray(self.coefficients),
            "intercept": self.intercept,
        }
        with replacing(folder / "model.safetensors") as part:
            save_file(arrays, part)
        with replacing(folder / "model.json") as part:
            part.write_text(json.dumps({"C": self.c, "kind": self.kind}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> LogisticModel:
        arrays = load_file(folder / "model.safetensors")
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return cls(arrays["scale"], arrays["coefficients"], arrays["intercept"], tuple(about["C"]), about["kind"])


def fit_logistic(train: Examples, tuning: Examples | None, kind: TaskKind, seed: int) -> tuple[LogisticModel, Tried]:
    """Fit on train; with tuning examples choose C by their AUROC (the smaller on a tie), without them take 0.1.

    Several classes are fitted together (multinomial) and share C; of several labels each is fitted by itself. Gives
    the model and the tuning AUROC (the mean over classes) per C tried, for labels by label.
    """
    scale = np.asarray(abs(train.matrix).max(axis=0).todense()).ravel() if train.matrix.shape[1] else np.zeros(0)
    scale[scale == 0] = 1.0
    scaled = train.scaled(scale)
    tuned = tuning and tuning.scaled(scale)
    if kind != "multilabel":
        model, found = _choose(scaled, tuned, kind, scale, seed)
        return model, {f"{c:g}": score for c, score in found.items()}
    chosen = [
        _choose(one, tuned and tuned.of_label(label), "binary", scale, seed) for label, one in scaled.each_label()
    ]
    models = [model for model, _ in chosen]
    joined = LogisticModel(
        scale,
        np.concatenate([model.coefficients for model in models]),
        np.concatenate([model.intercept for model in models]),
        tuple(model.c[0] for model in models),
        kind,
    )
    tried = {f"{label} {c:g}": score for label, (_, scores) in enumerate(chosen) for c, score in scores.items()}
    return joined, tried


def _choose(
    train: Examples, tuning: Examples | None, kind: TaskKind, scale: np.ndarray, seed: int
) -> tuple[LogisticModel, dict[float, float]]:
    if tuning is None or not tuning.has_every_class(kind):
        return _fit(train, scale, FIXED_C, kind, seed), {}
    models = {c: _fit(train, scale, c, kind, seed) for c in GRID}
    found = {c: mean_auroc(tuning.labels, model._logits(tuning.matrix), kind) for c, model in models.items()}
    best = max(GRID, key=lambda c: (found[c], -c))
    return models[best], found


def _fit(train: Examples, scale: np.ndarray, c: float, kind: TaskKind, seed: int) -> LogisticModel:
    fitted = LogisticRegression(C=c, max_iter=2000, random_state=seed).fit(train.matrix, train.targets(kind))
    coefficients, intercept = fitted.coef_.astype(np.float64), fitted.intercept_.astype(np.float64)
    if kind == "multiclass" and len(coefficients) == 1:  # two classes: scikit-learn keeps one row for the second
        coefficients, intercept = np.concatenate([-coefficients, coefficients]) / 2, np.r_[-intercept, intercept] / 2
    return LogisticModel(scale, coefficients, intercept, (c,), kind)
