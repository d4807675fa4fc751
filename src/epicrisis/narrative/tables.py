"""Reading the CSV tables that come with the project or from the user: every problem told, nothing guessed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from epicrisis.settings.problems import Problem, refuse


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pl.DataFrame:
    """The named columns of a CSV as text, stripped; empty cells are null, absent optional columns all null.

    Raises InputError where the file is missing, is no CSV, or lacks a column.
    """
    table = _read_csv(path)
    lacking = [name for name in columns if name not in table.columns]
    if lacking:
        what = f"lacks the column{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
        raise refuse(str(path), what, f"give it a header line with: {', '.join(columns)}")
    absent = [pl.lit(None, pl.String).alias(name) for name in optional if name not in table.columns]
    return table.with_columns(absent).select(*columns, *optional)


def read_terms(path: Path, code: str, term: str) -> tuple[pl.DataFrame, list[str]]:
    """The columns `code` and `term` of a CSV under these names, and what was odd about its header.

    A table of exactly two columns may call them otherwise: the first is then the code and the second the
    term, unless one of the two is called `code` or `term` and so tells which is which. Raises InputError as
    `read_table` does, and for a wider table without both names.
    """
    table = _read_csv(path)
    if {code, term} <= set(table.columns):
        return table.select(code, term), []
    if table.width != 2:
        what = f"{table.width} columns, but none called {' or '.join(sorted({code, term} - set(table.columns)))}"
        raise refuse(str(path), what, f"name two of them {code} and {term}, or leave only these two")
    first, second = table.columns
    if first == term or second == code:
        first, second = second, first
    note = f"{path}: column {first!r} was read as {code}, {second!r} as {term}"
    return table.select(pl.col(first).alias(code), pl.col(second).alias(term)), [note]


def read_codes(path: Path) -> pl.DataFrame:
    """A Parquet file like MEDS `metadata/codes.parquet`: code · description? · parent_codes?, and whatever else.

    Raises InputError where the file is missing, is no Parquet, or a column is missing or of a wrong type.
    """
    if not path.is_file():
        raise refuse(str(path), "the file does not exist", "correct the path, or leave the setting out")
    try:
        table = pl.read_parquet(path, glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        what = f"cannot be read as Parquet ({type(error).__name__})"
        raise refuse(str(path), what, "write it as MEDS' metadata/codes.parquet is written") from None
    if "code" not in table.columns:
        raise refuse(str(path), "lacks the column code", "write one row per code: code, description, parent_codes")
    if table.schema.get("parent_codes") == pl.String:
        table = table.with_columns(pl.concat_list("parent_codes"))
    texts = all(table.schema.get(name, pl.String) in (pl.String, pl.Null) for name in ("code", "description"))
    if not texts or table.schema.get("parent_codes", _PARENTS) not in (_PARENTS, pl.Null):
        fix = "store code and description as strings, parent_codes as a list of strings"
        raise refuse(str(path), "a column has a wrong type", fix)
    return table.drop_nulls("code")


_PARENTS = pl.List(pl.String)


def _read_csv(path: Path) -> pl.DataFrame:
    """All columns as text, stripped; empty cells are null."""
    if not path.is_file():
        raise refuse(str(path), "the file does not exist", "correct the path, or leave the setting out")
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        what = f"not readable as CSV ({type(error).__name__})"
        raise refuse(str(path), what, "save it as UTF-8 CSV, comma-separated") from None
    stripped = table.with_columns(pl.all().str.strip_chars())
    return stripped.with_columns(pl.when(pl.all() != "").then(pl.all()))


def term_problems(path: Path, table: pl.DataFrame, code: str, term: str) -> tuple[list[Problem], list[str]]:
    """What is wrong with a table of terms, and what is merely worth a note (identical duplicates).

    Codes are compared case-exactly: `C10..` and `c10..` are two codes.
    """
    problems = []
    no_code, no_term = table[code].null_count(), table[term].null_count()
    for what, column in ((f"{no_code} rows without", code), (f"{no_term} codes without", term)):
        if table[column].null_count():
            fix = f"fill {column} in, or delete the rows"
            problems.append(Problem(str(path), f"{what} a {column}", fix))
    terms = table.drop_nulls([code]).group_by(code).agg(rows=pl.len(), terms=pl.col(term).n_unique())
    clashing = terms.filter(pl.col("terms") > 1).sort(code)
    if clashing.height:
        shown = ", ".join(clashing[code].head(5))
        what = f"{clashing.height} codes have more than one {term} (first: {shown})"
        problems.append(Problem(str(path), what, f"keep one {term} per code; codes are case-sensitive"))
    repeated = terms.filter((pl.col("terms") == 1) & (pl.col("rows") > 1)).height
    notes = [f"{path}: {repeated} codes are listed twice with the same {term}"] if repeated else []
    return problems, notes
