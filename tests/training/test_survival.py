"""Losses of times to an event against hand-computed values and lifelines; what their heads learn and predict."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index as lifelines_index

from epicrisis.settings import InputError, settings_from
from epicrisis.settings.survival_section import SurvivalSettings
from epicrisis.training.concordance import Concordance, concordance_index
from epicrisis.training.outcome import load_outcome, outcome_for
from epicrisis.training.survival import (
    Baseline,
    cox_loss,
    fit_survival,
    hazards_loss,
    interval_ends,
    intervals_lived,
)

HEADS = ("discrete", "cox")


def rows_of(days: Any, observed: Any) -> pl.DataFrame:
    label = pl.DataFrame({"days": np.asarray(days, dtype=float), "observed": observed}).to_struct("label")
    keys = {"subject_id": np.arange(len(label)), "prediction_time": [datetime(2020, 1, 1)] * len(label)}
    return pl.DataFrame({**keys, "split": ["train"] * len(label), "label": label})


def population(n: int, seed: int = 0, censored_by: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A covariate, days and observed: exponential times whose log hazard is the covariate, 100 days at 0 on average."""
    generator = np.random.default_rng(seed)
    x = generator.normal(0, 2, n)
    event = generator.exponential(100 * np.exp(-x))
    censoring = generator.uniform(0, 100 * censored_by, n)
    return x, np.minimum(event, censoring), event <= censoring


def tensors(*values: Any) -> list[torch.Tensor]:
    return [torch.as_tensor(value) for value in values]


def test_intervals_end_at_quantiles_of_the_events_and_none_is_empty() -> None:
    days, observed = np.array([0.0, 5, 5, 5, 10, 20, 99]), np.array([True, True, True, True, True, True, False])
    assert interval_ends(days, observed, 2).tolist() == [5, 20]
    assert interval_ends(days, observed, 100).tolist() == [5, 10, 20]
    with pytest.raises(InputError, match="no event is observed after the prediction time in the 2 train rows"):
        interval_ends(np.array([0.0, 9.0]), np.array([True, False]), 3)


def test_what_each_row_says_of_each_interval() -> None:
    days, observed = tensors([10.0, 0.0, 10.1, 21.0, 14.9, 15.0, 0.0], [True] * 4 + [False] * 3)
    survived, event = intervals_lived(days, observed, torch.tensor([10.0, 20.0], dtype=torch.float64))
    assert event.tolist() == [[1, 0], [1, 0], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert survived.tolist() == [[0, 0], [0, 0], [1, 0], [1, 1], [1, 0], [1, 1], [0, 0]]


def test_the_discrete_loss_is_the_likelihood_written_out() -> None:
    """Event in the 2nd of 3 intervals: (1 − h1)·h2. Censored past the middle of the 2nd: (1 − h1)·(1 − h2)."""
    hazards = torch.tensor([[0.1, 0.3, 0.9], [0.2, 0.4, 0.9]], dtype=torch.float64)
    days, observed = tensors([15.0, 16.0], [True, False])
    lived = intervals_lived(days, observed, torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64))
    expected = -np.log(0.9 * 0.3) - np.log(0.8 * 0.6)
    assert float(hazards_loss(torch.logit(hazards), *lived)) == pytest.approx(expected)


def test_a_censored_row_moves_only_the_intervals_that_it_lived_through() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    days, observed = tensors([11.0], [False])
    hazards_loss(logits, *intervals_lived(days, observed, torch.tensor([10.0, 20.0, 30.0]))).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.5, 0, 0]]


def test_the_partial_likelihood_written_out() -> None:
    """Risks 2, 3, 5, 7 on days 1 (event), 2 (event), 2 (event), 2 (censored): 2/17 · 3/15 · 5/(15 − 8/2)."""
    log_risks, days, observed = tensors(np.log([2.0, 3, 5, 7]), [1.0, 2, 2, 2], [True, True, True, False])
    expected = -np.log(2 / 17 * 3 / 15 * 5 / 11)
    assert float(cox_loss(log_risks, days, observed)) == pytest.approx(expected)
    turned = [3, 1, 0, 2]
    assert float(cox_loss(log_risks[turned], days[turned], observed[turned])) == pytest.approx(expected)


@pytest.mark.parametrize("ties", [False, True])
def test_the_partial_likelihood_and_the_baseline_are_those_of_lifelines(ties: bool) -> None:
    x, days, observed = population(200)
    days = np.ceil(days / 10) if ties else days
    table = pl.DataFrame({"x": x, "days": days, "observed": observed}).to_pandas()
    fitted = CoxPHFitter().fit(table, "days", "observed")
    log_risks = torch.tensor(x * fitted.params_["x"])
    assert float(cox_loss(log_risks, *tensors(days, observed))) == pytest.approx(-fitted.log_likelihood_)
    # at days of events, since lifelines interpolates between them
    horizons = np.quantile(days[observed], [0.2, 0.5, 0.8], method="inverted_cdf")
    baseline = Baseline.fit(log_risks.numpy(), days, observed)
    hazards = np.exp(log_risks.numpy()[:, None] - baseline.centre) * baseline.at(horizons)
    expected = fitted.predict_cumulative_hazard(table, times=horizons).to_numpy().T
    assert hazards == pytest.approx(expected, rel=1e-6)


