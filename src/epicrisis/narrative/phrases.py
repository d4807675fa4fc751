"""One phrase per event: the code's term, the value, and the unit that belongs to that value."""

from __future__ import annotations

import polars as pl

from epicrisis.narrative.lookups import Lookups
from epicrisis.narrative.patterns import MISSING
from epicrisis.narrative.resolve import one_line
from epicrisis.narrative.styles import Style

KEYS = ("code", "numeric_value", "text_value", "unit")
"""The columns of an event that decide its phrase."""


def phrase_table(events: pl.DataFrame, lookups: Lookups, style: Style | None = None) -> pl.DataFrame:
    """The phrase of each distinct code, value and unit among the events, in the words of the style, if any.

    Returns: phrase_id (0, 1, … the row) · code · numeric_value · text_value · unit · phrase · vocabulary ·
    role.

    The event's own unit wins over the one inside its code. A unit follows a number (`0.9 mg/dL`, `<0.01
    ng/mL`, `110/70 mmHg`), never a word. No phrase holds `;`, which separates events, nor a line break: `;`
    becomes `,` and any run of white space one space.
    """
    keys = events.select(KEYS).unique(maintain_order=True).with_row_index("phrase_id")
    words = lookups.resolve(keys["code"]).rename({"phrase": "term", "unit": "code_unit"})
    table = keys.join(words, on="code", how="left", maintain_order="left")
    table = table.with_columns(pl.coalesce("term", pl.lit("unnamed code")).alias("term"))
    if style is not None:
        table = table.with_columns(_styled(style).alias("term"))
    table = table.with_columns(_phrase().alias("phrase"), pl.col("vocabulary", "role").fill_null(""))
    return table.select("phrase_id", *KEYS, "phrase", "vocabulary", "role")


def phrase_ids(events: pl.DataFrame, table: pl.DataFrame) -> pl.Series:
    """Which row of the phrase table tells each event, in the events' order."""
    ids = table.select("phrase_id", *KEYS)
    return events.select(KEYS).join(ids, on=KEYS, how="left", nulls_equal=True, maintain_order="left")["phrase_id"]


def value_text(numeric: str = "numeric_value", text: str = "text_value") -> pl.Expr:
    """The value as it is printed: the shortest digits that give the same float32 again, else the text.

    Whole numbers lose their `.0`, minus zero its sign; 0 is a value as any other. NaN and infinity are no
    values. A text that says nothing (empty, `___`, `nan`) is none either. Null where there is no value.
    """
    number = pl.col(numeric).cast(pl.Float32)
    finite = pl.when(number.is_finite()).then(pl.when(number == 0).then(0.0).otherwise(number).cast(pl.Float32))
    digits = finite.cast(pl.String).str.replace(r"\.0$", "")
    return pl.coalesce(digits, _telling(text))


def _styled(style: Style) -> pl.Expr:
    short = pl.col("term")
    for pattern, replacement in style.shortenings:
        short = short.str.replace_all(pattern, replacement)
    term = pl.when(short.str.strip_chars() != "").then(short).otherwise("term")
    prefix = pl.lit(None, dtype=pl.String)
    for vocabulary, words in style.prefixes:
        prefix = pl.when(pl.col("vocabulary") == vocabulary).then(pl.lit(words)).otherwise(prefix)
    # "Demographic Race" needs no second "Race: " from the dataset's description.
    return pl.coalesce(prefix + " " + term.str.replace(r"^\w+: ", ""), term)


def _telling(column: str) -> pl.Expr:
    told = one_line(column)
    return pl.when(~told.is_in(MISSING)).then(told)


def _phrase() -> pl.Expr:
    value = value_text()
    unit = pl.when(value.str.contains(r"^[<>=~≤≥+-]*\s*\.?\d")).then(pl.coalesce(_telling("unit"), "code_unit"))
    # "Anion gap 4 9 mEq/L" would be two numbers in a row.
    colon = (
        pl.when(pl.col("term").str.contains(r"[\d%]$") & value.is_not_null()).then(pl.lit(":")).otherwise(pl.lit(""))
    )
    return pl.concat_str(pl.col("term") + colon, value, unit, separator=" ", ignore_nulls=True)
