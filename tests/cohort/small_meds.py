"""MEDS datasets written out by hand in a test: an event is (subject, day or None, code[, value])."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import polars as pl


def day(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def write_meds(root: Path, events: Sequence[tuple], splits: dict[int, str]) -> Path:
    """One flat event file, in the given order; subjects without a split are in train."""
    table = pl.DataFrame(
        {
            "subject_id": pl.Series([event[0] for event in events], dtype=pl.Int64),
            "time": pl.Series([day(event[1]) for event in events], dtype=pl.Datetime("us")),
            "code": pl.Series([event[2] for event in events], dtype=pl.String),
            "numeric_value": pl.Series([event[3] if len(event) > 3 else None for event in events], dtype=pl.Float32),
        }
    )
    (root / "data").mkdir(parents=True, exist_ok=True)
    (root / "metadata").mkdir(exist_ok=True)
    table.write_parquet(root / "data" / "0.parquet")
    subjects = sorted({event[0] for event in events})
    placed = {"subject_id": subjects, "split": [splits.get(subject, "train") for subject in subjects]}
    pl.DataFrame(placed).write_parquet(root / "metadata" / "subject_splits.parquet")
    return root
