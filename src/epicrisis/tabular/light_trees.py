"""Gradient-boosted trees grown leaf by leaf (LightGBM), stopped early on the tuning rows.

To LightGBM what is absent from a sparse matrix is 0, so a missing number is told by the column that says whether it
was measured (`CountFeatures.for_forest`). Source: Ke et al., LightGBM, NeurIPS 2017.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from epicrisis.cohort.task import TaskKind
from epicrisis.tabular.counts import CountFeatures, RowCodes
from epicrisis.tabular.examples import Examples, Tried, fit_parts, joined, mean_auroc, threads, two_classes
from epicrisis.tracking.run_directory import replacing

SETTINGS = {
    **{"num_leaves": 15, "bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.5},
    # the same trees whatever the number of threads
    **{"deterministic": True, "force_row_wise": True, "metric": "None", "verbosity": -1},
}
OBJECTIVES = {"binary": "binary", "multiclass": "multiclass"}
ROWS_IN_LEAF = 20
MAX_TREES = 1000
PATIENCE = 50
FIXED_TREES = 100
ABOUT = "light_trees.json"


@dataclass(frozen=True)
class LightModel:
    """Boosters cut at their best number of rounds: one, or one for each label of a multilabel task."""

    boosters: tuple[lightgbm.Booster, ...]
    kind: TaskKind = "binary"

    @property
    def chosen(self) -> dict[str, Any]:
        """Rounds of boosting; of several labels, each one's."""
        rounds = [booster.current_iteration() for booster in self.boosters]
        return {"n_trees": rounds if self.kind == "multilabel" else rounds[0]}

    def probability(self, features: CountFeatures, table: RowCodes) -> np.ndarray:
        """[n_rows, n_classes]."""
        matrix = features.for_forest(table)
        found = [np.asarray(booster.predict(matrix, num_threads=threads())) for booster in self.boosters]
        return joined([two_classes(one) if one.ndim == 1 else one for one in found], self.kind)

    def save(self, folder: Path) -> None:
        """Write model-0.txt and so on, LightGBM's own text format, and light_trees.json."""
        for place, booster in enumerate(self.boosters):
            with replacing(folder / _file(place)) as part:
                part.write_text(booster.model_to_string(), encoding="utf-8")
        with replacing(folder / ABOUT) as part:
            part.write_text(json.dumps({"boosters": len(self.boosters), "kind": self.kind}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> LightModel:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        texts = [(folder / _file(place)).read_text(encoding="utf-8") for place in range(about["boosters"])]
        return cls(tuple(lightgbm.Booster(model_str=text) for text in texts), about["kind"])


def fit_light(
    train: Examples, tuning: Examples | None, kind: TaskKind, seed: int, learning_rate: float
) -> tuple[LightModel, Tried]:
    """Fit on train; with tuning examples keep the trees up to their best mean AUROC, without them grow 100 rounds.

    Of several labels each is fitted and stopped by itself. A leaf holds 20 train rows, or a twentieth of them where
    they are fewer than 400. Gives the model and the tuning AUROC at the chosen number of rounds.
    """
    boosters, tried = fit_parts(train, tuning, kind, partial(_fit, seed=seed, learning_rate=learning_rate))
    return LightModel(boosters, kind), tried


def _fit(
    train: Examples, tuning: Examples | None, kind: TaskKind, *, seed: int, learning_rate: float
) -> tuple[lightgbm.Booster, Tried]:
    n_rows, n_classes = train.labels.shape
    leaf = {"min_data_in_leaf": max(1, min(ROWS_IN_LEAF, n_rows // ROWS_IN_LEAF))}
    settings = {**SETTINGS, **leaf, "objective": OBJECTIVES[kind], "learning_rate": learning_rate}
    settings |= {"seed": seed, "num_threads": threads()}
    settings |= {"num_class": n_classes} if kind == "multiclass" else {}
    data = lightgbm.Dataset(train.matrix, label=train.targets(kind), params=settings)
    if tuning is None or not tuning.has_every_class(kind):
        return _plain(lightgbm.train(settings, data, num_boost_round=FIXED_TREES), FIXED_TREES), {}
    known = tuning.labels

    def auroc(scores: np.ndarray, _: lightgbm.Dataset) -> tuple[str, float, bool]:
        return "auroc", mean_auroc(known, scores.reshape(len(known), -1), kind), True

    booster = lightgbm.train(
        settings,
        data,
        num_boost_round=MAX_TREES,
        valid_sets=[data.create_valid(tuning.matrix, label=tuning.targets(kind))],
        valid_names=["tuning"],
        feval=auroc,
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    best = _plain(booster, booster.best_iteration)
    return best, {str(best.current_iteration()): float(booster.best_score["tuning"]["auroc"])}


def _plain(booster: lightgbm.Booster, rounds: int) -> lightgbm.Booster:
    """The first rounds of a booster as its text has them, so that it predicts the same before saving and after."""
    return lightgbm.Booster(model_str=booster.model_to_string(num_iteration=rounds))


def _file(place: int) -> str:
    return f"model-{place}.txt"
