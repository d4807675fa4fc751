"""The metrics of tasks with more than two classes or several labels, each class against the rest.

Names: `auroc`, `auprc`, `brier` and `ece` are those of the task as a whole; `auroc:<class>` and its kin are of one
class against the rest. As a whole:

* auroc, auprc: the plain mean over classes (macro); auroc_weighted, auprc_weighted: the mean weighted by the
  classes' positives; auroc_micro, auprc_micro: over all (row, class) pairs at once. As scikit-learn has them. A class
  that no row, or every row, has is left out of the means; in a resample, a class that it holds none of.
* brier: multiclass, the squared error summed over classes (Brier 1950; scikit-learn, scale_by_half off);
  multilabel, the mean over labels.
* ece: multiclass, of the most probable class (Guo et al. 2017); multilabel, the mean over labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from epicrisis.cohort.task import TaskKind
from epicrisis.evaluation.metrics import METRICS, Scorer, why_undefined

AVERAGED = ("auroc", "auprc")
AVERAGINGS = ("weighted", "micro")
AVERAGES = tuple(f"{metric}_{average}" for metric in AVERAGED for average in AVERAGINGS)
NO_CLASS = "no class has rows with and without it"


def of_class(metric: str, name: str) -> str:
    """What the metric of one class against the rest is called."""
    return f"{metric}:{name}"


class ClassScorer:
    """The rows to score. labels: bool [n, n_classes]; probabilities: float likewise, not NaN.

    `scores(weights)` takes non-negative weights [n_weightings, n] and gives {metric: [n_weightings]}, NaN where a
    metric does not exist.
    """

    def __init__(self, classes: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, kind: TaskKind):
        self.classes, self.kind = tuple(classes), kind
        self.labels = np.asarray(labels, dtype=bool)
        self.n = len(self.labels)
        self._of_class = [Scorer(self.labels[:, c], probabilities[:, c]) for c in range(len(self.classes))]
        self._of_pairs = Scorer(self.labels.ravel(), probabilities.ravel())
        top = probabilities.argmax(axis=1) if self.n else np.zeros(0, dtype=int)
        rows = np.arange(self.n)
        self._of_top = Scorer(self.labels[rows, top], probabilities[rows, top])

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics: of the task as a whole, then class by class."""
        return (*METRICS, *AVERAGES, *(of_class(metric, name) for name in self.classes for metric in METRICS))

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """{metric: [n_weightings]} for weights [n_weightings, n]."""
        each = [scorer.scores(weights) for scorer in self._of_class]
        stacked = {metric: np.stack([scores[metric] for scores in each], axis=1) for metric in METRICS}
        pairs = self._of_pairs.scores(np.repeat(weights, len(self.classes), axis=1))
        positives = weights.astype(np.float64) @ self.labels
        found = {metric: _mean(stacked[metric], np.ones_like(positives)) for metric in METRICS}
        if self.kind == "multiclass":
            found |= {"brier": stacked["brier"].sum(axis=1), "ece": self._of_top.scores(weights)["ece"]}
        for metric in AVERAGED:
            found[f"{metric}_weighted"] = _mean(stacked[metric], positives)
            found[f"{metric}_micro"] = pairs[metric]
        for place, name in enumerate(self.classes):
            found |= {of_class(metric, name): stacked[metric][:, place] for metric in METRICS}
        return {metric: found[metric] for metric in self.metrics}

    def point(self) -> dict[str, float | None]:
        """Each metric of the rows as they are; None where it does not exist."""
        found = self.scores(np.ones((1, self.n)))
        return {metric: None if np.isnan(value[0]) else float(value[0]) for metric, value in found.items()}

    def reasons(self) -> dict[str, str]:
        """{metric: why it does not exist}, for those that do not."""
        missing = [metric for metric, value in self.point().items() if value is None]
        return {metric: self._why(metric) for metric in missing}

    def _why(self, metric: str) -> str:
        name, _, of = metric.partition(":")
        if of:
            return why_undefined(name, self.labels[:, self.classes.index(of)]) or "undefined"
        return NO_CLASS if self.n else "no rows"


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean over classes of those that are not NaN; [n_weightings]."""
    weights = np.where(np.isnan(values), 0.0, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.nan_to_num(values) * weights).sum(axis=1) / weights.sum(axis=1)
