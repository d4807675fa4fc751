"""The code book: one term per code, such that a phrase can be read back into the code it was told with."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from epicrisis.narrative.lookups import Lookups
from epicrisis.narrative.resolve import one_line
from epicrisis.narrative.styles import Style
from epicrisis.narrative.times import STEPS
from epicrisis.settings.problems import refuse
from epicrisis.tracking.run_directory import replacing

UNNAMED = "unnamed code"
"""Tells events that have no code, or one that is all white space."""

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
"""A number as polars prints float32 values, and as a person or a model may write one."""

TERM_SCHEMA: dict[str, type[pl.DataType]] = {
    "code": pl.String,
    "term": pl.String,
    "unit": pl.String,
    "vocabulary": pl.String,
    "role": pl.String,
    "source": pl.String,
    "colon": pl.Boolean,
}

MATCH_SCHEMA: dict[str, type[pl.DataType]] = {
    "phrase": pl.String,
    "code": pl.String,
    "colon": pl.Boolean,
    "rest": pl.String,
}

_UNITS = "|".join(step.name for step in STEPS)
_WHEN = rf"last hour|\d+ (?:{_UNITS})s? (?:before|later)|\d{{4}}-\d\d-\d\d"
_PERSON = (
    r"\d+-(?:month|year)-old (?:woman|man|girl|boy)|\d+ (?:month|year)s? old|woman|man|girl|boy"
    r"|Demographic Age \d+(?: months)?"
)
_RESERVED = rf"^(?:{_WHEN}|{_PERSON}|{UNNAMED})$"
"""What a narrative says that is no event."""

_SPLIT = r"^(.*)(?:: | [+-]?\.?\d)"
"""A text up to the last place at which a value may begin: `a: b 5` → `a: b`, and that → `a`."""

_PLAIN = re.compile(r"[^%;\[\]: ]+")


@dataclass(frozen=True)
class Book:
    """The terms of a style for the codes that are known beforehand, and how others are told."""

    terms: pl.DataFrame
    """code · term · unit? (named by the code) · vocabulary · role · source · colon (a number follows after `: `
    instead of a space), unique by code, and by term where the style is invertible."""
    lookups: Lookups
    style: Style

    def look_up(self, codes: pl.Series) -> pl.DataFrame:
        """The rows of `terms` for each distinct code, in order of first appearance.

        In an invertible style, a code that the book does not know is told by its own term only where nothing
        told with that could be read as a code of the book; else its code stands behind the term, or before it.
        """
        distinct = codes.cast(pl.String).drop_nulls().unique(maintain_order=True).rename("code").to_frame()
        unknown = distinct.join(self.terms, on="code", how="anti", maintain_order="left")["code"]
        known = pl.concat([self.terms, self._tell_unknown(unknown)]) if len(unknown) else self.terms
        return distinct.join(known, on="code", how="left", maintain_order="left")

    def fingerprint(self) -> str:
        """A hash of the style's name and of all terms."""
        content = f"{self.style.label}\n{self.terms.sort('code').write_csv()}"
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def save(self, path: Path) -> None:
        """Writes the terms as Parquet, whole or not at all."""
        with replacing(path) as part:
            self.terms.write_parquet(part, compression="zstd", metadata={"style": self.style.label})

    @classmethod
    def load(cls, path: Path, lookups: Lookups, style: Style) -> Book:
        """What `save` wrote; `lookups` tell the codes it does not know.

        Raises InputError where the file is missing, is no book, or is one of another style.
        """
        fix = "prepare the data anew, which writes the book"
        if not path.is_file():
            raise refuse(str(path), "there is no code book here", fix)
        try:
            written_for = pl.read_parquet_metadata(path).get("style")
            terms = pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise refuse(str(path), f"not readable as a code book ({type(error).__name__})", fix) from None
        if dict(terms.schema) != TERM_SCHEMA:
            raise refuse(str(path), f"its columns are not {', '.join(TERM_SCHEMA)}", fix)
        if written_for != style.label:
            raise refuse(str(path), f"the book is one of {written_for}, not of {style.label}", fix)
        return cls(terms, lookups, style)

    def _tell_unknown(self, codes: pl.Series) -> pl.DataFrame:
        told = _told(codes, self.lookups, self.style)
        if self.style.invertible:
            term, mark = told["term"], _marks(told["code"])
            for other in (term + " " + mark, mark + " " + term):
                term = term.zip_with(self._is_free(term), other)
            told = told.with_columns(term.alias("term"))
        return _with_colons(told, self._stems)

    def _is_free(self, terms: pl.Series) -> pl.Series:
        """Whether no phrase that begins with the term could be told with one of the book's, nor the other way round."""
        inside = self._stems.filter(follows="text")["stem"]
        taken = terms.is_in(self._taken.implode()) | terms.is_in(inside.implode()) | _is_reserved(terms)
        return ~taken & match_terms(terms.unique(), self.terms).pipe(_codes_of, terms).is_null()

    @cached_property
    def _taken(self) -> pl.Series:
        return pl.concat([self.terms["term"], _reserved_texts(self.lookups, self.style)])

    @cached_property
    def _stems(self) -> pl.DataFrame:
        return _stems_of(self._taken)


