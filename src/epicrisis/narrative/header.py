"""The header of a narrative: age and sex at the prediction time, then whatever is known without a date."""

from __future__ import annotations

import polars as pl

from epicrisis.narrative.styles import Style

HEADER_ROLES = ("birth", "female", "male")
"""Told in the header even where they are dated: birth as age, sex as a noun."""

ADULT = 18
"""Years from which a girl is a woman and a boy a man."""


def headers(facts: pl.DataFrame, rows: pl.DataFrame, style: Style) -> pl.DataFrame:
    """row · header? per row that has a header.

    facts: row · time? · phrase · role of the events that belong into headers, in the order of the file.
    rows: row · prediction_time.
    """
    named = facts.group_by("row").agg(
        birth=pl.col("time").filter(pl.col("role") == "birth").drop_nulls().first(),
        sex=pl.col("role").filter(pl.col("role").is_in(["female", "male"])).first(),
        sex_phrase=pl.col("phrase").filter(pl.col("role").is_in(["female", "male"])).first(),
        others=pl.col("phrase").filter(~pl.col("role").is_in(HEADER_ROLES)),
    )
    known = rows.join(named, on="row", how="inner").with_columns(_months().alias("months"))
    text = _sentences() if style.header == "sentences" else _list(style.separator)
    return known.select("row", header=pl.when(text != "").then(text))


def _months() -> pl.Expr:
    """Completed months of life at the prediction time; null where the birth is unknown."""
    now, birth = pl.col("prediction_time"), pl.col("birth")
    months = (now.dt.year() - birth.dt.year()) * 12 + now.dt.month().cast(pl.Int32) - birth.dt.month()
    completed = months - (now.dt.day() < birth.dt.day()).cast(pl.Int32)
    return pl.when(completed >= 0).then(completed)


def _age() -> pl.Expr:
    """Years, or months below the age of two: (number, unit) as in `7 year`."""
    months, young = pl.col("months"), pl.col("months") < 24
    return pl.struct(
        number=pl.when(young).then(months).otherwise(months // 12).cast(pl.String),
        unit=pl.when(young).then(pl.lit("month")).otherwise(pl.lit("year")),
    )


def _sentences() -> pl.Expr:
    age = _age()
    number, unit = age.struct.field("number"), age.struct.field("unit")
    plural = pl.when(number == "1").then(pl.lit("")).otherwise(pl.lit("s"))
    child = pl.col("months") < 12 * ADULT
    noun = (
        pl.when(pl.col("sex") == "female")
        .then(pl.when(child).then(pl.lit("girl")).otherwise(pl.lit("woman")))
        .when(pl.col("sex") == "male")
        .then(pl.when(child).then(pl.lit("boy")).otherwise(pl.lit("man")))
    )
    person = pl.coalesce(number + "-" + unit + "-old " + noun, number + " " + unit + plural + " old", noun)
    told = pl.concat_list(person, pl.col("others")).list.drop_nulls()
    sentences = told.list.eval(pl.element().str.strip_chars_end(".")).list.join(". ")
    return pl.when(sentences != "").then("Patient: " + sentences + ".").otherwise(pl.lit(""))


def _list(separator: str) -> pl.Expr:
    age = _age()
    number, unit = age.struct.field("number"), age.struct.field("unit")
    months = pl.when(unit == "month").then(pl.lit(" months")).otherwise(pl.lit(""))
    age_phrase = "Demographic Age " + number + months
    told = pl.concat_list(pl.col("sex_phrase"), age_phrase, pl.col("others"))
    return told.list.drop_nulls().list.join(separator)
