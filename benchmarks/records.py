"""Synthetic records of any size for the benchmarks: codes, values and times distributed as in hospital data."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from epicrisis.narrative import (
    Lookups,
    Narrator,
    get_style,
    known_codes,
    load_lookups,
    make_narrator,
    shipped_lookup,
)

NOW = datetime(2024, 1, 1)
"""The prediction time of every row."""

DAY = 86_400_000_000
YEARS = 12

_LABS = 400
_DIAGNOSES = 2500
_DRUGS = 800


def vocabulary() -> pl.DataFrame:
    """code · description · parent_codes of all codes that records are made of."""
    lab = pl.read_csv(shipped_lookup("lab"), infer_schema=False).select(pl.format("LOINC//{}", "code"), pl.col("term"))
    medical = pl.read_csv(shipped_lookup("medical"), infer_schema=False)
    icd = medical.filter(pl.col("code").str.contains(r"^[A-Z]\d\d")).select(pl.format("ICD10CM//{}", "code"), "term")
    parts = [
        _filled(lab, "LOINC//9{:04d}-{}", "Analyte {} [Mass/volume] in Serum or Plasma", _LABS),
        _filled(icd, "ICD10CM//Z{:04d}.{}", "Condition number {}, unspecified", _DIAGNOSES),
        _filled(lab.clear(), "ATC//X{:03d}A{}", "Substance {}", _DRUGS),
    ]
    return pl.concat(parts).with_columns(parent_codes=pl.lit(None, pl.List(pl.String)))


def _filled(known: pl.DataFrame, code: str, term: str, size: int) -> pl.DataFrame:
    named = known.rename(dict(zip(known.columns, ("code", "description"), strict=True))).head(size)
    made = range(size - named.height)
    codes, terms = [code.format(k, k % 10) for k in made], [term.format(k) for k in made]
    more = pl.DataFrame({"code": codes, "description": terms}, schema={"code": pl.String, "description": pl.String})
    return pl.concat([named, more])


def lookups() -> Lookups:
    """The shipped tables and the descriptions of the vocabulary."""
    medical, lab, region, time = (shipped_lookup(name) for name in ("medical", "lab", "region", "time"))
    return load_lookups(medical, lab, region, time, codes=vocabulary())


def narrator_for(style: str) -> Narrator:
    """A narrator that knows the vocabulary."""
    known = lookups()
    persons = ["GENDER//F", "GENDER//M", "MEDS_BIRTH"]
    return make_narrator(known_codes(known.codes["code"], persons), known, get_style(style))


def make_events(n_events: int, per_subject: int, seed: int = 0, first_subject: int = 0) -> pl.DataFrame:
    """`n_events` events of subjects with `per_subject` each, sorted as MEDS asks: the columns of a history.

    Events come in visits of some twelve; four in ten are measurements with a unit, of two or three digits.
    """
    generator = np.random.default_rng(seed)
    subject = np.arange(n_events) // per_subject
    code = _codes(generator, n_events)
    is_lab = code < _LABS
    values = np.where(is_lab, np.round(generator.lognormal(2 + code % 3, 0.4), 1), np.nan).astype(np.float32)
    units = pl.Series(["mg/dL", "g/dL", "mmol/L", "U/L"])
    events = pl.DataFrame(
        {
            "subject_id": first_subject + subject,
            "prediction_time": pl.Series([NOW], dtype=pl.Datetime("us")).new_from_index(0, n_events),
            "time": _times(generator, subject),
            "code": vocabulary()["code"].gather(code),
            "numeric_value": pl.Series(values).fill_nan(None),
            "text_value": pl.Series([None], dtype=pl.String).new_from_index(0, n_events),
            "unit": pl.select(pl.when(pl.Series(is_lab)).then(units.gather(code % 4))).to_series(),
        }
    )
    return _with_persons(events, per_subject)


def rows_of(events: pl.DataFrame) -> pl.DataFrame:
    """One row per subject: subject_id · prediction_time."""
    return events.select("subject_id", "prediction_time").unique(maintain_order=True)


def write_dataset(root: Path, n_events: int, per_subject: int, events_per_file: int, seed: int = 0) -> Path:
    """A MEDS dataset of about `n_events` events in files of `events_per_file`; all subjects but a few train."""
    splits = []
    for number, start in enumerate(range(0, n_events, events_per_file)):
        size = min(events_per_file, n_events - start)
        events = make_events(size, per_subject, seed + number, first_subject=start // per_subject)
        path = root / "data" / f"{number:04d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        events.drop("prediction_time").write_parquet(path, compression="zstd")
        splits.append(events.select("subject_id").unique(maintain_order=True))
    (root / "metadata").mkdir(exist_ok=True)
    subjects = pl.concat(splits)
    names = pl.when(pl.col("subject_id") % 10 == 0).then(pl.lit("tuning")).otherwise(pl.lit("train"))
    subjects.with_columns(split=names).write_parquet(root / "metadata" / "subject_splits.parquet")
    vocabulary().write_parquet(root / "metadata" / "codes.parquet")
    return root


def _codes(generator: np.random.Generator, n_events: int) -> np.ndarray:
    """Places in the vocabulary, Zipf-distributed within measurements, diagnoses and drugs."""
    kind = generator.choice(3, n_events, p=[0.4, 0.35, 0.25])
    sizes = np.array([_LABS, _DIAGNOSES, _DRUGS])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    # Log-uniform ranks: the frequency of a code falls with its rank.
    rank = np.exp(generator.random(n_events) * np.log(sizes[kind])).astype(np.int64)
    return starts[kind] + np.minimum(rank, sizes[kind] - 1)


def _times(generator: np.random.Generator, subject: np.ndarray) -> pl.Series:
    """Visits at any day of the last years, events within a visit at whole quarters of an hour."""
    visit = np.cumsum(generator.random(len(subject)) < 1 / 12) + subject
    days = generator.integers(1, YEARS * 365, int(visit[-1]) + 1 if len(visit) else 0)
    quarters = generator.integers(0, 48, len(subject))
    now = int(np.datetime64(NOW, "us").astype(np.int64))
    microseconds = now - days[visit] * DAY + quarters * DAY // 96
    order = np.lexsort((microseconds, subject))
    return pl.Series(microseconds[order]).cast(pl.Datetime("us"))


def _with_persons(events: pl.DataFrame, per_subject: int) -> pl.DataFrame:
    """The first two events of each subject are its sex and its birth."""
    place, subject = pl.int_range(pl.len()) % per_subject, pl.col("subject_id")
    sex = pl.when(subject % 2 == 0).then(pl.lit("GENDER//F")).otherwise(pl.lit("GENDER//M"))
    birth = pl.lit(NOW) - pl.duration(days=(20 + subject % 70) * 365)
    born = pl.when(place == 0).then(sex).when(place == 1).then(pl.lit("MEDS_BIRTH"))
    nothing = place < 2
    return events.with_columns(
        code=pl.coalesce(born, "code"),
        time=pl.when(place == 0).then(None).when(place == 1).then(birth).otherwise("time").cast(pl.Datetime("us")),
        numeric_value=pl.when(~nothing).then("numeric_value"),
        unit=pl.when(~nothing).then("unit"),
    )
