"""How composite codes are taken apart: a table of regular expressions and phrase templates, read as data.

A template is text with fields in braces: `{name}` is a named group of the pattern, `{name:words}` the same
with underscores as spaces, `{name:lower}` that in lower case, `{name:name}` that with capitals where the
source has only one case, `{name:icd9}` and `{name:icd10}` an ICD code with its dot. `{name|word}` says
`word` where the group is missing, `[ to {name}]` is left out where it is. A group that says nothing (`UNK`,
`?`, `___`) counts as missing. `{term}` is the code's term.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import polars as pl

from epicrisis.narrative.tables import read_table
from epicrisis.settings.problems import InputError, Problem

TERM = "\0"
"""Stands for the term in a phrase whose term is not known yet; no code may hold it."""

MISSING = ("", "UNK", "UNKNOWN", "Unknown", "unknown", "?", "___", "None", "nan", "NaN", "null", "N/A", "n/a")
"""Parts of a code, and text values, that say nothing. Case-exact: `NONE` is a laboratory's finding."""

_PIECE = re.compile(r"\[(?P<optional>[^\]]*)\]|\{(?P<field>[^}]*)\}|(?P<literal>[^\[\]{}]+)|(?P<stray>.)")
_FIELD = re.compile(r"(?P<name>\w+)(?::(?P<form>lower|words|name|icd9|icd10))?(?:\|(?P<default>.+))?")

_ICD_DOT = {"icd9": r"^(E\d{3}|[V0-9]\d{2})(\d+)$", "icd10": r"^([A-Z]\d[0-9A-Z])([0-9A-Z]+)$"}


@dataclass(frozen=True)
class Pattern:
    """One row of the pattern table; the first row that matches the whole code decides. Empty means none."""

    pattern: str
    """Regular expression over the whole code, in the syntax of Rust's regex, with named groups."""
    template: str
    """The phrase around `{term}`, e.g. `infusion started: {term}`."""
    readable: str = ""
    """What stands for the term where neither table, description nor parent knows the code."""
    unit: str = ""
    """The unit that the code itself names."""
    key: str = ""
    """The bare code by which a lookup table may know it."""
    table: str = ""
    """Which lookup table may hold the bare key: medical, lab or region; empty: none, the key is too short."""
    hierarchy: str = ""
    """How the key is shortened into its parents: icd or atc."""
    vocabulary: str = ""
    """The name under which the coverage report counts it; by default what precedes the first `//`."""
    role: str = ""
    """What a style may do with it: birth, death, female, male, demographic, visit_start or visit_end."""


MEDS_PATTERNS = (
    Pattern("MEDS_BIRTH", "{term}", readable="birth", vocabulary="MEDS", role="birth"),
    Pattern("MEDS_DEATH", "{term}", readable="death", vocabulary="MEDS", role="death"),
)
"""The two codes that the MEDS standard itself defines hold with every pattern table."""

_COLUMNS = tuple(field.name for field in fields(Pattern))
_TEMPLATES = ("template", "readable", "unit", "key", "vocabulary")


def read_patterns(path: Path) -> tuple[Pattern, ...]:
    """The pattern table of a CSV with the columns of `Pattern`, in file order.

    Raises InputError with every row whose expression or template does not work.
    """
    table = read_table(path, _COLUMNS)
    patterns = tuple(Pattern(**{key: value or "" for key, value in row.items()}) for row in table.to_dicts())
    problems = [
        Problem(f"{path}, row {line}", problem, "mend the row; narrative/patterns.py describes the columns")
        for line, pattern in enumerate(patterns, start=2)
        for problem in _faults(pattern)
    ]
    if problems:
        raise InputError(problems)
    return MEDS_PATTERNS + patterns


def _faults(pattern: Pattern) -> list[str]:
    try:
        groups = set(_groups(pattern))
    except pl.exceptions.PolarsError:
        return ["the pattern is no valid regular expression"]
    faults = []
    for column in _TEMPLATES:
        text = getattr(pattern, column)
        allowed = groups | {"term"} if column == "template" else groups
        names, broken = _field_names(text)
        if broken:
            faults.append(f"the {column} has a stray bracket or a field that cannot be read")
        if names - allowed:
            faults.append(f"the {column} names {sorted(names - allowed)}, which the pattern has no group for")
    if pattern.table not in ("", "medical", "lab", "region") or pattern.hierarchy not in ("", "icd", "atc"):
        faults.append("table must be medical, lab, region or empty, and hierarchy icd, atc or empty")
    return faults


def _field_names(text: str) -> tuple[set[str], bool]:
    names: set[str] = set()
    broken = False
    for piece in _PIECE.finditer(text):
        if piece["stray"] is not None:
            broken = True
        elif piece["optional"] is not None:
            inner, inner_broken = _field_names(piece["optional"])
            names, broken = names | inner, broken or inner_broken
        elif piece["field"] is not None:
            field = _FIELD.fullmatch(piece["field"])
            broken = broken or field is None
            names |= {field["name"]} if field else set()
    return names, broken


