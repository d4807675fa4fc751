"""Patient-level percentile bootstrap: whole subjects are drawn again, with all their rows.

Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; subjects as clusters, since
the rows of one patient are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from epicrisis.evaluation.class_metrics import ClassScorer
from epicrisis.evaluation.metrics import METRICS, Scorer, point_scores, why_undefined
from epicrisis.evaluation.predictions import KEY, PROBABILITY, class_arrays, kind_of_predictions
from epicrisis.evaluation.survival import Censoring, SurvivalScorer
from epicrisis.evaluation.survival_predictions import survival_arrays

# Weights held at once: few enough to stay in the processor's cache, which is faster than larger chunks.
WEIGHTS_AT_ONCE = 200_000
TOO_FEW_SUBJECTS = "fewer than two subjects: no interval"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval; None where it does not exist, with the reason.

    n_left_out: resamples (of n_resamples) in which the metric did not exist; the interval is over the others.
    """

    value: float | None
    lower: float | None
    upper: float | None
    n_resamples: int = 0
    n_left_out: int = 0
    reason: str | None = None

    @property
    def excludes_half(self) -> bool:
        """True if the whole interval lies on one side of 0.5."""
        return self.lower is not None and self.upper is not None and not self.lower <= 0.5 <= self.upper


@dataclass(frozen=True)
class Draws:
    """The metrics of one arm on its rows and on every resample; arms with equal rows and seed are paired.

    point: {metric: value or None}; resampled: {metric: [n_resamples]}, NaN where undefined; reasons: {metric:
    why None}.
    """

    point: dict[str, float | None]
    resampled: dict[str, np.ndarray]
    reasons: dict[str, str]
    n_subjects: int

    def estimate(self, metric: str) -> Estimate:
        """The metric with its percentile interval."""
        return interval(self.point[metric], self.resampled[metric], self.n_subjects, self.reasons.get(metric))


def bootstrap(
    predictions: pl.DataFrame, n_resamples: int = 2000, seed: int = 0, censoring: Censoring | None = None
) -> Draws:
    """All metrics of one arm's predictions, plain and resampled by subject; of a long table those of every class.

    The resamples depend on the seed and the set of subjects only, so two arms on the same rows share them. censoring:
    of the train rows, which are not resampled; needed for times to an event, else ValueError.
    """
    if "horizon_days" in predictions.columns:
        return _bootstrap_survival(predictions, n_resamples, seed, censoring)
    if "class" in predictions.columns:
        return _bootstrap_classes(predictions, n_resamples, seed)
    table = predictions.sort(KEY)
    labels, probabilities = table["boolean_value"].to_numpy(), table[PROBABILITY].to_numpy()
    reasons = {metric: reason for metric in METRICS if (reason := why_undefined(metric, labels))}
    subjects, subject_of_row = np.unique(table["subject_id"].to_numpy(), return_inverse=True)
    scorer = Scorer(labels, probabilities)
    resampled = _resample(scorer, METRICS, len(subjects), subject_of_row, n_resamples, seed, table.height)
    return Draws(point_scores(labels, probabilities), resampled, reasons, len(subjects))


def _bootstrap_classes(predictions: pl.DataFrame, n_resamples: int, seed: int) -> Draws:
    classes, subject_ids, labels, probabilities = class_arrays(predictions)
    scorer = ClassScorer(classes, labels, probabilities, kind_of_predictions(predictions))
    subjects, subject_of_row = np.unique(subject_ids, return_inverse=True)
    resampled = _resample(scorer, scorer.metrics, len(subjects), subject_of_row, n_resamples, seed, labels.size)
    return Draws(scorer.point(), resampled, scorer.reasons(), len(subjects))


def _bootstrap_survival(predictions: pl.DataFrame, n_resamples: int, seed: int, censoring: Censoring | None) -> Draws:
    if censoring is None:
        raise ValueError("metrics of times to an event need the censoring of the train rows")
    rows = survival_arrays(predictions)
    scorer = SurvivalScorer(rows, censoring)
    subjects, subject_of_row = np.unique(rows.subject_id, return_inverse=True)
    resampled = _resample(scorer, scorer.metrics, len(subjects), subject_of_row, n_resamples, seed, scorer.n)
    return Draws(scorer.point(), resampled, scorer.reasons(), len(subjects))


