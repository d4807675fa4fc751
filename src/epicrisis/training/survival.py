"""Time to an event, right-censored, from a landmark at the prediction time: losses, baselines and probabilities.

Two heads: the hazard of each of several intervals (Gensheimer & Narasimhan 2019, A scalable discrete-time survival
model for neural networks, arXiv:1805.00917), and one relative risk by Cox's partial likelihood (Cox 1972; ties as in
Efron 1977; Katzman et al. 2018, DeepSurv, arXiv:1606.00931) with Breslow's baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from epicrisis.cohort.task import TaskKind, follow_up
from epicrisis.settings import refuse
from epicrisis.settings.survival_section import SurvivalSettings
from epicrisis.training.concordance import concordance_index

RISK = "risk"
"""The first column of predictions: a number that is higher the earlier the event is expected."""
N_INTERVALS = 20


def interval_ends(days: np.ndarray, observed: np.ndarray, n_intervals: int) -> np.ndarray:
    """Upper ends of at most `n_intervals` intervals, float64, rising: quantiles of the events' days, the last included.

    Equal quantiles make one interval. An event on day 0 belongs to the first. Raises InputError where no event is
    observed after day 0.
    """
    events = days[observed]
    if not (events > 0).any():
        what = f"no event is observed after the prediction time in the {len(days)} train rows"
        raise refuse("data.labels_dir", what, "use a larger cohort, a commoner event, or a longer follow-up")
    shares = np.arange(1, n_intervals + 1) / n_intervals
    ends = np.unique(np.quantile(events, shares, method="inverted_cdf"))
    return ends[ends > 0]


def intervals_lived(
    days: torch.Tensor, observed: torch.Tensor, ends: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(survived, event), each bool [n, n_intervals]: which intervals (from, to] a row is known to have lived through.

    A row censored within an interval survived it if more than half of it was seen, else says nothing of it, nor of
    any later one. An event after the last interval has not come within any.
    """
    begins = F.pad(ends[:-1], (1, 0))
    whole = ends < days[:, None]
    survived = torch.where(observed[:, None], whole, days[:, None] >= (begins + ends) / 2)
    event = observed[:, None] & ~whole & ((begins < days[:, None]) | (begins == 0))
    return survived, event


