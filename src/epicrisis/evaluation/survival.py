"""Metrics of times to an event, right-censored, for many weightings of the same rows at once.

c_index: Harrell's C of the risk (Harrell et al. 1982). c_index_uno: the same with pairs weighted by the inverse
probability of censoring, up to the farthest horizon (Uno et al. 2011). auroc@h: cumulative/dynamic AUC of the
probability of the event by h days, events by then against rows followed beyond (Uno et al. 2007; Hung & Chiang 2010).
brier@h: the Brier score at h (Graf et al. 1999); ibs: its trapezoidal mean from the nearest to the farthest horizon.
All but Harrell's C are weighted by the probability of not being censored, which is fitted on the train rows' labels, as
in scikit-survival.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from epicrisis.evaluation.metrics import Scorer
from epicrisis.evaluation.survival_predictions import SurvivalArrays
from epicrisis.training.concordance import Concordance

C_INDEX = "c_index"
UNO = "c_index_uno"
IBS = "ibs"


def at_horizon(metric: str, days: float) -> str:
    """What the metric at a horizon is called: `brier@365`."""
    return f"{metric}@{days:g}"


@dataclass(frozen=True)
class Censoring:
    """The probability of being followed beyond each day, Kaplan–Meier; events of a day come before its censorings."""

    days: np.ndarray
    probability: np.ndarray

    @classmethod
    def fit(cls, days: np.ndarray, observed: np.ndarray) -> Censoring:
        """On the labels of train rows."""
        distinct, place = np.unique(days, return_inverse=True)
        leaving, events = (np.bincount(place, weights, len(distinct)) for weights in (None, observed.astype(float)))
        at_risk = leaving[::-1].cumsum()[::-1] - events
        censored = np.divide(leaving - events, at_risk, out=np.zeros(len(distinct)), where=leaving > events)
        return cls(distinct, np.cumprod(1 - censored))

    def at(self, days: np.ndarray) -> np.ndarray:
        """The probability at these days; NaN beyond the last of train, unless it has fallen to 0 there."""
        steps = np.concatenate([[1.0], self.probability])
        found = steps[np.searchsorted(self.days, days, side="right")]
        beyond = np.asarray(days) > (self.days[-1] if len(self.days) else -np.inf)
        return np.where(beyond & (steps[-1] > 0), np.nan, found)


def kaplan_meier(days: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(days, survival, its standard error by Greenwood) at the distinct days of follow-up."""
    distinct, place = np.unique(days, return_inverse=True)
    leaving, events = (np.bincount(place, weights, len(distinct)) for weights in (None, observed.astype(float)))
    at_risk = leaving[::-1].cumsum()[::-1]
    survival = np.cumprod(1 - events / at_risk)
    spread = np.divide(events, at_risk * (at_risk - events), out=np.zeros(len(distinct)), where=at_risk > events)
    return distinct, survival, survival * np.sqrt(np.cumsum(spread))


class SurvivalScorer:
    """The rows to score, and the censoring of the train rows.

    `scores(weights)` takes non-negative weights [n_weightings, n] and gives {metric: [n_weightings]}, NaN where a
    metric does not exist.
    """

    def __init__(self, rows: SurvivalArrays, censoring: Censoring):
        self.rows, self.n = rows, len(rows.days)
        self._concordance = Concordance(rows.days, rows.observed, rows.risk)
        self._uncensored = censoring.at(rows.horizons)
        with np.errstate(divide="ignore", invalid="ignore"):
            self._inverse = np.where(rows.observed, 1 / censoring.at(rows.days), 0.0)
        self._at = [self._at_horizon(place) for place in range(len(rows.horizons))]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics."""
        names = [at_horizon(metric, days) for days in self.rows.horizons for metric in ("auroc", "brier")]
        return (C_INDEX, UNO, IBS, *names)

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """{metric: [n_weightings]} for weights [n_weightings, n]."""
        found = dict(zip((C_INDEX, UNO), self._concordances(weights), strict=True)) | {IBS: np.zeros(0)}
        total = weights.sum(axis=1, dtype=np.float64)
        for days, known, (scorer, counts, errors) in zip(self.rows.horizons, self._known, self._at, strict=True):
            missing = np.full(len(weights), np.nan)
            with np.errstate(divide="ignore", invalid="ignore"):
                brier = weights.astype(np.float64) @ errors / total
            found[at_horizon("auroc", days)] = scorer.scores(weights * counts)["auroc"] if known else missing
            found[at_horizon("brier", days)] = brier if known else missing
        found[IBS] = self._integrated(found)
        return {metric: found[metric] for metric in self.metrics}

    def point(self) -> dict[str, float | None]:
        """Each metric of the rows as they are; None where it does not exist."""
        found = self.scores(np.ones((1, self.n)))
        return {metric: None if np.isnan(value[0]) else float(value[0]) for metric, value in found.items()}

    def reasons(self) -> dict[str, str]:
        """{metric: why it does not exist}, for those that do not."""
        return {metric: self._why(metric) for metric, value in self.point().items() if value is None}

    @property
    def _known(self) -> np.ndarray:
        """Horizons at which some train row is known to be still followed."""
        return np.nan_to_num(self._uncensored) > 0

    def _at_horizon(self, place: int) -> tuple[Scorer, np.ndarray, np.ndarray]:
        """Of one horizon: the scorer of events by then, what each row counts in it, and its squared error."""
        days, probability = self.rows.horizons[place], self.rows.probabilities[:, place]
        is_case, is_control = self.rows.observed & (self.rows.days <= days), self.rows.days > days
        counts = np.where(is_case, self._inverse, is_control)
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = np.where(is_case, (1 - probability) ** 2 * self._inverse, 0.0)
            errors = np.where(is_control, probability**2 / self._uncensored[place], errors)
        return Scorer(is_case, probability), counts, errors

    def _concordances(self, weights: np.ndarray) -> np.ndarray:
        """Harrell's and Uno's C, [2, n_weightings]."""
        near = self.rows.observed & (self.rows.days < self.rows.horizons[-1]) if self.n else self.rows.observed
        factors = np.stack([np.ones(self.n), np.where(near, self._inverse, 0.0) ** 2])
        factors[1] *= 1 if self.n and self._known[-1] else np.nan
        concordant, comparable = self._concordance.counts(weights, factors)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (concordant / comparable).T

    def _integrated(self, found: dict[str, np.ndarray]) -> np.ndarray:
        horizons = self.rows.horizons
        if len(horizons) < 2:
            return np.full(len(found[C_INDEX]), np.nan)
        each = np.stack([found[at_horizon("brier", days)] for days in horizons])
        return np.trapezoid(each, horizons, axis=0) / (horizons[-1] - horizons[0])

    def _why(self, metric: str) -> str:
        if not self.n:
            return "no rows"
        if metric == C_INDEX or (metric == UNO and self._known[-1]):
            return "no row has its event while another is still followed"
        if metric == IBS and len(self.rows.horizons) < 2:
            return "one horizon only"
        if not self._known.all():
            beyond = ", ".join(f"{days:g}" for days in self.rows.horizons[~self._known])
            return f"no train row is followed beyond {beyond} days"
        return "no row has its event by then, or none is followed beyond"
