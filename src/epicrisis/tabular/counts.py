"""Visible events → sparse features: how often each code occurred, its numbers, and the age.

What is fitted (vocabulary, means, scales) is fitted on the train rows alone and says so. All matrices are
CSR from the event table onwards; nothing is ever made dense.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file
from scipy import sparse

from epicrisis.settings.problems import refuse
from epicrisis.settings.tabular_section import CountForm, TabularSettings, ValueFeature
from epicrisis.tracking.run_directory import replacing

KEY = ("subject_id", "prediction_time")
BIRTH = "MEDS_BIRTH"
AGE = "age at prediction time, years"
MICROSECONDS_PER_DAY = 86_400_000_000
MICROSECONDS_PER_YEAR = 365.25 * MICROSECONDS_PER_DAY
HALF_LIFE_DAYS = 365.0
# Beyond five standard deviations a laboratory value is more often a slip than a patient.
MAX_STANDARDISED = 5.0
# Two values a minute apart make any slope per year; the train slopes beyond these shares are drawn in to them before
# their mean and spread are taken.
SLOPES_BETWEEN = (0.01, 0.99)
FILES = ("features.json", "features.safetensors")
_WORDS = {"binary": "seen", "frequency": "count", "recency": "recent"}
_LINES = {"row": pl.Int64, "subject_id": pl.Int64, "code": pl.String}


@dataclass(frozen=True)
class FeatureChoice:
    """What is counted and which numbers are taken; the keys of `tabular`, which explain each.

    An event is in a window of d days if it is visible and at most d days before the prediction time, inclusively;
    an event without a time is in the window `None` (all that is visible) only, where it never fades.
    """

    counts: CountForm = "frequency"
    half_life_days: float | None = None
    windows_days: tuple[float | None, ...] = (None,)
    value_features: tuple[ValueFeature, ...] = ("last",)

    @classmethod
    def of(cls, settings: TabularSettings) -> FeatureChoice:
        """The choice of these settings."""
        return cls(settings.counts, settings.half_life_days, settings.windows_days, settings.value_features)

    @property
    def windows(self) -> dict[str, float | None]:
        """{column of the grouped history: days}."""
        return {"ever" if days is None else f"{days:g} days": days for days in self.windows_days}

    def name(self, window: str, code: str) -> str:
        """What the column of a code in a window is called: `count X`, or `count X, last 30 days`."""
        return f"{_WORDS[self.counts]} {code}" + ("" if self.windows[window] is None else f", last {window}")


@dataclass(frozen=True)
class RowCodes:
    """The visible history of some rows, grouped: one line per row and code.

    n_rows: rows asked about; `row` below is their position. codes: row, subject_id, code, and for each window of the
    choice the number of events, or what they still weigh where they fade. values: row, subject_id, code, and each of
    the value features, only of codes with a finite number. ages: row, years.
    """

    n_rows: int
    codes: pl.DataFrame
    values: pl.DataFrame
    ages: pl.DataFrame
    choice: FeatureChoice

    def between(self, start: int, stop: int) -> RowCodes:
        """The rows start ≤ row < stop, counted from 0 again."""
        chosen = pl.col("row").is_between(start, stop, closed="left")
        tables = (self.codes, self.values, self.ages)
        codes, values, ages = (table.filter(chosen).with_columns(pl.col("row") - start) for table in tables)
        return RowCodes(stop - start, codes, values, ages, self.choice)

    def counts_of(self, codes: tuple[str, ...]) -> sparse.csr_matrix:
        """CSR [n_rows, n_windows x n_codes], window by window; the form of the counts is that of the choice."""
        placed = self._placed(self.codes, codes)
        parts = [self._matrix(placed.filter(pl.col(window) > 0), window, len(codes)) for window in self.choice.windows]
        counted = _side_by_side(parts)
        counted.data = np.ones_like(counted.data) if self.choice.counts == "binary" else np.log1p(counted.data)
        return counted

    def values_of(self, codes: tuple[str, ...]) -> sparse.csr_matrix:
        """CSR [n_rows, n_value_features x n_codes + 1], feature by feature, then the age; zeros are kept."""
        placed = self._placed(self.values, codes)
        features = self.choice.value_features
        parts = [self._matrix(placed.drop_nulls(feature), feature, len(codes)) for feature in features]
        ages = self.ages.sort("row").with_columns(column=pl.lit(0, pl.Int64))
        return _side_by_side([*parts, self._matrix(ages, "years", 1)])

    @staticmethod
    def _placed(table: pl.DataFrame, codes: tuple[str, ...]) -> pl.DataFrame:
        """The lines of these codes with the `column` of each, in the order that CSR wants."""
        schema = {"code": pl.String, "column": pl.Int64}
        index = pl.DataFrame({"code": codes, "column": np.arange(len(codes))}, schema=schema)
        return table.join(index, on="code").drop("code", "subject_id").sort("row", "column")

    def _matrix(self, placed: pl.DataFrame, content: str, n_columns: int) -> sparse.csr_matrix:
        starts = np.searchsorted(placed["row"].to_numpy(), np.arange(self.n_rows + 1))
        data = placed[content].cast(pl.Float64).to_numpy().copy()
        return sparse.csr_matrix((data, placed["column"].to_numpy(), starts), shape=(self.n_rows, n_columns))


@dataclass(frozen=True)
class CountFeatures:
    """A vocabulary of codes with, for those that carry numbers, the mean and spread of what is taken of them.

    codes: counted codes, sorted. value_codes: the ones with numbers, sorted. mean, spread: of the value columns,
    float64 [n_value_features x n_value_codes + 1], the age last. fitted_on: always "train". min_subjects: train
    subjects that a code needs to be kept.
    """

    choice: FeatureChoice
    codes: tuple[str, ...]
    value_codes: tuple[str, ...]
    mean: np.ndarray
    spread: np.ndarray
    min_subjects: int
    fitted_on: str = "train"

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of `for_trees`, in order: counts window by window, the numbers feature by feature, the age."""
        counts = [self.choice.name(window, code) for window in self.choice.windows for code in self.codes]
        return (*counts, *self._value_names)

    @property
    def names_with_measured(self) -> tuple[str, ...]:
        """The columns of `for_forest` and `for_linear`: `names`, then whether a number is there."""
        return (*self.names, *(f"measured {self._value_names[place]}" for place in self._measured))

    def for_trees(self, table: RowCodes) -> sparse.csr_matrix:
        """[n_rows, len(names)] float32, for trees to which absent means missing."""
        return sparse.hstack(
            [table.counts_of(self.codes), table.values_of(self.value_codes)], format="csr", dtype=np.float32
        )

    def for_forest(self, table: RowCodes) -> sparse.csr_matrix:
        """[n_rows, len(names_with_measured)] float32, for trees to which absent means 0.

        A missing number is 0, and the 0 of `measured` tells it from one that is.
        """
        counts, values = table.counts_of(self.codes), table.values_of(self.value_codes)
        return sparse.hstack([counts, values, self._whether_measured(values)], format="csr", dtype=np.float32)

    def for_linear(self, table: RowCodes) -> sparse.csr_matrix:
        """[n_rows, len(names_with_measured)] float64, with the numbers standardised.

        A missing number is 0, the mean, so that only `measured` tells it from an average one.
        """
        counts, values = table.counts_of(self.codes), table.values_of(self.value_codes)
        standardised = values.copy()
        standardised.data = (values.data - self.mean[values.indices]) / self.spread[values.indices]
        standardised.data = standardised.data.clip(-MAX_STANDARDISED, MAX_STANDARDISED)
        return sparse.hstack([counts, standardised, self._whether_measured(values)], format="csr", dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write features.json and features.safetensors into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        words = {"codes": self.codes, "value_codes": self.value_codes, "min_subjects": self.min_subjects}
        words |= {"choice": asdict(self.choice), "fitted_on": self.fitted_on}
        with replacing(folder / FILES[0]) as part:
            part.write_text(json.dumps(words, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        with replacing(folder / FILES[1]) as part:
            save_file({"mean": self.mean, "spread": self.spread}, part)

    @classmethod
    def load(cls, folder: Path) -> CountFeatures:
        """Read what `save` wrote. Raises InputError if a file is absent."""
        absent = [name for name in FILES if not (folder / name).is_file()]
        if absent:
            fix = "point at a folder that a fitted arm was saved in"
            raise refuse(str(folder), f"{', '.join(absent)} is missing", fix)
        words = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        arrays = load_file(folder / FILES[1])
        chosen: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in words["choice"].items()
        }
        codes, value_codes = tuple(words["codes"]), tuple(words["value_codes"])
        choice, kept = FeatureChoice(**chosen), words["min_subjects"]
        return cls(choice, codes, value_codes, arrays["mean"], arrays["spread"], kept, words["fitted_on"])

    @property
    def _value_names(self) -> tuple[str, ...]:
        of_codes = (f"{feature} {code}" for feature in self.choice.value_features for code in self.value_codes)
        return (*of_codes, f"last {AGE}")

    @property
    def _measured(self) -> list[int]:
        """Places among the value columns that tell what is there: last, min and max are there together."""
        features = self.choice.value_features
        told = [feature for feature in features if feature != "trend"][:1] + [f for f in features if f == "trend"]
        n = len(self.value_codes)
        starts = sorted(features.index(feature) * n for feature in told)
        return [*(start + place for start in starts for place in range(n)), len(features) * n]

    def _whether_measured(self, values: sparse.csr_matrix) -> sparse.csr_matrix:
        measured = values.copy()
        measured.data = np.ones_like(values.data)
        return measured[:, self._measured]


def group_by_code(rows: pl.DataFrame, shards: Iterable[pl.LazyFrame], choice: FeatureChoice | None = None) -> RowCodes:
    """Group the visible events of `rows` by row and code, shard by shard in bounded memory.

    rows: subject_id, prediction_time, unique. shards: visible events with subject_id, prediction_time, time,
    code and numeric_value, in time order within a row, each row in one shard; other rows are passed over.
    """
    choice = choice or FeatureChoice()
    numbered = rows.select(*KEY).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    empty = [
        pl.DataFrame(schema={**_LINES, **dict.fromkeys(choice.windows, pl.Float64)}),
        pl.DataFrame(schema={**_LINES, **dict.fromkeys(choice.value_features, pl.Float64)}),
        pl.DataFrame(schema={"row": pl.Int64, "years": pl.Float64}),
    ]
    grouped = [empty, *(_group_shard(numbered, events, choice) for events in shards)]
    codes, values, ages = (pl.concat(tables) for tables in zip(*grouped, strict=True))
    return RowCodes(rows.height, codes, values, ages, choice)


def fit_features(table: RowCodes, min_subjects: int = 5) -> CountFeatures:
    """The vocabulary and the numbers' mean and spread, from the grouped history of the train rows only.

    min_subjects: a code is kept, and its numbers used, if this many distinct train subjects have it in any window.
    The age is always used.
    """
    codes, value_codes = _frequent(table.codes, min_subjects), _frequent(table.values, min_subjects)
    fitted = [_moments(table.values, feature, value_codes) for feature in table.choice.value_features]
    years = pl.col("years")
    moments = pl.concat([*fitted, table.ages.select(mean=years.mean(), spread=years.std(ddof=0))])
    # A number that never varies carries nothing: spread 1 leaves its standardised form at 0.
    spread = moments["spread"].fill_null(1.0).replace(0.0, 1.0).to_numpy()
    return CountFeatures(
        table.choice, codes, value_codes, moments["mean"].fill_null(0.0).to_numpy(), spread, min_subjects
    )


def _moments(values: pl.DataFrame, feature: str, codes: tuple[str, ...]) -> pl.DataFrame:
    """mean, spread of one feature of each code."""
    number = pl.col(feature)
    if feature == "trend":
        number = number.clip(*(number.quantile(share) for share in SLOPES_BETWEEN))
    found = values.group_by("code").agg(mean=number.mean(), spread=number.std(ddof=0))
    index = pl.DataFrame({"code": codes}, schema={"code": pl.String})
    return index.join(found, on="code", how="left", maintain_order="left").select("mean", "spread")


def _group_shard(numbered: pl.DataFrame, events: pl.LazyFrame, choice: FeatureChoice) -> list[pl.DataFrame]:
    """The codes, values and ages of one shard, as `RowCodes` holds them."""
    # `last` leans on the order of events within a row, which the join must therefore keep.
    seen = events.join(numbered.lazy(), on=KEY, maintain_order="left").with_columns(
        age=(pl.col("prediction_time") - pl.col("time")).dt.total_microseconds()
    )
    lines = list(_LINES)
    counted = seen.group_by(lines).agg(_weight(choice, days).alias(name) for name, days in choice.windows.items())
    counted = counted.filter(pl.any_horizontal(pl.col(name) > 0 for name in choice.windows))
    number = pl.col("numeric_value")
    numbers = seen.filter(number.is_finite()).with_columns(number.cast(pl.Float64)) if choice.value_features else None
    summaries = {"last": number.last(), "min": number.min(), "max": number.max(), "trend": _slope()}
    taken = [summaries[feature].alias(feature) for feature in choice.value_features]
    values = counted.select(lines).clear() if numbers is None else numbers.group_by(lines).agg(taken)
    born = seen.filter((pl.col("code") == BIRTH) & pl.col("time").is_not_null())
    ages = born.group_by("row").agg(years=pl.col("age").max() / MICROSECONDS_PER_YEAR)
    found = pl.collect_all([counted, values, ages])
    return [found[0].sort("row", "code"), found[1].sort("row", "code"), found[2].sort("row")]


def _weight(choice: FeatureChoice, days: float | None) -> pl.Expr:
    """The number of events in a window; where they fade, the sum of 2^(−age / half-life)."""
    age = pl.col("age")
    inside = None if days is None else (age <= round(days * MICROSECONDS_PER_DAY)).fill_null(False)
    if choice.counts != "recency":
        return (pl.len() if inside is None else inside.sum()).cast(pl.Float64)
    half_life = (choice.half_life_days or HALF_LIFE_DAYS) * MICROSECONDS_PER_DAY
    weight = pl.lit(2.0).pow(-age / half_life).fill_null(1.0)
    return (weight if inside is None else weight.filter(inside)).sum()


def _slope() -> pl.Expr:
    """The least-squares slope of a code's numbers per year, null below two distinct times; undated ones have no say."""
    dated = pl.col("age").is_not_null()
    age, number = pl.col("age").filter(dated), pl.col("numeric_value").filter(dated)
    years = (age.max() - age) / MICROSECONDS_PER_YEAR
    off = years - years.mean()
    slope = (off * (number - number.mean())).sum() / (off * off).sum()
    return pl.when(age.n_unique() >= 2).then(slope).otherwise(None)


def _frequent(table: pl.DataFrame, min_subjects: int) -> tuple[str, ...]:
    subjects = table.group_by("code").agg(pl.col("subject_id").n_unique().alias("subjects"))
    return tuple(subjects.filter(pl.col("subjects") >= min_subjects)["code"].sort())


def _side_by_side(parts: list[sparse.csr_matrix]) -> sparse.csr_matrix:
    return parts[0] if len(parts) == 1 else sparse.hstack(parts, format="csr")