def test_the_gradient_of_the_partial_likelihood() -> None:
    generator = np.random.default_rng(3)
    log_risks = torch.tensor(generator.normal(0, 2, 12), requires_grad=True)
    days, observed = tensors(generator.integers(0, 5, 12).astype(float), generator.random(12) < 0.6)
    assert torch.autograd.gradcheck(lambda risks: cox_loss(risks, days, observed), log_risks)
    far = torch.tensor([900.0, -900.0, 0.0, 5.0], requires_grad=True)
    cox_loss(far, *tensors([1.0, 1.0, 1.0, 2.0], [True, True, True, False])).backward()
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()


@pytest.mark.parametrize("n", [1, 4])
def test_without_an_event_the_partial_likelihood_is_0_and_so_is_its_gradient(n: int) -> None:
    log_risks = torch.randn(n, requires_grad=True)
    loss = cox_loss(log_risks, *tensors([3.0] * n, [False] * n))
    loss.backward()
    assert loss.item() == 0
    assert log_risks.grad is not None
    assert log_risks.grad.tolist() == [0] * n


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 4)), min_size=1, max_size=40))
def test_concordance_counts_every_pair_once(rows: list[tuple[int, bool, int]]) -> None:
    days, observed, risk = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    weights = np.arange(len(rows)) % 3
    concordant, comparable = Concordance(days, observed == 1, risk).counts(weights[None])
    pairs = [
        (weights[i] * weights[j], (risk[i] > risk[j]) + (risk[i] == risk[j]) / 2)
        for i in range(len(rows))
        for j in range(len(rows))
        if observed[i] and (days[j] > days[i] or (days[j] == days[i] and not observed[j]))
    ]
    assert comparable[0, 0] == sum(weight for weight, _ in pairs)
    assert concordant[0, 0] == pytest.approx(sum(weight * share for weight, share in pairs))


def test_the_concordance_index_is_that_of_lifelines() -> None:
    generator = np.random.default_rng(0)
    for n in (20, 301):
        days, risk = generator.integers(0, 15, n).astype(float), generator.integers(0, 9, n).astype(float)
        observed = generator.random(n) < 0.4
        assert concordance_index(days, observed, risk) == pytest.approx(lifelines_index(days, -risk, observed))
        assert concordance_index(days, observed, np.ones(n)) == 0.5
    assert np.isnan(concordance_index(days, np.zeros(n, dtype=bool), risk))


def test_hazards_of_exponential_times_give_their_survival() -> None:
    """Without anything learnt the discrete head begins at the survival curve of the train rows, and keeps it."""
    generator = np.random.default_rng(0)
    event, censoring = generator.exponential(200, 20_000), generator.uniform(0, 800, 20_000)
    rows = rows_of(np.minimum(event, censoring), event <= censoring)
    outcome = fit_survival(SurvivalSettings(n_intervals=30), rows)
    logits = torch.zeros(1, outcome.n_outputs, dtype=torch.float64, requires_grad=True)
    found = outcome.predictions(logits.detach())[0, 1:]
    assert found == pytest.approx(1 - np.exp(-np.array([30, 90, 365]) / 200), abs=0.01)
    targets = torch.from_numpy(outcome.targets(rows))
    outcome.loss(logits.expand(rows.height, -1), targets).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() / rows.height < 1e-4


@pytest.mark.parametrize("head", HEADS)
def test_a_head_learns_the_order_of_risks_and_their_probabilities(head: str) -> None:
    x, days, observed = population(600)
    rows = rows_of(days, observed)
    outcome = fit_survival(SurvivalSettings(head=head, horizons_days=(20, 80)), rows)
    loss, logits = learnt(outcome, x, rows)
    metrics = outcome.metrics(logits, outcome.targets(rows))
    assert metrics["c_index"] == pytest.approx(lifelines_index(days, -x, observed), abs=0.01)
    assert metrics["c_index"] > 0.8
    assert metrics["loss"] == pytest.approx(loss)
    assert outcome.complete == (head == "discrete")
    outcome = outcome.completed(logits, outcome.targets(rows))
    found = outcome.predictions(logits)
    assert outcome.columns == ("risk", "20", "80")
    assert found.shape == (600, 3)
    expected = 1 - np.exp(-np.array([20, 80]) / 100 * np.exp(x)[:, None])
    assert np.abs(found[:, 1:] - expected).mean() < 0.05
    again = load_outcome(json.loads(json.dumps(outcome.saved())), settings(head=head, horizons_days=[20, 80]))
    assert np.array_equal(again.predictions(logits), found)
    assert again.columns == outcome.columns


