"""Code → term: the tables of the user and the dataset, and the chain by which each code finds its words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import polars as pl

from epicrisis.narrative.athena import Concepts, no_concepts, read_concepts
from epicrisis.narrative.icd10cm import icd10cm_version
from epicrisis.narrative.patterns import MEDS_PATTERNS, Pattern, read_patterns
from epicrisis.narrative.resolve import Known, concepts_of_interest, resolve_codes
from epicrisis.narrative.tables import read_codes, read_table, read_terms, term_problems
from epicrisis.narrative.times import GapLabel, read_gap_labels
from epicrisis.settings.problems import InputError, Problem
from epicrisis.tracking.stamps import hash_of

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
    concepts: Concepts = field(default_factory=no_concepts)
    """What an OMOP vocabulary download calls the codes."""
    icd10cm: bool = False
    """Whether ICD-10-CM codes that nothing else knows are looked up in simple-icd-10-cm."""

    def resolve(self, codes: pl.Series) -> pl.DataFrame:
        """The words of each distinct code.

        Returns: code · phrase · unit? (inside the code) · source · vocabulary · role. One row per distinct
        code, in order of first appearance. source is how the words were found, best first: lookup (a user's
        table), concept (the vocabulary download), description (the dataset), icd10cm (the library), parent
        (any of these, for the nearest parent), readable (words inside the code), raw.
        """
        return resolve_codes(codes, Known(self.terms, self.concepts, self.codes, self.icd10cm, self.patterns))

    def fingerprint(self) -> str:
        """A hash of everything that decides the codes' words."""
        tables = {
            "terms": self.terms,
            "descriptions": self.codes.select("code", "description"),
            "parents": self.codes.select("code", pl.col("parent_codes").list.join("\0")),
            "concepts": self.concepts.names,
            "ancestors": self.concepts.ancestors,
        }
        written = {name: table.sort(table.columns).write_csv() for name, table in tables.items() if table.height}
        library = icd10cm_version() if self.icd10cm else None
        return hash_of({**written, "icd10cm": library, "patterns": repr(self.patterns), "gaps": repr(self.gaps)})


def load_lookups(
    medical: Path | None = None,
    lab: Path | None = None,
    region: Path | None = None,
    time: Path | None = None,
    patterns: Path | None = None,
    codes: pl.DataFrame | None = None,
    *,
    concepts: Path | None = None,
    codes_filepath: Path | None = None,
    icd10cm: bool = False,
    of_interest: pl.Series | None = None,
) -> Lookups:
    """Reads the tables; what is not given is empty, but for the pattern table, which ships with the project.

    codes: the dataset's code · description · parent_codes. concepts: an Athena download's CONCEPT.csv (see
    `read_concepts`). codes_filepath: a Parquet file like `codes`, whose descriptions and parents go before
    those of the dataset. of_interest: the codes that will be resolved; with them, only their rows of CONCEPT.csv
    are kept, else all. Raises InputError with all that is wrong in all files: absent files or columns, codes
    without a term, one code with two terms.
    """
    loader = _Loader()
    frames = [
        loader.terms("medical", medical, "code", "term"),
        loader.terms("lab", lab, "code", "term"),
        loader.terms("region", region, "regionid", "Description"),
    ]
    gaps = loader.attempt(lambda: read_gap_labels(time) if time else ()) or ()
    known = loader.attempt(lambda: read_patterns(patterns or SHIPPED_PATTERNS)) or MEDS_PATTERNS
    ranges = loader.attempt(lambda: _ranges(lab)) if lab else None
    own = loader.attempt(lambda: _described(codes, "metadata/codes.parquet"))
    laid_over = loader.attempt(lambda: _laid_over(codes_filepath)) if codes_filepath else None
    described = _overlaid(laid_over, own)
    named = loader.attempt(lambda: _concepts(concepts, of_interest, described, known)) or no_concepts()
    if loader.problems:
        raise InputError(loader.problems)
    return Lookups(pl.concat(frames), described, known, gaps, ranges, tuple(loader.notes), named, icd10cm)


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
        read = self.attempt(lambda: read_terms(path, code, term)) if path else None
        if path is None or read is None:
            return pl.DataFrame(schema=TERM_SCHEMA)
        table, odd = read
        problems, notes = term_problems(path, table, code, term)
        self.problems += problems
        self.notes += odd + notes
        unique = table.unique([code], keep="first", maintain_order=True)
        return unique.select(table=pl.lit(name), code=pl.col(code), term=pl.col(term))


def _ranges(lab: Path) -> pl.DataFrame | None:
    table = read_table(lab, (), optional=("code", "unit", "low", "high")).drop_nulls("code")
    numbers = table.with_columns(pl.col("low", "high").cast(pl.Float64, strict=False))
    bad = sum(table[side].null_count() != numbers[side].null_count() for side in ("low", "high"))
    if bad:
        raise InputError(Problem(str(lab), "low or high holds something that is no number", "write plain numbers"))
    known = numbers.filter(pl.any_horizontal(pl.col("low", "high").is_not_null()))
    return known.unique(["code"], keep="first", maintain_order=True) if known.height else None


def _described(codes: pl.DataFrame | None, where: str) -> pl.DataFrame:
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
        raise InputError(Problem(where, what, "keep one description per code"))
    ordered = described.sort(pl.col("description").is_null(), maintain_order=True)
    return ordered.unique(["code"], keep="first", maintain_order=True)


def _laid_over(path: Path) -> pl.DataFrame:
    return _described(read_codes(path), str(path))


def _overlaid(*tables: pl.DataFrame | None) -> pl.DataFrame:
    """Per code the first description and the first parents that a table has."""
    first = pl.col("description", "parent_codes").drop_nulls().first()
    whole = pl.concat([table for table in tables if table is not None] or [pl.DataFrame(schema=CODES_SCHEMA)])
    return whole.group_by("code", maintain_order=True).agg(first)


def _concepts(
    path: Path | None, of_interest: pl.Series | None, described: pl.DataFrame, patterns: tuple[Pattern, ...]
) -> Concepts:
    if path is None:
        return no_concepts()
    wanted = None if of_interest is None else concepts_of_interest(of_interest, described, patterns)
    return read_concepts(path, wanted)
