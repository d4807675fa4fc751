"""The arm `oracle`: the true risk that a synthetic cohort was drawn with; the best that any arm can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from epicrisis.cohort import History
from epicrisis.settings import refuse

_KEYS = ["subject_id", "prediction_time"]


@dataclass(frozen=True)
class OracleArm:
    """Learns nothing; looks each row's true risk up in `data.oracle_dir`."""

    directory: Path | None

    def fit(self, rows: pl.DataFrame, history: History, run: Any) -> OracleArm:
        if self.directory is None:
            raise refuse("data.oracle_dir", "is not given", "only a synthetic cohort has true risks: give its folder")
        return self

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """[n_rows, 2]: 1 − true risk, true risk."""
        risks = pl.read_parquet(f"{self.directory}/*.parquet").select(*_KEYS, "true_risk")
        found = rows.select(_KEYS).join(risks, on=_KEYS, how="left", maintain_order="left")["true_risk"]
        if found.null_count():
            raise refuse(
                "data.oracle_dir",
                f"{found.null_count()} rows have no true risk there",
                "use the oracle and the labels of the same synthetic cohort, without a cutoff",
            )
        risk = found.to_numpy()
        return np.stack([1 - risk, risk], axis=1)

    def save(self, directory: Path) -> None:
        """Nothing was learnt, nothing is kept."""

    def load(self, directory: Path) -> OracleArm:
        return self
