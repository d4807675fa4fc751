"""Visible events → sparse features: how often each code occurred, its last value, and the age.

What is fitted (vocabulary, means, scales) is fitted on the train rows alone and says so. All matrices are
CSR from the event table onwards; nothing is ever made dense.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file
from scipy import sparse

from epicrisis.settings.problems import refuse
from epicrisis.tracking.run_directory import replacing

KEY = ("subject_id", "prediction_time")
BIRTH = "MEDS_BIRTH"
AGE = "age at prediction time, years"
MICROSECONDS_PER_YEAR = 365.25 * 86_400_000_000
# Beyond five standard deviations a laboratory value is more often a slip than a patient.
MAX_STANDARDISED = 5.0
_GROUPED = pl.DataFrame(
    schema={
        **{"row": pl.Int64, "subject_id": pl.Int64, "code": pl.String},
        **{"count": pl.Float64, "value": pl.Float64, "first_time": pl.Datetime("us")},
    }
)
FILES = ("features.json", "features.safetensors")


@dataclass(frozen=True)
class CountFeatures:
    """A vocabulary of codes with, for those that carry numbers, the mean and spread of the last value.

    codes: counted codes, sorted. value_codes: the ones with values, and the age, last. mean, spread: of their
    values, float64 [n_value_codes]. fitted_on: always "train". min_subjects: train subjects that a code needs
    to be kept.
    """

    codes: tuple[str, ...]
    value_codes: tuple[str, ...]
    mean: np.ndarray
    spread: np.ndarray
    min_subjects: int
    fitted_on: str = "train"

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of `for_trees`, in order: counts, then last values."""
        return (*(f"count {code}" for code in self.codes), *(f"last {code}" for code in self.value_codes))

    def for_trees(self, table: RowCodes) -> sparse.csr_matrix:
        """[n_rows, n_codes + n_value_codes]: log1p counts, then raw last values; absent = missing."""
        counts, values = self._counts(table), self._values(table)
        return sparse.hstack([counts, values], format="csr", dtype=np.float32)

    def for_linear(self, table: RowCodes) -> sparse.csr_matrix:
        """[n_rows, n_codes + 2 n_value_codes]: log1p counts, standardised last values, measured or not.

        A missing value is 0, the mean, so that only `measured` tells it from an average one.
        """
        counts, values = self._counts(table), self._values(table)
        column = values.indices
        standardised = values.copy()
        standardised.data = (values.data - self.mean[column]) / self.spread[column]
        standardised.data = standardised.data.clip(-MAX_STANDARDISED, MAX_STANDARDISED)
        measured = values.copy()
        measured.data = np.ones_like(values.data)
        return sparse.hstack([counts, standardised, measured], format="csr", dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write features.json and features.safetensors into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        words = {"codes": self.codes, "value_codes": self.value_codes, "min_subjects": self.min_subjects}
        with replacing(folder / FILES[0]) as part:
            text = json.dumps({**words, "fitted_on": self.fitted_on}, ensure_ascii=False, indent=1)
            part.write_text(text + "\n", encoding="utf-8")
        with replacing(folder / FILES[1]) as part:
            save_file({"mean": self.mean, "spread": self.spread}, part)

    @classmethod
    def load(cls, folder: Path) -> CountFeatures:
        """Read what `save` wrote. Raises InputError if a file is absent."""
        absent = [name for name in FILES if not (folder / name).is_file()]
        if absent:
            raise refuse(
                str(folder),
                f"{', '.join(absent)} is missing",
                "point at a folder that a fitted arm was saved in",
            )
        words = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        arrays = load_file(folder / FILES[1])
        codes, value_codes = tuple(words["codes"]), tuple(words["value_codes"])
        return cls(codes, value_codes, arrays["mean"], arrays["spread"], words["min_subjects"], words["fitted_on"])

    def _counts(self, table: RowCodes) -> sparse.csr_matrix:
        counted = table.matrix(table.codes, self.codes, "count")
        counted.data = np.log1p(counted.data)
        return counted

    def _values(self, table: RowCodes) -> sparse.csr_matrix:
        return table.matrix(table.values, self.value_codes, "value")


@dataclass(frozen=True)
class RowCodes:
    """The visible history of some rows, grouped: one line per row and code.

    n_rows: rows asked about; `row` below is their position. codes: row, subject_id, code, count. values: row,
    subject_id, code, value (the last finite number of the code, or the age), only where there is one.
    """

    n_rows: int
    codes: pl.DataFrame
    values: pl.DataFrame

    def between(self, start: int, stop: int) -> RowCodes:
        """The rows start ≤ row < stop, counted from 0 again."""
        chosen = pl.col("row").is_between(start, stop, closed="left")
        moved = (pl.col("row") - start).alias("row")
        codes, values = (table.filter(chosen).with_columns(moved) for table in (self.codes, self.values))
        return RowCodes(stop - start, codes, values)

    def matrix(self, table: pl.DataFrame, columns: tuple[str, ...], content: str) -> sparse.csr_matrix:
        """CSR [n_rows, n_columns] of `content`; codes not among `columns` are left out, zeros are kept."""
        index = pl.DataFrame(
            {"code": columns, "column": np.arange(len(columns))},
            schema={"code": pl.String, "column": pl.Int64},
        )
        cells = table.join(index, on="code").sort("row", "column")
        row, column = cells["row"].to_numpy(), cells["column"].to_numpy()
        starts = np.searchsorted(row, np.arange(self.n_rows + 1))
        data = cells[content].cast(pl.Float64).to_numpy().copy()
        return sparse.csr_matrix((data, column, starts), shape=(self.n_rows, len(columns)))


def group_by_code(rows: pl.DataFrame, shards: Iterable[pl.LazyFrame]) -> RowCodes:
    """Group the visible events of `rows` by row and code, shard by shard in bounded memory.

    rows: subject_id, prediction_time, unique. shards: visible events with subject_id, prediction_time, time,
    code and numeric_value, in time order within a row, each row in one shard; other rows are passed over.
    """
    numbered = rows.select(*KEY).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    grouped = pl.concat([_GROUPED, *(_group_shard(numbered, events) for events in shards)])
    codes = grouped.select("row", "subject_id", "code", "count")
    last = grouped.filter(pl.col("value").is_not_null()).select("row", "subject_id", "code", "value")
    return RowCodes(rows.height, codes, pl.concat([last, _ages(grouped, numbered)]))


def fit_features(table: RowCodes, min_subjects: int = 5) -> CountFeatures:
    """The vocabulary and the values' mean and spread, from the grouped history of the train rows only.

    min_subjects: a code is kept, and its value used, if this many distinct train subjects have it. The age is
    always used.
    """
    codes = _frequent(table.codes, min_subjects)
    value_codes = (*(code for code in _frequent(table.values, min_subjects) if code != AGE), AGE)
    index = pl.DataFrame({"code": value_codes}, schema={"code": pl.String})
    moments = table.values.group_by("code").agg(
        pl.col("value").mean().alias("mean"), pl.col("value").std(ddof=0).alias("spread")
    )
    fitted = index.join(moments, on="code", how="left", maintain_order="left")
    # A value that never varies carries nothing: spread 1 leaves its standardised form at 0.
    spread = fitted["spread"].fill_null(1.0).replace(0.0, 1.0).to_numpy()
    return CountFeatures(codes, value_codes, fitted["mean"].fill_null(0.0).to_numpy(), spread, min_subjects)


def _group_shard(numbered: pl.DataFrame, events: pl.LazyFrame) -> pl.DataFrame:
    number = pl.col("numeric_value").filter(pl.col("numeric_value").is_finite())
    # "last" leans on the order of events within a row, which the join must therefore keep.
    return (
        events.join(numbered.lazy(), on=KEY, maintain_order="left")
        .group_by("row", "subject_id", "code")
        .agg(
            pl.len().cast(pl.Float64).alias("count"),
            number.last().cast(pl.Float64).alias("value"),
            pl.col("time").min().cast(pl.Datetime("us")).alias("first_time"),
        )
        .collect()
        .sort("row", "code")
    )


def _ages(grouped: pl.DataFrame, numbered: pl.DataFrame) -> pl.DataFrame:
    born = grouped.filter((pl.col("code") == BIRTH) & pl.col("first_time").is_not_null())
    lived = pl.col("prediction_time") - pl.col("first_time")
    return born.join(numbered.select("row", "prediction_time"), on="row").select(
        "row",
        "subject_id",
        pl.lit(AGE).alias("code"),
        (lived.dt.total_microseconds() / MICROSECONDS_PER_YEAR).alias("value"),
    )


def _frequent(table: pl.DataFrame, min_subjects: int) -> tuple[str, ...]:
    subjects = table.group_by("code").agg(pl.col("subject_id").n_unique().alias("subjects"))
    return tuple(subjects.filter(pl.col("subjects") >= min_subjects)["code"].sort())
