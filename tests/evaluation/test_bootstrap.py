"""Intervals: whole subjects are drawn, draws are paired between arms, undefined resamples are counted."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from epicrisis.evaluation.bootstrap import bootstrap, lift_share, paired_difference, resample_counts
from epicrisis.evaluation.predictions import binary_predictions


def rows_of(labels: np.ndarray, rows_per_subject: int = 1) -> pl.DataFrame:
    n = len(labels)
    times = [datetime(2020, 1, 1) + timedelta(days=i) for i in range(n)]
    return pl.DataFrame(
        {
            "subject_id": np.arange(n) // rows_per_subject,
            "prediction_time": times,
            "label": labels.astype(bool),
        }
    )


def noisy(labels: np.ndarray, noise: float, seed: int = 1) -> np.ndarray:
    return 1 / (1 + np.exp(-(labels + noise * np.random.default_rng(seed).normal(size=len(labels)))))


LABELS = np.random.default_rng(0).random(300) < 0.3


def test_the_interval_is_that_of_a_plain_loop_over_resamples() -> None:
    probabilities = noisy(LABELS, 1.0)
    found = bootstrap(binary_predictions(rows_of(LABELS, 3), probabilities), 200, seed=7).estimate("auroc")
    generator = np.random.default_rng(7)
    values = []
    for _ in range(200):
        subjects = generator.integers(100, size=100)
        rows = (3 * subjects[:, None] + np.arange(3)).ravel()
        values.append(roc_auc_score(LABELS[rows], probabilities[rows]))
    assert found.value == pytest.approx(roc_auc_score(LABELS, probabilities))
    assert (found.lower, found.upper) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert found.excludes_half
    assert found.n_left_out == 0


def test_the_order_of_rows_has_no_say_and_the_seed_has() -> None:
    table = binary_predictions(rows_of(LABELS), noisy(LABELS, 1.0))
    first, shuffled = bootstrap(table, 50), bootstrap(table.sample(fraction=1, shuffle=True, seed=3), 50)
    assert first.estimate("auroc") == shuffled.estimate("auroc")
    assert first.estimate("auroc") != bootstrap(table, 50, seed=1).estimate("auroc")


def test_subjects_not_rows_are_drawn() -> None:
    # Ten copies of each row in one subject carry no more knowledge than one: the interval must not shrink.
    labels, probabilities = LABELS[:100], noisy(LABELS, 1.0)[:100]
    single = bootstrap(binary_predictions(rows_of(labels), probabilities), 400).estimate("auroc")
    copied = bootstrap(
        binary_predictions(rows_of(np.repeat(labels, 10), 10), np.repeat(probabilities, 10)), 400
    ).estimate("auroc")
    assert copied.value == pytest.approx(single.value)
    assert (copied.lower, copied.upper) == pytest.approx((single.lower, single.upper))


def test_chunks_do_not_alter_the_draws() -> None:
    whole = np.concatenate(list(resample_counts(50, 30, seed=0, n_rows=50)))
    chunked = np.concatenate(list(resample_counts(50, 30, seed=0, n_rows=100_000)))
    assert np.array_equal(whole, chunked)
    assert (whole.sum(axis=1) == 50).all()


def test_undefined_resamples_are_left_out_and_counted() -> None:
    labels = np.array([1, 0, 0, 0, 0, 0])
    drawn = bootstrap(binary_predictions(rows_of(labels), np.array([0.9, 0.1, 0.2, 0.3, 0.4, 0.95])), 500)
    found = drawn.estimate("auroc")
    assert found.value == 0.8
    # A resample of 6 without the only positive subject has a chance of (5/6)^6 = 0.33.
    assert 120 < found.n_left_out < 220
    assert found.lower is not None
    assert drawn.estimate("brier").n_left_out == 0


def test_one_class_and_one_subject_have_no_interval() -> None:
    one_class = bootstrap(binary_predictions(rows_of(np.zeros(18)), np.full(18, 0.2)), 50).estimate("auroc")
    assert (one_class.value, one_class.lower, one_class.reason) == (
        None,
        None,
        "one class only: 0 of 18 rows are positive",
    )
    assert not one_class.excludes_half
    single = bootstrap(binary_predictions(rows_of(np.array([1, 0]), 2), np.array([0.6, 0.2])), 50).estimate("auroc")
    assert (single.value, single.lower, single.reason) == (1.0, None, "fewer than two subjects: no interval")


def test_paired_differences_are_narrower_than_the_arms_apart() -> None:
    rows, better = rows_of(LABELS), noisy(LABELS, 0.8)
    worse = np.clip(better + 0.02 * np.random.default_rng(5).normal(size=300), 0, 1)
    a, b = bootstrap(binary_predictions(rows, better), 300), bootstrap(binary_predictions(rows, worse), 300)
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(a.point["auroc"] - b.point["auroc"])
    width = a.estimate("auroc").upper - a.estimate("auroc").lower
    assert difference.upper - difference.lower < width / 3
    same = paired_difference(a, a)
    assert (same.value, same.lower, same.upper) == (0, 0, 0)
    with pytest.raises(ValueError, match="same resamples"):
        paired_difference(a, bootstrap(binary_predictions(rows, worse), 20))


def test_share_of_the_oracles_lift() -> None:
    rows = rows_of(LABELS)
    oracle = bootstrap(binary_predictions(rows, noisy(LABELS, 0.5)), 300)
    arm = bootstrap(binary_predictions(rows, noisy(LABELS, 2.0, seed=2)), 300)
    share = lift_share(arm, oracle)
    assert share.value == pytest.approx((arm.point["auroc"] - 0.5) / (oracle.point["auroc"] - 0.5))
    assert share.lower < share.value < share.upper
    assert lift_share(oracle, oracle).value == 1.0
    useless = bootstrap(binary_predictions(rows, np.full(300, 0.5)), 20)
    assert lift_share(useless, useless).reason == "the oracle itself is not above 0.5 on these rows"
