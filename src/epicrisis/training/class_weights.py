"""Weights of classes in the loss, and what brings probabilities back to the classes' true shares.

Sources: King & Zeng 2001, Logistic regression in rare events data (Political Analysis 9:137); Elkan 2001, The
foundations of cost-sensitive learning (IJCAI); Saerens, Latinne & Decaestecker 2002, Adjusting the outputs of a
classifier to new a priori probabilities (Neural Computation 14:21).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from epicrisis.settings import refuse


@dataclass(frozen=True)
class ClassWeights:
    """values: float64 [n_classes]; of a multilabel task [n_classes, 2], for rows without and with each label.

    Averaged over the train rows they are 1, so that the loss, and with it the learning rate, keeps its scale.
    """

    values: np.ndarray

    @property
    def multilabel(self) -> bool:
        return self.values.ndim == 2

    @classmethod
    def even(cls, n_classes: int, *, multilabel: bool = False) -> ClassWeights:
        """All 1."""
        return cls(np.ones((n_classes, 2) if multilabel else n_classes))

    @classmethod
    def fit(cls, asked: Literal["none", "balanced"] | Sequence[float], has: np.ndarray) -> ClassWeights:
        """The weights that `training.class_weights` comes to on the train rows.

        has: the index of each row's class, int [n_rows] (with all classes among them), or bool [n_rows, n_labels].
        balanced: each class weighs as much in sum as any other (n / (n_classes x rows of the class), as in
        scikit-learn). A list gives the classes' weights, of labels the weight of rows that have each, relative to
        rows that do not. Raises InputError for a list of another length.
        """
        multilabel = has.ndim == 2
        counts = np.stack([(~has).sum(axis=0), has.sum(axis=0)], axis=1) if multilabel else np.bincount(has)
        n_classes = len(counts)
        if asked == "none":
            return cls.even(n_classes, multilabel=multilabel)
        if asked == "balanced":
            weights = 1 / np.maximum(counts, 1)
        elif len(asked) != n_classes:
            what = f"{len(asked)} weights for {n_classes} classes"
            raise refuse("training.class_weights", what, "give one for each, in class order")
        else:
            given = np.asarray(asked, dtype=np.float64)
            weights = np.stack([np.ones(n_classes), given], axis=1) if multilabel else given
        mean = (weights * counts).sum(axis=-1, keepdims=True) / counts.sum(axis=-1, keepdims=True)
        return cls(weights / mean)

    def shift(self) -> np.ndarray:
        """What is taken off the logits [n_classes] to have the train rows' own shares again.

        Weighting a class by w is training on w times as many of it, which adds log w to its logit.
        """
        logs = np.log(self.values)
        return logs[:, 1] - logs[:, 0] if self.multilabel else logs