def _whole(pattern: Pattern) -> str:
    return f"^(?:{pattern.pattern})$"


@cache
def _groups(pattern: Pattern) -> list[str]:
    probe = pl.DataFrame({"code": [""]}, schema={"code": pl.String})
    names = probe.select(pl.col("code").str.extract_groups(_whole(pattern)))["code"].struct.fields
    probe.select(pl.col("code").str.contains(_whole(pattern)))
    return names


def match_codes(codes: pl.Series, patterns: tuple[Pattern, ...]) -> pl.DataFrame:
    """Takes distinct codes apart.

    Returns: code · frame (the phrase with `TERM` in place of the term) · readable? · unit? · key? · table ·
    hierarchy · vocabulary · role, one row per code. Codes that no pattern matches read as `TERM` alone and
    have a readable form only if they hold a word (see `plain_words`).
    """
    hits = [pl.when(pl.col("code").str.contains(_whole(pattern))).then(place) for place, pattern in enumerate(patterns)]
    placed = codes.rename("code").to_frame().with_columns(place=pl.coalesce(*hits, -1))
    parts = [
        _unmatched(group) if place < 0 else _take_apart(group, patterns[place])
        for (place,), group in placed.partition_by("place", as_dict=True).items()
        if isinstance(place, int)
    ]
    return pl.concat(parts) if parts else _unmatched(placed)


def _take_apart(codes: pl.DataFrame, pattern: Pattern) -> pl.DataFrame:
    groups = _groups(pattern)
    table = codes.select("code")
    if groups:
        parts = pl.col("code").str.extract_groups(_whole(pattern))
        table = table.with_columns(_present(parts.struct.field(name)).alias(_column(name)) for name in groups)
    return table.select(
        "code",
        frame=fill_template(pattern.template),
        readable=_template_or_none(pattern.readable),
        unit=_template_or_none(pattern.unit),
        key=_template_or_none(pattern.key),
        table=pl.lit(pattern.table),
        hierarchy=pl.lit(pattern.hierarchy),
        vocabulary=pl.coalesce(_template_or_none(pattern.vocabulary), vocabulary_of("code")),
        role=pl.lit(pattern.role),
    )


def _column(group: str) -> str:
    """Groups may be named as they like, `code` included."""
    return f"group {group}"


def _template_or_none(text: str) -> pl.Expr:
    return fill_template(text) if text else pl.lit(None, dtype=pl.String)


def _unmatched(codes: pl.DataFrame) -> pl.DataFrame:
    nothing = pl.lit(None, dtype=pl.String)
    return codes.select(
        "code",
        frame=pl.lit(TERM),
        readable=plain_words("code"),
        unit=nothing,
        key=nothing,
        table=pl.lit(""),
        hierarchy=pl.lit(""),
        vocabulary=vocabulary_of("code"),
        role=pl.lit(""),
    )


def _present(part: pl.Expr) -> pl.Expr:
    part = part.str.strip_chars()
    return pl.when(~part.is_in(MISSING)).then(part)


def vocabulary_of(code: str) -> pl.Expr:
    """What precedes the first `//`; codes without one are counted together."""
    return pl.col(code).str.extract(r"^([^/]+)//").fill_null("(plain)")


def plain_words(code: str) -> pl.Expr:
    """A code that no pattern knows, as words: `DIET_KIND//Low salt` → `DIET KIND: Low salt`.

    Null where nothing but the vocabulary's name would be a word, as in `XYZ//E11`.
    """
    parts = pl.col(code).str.split("//")
    words = parts.list.filter(~pl.element().is_in(MISSING)).list.join(": ").str.replace_all("_", " ")
    tail = pl.col(code).str.replace("^[^/]*//", "")
    return pl.when(tail.str.contains(r"\p{L}{3}")).then(words)


def fill_template(text: str) -> pl.Expr:
    """The template over the columns of its groups; null where a mandatory field is missing."""
    return pl.concat_str([_piece(piece) for piece in _PIECE.finditer(text)], ignore_nulls=False)


def _piece(piece: re.Match[str]) -> pl.Expr:
    if piece["literal"] is not None:
        return pl.lit(piece["literal"])
    if piece["optional"] is not None:
        return fill_template(piece["optional"]).fill_null("")
    field = _FIELD.fullmatch(piece["field"] or "")
    assert field is not None, "read_patterns refuses such templates"
    if field["name"] == "term":
        return pl.lit(TERM)
    value = _form(pl.col(_column(field["name"])), field["form"])
    return value.fill_null(field["default"]) if field["default"] else value


def _form(value: pl.Expr, form: str | None) -> pl.Expr:
    if form == "lower":
        return value.str.to_lowercase().str.replace_all("_", " ")
    if form in _ICD_DOT:
        return value.str.replace(_ICD_DOT[form], "${1}.${2}")
    if form not in ("words", "name"):
        return value
    words = value.str.replace_all("_", " ")
    if form == "words":
        return words
    one_case = (words == words.str.to_lowercase()) | (words == words.str.to_uppercase())
    return pl.when(one_case).then(words.str.to_titlecase()).otherwise(words)
