"""Nothing becomes dense on the way from events to probabilities, however many codes there are."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import sparse
from tests.tabular.test_tabular_arms import NAMES, Log, VisibleEvents

from epicrisis.tabular import ARMS, forest
from epicrisis.tabular.counts import FeatureChoice

T0 = datetime(2020, 1, 1)
N_ROWS, N_CODES, N_EVENTS = 400, 5_000, 12
MOST_CELLS = 20_000
"""Allowed at once; dense, the matrix would have more than 50 times as many."""


def wide_cohort() -> tuple[pl.DataFrame, VisibleEvents]:
    """Many codes, a few of them in each record; a common one, and its number, mark who falls ill."""
    generator = np.random.default_rng(0)
    ill = np.arange(N_ROWS) % 2 == 0
    splits = np.where(np.arange(N_ROWS) % 5 < 3, "train", np.where(np.arange(N_ROWS) % 5 == 3, "tuning", "held_out"))
    rows = pl.DataFrame({"subject_id": range(N_ROWS), "prediction_time": [T0] * N_ROWS, "split": splits, "label": ill})
    codes = generator.integers(0, N_CODES, N_ROWS * N_EVENTS)
    codes[: N_CODES // 2] = np.arange(N_CODES // 2)  # so that many codes are there
    rare = pl.DataFrame(
        {"subject_id": np.repeat(np.arange(N_ROWS), N_EVENTS), "code": [f"C{code}" for code in codes]}
    ).with_columns(numeric_value=pl.lit(None, pl.Float64))
    mark = rows.select("subject_id", code=pl.lit("MARK"), numeric_value=pl.col("label") * 2.0 - 1.0)
    events = pl.concat([rare, mark]).sort("subject_id", maintain_order=True)
    table = events.with_columns(prediction_time=pl.lit(T0), time=pl.lit(T0 - timedelta(days=3)))
    return rows, VisibleEvents(table)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_made_dense(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, history = wide_cohort()
    made: list[int] = []

    def watched(kind: type, method: str) -> None:
        plain = getattr(kind, method)

        def counting(matrix: Any, *args: Any, **kwargs: Any) -> Any:
            made.append(int(np.prod(matrix.shape)))
            return plain(matrix, *args, **kwargs)

        monkeypatch.setattr(kind, method, counting)

    for kind in (sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix):
        watched(kind, "toarray")
        watched(kind, "todense")
    monkeypatch.setattr(forest, "CELLS_AT_ONCE", MOST_CELLS)
    monkeypatch.setattr(forest, "N_TREES", 20)
    run = Log()
    choice = FeatureChoice(windows_days=(30.0, None))
    fitted = ARMS[name](min_subjects=1, choice=choice).fit(rows, history, run)
    held_out = rows.filter(split="held_out")
    ill = held_out["label"].to_numpy()
    found = fitted.predict(held_out, history)[:, 1]
    assert found[ill].mean() > found[~ill].mean() + 0.02
    assert max(made, default=0) <= MOST_CELLS
    assert N_ROWS * run.lines[0]["n_columns"] > 50 * MOST_CELLS
