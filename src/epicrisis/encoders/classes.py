"""What an arm of this room tells apart, and how much each class weighs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from epicrisis.cohort.task import TaskKind, classes_of_labels, kind_of_labels, label_matrix
from epicrisis.corpus.prepare import KEYS
from epicrisis.settings import Settings, refuse
from epicrisis.training.class_losses import fitted_weights, targets_of
from epicrisis.training.class_weights import ClassWeights


@dataclass(frozen=True)
class Classes:
    """names: in the order of the probabilities; weights: what they weigh in the loss."""

    kind: TaskKind
    names: tuple[str, ...]
    weights: ClassWeights

    @classmethod
    def of_task(cls, settings: Settings, rows: pl.DataFrame) -> Classes:
        """The task of these rows (train and tuning).

        Raises InputError for rows without labels or with times to an event, another number of classes than
        model.num_classes, train rows that lack a class, and a tuning split without rows, on which training is watched.
        """
        kind, names = kind_of_labels(rows), classes_of_labels(rows)
        if kind == "none":
            raise refuse("data.labels_dir", "holds no label to learn", "give true or false, or words")
        expected = settings.model.num_classes
        if expected is not None and expected != len(names):
            what = f"{expected}, but the task has the {len(names)} classes {', '.join(names)}"
            raise refuse("model.num_classes", what, "mend it, or leave it out")
        train = rows.filter(pl.col("split") == "train")
        has = label_matrix(train, names)
        unseen = [name for name in names if not has[name].any()]
        if unseen:
            fix = "join these classes with others, or leave their rows out"
            raise refuse("data.labels_dir", f"no train row has {', '.join(unseen)}", fix)
        if rows.filter(pl.col("split") == "tuning").is_empty():
            what = "the tuning split has no rows, and training is watched on them"
            raise refuse("data", what, "give some subjects of the cohort the split tuning")
        return cls(kind, names, fitted_weights(settings.training.class_weights, train, kind, names))

    def targets(self, keys: pl.DataFrame, rows: pl.DataFrame) -> np.ndarray:
        """What the rows of these keys (subject_id, prediction_time) are; rows: with their labels."""
        labelled = keys.join(rows, on=KEYS, how="left", maintain_order="left")
        return targets_of(labelled, self.kind, self.names)

    def saved(self) -> dict[str, Any]:
        """As plain JSON, for `load`."""
        return {"kind": self.kind, "classes": list(self.names), "class_weights": self.weights.values.tolist()}

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> Classes:
        """What was saved."""
        weights = ClassWeights(np.asarray(saved["class_weights"], dtype=np.float64))
        return cls(saved["kind"], tuple(saved["classes"]), weights)
