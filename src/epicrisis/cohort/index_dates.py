"""Labels given as index dates: who is a case since when, and who is a control.

Accepted: the text pipeline's CSV (subject_id, site, cancerdate as YYYY-MM-DD or empty, is_case as 0 or 1),
or a Parquet file with subject_id, index_date, boolean_value. Either file may use either set of names; other
columns (site) are not read. The day counts, not the hour: with the strict bound nothing of the cutoff day
is seen.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from epicrisis.events.meds import TIME, UNREADABLE
from epicrisis.settings.problems import InputError, Problem, refuse

_NAMES = {"subject_id": "subject_id", "cancerdate": "index_date", "is_case": "boolean_value"}
_COLUMNS = tuple(_NAMES.values())
_DATE_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S")
_TRUTH = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


def read_index_dates(path: Path) -> pl.DataFrame:
    """subject_id, index_date (datetime[us] at midnight, null for a control without one), label (Boolean).

    Raises InputError: no such file, columns missing, and counts of values that cannot be read, of cases
    without a date, and of subjects whose rows contradict each other.
    """
    raw = _read_file(Path(path)).rename(_NAMES, strict=False)
    missing = [name for name in _COLUMNS if name not in raw.columns]
    if missing:
        fix = "expected subject_id, cancerdate (or index_date) and is_case (or boolean_value)"
        raise refuse(str(path), f"column {', '.join(missing)} is missing", fix)
    table = raw.select(_subject(raw), _index_date(raw), _is_case(raw), _given_dates(raw))
    problems = _value_problems(table, str(path))
    if problems:
        raise InputError(problems)
    columns = ("subject_id", "index_date", "label")
    table = table.select(columns).unique().sort(*columns)
    _refuse_contradictions(table, str(path))
    return table


def shift_back(time: pl.Expr, cutoff_months: int | None) -> pl.Expr:
    """The time `cutoff_months` calendar months earlier; a day that the month lacks becomes its last."""
    return time.dt.offset_by(f"-{cutoff_months}mo") if cutoff_months else time


def _read_file(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise refuse(str(path), "no such file", "set data.index_dates_filepath to a CSV or Parquet file")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path, glob=False, hive_partitioning=False)
        return pl.read_csv(path, infer_schema=False, glob=False)
    except UNREADABLE as error:
        what = f"cannot be read as a table ({type(error).__name__})"
        raise refuse(str(path), what, "write a comma-separated file with a header, or Parquet") from error


def _text(raw: pl.DataFrame, name: str) -> pl.Expr:
    text = pl.col(name).cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text)


def _subject(raw: pl.DataFrame) -> pl.Expr:
    return _text(raw, "subject_id").cast(pl.Int64, strict=False).alias("subject_id")


def _is_case(raw: pl.DataFrame) -> pl.Expr:
    text = _text(raw, "boolean_value").str.to_lowercase()
    return text.replace_strict(_TRUTH, default=None, return_dtype=pl.Boolean).alias("label")


def _index_date(raw: pl.DataFrame) -> pl.Expr:
    if raw.schema["index_date"].is_temporal():
        date = pl.col("index_date").cast(TIME)
    else:
        text = _text(raw, "index_date")
        date = pl.coalesce(text.str.strptime(TIME, form, strict=False) for form in _DATE_FORMATS)
    return date.dt.truncate("1d").alias("index_date")


def _given_dates(raw: pl.DataFrame) -> pl.Expr:
    return _text(raw, "index_date").is_not_null().alias("dated")


def _value_problems(table: pl.DataFrame, where: str) -> list[Problem]:
    dated = pl.col("dated")
    checks = {
        "rows have a subject_id that is no integer": pl.col("subject_id").is_null(),
        "rows say neither case nor control": pl.col("label").is_null(),
        "rows have an index date that cannot be read": dated & pl.col("index_date").is_null(),
        "cases have no index date": pl.col("label") & ~dated,
    }
    fixes = (
        "use integers",
        "write is_case as 1 or 0",
        "write dates as YYYY-MM-DD",
        "give each case its date of diagnosis, or remove it",
    )
    counts = [table.filter(condition).height for condition in checks.values()]
    return [
        Problem(where, f"{count} {what}", fix) for what, fix, count in zip(checks, fixes, counts, strict=True) if count
    ]


def _refuse_contradictions(table: pl.DataFrame, where: str) -> None:
    """A subject may have several index dates, but none as both case and control, nor one row without."""
    per_date = table.group_by("subject_id", "index_date").len().filter(pl.col("len") > 1)
    dates = table.group_by("subject_id").agg(pl.len(), pl.col("index_date").null_count().alias("undated"))
    mixed = dates.filter((pl.col("undated") > 0) & (pl.col("len") > 1))
    count = pl.concat([per_date["subject_id"], mixed["subject_id"]]).n_unique()
    if count:
        fix = "keep one row per subject and index date"
        raise refuse(where, f"{count} subjects have conflicting rows", fix)