def build_book(codes: pl.Series, lookups: Lookups, style: Style) -> Book:
    """The book of all codes that are known beforehand: those of the train split and of metadata/codes.parquet.

    codes: the most important first. A code is resolved, then told in the words of the style (shortenings,
    prefixes). In an invertible style the first of several codes with the same term keeps it, and the others are
    told with their code, as in `Creatinine [LOINC//2161-8]`. So is a code whose term is reserved (`last hour`,
    `woman`, the words of a gap) or which another term continues as a value would (`race` beside `race: White`).
    Then the longest term of the book that a phrase begins with, before a value or the end, is the one it was
    told with, whatever the value (see `match_terms`).
    """
    told = _told(codes, lookups, style)
    reserved = _reserved_texts(lookups, style)
    if style.invertible:
        told = _told_apart(told, reserved)
    stems = _stems_of(pl.concat([told["term"], reserved]))
    return Book(_with_colons(told, stems), lookups, style)


def match_terms(phrases: pl.Series, terms: pl.DataFrame) -> pl.DataFrame:
    """The longest term that each phrase begins with, where what follows it is a value or nothing.

    phrases: distinct texts. terms: as `Book.terms`, or at least code · term · colon.

    A value follows after `: `, or, but for terms with a colon, after a space if it begins with a number.
    Returns, in the order of the phrases: phrase · code? · colon? · rest? (what follows the term).
    """
    ours = terms.select("code", "colon", prefix="term")
    longest = ours["prefix"].str.len_chars().max()
    # Four characters more show whether a value may begin there.
    start = pl.col("phrase").str.head(longest + 4 if isinstance(longest, int) else 0)
    left = phrases.rename("phrase").to_frame().with_columns(prefix=start)
    found = [pl.DataFrame(schema=MATCH_SCHEMA)]
    while left.height:
        tried = left.join(ours, on="prefix", how="left", maintain_order="left")
        tried = tried.with_columns(rest=pl.col("phrase").str.slice(pl.col("prefix").str.len_chars()))
        fits = pl.col("code").is_not_null() & _begins_with_value("rest", "colon").fill_null(False)
        found.append(tried.filter(fits).select(MATCH_SCHEMA.keys()))
        left = tried.filter(~fits).select("phrase", prefix=_shorter("prefix")).drop_nulls()
    whole = phrases.rename("phrase").to_frame()
    return whole.join(pl.concat(found), on="phrase", how="left", maintain_order="left")


def _begins_with_value(rest: str, colon: str) -> pl.Expr:
    after = pl.col(rest)
    number = after.str.extract(rf"^ ({NUMBER})(?: |$)", 1).cast(pl.Float32, strict=False).is_finite()
    return (after == "") | after.str.starts_with(": ") | (~pl.col(colon) & number.fill_null(False))


def _shorter(prefix: str) -> pl.Expr:
    """The next shorter beginning of a text that a value may follow; null if there is none."""
    # What followed the prefix was a space or a colon; with the space back, `a:` shortens to `a`.
    return (pl.col(prefix) + " ").str.extract(_SPLIT, 1)


def _codes_of(matched: pl.DataFrame, phrases: pl.Series) -> pl.Series:
    told = phrases.rename("phrase").to_frame()
    return told.join(matched, on="phrase", how="left", maintain_order="left")["code"]


def styled_term(style: Style) -> pl.Expr:
    """The term (of the columns term · vocabulary) in the words of the style, on one line."""
    short = pl.col("term")
    for pattern, replacement in style.shortenings:
        short = short.str.replace_all(pattern, replacement)
    term = pl.when(short.str.strip_chars() != "").then(short).otherwise("term")
    prefix = pl.lit(None, dtype=pl.String)
    for vocabulary, words in style.prefixes:
        prefix = pl.when(pl.col("vocabulary") == vocabulary).then(pl.lit(words)).otherwise(prefix)
    # "Demographic Race" needs no second "Race: " from the dataset's description.
    return pl.coalesce(prefix + " " + term.str.replace(r"^\w+: ", ""), term).alias("term")