@pytest.mark.parametrize("head", HEADS)
def test_other_labels_are_learnt_otherwise(head: str) -> None:
    x, days, observed = population(300)
    rows, reversed_rows = rows_of(days, observed), rows_of(days[np.argsort(np.argsort(x))], observed)
    outcome = fit_survival(SurvivalSettings(head=head, horizons_days=(20,)), rows)
    found = learnt(outcome, x, rows)[1]
    assert np.abs((found - learnt(outcome, x, reversed_rows)[1]).numpy()).max() > 0.1


def learnt(outcome: Any, x: np.ndarray, rows: pl.DataFrame) -> tuple[float, torch.Tensor]:
    """The mean loss and the outputs of a linear layer on the covariate, trained on all rows at once."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(1, outcome.n_outputs, dtype=torch.float64)
    targets, inputs = torch.from_numpy(outcome.targets(rows)), torch.from_numpy(x)[:, None]
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(250):
        optimizer.zero_grad()
        (outcome.loss(layer(inputs), targets) / rows.height).backward()
        optimizer.step()
    with torch.no_grad():
        logits = layer(inputs)
        return float(outcome.loss(logits, targets)) / rows.height, logits


def test_an_untrained_risk_says_nothing() -> None:
    _, days, observed = population(50)
    rows = rows_of(days, observed)
    for head in HEADS:
        outcome = fit_survival(SurvivalSettings(head=head, horizons_days=(20,)), rows)
        assert outcome.metrics(torch.zeros(50, outcome.n_outputs), outcome.targets(rows))["c_index"] == 0.5
    with pytest.raises(ValueError, match="before its baseline"):
        outcome.predictions(torch.zeros(50, 1))


def settings(**survival: Any) -> Any:
    return settings_from({"stage": "classify", "arm": "llm", "model": {"head": "score"}, "survival": survival})


def test_the_horizon_of_a_finished_model_can_be_another_but_its_head_cannot() -> None:
    x, days, observed = population(50)
    outcome = outcome_for(settings(horizons_days=[20, 40]), rows_of(days, observed))
    logits = torch.from_numpy(x)[:, None].expand(-1, outcome.n_outputs)
    again = load_outcome(outcome.saved(), settings(horizons_days=[40]))
    assert again.predictions(logits)[:, 1] == pytest.approx(outcome.predictions(logits)[:, 2])
    with pytest.raises(InputError, match=r"survival.head: cox, but this checkpoint has the head discrete"):
        load_outcome(outcome.saved(), settings(head="cox", horizons_days=[40]))
    with pytest.raises(InputError, match=r"survival.horizons_days: 5000 is beyond the longest follow-up"):
        load_outcome(outcome.saved(), settings(horizons_days=[40, 5000]))


def test_what_cannot_be_is_refused() -> None:
    rows = rows_of([10.0, 400.0], [True, False])
    with pytest.raises(InputError, match=r"500 is beyond the longest follow-up of a train row, 400 days"):
        fit_survival(SurvivalSettings(horizons_days=(30, 500)), rows)
    for changes, what in (
        ({"training": {"class_weights": "balanced"}}, "training.class_weights"),
        ({"model": {"head": "score", "num_classes": 2}}, "model.num_classes"),
    ):
        asked = settings_from({"stage": "classify", "arm": "llm", "model": {"head": "score"}, **changes})
        with pytest.raises(InputError, match=what):
            outcome_for(asked, rows)
    binary = rows.with_columns(label=pl.Series([True, False]))
    with pytest.raises(InputError, match="survival: the labels are no times to an event"):
        outcome_for(settings(head="cox"), binary)


@pytest.mark.parametrize(
    ("tree", "what"),
    [
        ({"survival": {"head": "cox"}, "training": {"batch_size": 1}}, "risk sets of a Cox model are those of a batch"),
        (
            {"survival": {"head": "cox"}, "training": {"batch_size": "auto", "effective_batch_size": 8}},
            "training.batch_size: the risk sets",
        ),
        ({"survival": {"head": "cox", "n_intervals": 5}}, "a Cox model has no intervals"),
        ({"survival": {"horizons_days": [90, 30]}}, "the nearest first"),
        ({"survival": {"horizons_days": [0]}}, "survival.horizons_days"),
    ],
)
def test_settings_that_cannot_work_are_refused(tree: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError) as refused:
        settings_from({"stage": "classify", "arm": "llm", "model": {"head": "score"}, **tree})
    assert what in str(refused.value)