def _resample(
    scorer: Scorer | ClassScorer | SurvivalScorer,
    metrics: Sequence[str],
    n_subjects: int,
    subject_of_row: np.ndarray,
    n_resamples: int,
    seed: int,
    size: int,
) -> dict[str, np.ndarray]:
    """{metric: [n_resamples]}. size: numbers that one resample's weights come to."""
    parts = [
        scorer.scores(counts[:, subject_of_row]) for counts in resample_counts(n_subjects, n_resamples, seed, size)
    ]
    return {metric: np.concatenate([part[metric] for part in parts] or [np.zeros(0)]) for metric in metrics}


def resample_counts(n_subjects: int, n_resamples: int, seed: int, n_rows: int) -> Iterator[np.ndarray]:
    """How often each subject is drawn, in chunks [some resamples, n_subjects] that do not alter the draws."""
    if n_subjects == 0:
        return
    generator = np.random.default_rng(seed)
    chunk = max(1, WEIGHTS_AT_ONCE // max(n_rows, n_subjects))
    for start in range(0, n_resamples, chunk):
        yield np.stack(
            [
                np.bincount(generator.integers(n_subjects, size=n_subjects), minlength=n_subjects)
                for _ in range(min(chunk, n_resamples - start))
            ]
        )


def interval(value: float | None, resampled: np.ndarray, n_subjects: int, reason: str | None = None) -> Estimate:
    """The 95% percentile interval of resampled values, without the NaN among them, which are counted."""
    defined = resampled[~np.isnan(resampled)]
    n, left_out = len(resampled), len(resampled) - len(defined)
    if value is None:
        return Estimate(None, None, None, n, left_out, reason or "undefined")
    if n_subjects < 2 or not len(defined):
        return Estimate(
            value,
            None,
            None,
            n,
            left_out,
            TOO_FEW_SUBJECTS if n_subjects < 2 else "undefined in every resample",
        )
    lower, upper = np.percentile(defined, [2.5, 97.5])
    return Estimate(value, float(lower), float(upper), n, left_out)


def paired_difference(arm: Draws, baseline: Draws, metric: str = "auroc") -> Estimate:
    """The metric of `arm` minus that of `baseline`, with the difference's interval on the same resamples.

    Raises ValueError if the two were drawn with different resamples.
    """
    _check_paired(arm, baseline, metric)
    of_arm, of_baseline = arm.point[metric], baseline.point[metric]
    value = None if of_arm is None or of_baseline is None else of_arm - of_baseline
    differences = arm.resampled[metric] - baseline.resampled[metric]
    return interval(value, differences, arm.n_subjects, arm.reasons.get(metric) or baseline.reasons.get(metric))


def lift_share(arm: Draws, oracle: Draws, metric: str = "auroc") -> Estimate:
    """The share of the best possible lift that the arm reaches: (AUROC − 0.5) / (oracle's AUROC − 0.5).

    metric: or another that is 0.5 by chance. Resamples in which the oracle itself is at or below 0.5 are left out,
    since the share means nothing there.
    """
    _check_paired(arm, oracle, metric)
    of_arm, of_oracle = arm.point[metric], oracle.point[metric]
    if of_arm is None or of_oracle is None:
        return Estimate(None, None, None, reason=arm.reasons.get(metric) or oracle.reasons.get(metric))
    if of_oracle <= 0.5:
        return Estimate(None, None, None, reason="the oracle itself is not above 0.5 on these rows")
    best = oracle.resampled[metric] - 0.5
    shares = np.divide(arm.resampled[metric] - 0.5, best, out=np.full(len(best), np.nan), where=best > 0)
    return interval((of_arm - 0.5) / (of_oracle - 0.5), shares, arm.n_subjects)


def _check_paired(arm: Draws, other: Draws, metric: str) -> None:
    if len(arm.resampled[metric]) != len(other.resampled[metric]) or arm.n_subjects != other.n_subjects:
        raise ValueError("two arms are compared on the same resamples only: same rows, same seed, same number")