def hazards_loss(logits: torch.Tensor, survived: torch.Tensor, event: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood summed over rows. logits: of each interval's hazard, [n, n_intervals]."""
    each = F.binary_cross_entropy_with_logits(logits, event.to(logits.dtype), reduction="none")
    return torch.where(survived | event, each, 0).sum()


def cox_loss(log_risks: torch.Tensor, days: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Negative log partial likelihood summed over the events, ties as in Efron. log_risks, days, observed: [n].

    The risk set of an event are the rows given here that are still followed on its day, so that of a batch is not that
    of the cohort. Without an event it is 0, with a gradient of 0.
    """
    order = torch.argsort(days, descending=True, stable=True)
    log_risks, observed = log_risks.double()[order], observed[order]
    _, group, sizes = torch.unique_consecutive(days[order], return_inverse=True, return_counts=True)
    at_risk = torch.logcumsumexp(log_risks, dim=0)[sizes.cumsum(0) - 1][group]
    at_risk, own, group = at_risk[observed], log_risks[observed], group[observed]
    shares = torch.zeros(len(sizes), dtype=own.dtype, device=own.device).index_add(0, group, (own - at_risk).exp())
    n_tied = torch.bincount(group, minlength=len(sizes))
    before = torch.arange(len(group), device=group.device) - (n_tied.cumsum(0) - n_tied)[group]
    thinned = torch.log1p(-(before / n_tied[group]) * shares[group])
    return (at_risk + thinned - own).sum()


@dataclass(frozen=True)
class Baseline:
    """Breslow's cumulative hazard of a row whose log risk is `centre`: steps at `days`, rising to `hazard`."""

    days: np.ndarray
    hazard: np.ndarray
    centre: float

    @classmethod
    def fit(cls, log_risks: np.ndarray, days: np.ndarray, observed: np.ndarray) -> Baseline:
        """Of these rows: at each day with events, their number over the summed risks of those still followed."""
        centre = float(log_risks.mean())
        order = np.argsort(-days, kind="stable")
        at_risk = np.cumsum(np.exp(log_risks - centre)[order])
        event_days, n_events = np.unique(days[observed], return_counts=True)
        last_at_risk = np.searchsorted(-days[order], -event_days, side="right") - 1
        return cls(event_days, np.cumsum(n_events / at_risk[last_at_risk]), centre)

    def at(self, horizons: np.ndarray) -> np.ndarray:
        """The cumulative hazard up to and including these days, [n_horizons]."""
        return np.concatenate([[0.0], self.hazard])[np.searchsorted(self.days, horizons, side="right")]


@dataclass(frozen=True)
class _TimeToEvent:
    """What both heads share. horizons: days; followed: the longest follow-up among the train rows, in days."""

    horizons: tuple[float, ...]
    followed: float

    @property
    def kind(self) -> TaskKind:
        return "survival"

    @property
    def columns(self) -> tuple[str, ...]:
        """RISK, and for each horizon in days the probability of the event by then."""
        return (RISK, *(f"{days:g}" for days in self.horizons))

    def targets(self, rows: pl.DataFrame) -> np.ndarray:
        """float64 [n_rows, 2]: days, and 1 where the event was observed."""
        days, observed = follow_up(rows)
        return np.stack([days, observed.astype(np.float64)], axis=1)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def predictions(self, logits: torch.Tensor) -> np.ndarray:
        raise NotImplementedError

    def metrics(self, logits: torch.Tensor, targets: np.ndarray) -> dict[str, float]:
        """The mean loss, and Harrell's C where two rows can be compared."""
        metrics = {"loss": float(self.loss(logits, torch.from_numpy(targets))) / len(targets)}
        index = concordance_index(targets[:, 0], targets[:, 1] == 1, self.risk(logits))
        return metrics if np.isnan(index) else {**metrics, "c_index": index}

    def risk(self, logits: torch.Tensor) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True)
class DiscreteHazards(_TimeToEvent):
    """The hazard of each interval, whose log odds are `offsets` plus what is learnt.

    ends: upper ends of the intervals, in days. offsets: log odds of the train rows' hazards, so that learning begins
    at their survival curve. Within an interval the hazard is constant, after the last it is 0.
    """

    ends: np.ndarray
    offsets: np.ndarray

    @classmethod
    def fit(cls, days: np.ndarray, observed: np.ndarray, survival: SurvivalSettings) -> DiscreteHazards:
        """Of the train rows' labels."""
        ends = interval_ends(days, observed, survival.n_intervals or N_INTERVALS)
        survived, event = intervals_lived(*map(torch.tensor, (days, observed, ends)))
        n_events, n_survived = event.sum(dim=0).numpy(), survived.sum(dim=0).numpy()
        offsets = np.log(n_events + 0.5) - np.log(n_survived + 0.5)
        return cls(survival.horizons_days, float(days.max()), ends, offsets)

    @property
    def n_outputs(self) -> int:
        return len(self.ends)

    @property
    def complete(self) -> bool:
        return True

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood summed over rows."""
        ends = torch.as_tensor(self.ends, device=logits.device)
        survived, event = intervals_lived(targets[:, 0], targets[:, 1] == 1, ends)
        return hazards_loss(self._log_odds(logits), survived, event)

    def predictions(self, logits: torch.Tensor) -> np.ndarray:
        """float64 [n, 1 + n_horizons], as `columns`; the risk is the cumulative hazard to the end of all intervals."""
        begins = np.concatenate([[0.0], self.ends[:-1]])
        passed = (np.asarray(self.horizons)[:, None] - begins) / (self.ends - begins)
        hazards = self._hazards(logits)
        by_then = -np.expm1(-hazards @ np.clip(passed, 0, 1).T)
        return np.concatenate([hazards.sum(axis=1, keepdims=True), by_then], axis=1)

    def risk(self, logits: torch.Tensor) -> np.ndarray:
        return self._hazards(logits).sum(axis=1)

    def completed(self, logits: torch.Tensor, targets: np.ndarray) -> DiscreteHazards:
        """Itself: the hazards say it all."""
        return self

    def saved(self) -> dict[str, Any]:
        """As plain JSON, for `load_survival`."""
        own = {"head": "discrete", "ends": self.ends.tolist(), "offsets": self.offsets.tolist()}
        return {"kind": self.kind, "followed": self.followed, **own}

    def _log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        return logits + torch.as_tensor(self.offsets, dtype=logits.dtype, device=logits.device)

    def _hazards(self, logits: torch.Tensor) -> np.ndarray:
        """The cumulative hazard over each interval, float64 [n, n_intervals]: −log(1 − its probability)."""
        return F.softplus(self._log_odds(logits.double())).cpu().numpy()


@dataclass(frozen=True)
class ProportionalHazards(_TimeToEvent):
    """One log relative risk; what it multiplies is the baseline, fitted on train when all is learnt."""

    baseline: Baseline | None = None

    @property
    def n_outputs(self) -> int:
        return 1

    @property
    def complete(self) -> bool:
        """Whether there is a baseline, without which there are risks but no probabilities."""
        return self.baseline is not None

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Negative log partial likelihood, summed over the events among these rows."""
        return cox_loss(logits[:, 0], targets[:, 0], targets[:, 1] == 1)

    def predictions(self, logits: torch.Tensor) -> np.ndarray:
        """float64 [n, 1 + n_horizons], as `columns`; the risk is the log relative risk. ValueError until completed."""
        if self.baseline is None:
            raise ValueError("a Cox model gives no probabilities before its baseline is fitted")
        risk = self.risk(logits)[:, None]
        by_then = -np.expm1(-np.exp(risk - self.baseline.centre) * self.baseline.at(np.asarray(self.horizons)))
        return np.concatenate([risk, by_then], axis=1)

    def risk(self, logits: torch.Tensor) -> np.ndarray:
        return logits[:, 0].double().cpu().numpy()

    def completed(self, logits: torch.Tensor, targets: np.ndarray) -> ProportionalHazards:
        """The same with the baseline of these rows, which are those of train."""
        return replace(self, baseline=Baseline.fit(self.risk(logits), targets[:, 0], targets[:, 1] == 1))

    def saved(self) -> dict[str, Any]:
        """As plain JSON, for `load_survival`."""
        assert self.baseline is not None
        of_baseline = {"days": self.baseline.days.tolist(), "hazard": self.baseline.hazard.tolist()}
        own = {"head": "cox", "baseline": {**of_baseline, "centre": self.baseline.centre}}
        return {"kind": self.kind, "followed": self.followed, **own}


def fit_survival(survival: SurvivalSettings, train: pl.DataFrame) -> DiscreteHazards | ProportionalHazards:
    """What `survival` asks for, on train rows with their labels.

    Raises InputError where no event is observed, or a horizon lies beyond the follow-up of all of them.
    """
    days, observed = follow_up(train)
    ends = interval_ends(days, observed, 1)  # refuses rows without events, for either head
    followed = float(max(days.max(), ends[-1]))
    _check_horizons(survival.horizons_days, followed)
    if survival.head == "cox":
        return ProportionalHazards(survival.horizons_days, followed)
    return DiscreteHazards.fit(days, observed, survival)


def load_survival(saved: Mapping[str, Any], survival: SurvivalSettings) -> DiscreteHazards | ProportionalHazards:
    """What was saved, for the horizons that are asked for now.

    Raises InputError for another head than was trained, and for horizons beyond the train rows' follow-up.
    """
    if saved["head"] != survival.head:
        what = f"{survival.head}, but this checkpoint has the head {saved['head']}"
        raise refuse("survival.head", what, "use the survival section of the run's config.yaml")
    horizons, followed = survival.horizons_days, float(saved["followed"])
    _check_horizons(horizons, followed)
    if saved["head"] == "cox":
        days, hazard = (np.asarray(saved["baseline"][name], dtype=np.float64) for name in ("days", "hazard"))
        return ProportionalHazards(horizons, followed, Baseline(days, hazard, saved["baseline"]["centre"]))
    ends, offsets = (np.asarray(saved[name], dtype=np.float64) for name in ("ends", "offsets"))
    return DiscreteHazards(horizons, followed, ends, offsets)


def _check_horizons(horizons: tuple[float, ...], followed: float) -> None:
    beyond = [f"{days:g}" for days in horizons if days > followed]
    if beyond:
        what = f"{', '.join(beyond)} is beyond the longest follow-up of a train row, {followed:.0f} days"
        raise refuse("survival.horizons_days", what, "leave it out")
