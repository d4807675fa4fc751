"""Metrics of several classes or labels are scikit-learn's; a class that nobody has is left out and told."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from epicrisis.evaluation.class_metrics import NO_CLASS, ClassScorer
from epicrisis.evaluation.metrics import bin_of, point_scores

AVERAGES = {"": "macro", "_weighted": "weighted", "_micro": "micro"}


def drawn(seed: int, kind: str, n: int = 60, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Labels with every class both there and not, and coarse probabilities, so that there are ties."""
    generator = np.random.default_rng(seed)
    raw = generator.integers(1, 6, (n, k)).astype(float)
    if kind == "multiclass":
        index = np.r_[np.arange(k), generator.integers(0, k, n - k)]
        return np.eye(k, dtype=bool)[index], raw / raw.sum(axis=1, keepdims=True)
    labels = generator.random((n, k)) < 0.3
    labels[0], labels[1] = True, False
    return labels, raw / 6


def confidence_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error of the most probable class, bin by bin."""
    top = probabilities.argmax(axis=1)
    confidence, right = probabilities.max(axis=1), labels[np.arange(len(labels)), top]
    bins = bin_of(confidence)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    return float(sum(gaps))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["multiclass", "multilabel"]))
@settings(max_examples=60, deadline=None)
def test_equal_to_scikit_learn(seed: int, kind: str) -> None:
    labels, probabilities = drawn(seed, kind)
    found = ClassScorer("abcd", labels, probabilities, kind).point()
    for suffix, average in AVERAGES.items():
        if kind == "multiclass":
            auroc = roc_auc_score(labels.argmax(axis=1), probabilities, multi_class="ovr", average=average)
        else:
            auroc = roc_auc_score(labels, probabilities, average=average)
        assert found[f"auroc{suffix}"] == pytest.approx(auroc, abs=1e-12)
        auprc = average_precision_score(labels, probabilities, average=average)
        assert found[f"auprc{suffix}"] == pytest.approx(auprc, abs=1e-12)
    if kind == "multiclass":
        assert found["brier"] == pytest.approx(
            brier_score_loss(labels.argmax(axis=1), probabilities, labels=range(4)), abs=1e-12
        )
        assert found["ece"] == pytest.approx(confidence_error(labels, probabilities), abs=1e-12)
    each = [point_scores(labels[:, c], probabilities[:, c]) for c in range(4)]
    if kind == "multilabel":
        assert found["brier"] == pytest.approx(np.mean([one["brier"] for one in each]))
        assert found["ece"] == pytest.approx(np.mean([one["ece"] for one in each]))
    assert found["auroc:c"] == each[2]["auroc"]
    assert found["ece:d"] == each[3]["ece"]


@given(st.integers(0, 2**31), st.sampled_from(["multiclass", "multilabel"]))
@settings(max_examples=40, deadline=None)
def test_a_weight_is_as_many_copies_of_the_row(seed: int, kind: str) -> None:
    labels, probabilities = drawn(seed, kind, n=25)
    counts = np.random.default_rng(seed).integers(1, 4, len(labels))
    weighted = ClassScorer("abcd", labels, probabilities, kind).scores(counts[None])
    copied = ClassScorer("abcd", np.repeat(labels, counts, axis=0), np.repeat(probabilities, counts, axis=0), kind)
    assert {name: value[0] for name, value in weighted.items()} == pytest.approx(copied.point(), abs=1e-12)


def test_probabilities_of_several_labels_need_not_sum_to_one() -> None:
    """A softmax over the labels would change the order of rows; each label is scored by itself."""
    labels = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=bool)
    probabilities = np.array([[0.9, 0.9], [0.8, 0.1], [0.2, 0.8], [0.1, 0.1]])
    assert ClassScorer("ab", labels, probabilities, "multilabel").point()["auroc"] == 1.0


def test_a_class_that_nobody_has_is_left_out_of_the_means_and_told() -> None:
    labels, probabilities = drawn(0, "multiclass", k=3)
    extended = np.c_[labels, np.zeros(len(labels), dtype=bool)]
    scorer = ClassScorer("abcd", extended, np.c_[probabilities, np.zeros(len(labels))], "multiclass")
    assert scorer.point()["auroc"] == pytest.approx(
        ClassScorer("abc", labels, probabilities, "multiclass").point()["auroc"]
    )
    assert scorer.point()["auroc:d"] is None
    assert scorer.reasons()["auroc:d"] == "one class only: 0 of 60 rows are positive"
    alone = ClassScorer("ab", np.array([[1, 0]] * 5, dtype=bool), np.full((5, 2), 0.5), "multiclass")
    assert alone.reasons()["auroc"] == NO_CLASS
    assert alone.point()["brier"] == 0.5
    nothing = ClassScorer("ab", np.zeros((0, 2), dtype=bool), np.zeros((0, 2)), "multiclass")
    assert set(nothing.point().values()) == {None}
    assert pl.Series(list(nothing.reasons().values())).unique().to_list() == ["no rows"]
