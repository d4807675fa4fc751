"""Gradient-boosted trees (XGBoost) on counts and last values, stopped early on the tuning rows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xgboost
from scipy import sparse

from epicrisis.tabular.counts import CountFeatures, RowCodes
from epicrisis.tracking.run_directory import replacing

SETTINGS = {
    **{"objective": "binary:logistic", "eval_metric": "auc", "tree_method": "hist"},
    **{"max_depth": 4, "eta": 0.05, "subsample": 0.8, "colsample_bytree": 0.5},
}
MAX_TREES = 1000
PATIENCE = 50
FIXED_TREES = 100
FILE = "model.ubj"


@dataclass(frozen=True)
class TreesModel:
    """A booster cut at its best number of trees."""

    booster: xgboost.Booster
    n_trees: int

    def probability(self, features: CountFeatures, table: RowCodes) -> np.ndarray:
        """Of the label being true, [n_rows]."""
        return self.booster.predict(xgboost.DMatrix(features.for_trees(table))).astype(np.float64)

    def save(self, folder: Path) -> None:
        """Write model.ubj, XGBoost's own format (universal binary JSON)."""
        with replacing(folder / FILE) as part:
            part.write_bytes(self.booster.save_raw("ubj"))

    @classmethod
    def load(cls, folder: Path) -> TreesModel:
        booster = xgboost.Booster()
        booster.load_model(bytearray((folder / FILE).read_bytes()))
        return cls(booster, booster.num_boosted_rounds())


def fit_trees(
    train: sparse.csr_matrix,
    labels: np.ndarray,
    tuning: sparse.csr_matrix | None,
    tuning_labels: np.ndarray,
    seed: int,
) -> tuple[TreesModel, dict[str, float]]:
    """Fit on train; with a tuning matrix keep the trees up to the best tuning AUROC, without one grow 100.

    Gives the model and the tuning AUROC at the chosen number of trees.
    """
    settings = {**SETTINGS, "seed": seed, "nthread": _threads()}
    train_data = xgboost.DMatrix(train, label=labels)
    if tuning is None:
        booster = xgboost.train(settings, train_data, num_boost_round=FIXED_TREES)
        return TreesModel(booster, FIXED_TREES), {}
    booster = xgboost.train(
        settings,
        train_data,
        num_boost_round=MAX_TREES,
        evals=[(xgboost.DMatrix(tuning, label=tuning_labels), "tuning")],
        early_stopping_rounds=PATIENCE,
        verbose_eval=False,
    )
    n_trees = booster.best_iteration + 1
    return TreesModel(booster[:n_trees], n_trees), {str(n_trees): float(booster.best_score)}


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
