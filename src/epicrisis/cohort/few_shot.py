"""Few shots: of each class k rows, nested from k to k, drawn anew for each replicate.

The protocol of EHRSHOT (Wornow et al., EHRSHOT: An EHR benchmark for few-shot evaluation of foundation models, NeurIPS
2023 Datasets and Benchmarks): train and tuning are both cut down to k rows of each class, held_out stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from epicrisis.cohort.task import classes_of_labels, kind_of_labels, label_matrix
from epicrisis.settings.problems import refuse

CUT = ("train", "tuning")
"""The splits of which only shots are left."""
REPLICATES = 5


@dataclass(frozen=True)
class Draw:
    """Which shots: k rows of each class, as the replicate (from 1) has them; both None for all rows."""

    k: int | None = None
    replicate: int | None = None

    def folder(self, arm: Path) -> Path:
        """Where an arm's run on these shots lies: `k-8/replicate-2` in its own, or that itself for all rows."""
        return arm if self.k is None else arm / f"k-{self.k}" / f"replicate-{self.replicate}"

    def __str__(self) -> str:
        return "all rows" if self.k is None else f"k = {self.k}, replicate {self.replicate}"


def draws(ks: Sequence[int | Literal["all"]], replicates: int) -> list[Draw]:
    """All runs of a few-shot benchmark, from few shots to many; all rows are drawn once, since they are the same."""
    counts = sorted(k for k in ks if k != "all")
    found = [Draw(k, replicate) for k in counts for replicate in range(1, replicates + 1)]
    return [*found, *([Draw()] if "all" in ks else [])]


def shots(rows: pl.DataFrame, k: int | None, replicate: int | None, seed: int) -> pl.DataFrame:
    """The rows of train and tuning that are drawn, and all others, in the order given.

    rows: subject_id, prediction_time, split, label. Each split's rows are shuffled, by seed, replicate and split
    alone; of each class the first k are taken, or all where they are fewer, so that the shots of k are among those
    of any larger k. Of several labels the first k rows with and the first k rows without each are taken, of the same
    order, so that they overlap; a label may have more than k then. With k None the rows stay as they are.
    """
    if k is None:
        return rows
    if kind_of_labels(rows) not in ("binary", "multiclass", "multilabel"):
        what = f"the labels are {rows.schema.get('label')}, and shots are counted by class"
        raise refuse("benchmark.few_shot", what, "use a task whose labels are true or false, or words")
    classes = classes_of_labels(rows)
    taken = np.ones(rows.height, dtype=bool)
    for number, split in enumerate(CUT):
        places = np.flatnonzero((rows["split"] == split).to_numpy())
        # in an order that does not depend on that of the rows
        places = places[rows[places].select(pl.arg_sort_by("subject_id", "prediction_time")).to_series().to_numpy()]
        shuffled = np.random.default_rng([seed, replicate or 0, number]).permutation(places)
        taken[shuffled] = _first_of_each(rows[shuffled], classes, k)
    return rows.filter(pl.Series(taken))


def shortfalls(rows: pl.DataFrame, k: int) -> list[str]:
    """One sentence for each class, in a split, of which there are fewer rows than k; without saying how few."""
    several = kind_of_labels(rows) == "multilabel"
    found = []
    for split in CUT:
        has = label_matrix(rows.filter(split=split), classes_of_labels(rows))
        for name, column in has.to_dict().items():
            sides = {f"rows of {name}": column.sum()}
            if several:
                sides = {f"rows with {name}": column.sum(), f"rows without {name}": (~column).sum()}
            found += [f"{split} has fewer than {k} {side}: all of them are shots" for side, n in sides.items() if n < k]
    return found


def _first_of_each(rows: pl.DataFrame, classes: tuple[str, ...], k: int) -> np.ndarray:
    """Whether a row is among the first k of its class; of several labels, of those with or without any of them."""
    has = label_matrix(rows, classes).to_numpy().reshape(rows.height, len(classes))
    sides = [has, ~has] if kind_of_labels(rows) == "multilabel" else [has]
    return np.any([(side & (side.cumsum(axis=0) <= k)).any(axis=1) for side in sides], axis=0)
