"""A forest kept as arrays predicts to the last bit what scikit-learn's does, from sparse matrices, in small blocks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy import sparse
from sklearn.ensemble import RandomForestClassifier

from epicrisis.tabular import forest as forest_module
from epicrisis.tabular.examples import Examples
from epicrisis.tabular.forest import FIXED_LEAF, GRID, Forest, fit_forest


def drawn(seed: int, n_classes: int, n: int = 80) -> tuple[sparse.csr_matrix, np.ndarray]:
    """A sparse matrix with negative numbers, explicit zeros and ties, and classes that hang on it."""
    generator = np.random.default_rng(seed)
    matrix = sparse.random_array((n, 12), density=0.3, rng=generator, format="csr", dtype=np.float32)
    matrix.data = np.round(generator.normal(0, 2, matrix.nnz), 1).astype(np.float32)
    score = matrix.toarray()[:, 0] + generator.normal(0, 1, n)
    targets = np.digitize(score, np.quantile(score, np.linspace(0, 1, n_classes + 1)[1:-1]))
    return sparse.csr_matrix(matrix), targets


@given(st.integers(0, 2**31), st.integers(2, 4), st.integers(1, 10))
@settings(max_examples=15, deadline=None)
def test_predicts_exactly_as_scikit_learn(seed: int, n_classes: int, leaf: int) -> None:
    matrix, targets = drawn(seed, n_classes)
    fitted = RandomForestClassifier(15, min_samples_leaf=leaf, random_state=seed % 2**31).fit(matrix, targets)
    forest = Forest.of(fitted)
    other, _ = drawn(seed + 1, n_classes)
    for rows in (matrix, other, matrix[:1], matrix[:0]):
        expected = fitted.predict_proba(rows) if rows.shape[0] else np.zeros((0, n_classes))
        assert np.array_equal(forest.probability(rows), expected)


def test_blocks_and_files_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matrix, targets = drawn(3, 3)
    forest = Forest.of(RandomForestClassifier(15, random_state=0).fit(matrix, targets))
    whole = forest.probability(matrix)
    save_file(forest.arrays(), tmp_path / "forest.safetensors")
    assert np.array_equal(Forest(**load_file(tmp_path / "forest.safetensors")).probability(matrix), whole)
    monkeypatch.setattr(forest_module, "CELLS_AT_ONCE", 50)
    assert np.array_equal(forest.probability(matrix), whole)


def test_trees_that_never_split_give_the_shares() -> None:
    matrix, targets = drawn(0, 2, n=20)
    fitted = RandomForestClassifier(5, min_samples_leaf=20, random_state=0).fit(matrix, targets)
    assert np.array_equal(Forest.of(fitted).probability(matrix), fitted.predict_proba(matrix))


def test_the_leaf_is_chosen_on_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest_module, "N_TREES", 20)
    matrix, targets = drawn(1, 2, n=300)
    labels = np.stack([targets == 0, targets == 1], axis=1)
    train, tuning = Examples(matrix[:200], labels[:200]), Examples(matrix[200:], labels[200:])
    model, tried = fit_forest(train, tuning, "binary", seed=0)
    assert set(tried) == set(map(str, GRID))
    assert tried[str(model.leaf[0])] == max(tried.values())
    assert fit_forest(train, None, "binary", seed=0)[0].leaf == (FIXED_LEAF,)
