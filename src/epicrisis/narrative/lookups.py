"""Code → term: the tables of the user and the dataset, and the chain by which each code finds its words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import polars as pl

from epicrisis.narrative.patterns import Pattern, read_patterns
from epicrisis.narrative.resolve import resolve_codes
from epicrisis.narrative.tables import read_table, term_problems
from epicrisis.narrative.times import GapLabel, read_gap_labels
from epicrisis.settings.problems import InputError, Problem

SHIPPED_PATTERNS = Path(__file__).parents[3] / "lookups" / "code_patterns.csv"

T = TypeVar("T")

TERM_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "table": pl.String,
    "code": pl.String,
    "term": pl.String,
}
CODES_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "code": pl.String,
    "description": pl.String,
    "parent_codes": pl.List(pl.String),
}


@dataclass(frozen=True)
class Lookups:
    """All that is known about codes before an event is read."""

    terms: pl.DataFrame
    """table (medical, lab or region) · code · term: the user's tables, unique per table and code."""
    codes: pl.DataFrame
    """code · description · parent_codes: the dataset's own words, unique per code."""
    patterns: tuple[Pattern, ...]
    gaps: tuple[GapLabel, ...] = ()
    """How gaps between events are told, ascending; empty: in exact words."""
    ranges: pl.DataFrame | None = None
    """code · unit · low · high from the laboratory table, where it has them."""
    notes: tuple[str, ...] = ()
    """What was odd in the tables but no error; for the run's summary."""

    def resolve(self, codes: pl.Series) -> pl.DataFrame:
        """The words of each distinct code.

        Returns: code · phrase · unit? (inside the code) · source (lookup, description, parent, readable or
        raw) · vocabulary · role. One row per distinct code, in order of first appearance.
        """
        return resolve_codes(codes, self.terms, self.codes, self.patterns)


def load_lookups(
    medical: Path | None = None,
    lab: Path | None = None,
    region: Path | None = None,
    time: Path | None = None,
    patterns: Path | None = None,
    codes: pl.DataFrame | None = None,
) -> Lookups:
    """Reads the tables; what is not given is empty, but for the pattern table, which ships with the project.

    codes: the dataset's code · description · parent_codes. Raises InputError with all that is wrong in all
    files: absent files or columns, codes without a term, one code with two terms.
    """
    loader = _Loader()
    frames = [
        loader.terms("medical", medical, "code", "term"),
        loader.terms("lab", lab, "code", "term"),
        loader.terms("region", region, "regionid", "Description"),
    ]
    gaps = loader.attempt(lambda: read_gap_labels(time) if time else ()) or ()
    known = loader.attempt(lambda: read_patterns(patterns or SHIPPED_PATTERNS)) or ()
    ranges = loader.attempt(lambda: _ranges(lab)) if lab else None
    described = loader.attempt(lambda: _described(codes))
    if loader.problems:
        raise InputError(loader.problems)
    assert described is not None
    return Lookups(pl.concat(frames), described, known, gaps, ranges, tuple(loader.notes))


class _Loader:
    """Collects problems and notes over all files, so that all are told at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def attempt(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except InputError as error:
            self.problems += [problem for problem in error.problems if problem not in self.problems]
            return None

    def terms(self, name: str, path: Path | None, code: str, term: str) -> pl.DataFrame:
        table = self.attempt(lambda: read_table(path, (code, term))) if path else None
        if path is None or table is None:
            return pl.DataFrame(schema=TERM_SCHEMA)
        problems, notes = term_problems(path, table, code, term)
        self.problems += problems
        self.notes += notes
        unique = table.unique([code], keep="first", maintain_order=True)
        return unique.select(table=pl.lit(name), code=pl.col(code), term=pl.col(term))


def _ranges(lab: Path) -> pl.DataFrame | None:
    table = read_table(lab, ("code",), optional=("unit", "low", "high"))
    numbers = table.with_columns(pl.col("low", "high").cast(pl.Float64, strict=False))
    bad = sum(table[side].null_count() != numbers[side].null_count() for side in ("low", "high"))
    if bad:
        raise InputError(Problem(str(lab), "low or high holds something that is no number", "write plain numbers"))
    known = numbers.filter(pl.any_horizontal(pl.col("low", "high").is_not_null()))
    return known.unique(["code"], keep="first", maintain_order=True) if known.height else None


def _described(codes: pl.DataFrame | None) -> pl.DataFrame:
    if codes is None:
        return pl.DataFrame(schema=CODES_SCHEMA)
    columns = [
        pl.col(name).cast(kind) if name in codes.columns else pl.lit(None, kind).alias(name)
        for name, kind in CODES_SCHEMA.items()
    ]
    described = codes.select(columns).with_columns(pl.col("description").str.strip_chars())
    described = described.with_columns(pl.when(pl.col("description") != "").then("description").alias("description"))
    clashing = described.drop_nulls("description").group_by("code").agg(pl.col("description").n_unique())
    clashes = clashing.filter(pl.col("description") > 1).height
    if clashes:
        what = f"{clashes} codes have more than one description"
        raise InputError(Problem("metadata/codes.parquet", what, "keep one description per code"))
    ordered = described.sort(pl.col("description").is_null(), maintain_order=True)
    return ordered.unique(["code"], keep="first", maintain_order=True)
