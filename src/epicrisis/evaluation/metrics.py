"""AUROC, AUPRC, Brier score and ECE for many weightings of the same rows at once.

Weight 1 on every row gives the plain metric; a bootstrap resample is a row of counts. One sort serves all of
them.
"""

from __future__ import annotations

import numpy as np

METRICS = ("auroc", "auprc", "brier", "ece")
ECE_BINS = 10
ONE_CLASS = "one class only: {n_positive} of {n} rows are positive"


class Scorer:
    """The rows to score. labels: bool [n]; probabilities of the label being true: float [n], not NaN.

    `scores(weights)` takes non-negative weights [n_weightings, n] and gives {metric: [n_weightings]},
    NaN where a metric does not exist.

    * auroc: area under the ROC curve, ties counted half (the Mann-Whitney statistic).
    * auprc: average precision, the step-wise sum of scikit-learn, never a trapezoid.
    * brier: mean squared difference of probability and outcome.
    * ece: expected calibration error over ten bins of equal width (Naeini et al. 2015; Guo et al. 2017).
    """

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray, n_bins: int = ECE_BINS):
        labels, probabilities = np.asarray(labels, dtype=bool), np.asarray(probabilities, dtype=np.float64)
        self.n = len(labels)
        self.order = np.argsort(-probabilities, kind="stable")
        self.ranked_labels = labels[self.order]
        ranked = probabilities[self.order]
        self.tie_starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if self.n else np.zeros(0, dtype=int)
        self.row_sums = _row_sums(labels, probabilities, n_bins)

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """{metric: [n_weightings]} for weights [n_weightings, n]."""
        if not self.n:
            return {metric: np.full(len(weights), np.nan) for metric in METRICS}
        with np.errstate(invalid="ignore", divide="ignore"):
            return {**self._ranking_scores(weights), **self._probability_scores(weights)}

    def _ranking_scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        ranked = weights[:, self.order].astype(np.float64)
        positives = np.add.reduceat(ranked * self.ranked_labels, self.tie_starts, axis=1)
        negatives = np.add.reduceat(ranked, self.tie_starts, axis=1) - positives
        true_positives, false_positives = np.cumsum(positives, axis=1), np.cumsum(negatives, axis=1)
        n_positive, n_negative = true_positives[:, -1], false_positives[:, -1]
        # A negative is beaten by every positive above it and by half of those at the same probability.
        wins = (negatives * (true_positives - positives / 2)).sum(axis=1)
        called = true_positives + false_positives
        precision = np.divide(true_positives, called, out=np.zeros_like(called), where=called > 0)
        undefined = (n_positive == 0) | (n_negative == 0)
        return {
            "auroc": np.where(undefined, np.nan, wins / (n_positive * n_negative)),
            "auprc": np.where(undefined, np.nan, (positives * precision).sum(axis=1) / n_positive),
        }

    def _probability_scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(axis=1, dtype=np.float64)
        sums = weights.astype(np.float64) @ self.row_sums
        return {"brier": sums[:, 0] / total, "ece": np.abs(sums[:, 1:]).sum(axis=1) / total}


def point_scores(labels: np.ndarray, probabilities: np.ndarray, n_bins: int = ECE_BINS) -> dict[str, float | None]:
    """Each metric of the rows as they are; None where it does not exist."""
    scores = Scorer(labels, probabilities, n_bins).scores(np.ones((1, len(labels))))
    return {metric: None if np.isnan(value[0]) else float(value[0]) for metric, value in scores.items()}


def why_undefined(metric: str, labels: np.ndarray) -> str | None:
    """The reason why a metric does not exist for these labels, or None if it does."""
    n, n_positive = len(labels), int(np.sum(labels))
    if n == 0:
        return "no rows"
    if metric in ("auroc", "auprc") and n_positive in (0, n):
        return ONE_CLASS.format(n_positive=n_positive, n=n)
    return None


def bin_of(probabilities: np.ndarray, n_bins: int = ECE_BINS) -> np.ndarray:
    """The index of each probability's bin of equal width; an edge belongs to the bin below it."""
    return np.searchsorted(np.linspace(0, 1, n_bins + 1)[1:-1], probabilities)


def _row_sums(labels: np.ndarray, probabilities: np.ndarray, n_bins: int) -> np.ndarray:
    """[n, 1 + n_bins]: the squared error, then probability − outcome in the column of the row's bin."""
    gaps = probabilities - labels
    sums = np.zeros((len(labels), 1 + n_bins))
    sums[:, 0] = gaps**2
    sums[np.arange(len(labels)), 1 + bin_of(probabilities, n_bins)] = gaps
    return sums
