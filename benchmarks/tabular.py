"""Counts and a logistic regression on many subjects and codes: sparse all the way, against what dense would take.

    python benchmarks/tabular.py [n_subjects] [n_codes]

Synthetic histories: 60 events per subject in ten shards, codes as frequent as in records (Zipf), a hundred of them
carrying risk; windows of 30 and 365 days and the whole history. Features are made of the events, then a logistic
regression is fitted for each of its strengths, chosen on a tenth of the rows. The ratio is that of the memory of the
dense matrix of the train rows, in float32, to the peak memory of the whole run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from epicrisis.tabular import ARMS
from epicrisis.tabular.counts import FeatureChoice
from timing import finish, peak_memory

N_SUBJECTS, N_CODES, EVENTS_EACH, N_SHARDS, RISKY = 100_000, 50_000, 60, 10, 100
T0 = datetime(2020, 1, 1)


@dataclass(frozen=True)
class Histories:
    """Visible events, shard by shard, as a cohort's history gives them."""

    tables: list[pl.DataFrame]

    def shards(self) -> Iterator[tuple[pl.DataFrame, pl.LazyFrame]]:
        for table in self.tables:
            yield table, table.lazy()


@dataclass
class Figures:
    """A run that keeps what it is told."""

    dir: Path = Path("unused")
    told: dict[str, Any] | None = None

    def log(self, **fields: Any) -> None:
        self.told = fields


def make(n_subjects: int, n_codes: int) -> tuple[pl.DataFrame, Histories]:
    generator = np.random.default_rng(0)
    share = 1 / (np.arange(n_codes) + 50)
    codes = generator.choice(n_codes, n_subjects * EVENTS_EACH, p=share / share.sum())
    codes[:n_codes] = np.arange(n_codes)
    subjects = np.tile(np.arange(n_subjects), EVENTS_EACH)
    risk = np.bincount(subjects, weights=codes % (n_codes // RISKY) == 7, minlength=n_subjects)
    labels = generator.random(n_subjects) < 1 / (1 + np.exp(2 - risk))
    splits = np.repeat(
        ["train", "tuning", "held_out"], np.diff(np.linspace(0, n_subjects, 11)[[0, 8, 9, 10]].astype(int))
    )
    rows = pl.DataFrame(
        {"subject_id": np.arange(n_subjects), "prediction_time": [T0] * n_subjects, "split": splits, "label": labels}
    )
    names = pl.Series([f"ICD10CM//{code:06d}" for code in range(n_codes)])
    events = pl.DataFrame({"subject_id": subjects, "days": generator.integers(0, 2000, len(codes))})
    events = events.with_columns(
        prediction_time=pl.lit(T0),
        time=pl.lit(T0) - pl.duration(days="days"),
        code=names.gather(codes),
        numeric_value=pl.lit(None, pl.Float32),
    )
    size = -(-n_subjects // N_SHARDS)
    ordered = events.drop("days").sort("subject_id", "time")
    return rows, Histories(ordered.with_columns(s=pl.col("subject_id") // size).partition_by("s", include_key=False))


def main() -> None:
    n_subjects, n_codes = (int(given) for given in (sys.argv[1:] + [N_SUBJECTS, N_CODES][len(sys.argv) - 1 :]))
    rows, histories = make(n_subjects, n_codes)
    arm = ARMS["logistic_regression"](min_subjects=1, choice=FeatureChoice(windows_days=(30.0, 365.0, None)))
    run = Figures()
    with peak_memory() as before:
        time.sleep(0.1)
    with peak_memory() as peak:
        start = time.perf_counter()
        fitted = arm.fit(rows, histories, run)
        fit_seconds = time.perf_counter() - start
        held_out = rows.filter(split="held_out")
        start = time.perf_counter()
        found = fitted.predict(held_out, histories)[:, 1]
        predict_seconds = time.perf_counter() - start
    assert run.told is not None
    n_columns, n_train = run.told["n_columns"], run.told["n_train"]
    dense = n_train * n_columns * 4 / 1e6
    auroc = roc_auc_score(held_out["label"].to_numpy(), found)
    print(
        f"{n_subjects:,} subjects, {n_codes:,} codes, {n_columns:,} columns: {fit_seconds:.0f} s to fit, peak "
        f"{peak[0]:,.0f} MB (data before: {before[0]:,.0f}), dense {dense:,.0f} MB for train alone; AUROC {auroc:.3f}"
    )
    figures = {
        "subjects": n_subjects,
        "codes": n_codes,
        "columns": n_columns,
        "events": n_subjects * EVENTS_EACH,
        "fit_seconds": fit_seconds,
        "predict_seconds": predict_seconds,
        "data_mb": before[0],
        "peak_mb": peak[0],
        "dense_mb": dense,
        "auroc": float(auroc),
    }
    finish("tabular", dense / peak[0], 5, figures)


if __name__ == "__main__":
    main()
