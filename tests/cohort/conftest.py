"""Fixtures that write a small dataset and its labels into the test's own folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest
from small_meds import day, write_meds


@pytest.fixture
def meds(tmp_path: Path) -> Callable[..., Path]:
    def write(events: Sequence[tuple], splits: dict[int, str] | None = None) -> Path:
        return write_meds(tmp_path / "meds", events, splits or {})

    return write


@pytest.fixture
def labels(tmp_path: Path) -> Callable[..., Path]:
    """Writes label rows (subject, time, value) under the given value column; returns the folder."""

    def write(rows: Sequence[tuple], column: str = "boolean_value", **others: object) -> Path:
        table = pl.DataFrame(
            {
                "subject_id": pl.Series([row[0] for row in rows], dtype=pl.Int64),
                "prediction_time": pl.Series([day(row[1]) for row in rows], dtype=pl.Datetime("us")),
                column: [row[2] for row in rows],
                **others,
            }
        )
        folder = tmp_path / "labels" / "stroke"
        folder.mkdir(parents=True, exist_ok=True)
        table.write_parquet(folder / "0.parquet")
        return folder

    return write
