"""Logistic regression on counts: L2, max-abs scaled, its strength chosen on the tuning rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import sparse
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from epicrisis.tabular.counts import CountFeatures, RowCodes
from epicrisis.tracking.run_directory import replacing

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FIXED_C = 0.1


@dataclass(frozen=True)
class LogisticModel:
    """Coefficients on the max-abs scaled columns of `for_linear`; arrays are float64 [n_columns]."""

    scale: np.ndarray
    coefficients: np.ndarray
    intercept: float
    c: float

    def probability(self, features: CountFeatures, table: RowCodes) -> np.ndarray:
        """Of the label being true, [n_rows]."""
        matrix = features.for_linear(table).multiply(1 / self.scale).tocsr()
        return expit(matrix @ self.coefficients + self.intercept)

    def save(self, folder: Path) -> None:
        """Write model.safetensors and model.json."""
        arrays = {
            "scale": self.scale,
            "coefficients": self.coefficients,
            "intercept": np.array([self.intercept]),
        }
        with replacing(folder / "model.safetensors") as part:
            save_file(arrays, part)
        with replacing(folder / "model.json") as part:
            part.write_text(json.dumps({"C": self.c}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> LogisticModel:
        arrays = load_file(folder / "model.safetensors")
        c = json.loads((folder / "model.json").read_text(encoding="utf-8"))["C"]
        return cls(arrays["scale"], arrays["coefficients"], float(arrays["intercept"][0]), c)


def fit_logistic(
    train: sparse.csr_matrix,
    labels: np.ndarray,
    tuning: sparse.csr_matrix | None,
    tuning_labels: np.ndarray,
    seed: int,
) -> tuple[LogisticModel, dict[str, float]]:
    """Fit on train; with a tuning matrix choose C by its AUROC (the smaller on a tie), without one take 0.1.

    Gives the model and the tuning AUROC per C tried.
    """
    scale = np.asarray(abs(train).max(axis=0).todense()).ravel() if train.shape[1] else np.zeros(0)
    scale[scale == 0] = 1.0
    scaled = train.multiply(1 / scale).tocsr()
    if tuning is None:
        return _fit(scaled, labels, scale, FIXED_C, seed), {}
    tuning_scaled = tuning.multiply(1 / scale).tocsr()
    models = {c: _fit(scaled, labels, scale, c, seed) for c in GRID}
    found = {c: float(roc_auc_score(tuning_labels, tuning_scaled @ m.coefficients)) for c, m in models.items()}
    best = max(GRID, key=lambda c: (found[c], -c))
    return models[best], {f"{c:g}": score for c, score in found.items()}


def _fit(scaled: sparse.csr_matrix, labels: np.ndarray, scale: np.ndarray, c: float, seed: int) -> LogisticModel:
    fitted = LogisticRegression(C=c, max_iter=2000, random_state=seed).fit(scaled, labels)
    return LogisticModel(scale, fitted.coef_[0].astype(np.float64), float(fitted.intercept_[0]), c)
