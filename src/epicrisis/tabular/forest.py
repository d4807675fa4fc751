"""A random forest on counts and numbers, its leaves' size chosen on the tuning rows.

scikit-learn's forests take no NaN in sparse matrices, so absence is encoded: a missing number is 0, and a column of
its own says whether it was measured (`CountFeatures.for_forest`). Source: Breiman, Random Forests, Machine Learning
45 (2001), with probabilities averaged over trees as scikit-learn does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import sparse
from sklearn.ensemble import RandomForestClassifier

from epicrisis.cohort.task import TaskKind
from epicrisis.tabular.counts import CountFeatures, RowCodes
from epicrisis.tabular.examples import Examples, Tried, fit_parts, joined, mean_auroc, threads
from epicrisis.tracking.run_directory import replacing

N_TREES = 200
GRID = (1, 3, 10, 30)
FIXED_LEAF = 1
ABOUT = "forest.json"
# Rows are looked up in blocks of so many cells, of the columns that some tree splits on: 16 MB, whatever their number.
CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Forest:
    """The trees of a forest, node after node.

    roots: int64 [n_trees]. left, right: int64 [n_nodes], where a row goes whose number is at most the threshold, and
    where else; a leaf leads to itself. feature: int64 [n_nodes], threshold: float64 [n_nodes], value: float64
    [n_nodes, n_classes], the classes' shares among the node's train rows.
    """

    roots: np.ndarray
    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    value: np.ndarray

    @classmethod
    def of(cls, fitted: RandomForestClassifier) -> Forest:
        """What a fitted forest of scikit-learn knows."""
        trees = [estimator.tree_ for estimator in fitted.estimators_]
        roots = np.cumsum([0, *(tree.node_count for tree in trees[:-1])])
        itself = [np.arange(tree.node_count) for tree in trees]

        def child(name: str) -> np.ndarray:
            to = (getattr(tree, name) for tree in trees)
            led = (np.where(t < 0, own, t) + root for t, own, root in zip(to, itself, roots, strict=True))
            return np.concatenate(list(led)).astype(np.int64)

        feature = np.concatenate([tree.feature for tree in trees]).clip(min=0).astype(np.int64)
        threshold = np.concatenate([tree.threshold for tree in trees])
        value = np.concatenate([tree.value[:, 0, :] for tree in trees])
        return cls(roots.astype(np.int64), child("children_left"), child("children_right"), feature, threshold, value)

    def probability(self, matrix: sparse.csr_matrix) -> np.ndarray:
        """float64 [n_rows, n_classes], to the last bit what `predict_proba` of scikit-learn gives.

        matrix: float32, as in fitting.
        """
        used, column = np.unique(self.feature, return_inverse=True)
        needed = matrix[:, used]
        size = max(1, min(CELLS_AT_ONCE // len(used), CELLS_AT_ONCE // len(self.roots)))
        blocks = [self._of_block(needed[start : start + size], column) for start in range(0, matrix.shape[0], size)]
        return np.concatenate(blocks) if blocks else np.zeros((0, self.value.shape[1]))

    def _of_block(self, rows: sparse.csr_matrix, column: np.ndarray) -> np.ndarray:
        cells = rows.toarray()
        place = np.arange(len(cells))[:, None]
        nodes = np.broadcast_to(self.roots, (len(cells), len(self.roots)))
        while True:
            goes_left = cells[place, column[nodes]] <= self.threshold[nodes]
            further = np.where(goes_left, self.left[nodes], self.right[nodes])
            if np.array_equal(further, nodes):
                break
            nodes = further
        total = np.zeros((len(cells), self.value.shape[1]))
        for tree in range(len(self.roots)):  # one after the other: another order of adding ends in other last bits
            total += self.value[nodes[:, tree]]
        return total / len(self.roots)

    def arrays(self) -> dict[str, np.ndarray]:
        """Name → array, to be written."""
        return {name: np.ascontiguousarray(array) for name, array in vars(self).items()}


@dataclass(frozen=True)
class ForestModel:
    """One forest, or one for each label of a multilabel task. leaf: the fewest train rows of a leaf, of each."""

    forests: tuple[Forest, ...]
    leaf: tuple[int, ...]
    kind: TaskKind = "binary"

    @property
    def chosen(self) -> dict[str, Any]:
        """The size of leaves; of several labels, each one's."""
        return {"min_samples_leaf": list(self.leaf) if self.kind == "multilabel" else self.leaf[0]}

    def probability(self, features: CountFeatures, table: RowCodes) -> np.ndarray:
        """[n_rows, n_classes]."""
        matrix = features.for_forest(table)
        return joined([forest.probability(matrix) for forest in self.forests], self.kind)

    def save(self, folder: Path) -> None:
        """Write forest-0.safetensors and so on, and forest.json."""
        for place, forest in enumerate(self.forests):
            with replacing(folder / _file(place)) as part:
                save_file(forest.arrays(), part)
        with replacing(folder / ABOUT) as part:
            part.write_text(json.dumps({"leaf": self.leaf, "kind": self.kind}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ForestModel:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        forests = [Forest(**load_file(folder / _file(place))) for place in range(len(about["leaf"]))]
        return cls(tuple(forests), tuple(about["leaf"]), about["kind"])


def fit_forest(train: Examples, tuning: Examples | None, kind: TaskKind, seed: int) -> tuple[ForestModel, Tried]:
    """Fit 200 trees on train; with tuning examples choose the leaves' size by their mean AUROC, else take 1.

    Of several labels each has a forest of its own. On a tie the larger leaves are taken. Gives the model and the
    tuning AUROC per size tried.
    """
    fitted, tried = fit_parts(train, tuning, kind, partial(_choose, seed=seed))
    return ForestModel(tuple(forest for forest, _ in fitted), tuple(leaf for _, leaf in fitted), kind), tried


def _choose(train: Examples, tuning: Examples | None, kind: TaskKind, *, seed: int) -> tuple[tuple[Forest, int], Tried]:
    if tuning is None or not tuning.has_every_class(kind):
        return (_fit(train, FIXED_LEAF, kind, seed), FIXED_LEAF), {}
    best: tuple[float, Forest, int] | None = None
    tried = {}
    for leaf in sorted(GRID, reverse=True):  # a forest can be large, so that only the best so far is kept
        forest = _fit(train, leaf, kind, seed)
        found = mean_auroc(tuning.labels, forest.probability(tuning.matrix), kind)
        tried[str(leaf)] = found
        if best is None or found > best[0]:
            best = found, forest, leaf
    assert best is not None
    return best[1:], tried


def _fit(train: Examples, leaf: int, kind: TaskKind, seed: int) -> Forest:
    fitted = RandomForestClassifier(N_TREES, min_samples_leaf=leaf, random_state=seed, n_jobs=threads())
    return Forest.of(fitted.fit(train.matrix, train.targets(kind)))


def _file(place: int) -> str:
    return f"forest-{place}.safetensors"
