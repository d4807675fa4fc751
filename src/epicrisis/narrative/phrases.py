"""One phrase per event: the code's term, the value, and the unit that belongs to that value."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from epicrisis.narrative.book import NUMBER, UNNAMED, Book
from epicrisis.narrative.patterns import MISSING
from epicrisis.narrative.resolve import one_line

MEASURE = r"(?:[<>=~≤≥+-]+ ?)?\.?\d\S*"
"""A text that a unit may follow: it begins like a number, as `<0.01` and `110/70` do."""


def phrase_rows(keys: pl.DataFrame, book: Book, class_words: Sequence[str] = ()) -> pl.DataFrame:
    """The phrases of the keys, which `parse` reads back.

    keys: code? · has_number · value_class (int, an index into `class_words`)? · text_value? · unit?. Where there
        is a number, class and text are not told; where there is a class, the text is not.

    Returns the keys, in their order, with before (the phrase up to the number, or all of it) · after? (the unit
    after the number) · vocabulary · role. The phrase is `before`, or `{before} {number}`, or `{before} {number}
    {after}`.

    A number follows its term after a space, or after `: ` where the book says so; anything else after `: `. The
    event's own unit wins over the one inside its code; it follows numbers and texts like `<0.01`. A text that
    would be read as something else (`5 days` as a number with a unit, `high` as a class) stands in quotes. No
    phrase holds `;` or a line break: `;` becomes `,`, and any run of white space one space.
    """
    terms = book.look_up(keys["code"]).rename({"unit": "code_unit"})
    words = pl.Series(class_words, dtype=pl.String)
    table = keys.join(terms, on="code", how="left", maintain_order="left").with_columns(
        pl.col("term").fill_null(UNNAMED),
        pl.col("colon").fill_null(False),
        pl.col("vocabulary", "role").fill_null(""),
        told_unit=pl.coalesce(_telling("unit"), "code_unit"),
        told_text=_telling("text_value"),
        told_class=words.gather(keys["value_class"]) if len(words) else pl.lit(None, pl.String),
    )
    valued = pl.coalesce("told_class", _text_with_unit(words))
    plain = pl.col("term") + pl.coalesce(": " + valued, pl.lit(""))
    numbered = pl.col("term") + pl.when("colon").then(pl.lit(":")).otherwise(pl.lit(""))
    told = table.with_columns(
        before=pl.when("has_number").then(numbered).otherwise(plain),
        after=pl.when("has_number").then("told_unit"),
    )
    return told.select(*keys.columns, "before", "after", "vocabulary", "role")


def _text_with_unit(class_words: pl.Series) -> pl.Expr:
    text, unit = pl.col("told_text"), pl.col("told_unit")
    like_a_number = pl.col("colon") & text.str.contains(rf"^{NUMBER}$")
    several = text.str.contains(rf"^{MEASURE} ")
    quoted = like_a_number | several | text.str.starts_with('"') | text.is_in(class_words.implode())
    # The last quote is to be the text's own.
    fits = text.str.contains(rf"^{MEASURE}$") & ~(quoted & unit.str.ends_with('"')).fill_null(False)
    told = pl.when(quoted).then('"' + text + '"').otherwise(text)
    whole = pl.concat_str(told, pl.when(fits).then(unit), separator=" ", ignore_nulls=True)
    return pl.when(text.is_not_null()).then(whole)


def value_text(numeric: str = "numeric_value", text: str = "text_value") -> pl.Expr:
    """The value as it is printed: the shortest digits that give the same float32 again, else the text.

    Whole numbers lose their `.0`, minus zero its sign; 0 is a value as any other. NaN and infinity are no
    values. A text that says nothing (empty, `___`, `nan`) is none either. Null where there is no value.
    """
    number = pl.col(numeric).cast(pl.Float32)
    finite = pl.when(number.is_finite()).then(pl.when(number == 0).then(0.0).otherwise(number).cast(pl.Float32))
    digits = finite.cast(pl.String).str.replace(r"\.0$", "")
    return pl.coalesce(digits, _telling(text))


def _telling(column: str) -> pl.Expr:
    told = one_line(column)
    return pl.when(~told.is_in(MISSING)).then(told)