def _told(codes: pl.Series, lookups: Lookups, style: Style) -> pl.DataFrame:
    """TERM_SCHEMA but for colon: each distinct code's term in the words of the style, unique or not."""
    words = lookups.resolve(codes).rename({"phrase": "term"}).with_columns(styled_term(style))
    words = words.with_columns(one_line("term").fill_null(UNNAMED), pl.col("vocabulary", "role").fill_null(""))
    if style.invertible:
        words = words.with_columns(_without_opening(lookups))
    return words.select(pl.col(name).cast(kind) for name, kind in TERM_SCHEMA.items() if name != "colon")


def _without_opening(lookups: Lookups) -> pl.Expr:
    """No term reads as what opens a line: `Patient: x` → `Patient, x`."""
    gaps = [re.escape(label.term) for label in lookups.gaps]
    return pl.col("term").str.replace(rf"^({'|'.join(['Patient', _WHEN, *gaps])}): ", "${1}, ")


def _reserved_texts(lookups: Lookups, style: Style) -> pl.Series:
    """What a narrative of the style may say that is no event, where it is not covered by `_RESERVED`."""
    silent = [style.empty, style.cut]
    silent += [text.removeprefix("Patient: ").removesuffix(".") for text in silent]
    gaps = [label.term for label in lookups.gaps]
    return pl.Series("term", [*silent, *gaps, "Demographic Age 0"], dtype=pl.String)


def _is_reserved(terms: pl.Series) -> pl.Series:
    return terms.str.contains(_RESERVED)


def _told_apart(told: pl.DataFrame, reserved: pl.Series) -> pl.DataFrame:
    """The same with unique terms, none of which begins as another's phrase does; the first code keeps a shared one."""
    marks = _marks(told["code"])
    plain = _without_marks(told["term"], marks)
    marked = ~plain.is_first_distinct() | _is_reserved(plain) | plain.is_in(reserved.implode())
    while True:
        terms = plain.zip_with(~marked, plain + " " + marks)
        # To mark a term can make another a stem: `a:` becomes `a: [code]`, which `a` would begin.
        stems = _stems_of(pl.concat([terms, reserved])).filter(follows="text")["stem"]
        more = ~marked & terms.is_in(stems.implode())
        if not more.any():
            return told.with_columns(terms.alias("term"))
        marked |= more


def _without_marks(terms: pl.Series, marks: pl.Series) -> pl.Series:
    """Terms that hold the mark of a code already say it in round brackets."""
    bracketed = terms.str.extract_all(r"\[[^\[\]]*\]")
    imitates = bracketed.list.eval(pl.element().is_in(marks.implode())).list.any()
    return terms.zip_with(
        ~imitates, terms.str.replace_all("[", "(", literal=True).str.replace_all("]", ")", literal=True)
    )


def _stems_of(texts: pl.Series) -> pl.DataFrame:
    """stem · follows: all beginnings of the texts after which a value may begin, as `text` (`: `) or `number`."""
    left = texts.unique().rename("text").to_frame().with_columns(stem="text")
    found = [pl.DataFrame(schema={"stem": pl.String, "follows": pl.String})]
    while left.height:
        left = left.select("text", stem=_shorter("stem")).drop_nulls()
        rest = pl.col("text").str.slice(pl.col("stem").str.len_chars())
        number = pl.when(rest.str.contains(r"^ [+-]?\.?\d")).then(pl.lit("number"))
        follows = pl.when(rest.str.starts_with(": ")).then(pl.lit("text")).otherwise(number)
        found.append(left.select("stem", follows=follows).drop_nulls())
    return pl.concat(found).unique()


def _with_colons(told: pl.DataFrame, stems: pl.DataFrame) -> pl.DataFrame:
    """A number after `Anion gap 4` would be the second in a row, and one after `Anion gap` another code's name."""
    numbered = stems.filter(follows="number")["stem"]
    colon = pl.col("term").str.contains(r"[\d%:]$") | pl.col("term").is_in(numbered.implode())
    return told.with_columns(colon=colon)


def _marks(codes: pl.Series) -> pl.Series:
    """`[LOINC//2160-0]`: each code in brackets, injectively on one line."""
    return pl.Series("mark", [f"[{_escaped(code)}]" for code in codes], dtype=pl.String)


def _escaped(code: str) -> str:
    """The code with `%3B` for `;`, and so on for whatever would part a phrase or end the brackets."""
    if _PLAIN.fullmatch(code) and code.isprintable():
        return code
    return "".join(_percent(one) if _parts(one, before, after) else one for before, one, after in _neighbours(code))


def _neighbours(code: str) -> zip[tuple[str, str, str]]:
    return zip(" " + code, code, code[1:] + " ", strict=False)


def _parts(one: str, before: str, after: str) -> bool:
    if one == " ":
        return before == " " or after == " "
    return one in "%;[]" or (one == ":" and after == " ") or not one.isprintable()


def _percent(one: str) -> str:
    return "".join(f"%{byte:02X}" for byte in one.encode())
