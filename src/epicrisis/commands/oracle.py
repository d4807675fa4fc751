"""The arm `oracle`: the true risk that a synthetic cohort was drawn with; the best that any arm can do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from epicrisis.cohort import History
from epicrisis.cohort.task import BINARY_CLASSES, class_order, kind_of_labels
from epicrisis.events.synthetic_outcomes import STAY_CLASSES, YEAR_DAYS
from epicrisis.settings import Settings, refuse

_KEYS = ["subject_id", "prediction_time"]


@dataclass(frozen=True)
class OracleArm:
    """Learns nothing; looks each row's true risk up in `data.oracle_dir`.

    horizons: days; survival: whether the task is the time to an event, by which they are asked for.
    """

    directory: Path | None
    horizons: tuple[float, ...] = ()
    survival: bool = False

    def fit(self, rows: pl.DataFrame, history: History, run: Any) -> OracleArm:
        if self.directory is None:
            raise refuse("data.oracle_dir", "is not given", "only a synthetic cohort has true risks: give its folder")
        return replace(self, survival=kind_of_labels(rows) == "survival")

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the task whose true risks these are; of a time to an event `risk` and the horizons."""
        if self.survival:
            return ("risk", *(f"{days:g}" for days in self.horizons))
        risks = pl.read_parquet(f"{self.directory}/*.parquet")
        if "class" in risks.columns:
            return class_order(risks["class"].unique())
        return class_order(STAY_CLASSES) if isinstance(risks.schema["true_risk"], pl.List) else BINARY_CLASSES

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """[n_rows, n_classes]: of a binary task 1 − true risk and true risk, else the true risk of each class.

        Of a time to an event the true hazard, which is constant, and the probability of the event by each horizon.
        """
        risks = _one_list_each(pl.read_parquet(f"{self.directory}/*.parquet"))
        kind = kind_of_labels(rows)
        found = rows.select(_KEYS).join(risks, on=_KEYS, how="left", maintain_order="left")["true_risk"]
        if found.null_count():
            raise refuse(
                "data.oracle_dir",
                f"{found.null_count()} rows have no true risk there",
                "use the oracle and the labels of the same synthetic cohort, without a cutoff",
            )
        is_list = isinstance(found.dtype, pl.List)
        if kind == "survival" and self.survival and not is_list:
            per_day = -np.log1p(-found.to_numpy()) / YEAR_DAYS
            return np.stack([per_day, *(-np.expm1(-per_day * days) for days in self.horizons)], axis=1)
        if is_list != (kind != "binary"):
            what = f"its true risks are not those of a {kind} task"
            raise refuse("data.oracle_dir", what, "use the oracle of the task in data.labels_dir")
        if is_list:
            return np.asarray(found.to_list(), dtype=np.float64)
        return np.stack([1 - found.to_numpy(), found.to_numpy()], axis=1)

    def save(self, directory: Path) -> None:
        """Nothing was learnt, nothing is kept."""

    def load(self, directory: Path) -> OracleArm:
        return self


def _one_list_each(risks: pl.DataFrame) -> pl.DataFrame:
    """subject_id, prediction_time, true_risk: of several classes a list in `class_order`, else a number."""
    if "class" in risks.columns:
        classes = class_order(risks["class"].unique())
        of_class = (pl.col("true_risk").filter(pl.col("class") == name).first().alias(name) for name in classes)
        return risks.group_by(_KEYS).agg(of_class).select(*_KEYS, pl.concat_list(classes).alias("true_risk"))
    if isinstance(risks.schema["true_risk"], pl.List):  # lists follow the length of stay, not the alphabet
        places = [STAY_CLASSES.index(name) for name in class_order(STAY_CLASSES)]
        return risks.select(
            *_KEYS, pl.concat_list(pl.col("true_risk").list.get(place) for place in places).alias("true_risk")
        )
    return risks.select(*_KEYS, "true_risk")


def oracle(settings: Settings, _: Any) -> OracleArm:
    """The arm of these settings."""
    return OracleArm(settings.data.oracle_dir, settings.survival.horizons_days)
