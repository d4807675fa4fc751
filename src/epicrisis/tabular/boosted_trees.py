"""Gradient-boosted trees (XGBoost) on counts and numbers, stopped early on the tuning rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from epicrisis.cohort.task import TaskKind
from epicrisis.tabular.counts import CountFeatures, RowCodes
from epicrisis.tabular.examples import Examples, Tried, fit_parts, threads, two_classes
from epicrisis.tracking.run_directory import replacing

SETTINGS = {"tree_method": "hist", "max_depth": 4, "subsample": 0.8, "colsample_bytree": 0.5}
OBJECTIVES = {
    "binary": {"objective": "binary:logistic", "eval_metric": "auc"},
    "multiclass": {"objective": "multi:softprob", "eval_metric": "auc"},
}
# The least second-order weight of a leaf is XGBoost's 1, some four rows, or less where train rows are fewer than this.
ROWS_FOR_WHOLE_WEIGHT = 100
MAX_TREES = 1000
PATIENCE = 50
FIXED_TREES = 100
ABOUT = "trees.json"


@dataclass(frozen=True)
class TreesModel:
    """Boosters cut at their best number of rounds: one, or one for each label of a multilabel task."""

    boosters: tuple[xgboost.Booster, ...]
    kind: TaskKind = "binary"

    @property
    def chosen(self) -> dict[str, Any]:
        """Rounds of boosting; of several labels, each one's."""
        rounds = [booster.num_boosted_rounds() for booster in self.boosters]
        return {"n_trees": rounds if self.kind == "multilabel" else rounds[0]}

    def probability(self, features: CountFeatures, table: RowCodes) -> np.ndarray:
        """[n_rows, n_classes]."""
        data = xgboost.DMatrix(features.for_trees(table))
        found = [booster.predict(data).astype(np.float64) for booster in self.boosters]
        if self.kind == "multilabel":
            return np.stack(found, axis=1)
        return two_classes(found[0]) if self.kind == "binary" else found[0] / found[0].sum(axis=1, keepdims=True)

    def save(self, folder: Path) -> None:
        """Write model-0.ubj and so on, XGBoost's own format (universal binary JSON), and trees.json."""
        for place, booster in enumerate(self.boosters):
            with replacing(folder / _file(place)) as part:
                part.write_bytes(booster.save_raw("ubj"))
        with replacing(folder / ABOUT) as part:
            part.write_text(json.dumps({"boosters": len(self.boosters), "kind": self.kind}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TreesModel:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        boosters = [xgboost.Booster() for _ in range(about["boosters"])]
        for place, booster in enumerate(boosters):
            booster.load_model(bytearray((folder / _file(place)).read_bytes()))
        return cls(tuple(boosters), about["kind"])


def fit_trees(
    train: Examples, tuning: Examples | None, kind: TaskKind, seed: int, learning_rate: float
) -> tuple[TreesModel, Tried]:
    """Fit on train; with tuning examples keep the trees up to their best AUROC, without them grow 100 rounds.

    Of several classes the AUROC is the mean of each against the rest, weighted by their share (XGBoost's own); of
    several labels each is fitted and stopped by itself. Gives the model and the tuning AUROC at the chosen number of
    rounds.
    """
    boosters, tried = fit_parts(train, tuning, kind, partial(_fit, seed=seed, learning_rate=learning_rate))
    return TreesModel(boosters, kind), tried


def _fit(
    train: Examples, tuning: Examples | None, kind: TaskKind, *, seed: int, learning_rate: float
) -> tuple[xgboost.Booster, Tried]:
    settings = {**OBJECTIVES[kind], **SETTINGS, "eta": learning_rate, "seed": seed, "nthread": threads()}
    settings |= {"min_child_weight": min(1.0, train.matrix.shape[0] / ROWS_FOR_WHOLE_WEIGHT)}
    settings |= {"num_class": train.labels.shape[1]} if kind == "multiclass" else {}
    train_data = xgboost.DMatrix(train.matrix, label=train.targets(kind))
    if tuning is None or not tuning.has_every_class(kind):
        return xgboost.train(settings, train_data, num_boost_round=FIXED_TREES), {}
    booster = xgboost.train(
        settings,
        train_data,
        num_boost_round=MAX_TREES,
        evals=[(xgboost.DMatrix(tuning.matrix, label=tuning.targets(kind)), "tuning")],
        early_stopping_rounds=PATIENCE,
        verbose_eval=False,
    )
    best = booster[: booster.best_iteration + 1]
    return best, {str(best.num_boosted_rounds()): float(booster.best_score)}


def _file(place: int) -> str:
    return f"model-{place}.ubj"
