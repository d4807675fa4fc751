"""Every metric is scikit-learn's, ties and weights included; one that does not exist is no number."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from epicrisis.evaluation.metric_modules import load_metric, metric_path
from epicrisis.evaluation.metrics import METRICS, Scorer, bin_of, point_scores, why_undefined

# Few distinct probabilities, so that ties and bin edges come up all the time.
PROBABILITIES = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0])
ROWS = st.lists(st.tuples(st.booleans(), PROBABILITIES), min_size=2, max_size=60)


def ece_from_scikit_learn(labels: np.ndarray, probabilities: np.ndarray) -> float:
    observed, predicted = calibration_curve(labels, probabilities, n_bins=10, strategy="uniform")
    sizes = np.bincount(bin_of(probabilities), minlength=10)
    return float(np.sum(sizes[sizes > 0] * np.abs(observed - predicted)) / len(labels))


def test_by_hand() -> None:
    labels, probabilities = np.array([False, False, True, True]), np.array([0.1, 0.4, 0.35, 0.8])
    scores = point_scores(labels, probabilities)
    assert scores["auroc"] == 0.75  # three of the four pairs are in order
    assert scores["auprc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert scores["brier"] == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
    # bins: 0.1 alone in the first; 0.35 and 0.4 share the fourth; 0.8 alone
    assert scores["ece"] == pytest.approx((0.1 + abs(0.75 - 1) + 0.2) / 4)


@given(ROWS)
@settings(max_examples=150, deadline=None)
def test_equal_to_scikit_learn(rows: list[tuple[bool, float]]) -> None:
    labels, probabilities = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    scores = point_scores(labels, probabilities)
    assert scores["brier"] == pytest.approx(brier_score_loss(labels, probabilities), abs=1e-12)
    assert scores["ece"] == pytest.approx(ece_from_scikit_learn(labels, probabilities), abs=1e-12)
    if labels.all() or not labels.any():
        assert scores["auroc"] is None
        assert scores["auprc"] is None
        return
    assert scores["auroc"] == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-12)
    assert scores["auprc"] == pytest.approx(average_precision_score(labels, probabilities), abs=1e-12)


@given(ROWS, st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_a_weight_is_as_many_copies_of_the_row(rows: list[tuple[bool, float]], seed: int) -> None:
    labels, probabilities = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    counts = np.random.default_rng(seed).integers(0, 4, len(rows))
    counts[0] += 1
    weighted = Scorer(labels, probabilities).scores(counts[None])
    copied = point_scores(np.repeat(labels, counts), np.repeat(probabilities, counts))
    for metric in METRICS:
        found = weighted[metric][0]
        assert np.isnan(found) if copied[metric] is None else found == pytest.approx(copied[metric], abs=1e-12)


def test_constant_prediction_scores_half() -> None:
    scores = point_scores(np.array([True, False, False, False]), np.full(4, 0.3))
    assert scores["auroc"] == 0.5
    assert scores["auprc"] == 0.25


def test_one_class_is_undefined_with_the_reason() -> None:
    assert why_undefined("auroc", np.zeros(18, dtype=bool)) == "one class only: 0 of 18 rows are positive"
    assert why_undefined("auprc", np.ones(3, dtype=bool)) == "one class only: 3 of 3 rows are positive"
    assert why_undefined("brier", np.zeros(18, dtype=bool)) is None
    assert why_undefined("brier", np.zeros(0, dtype=bool)) == "no rows"
    assert set(point_scores(np.zeros(0, dtype=bool), np.zeros(0)).values()) == {None}


@pytest.mark.parametrize("name", METRICS)
def test_evaluate_module(name: str) -> None:
    metric = load_metric(name)
    result = metric.compute(prediction_scores=[0.1, 0.4, 0.35, 0.8], references=[0, 0, 1, 1])
    expected = point_scores(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))[name]
    assert result == {name: pytest.approx(expected), "reason": None}
    for prediction, reference in ((0.2, 0), (0.9, 1)):
        metric.add(prediction_scores=prediction, references=reference)
    assert metric.compute()[name] is not None


def test_evaluate_module_says_why_there_is_no_number() -> None:
    result = load_metric("auroc").compute(prediction_scores=[0.1, 0.4], references=[0, 0])
    assert result == {"auroc": None, "reason": "one class only: 0 of 2 rows are positive"}


def test_unknown_metric_names_the_known() -> None:
    with pytest.raises(KeyError, match="auroc, auprc, brier, ece"):
        load_metric("f1")


def test_evaluate_loads_the_modules_from_their_path_without_a_network(tmp_path) -> None:
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
    }
    program = (
        "import evaluate, socket\n"
        "def refuse(*a, **k): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"
        f"for name in {METRICS!r}:\n"
        f"    path = {str(metric_path('auroc').parent)!r} + '/' + name\n"
        "    found = evaluate.load(path).compute(prediction_scores=[0.2, 0.9], references=[0, 1])\n"
        "    print(round(found[name], 3))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | offline, capture_output=True, text=True, timeout=120
    )
    assert run.stdout.split() == ["1.0", "1.0", "0.025", "0.15"], run.stderr
