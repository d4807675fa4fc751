"""Gradient-boosted trees (XGBoost) on counts and last values, stopped early on the tuning rows."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xgboost

from epicrisis.cohort.task import TaskKind
from epicrisis.tabular.counts import CountFeatures, RowCodes
from epicrisis.tabular.examples import Examples, Tried, two_classes
from epicrisis.tracking.run_directory import replacing

SETTINGS = {"tree_method": "hist", "max_depth": 4, "eta": 0.05, "subsample": 0.8, "colsample_bytree": 0.5}
OBJECTIVES = {
    "binary": {"objective": "binary:logistic", "eval_metric": "auc"},
    "multiclass": {"objective": "multi:softprob", "eval_metric": "auc"},
}
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
    def n_trees(self) -> int | list[int]:
        """Rounds of boosting; of several labels, each one's."""
        rounds = [booster.num_boosted_rounds() for booster in self.boosters]
        return rounds if self.kind == "multilabel" else rounds[0]

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


def fit_trees(train: Examples, tuning: Examples | None, kind: TaskKind, seed: int) -> tuple[TreesModel, Tried]:
    """Fit on train; with tuning examples keep the trees up to their best AUROC, without them grow 100 rounds.

    Of several classes the AUROC is the mean of each against the rest, weighted by their share (XGBoost's own); of
    several labels each is fitted and stopped by itself. Gives the model and the tuning AUROC at the chosen number of
    rounds.
    """
    if kind != "multilabel":
        booster, score = _fit(train, tuning, kind, seed)
        rounds = str(booster.num_boosted_rounds())
        return TreesModel((booster,), kind), {} if score is None else {rounds: score}
    fitted = [_fit(one, tuning and tuning.of_label(label), "binary", seed) for label, one in train.each_label()]
    tried = {
        f"{label} {booster.num_boosted_rounds()}": score
        for label, (booster, score) in enumerate(fitted)
        if score is not None
    }
    return TreesModel(tuple(booster for booster, _ in fitted), kind), tried


def _fit(train: Examples, tuning: Examples | None, kind: TaskKind, seed: int) -> tuple[xgboost.Booster, float | None]:
    settings = {**OBJECTIVES[kind], **SETTINGS, "seed": seed, "nthread": _threads()}
    settings |= {"num_class": train.labels.shape[1]} if kind == "multiclass" else {}
    train_data = xgboost.DMatrix(train.matrix, label=train.targets(kind))
    if tuning is None or not tuning.has_every_class(kind):
        return xgboost.train(settings, train_data, num_boost_round=FIXED_TREES), None
    booster = xgboost.train(
        settings,
        train_data,
        num_boost_round=MAX_TREES,
        evals=[(xgboost.DMatrix(tuning.matrix, label=tuning.targets(kind)), "tuning")],
        early_stopping_rounds=PATIENCE,
        verbose_eval=False,
    )
    return booster[: booster.best_iteration + 1], float(booster.best_score)


def _file(place: int) -> str:
    return f"model-{place}.ubj"


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
