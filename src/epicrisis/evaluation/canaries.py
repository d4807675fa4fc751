"""Leakage canaries: what a model could exploit without reading a word of the record.

Each canary is a small decision tree on one number per row that says nothing of health in itself. It is fitted
on train and scored on the judged split. One that beats chance is not yet a mistake (long records do belong to
sicker people), but a cohort in which it comes near the arms' own figures measures its own construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from epicrisis.cohort.task import classes_of_labels, kind_of_labels, label_matrix
from epicrisis.evaluation.bootstrap import Estimate, bootstrap
from epicrisis.evaluation.predictions import KEY, task_predictions

CANARIES = {
    "record_length": "number of visible events only",
    "last_date": "days from the last visible event to the prediction time only",
    "calendar_date": "calendar date of the prediction time only",
}
MICROSECONDS_PER_DAY = 86_400_000_000


@dataclass(frozen=True)
class Canary:
    """One canary's AUROC on the judged split, or the reason why it has none."""

    name: str
    reads: str
    auroc: Estimate

    @property
    def sings(self) -> bool:
        """True if the interval excludes 0.5: this alone tells cases from controls."""
        return self.auroc.excludes_half


def history_scalars(events: pl.LazyFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """One row per cohort row with the canaries' numbers, in the order of `rows`.

    events: the visible events of those rows (subject_id, prediction_time, time). Columns added to subject_id
    and prediction_time: record_length (events), last_date (days, empty without a dated event), calendar_date
    (days since 1970).
    """
    counted = (
        events.group_by(KEY).agg(pl.len().cast(pl.Float64).alias("record_length"), pl.col("time").max().alias("last"))
    ).collect()
    joined = rows.select(KEY).join(counted, on=KEY, how="left", maintain_order="left")
    since_last = (pl.col("prediction_time") - pl.col("last")).dt.total_microseconds() / MICROSECONDS_PER_DAY
    return joined.select(
        *KEY,
        pl.col("record_length").fill_null(0.0),
        since_last.alias("last_date"),
        (pl.col("prediction_time").cast(pl.Datetime("us")).cast(pl.Int64) / MICROSECONDS_PER_DAY).alias(
            "calendar_date"
        ),
    )


def canaries(
    scalars: pl.DataFrame, rows: pl.DataFrame, split: str = "held_out", n_resamples: int = 2000, seed: int = 0
) -> list[Canary]:
    """Fit each canary on train and score it on `split`.

    scalars: from `history_scalars`. rows: the cohort's rows (subject_id, prediction_time, split, label), of train
    and of the judged split at least. Of several classes or labels, the AUROC is the mean over them.
    """
    table = rows.join(scalars, on=KEY, how="left", maintain_order="left")
    train, judged = table.filter(pl.col("split") == "train"), table.filter(pl.col("split") == split)
    return [Canary(name, reads, _auroc(train, judged, name, n_resamples, seed)) for name, reads in CANARIES.items()]


def canary_table(found: list[Canary]) -> pl.DataFrame:
    """canary, reads, auroc, lower, upper, excludes_half, reason: for the report and the summary."""
    return pl.DataFrame(
        {
            "canary": [canary.name for canary in found],
            "reads": [canary.reads for canary in found],
            "auroc": pl.Series([canary.auroc.value for canary in found], dtype=pl.Float64),
            "lower": pl.Series([canary.auroc.lower for canary in found], dtype=pl.Float64),
            "upper": pl.Series([canary.auroc.upper for canary in found], dtype=pl.Float64),
            "excludes_half": [canary.sings for canary in found],
            "reason": pl.Series([canary.auroc.reason for canary in found], dtype=pl.String),
        }
    )


def _auroc(train: pl.DataFrame, judged: pl.DataFrame, name: str, n_resamples: int, seed: int) -> Estimate:
    classes = classes_of_labels(pl.concat([train, judged]))
    labels = label_matrix(train, classes).to_numpy()
    # Of two classes one says it all; a tree's leaf holds the share of rows that have the class.
    targets = labels[:, 1] if kind_of_labels(train) == "binary" else labels.astype(np.float64)
    if not train.height or (labels == labels[0]).all():
        return Estimate(None, None, None, reason="the train rows are of one class only")
    # Leaves of at least 2% of the rows keep the tree from learning single patients; eight of them bend where
    # a line cannot.
    smallest_leaf = max(10, train.height // 50)
    kind = DecisionTreeClassifier if targets.ndim == 1 else DecisionTreeRegressor
    tree = kind(max_leaf_nodes=8, min_samples_leaf=smallest_leaf, random_state=seed).fit(_column(train, name), targets)
    if not judged.height:
        probability = np.zeros((0, len(classes)))
    elif targets.ndim == 1:
        probability = tree.predict_proba(_column(judged, name))
    else:
        probability = tree.predict(_column(judged, name)).clip(0, 1)
    return bootstrap(task_predictions(judged, classes, probability), n_resamples, seed).estimate("auroc")


def _column(table: pl.DataFrame, name: str) -> np.ndarray:
    return table.select(pl.col(name).cast(pl.Float64).fill_null(np.nan)).to_numpy()
