"""How much of a dataset reads as words: per split and vocabulary, and the codes that do not."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl

from epicrisis.narrative.lookups import Lookups

SOURCES = ("lookup", "description", "parent", "readable", "raw")
"""Where a phrase can come from, best first."""

_COLUMNS = ("split", "vocabulary", "n_events", "n_subjects", "n_codes", *SOURCES, "words")


def coverage(events: pl.LazyFrame, lookups: Lookups, splits: pl.DataFrame | None = None) -> pl.DataFrame:
    """How codes became words.

    events: subject_id · code. splits: subject_id · split; without it all subjects count as one split,
    `all`. Returns, sorted: split · vocabulary (`*` is all of them) · n_events · n_subjects · n_codes ·
    share of events by source (`lookup` … `raw`) · `words`, the share that reads as words (see
    `reads_as_words`).
    """
    counted = _by_subject_and_code(events, splits)
    told = lookups.resolve(counted["code"]).select("code", "vocabulary", "source", words=reads_as_words())
    known = counted.join(told, on="code", how="left")
    parts = [_summed(known), _summed(known.with_columns(pl.lit("*").alias("vocabulary")))]
    return pl.concat(parts).sort("split", "vocabulary")


def reads_as_words() -> pl.Expr:
    """Whether a resolved code (phrase · source) is not raw and has a word of at least two letters."""
    return (pl.col("source") != "raw") & pl.col("phrase").str.contains(r"\p{L}{2}")


def unresolved(events: pl.LazyFrame, lookups: Lookups, top: int = 50) -> pl.DataFrame:
    """The codes that do not read as words, most frequent first: code · vocabulary · n_events · n_subjects."""
    counted = _by_subject_and_code(events, None)
    told = lookups.resolve(counted["code"]).filter(~reads_as_words()).select("code", "vocabulary")
    found = counted.join(told, on="code", how="inner")
    codes = found.group_by("code", "vocabulary").agg(n_events=pl.col("events").sum(), n_subjects=pl.len())
    return codes.sort(["n_events", "code"], descending=[True, False]).head(top)


def write_csv(table: pl.DataFrame, path: Path) -> None:
    """Writes the table whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        table.write_csv(unfinished, float_precision=4)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _by_subject_and_code(events: pl.LazyFrame, splits: pl.DataFrame | None) -> pl.DataFrame:
    counted = events.group_by("subject_id", "code").agg(pl.len().alias("events")).collect()
    if splits is None:
        return counted.with_columns(pl.lit("all").alias("split"))
    counted = counted.join(splits.select("subject_id", "split"), on="subject_id", how="left")
    return counted.with_columns(pl.col("split").fill_null("(none)"))


def _summed(known: pl.DataFrame) -> pl.DataFrame:
    events = pl.col("events")
    shares = [(events.filter(pl.col("source") == name).sum() / events.sum()).alias(name) for name in SOURCES]
    return (
        known.group_by("split", "vocabulary")
        .agg(
            *shares,
            n_events=events.sum(),
            n_subjects=pl.col("subject_id").n_unique(),
            n_codes=pl.col("code").n_unique(),
            words=events.filter("words").sum() / events.sum(),
        )
        .select(*_COLUMNS)
    )
