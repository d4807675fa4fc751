"""The header of a narrative: age and sex at the prediction time, then whatever is known without a date."""

from __future__ import annotations

import numpy as np
import polars as pl

from epicrisis.narrative.coded import NONE
from epicrisis.narrative.inventory import Inventory
from epicrisis.narrative.items import Items
from epicrisis.narrative.styles import HEADER, Style

HEADER_ROLES = ("birth", "female", "male")
"""Told in the header even where they are dated: birth as age, sex as a noun."""

ADULT = 18
"""Years from which a girl is a woman and a boy a man."""

_SEXES = ["female", "male"]


def header_items(
    facts: pl.DataFrame, places: np.ndarray, rows: pl.DataFrame, inventory: Inventory, style: Style
) -> tuple[Items, pl.Series]:
    """The items of the section `header`, and the phrases in which persons are told.

    facts: row · time of the events that belong into headers, in the order of row and file. places: where
    each stands in the events that the inventory was taken of. rows: row · prediction_time. The phrases count
    on from those of the inventory.
    """
    told = facts.select("row", "time", phrase=inventory.phrase[places], number=inventory.number[places])
    told = told.with_columns(role=inventory.phrases["role"].gather(told["phrase"]))
    known = rows.join(_person_facts(told), on="row", how="inner").with_columns(_months().alias("months"))
    persons, texts = _persons(known, inventory.phrases.height, style)
    others = told.filter(~pl.col("role").is_in(HEADER_ROLES)).select("row", "phrase", "number")
    items = pl.concat([*persons, others], how="vertical_relaxed").sort("row", maintain_order=True)
    return _items(items), texts


def _person_facts(told: pl.DataFrame) -> pl.DataFrame:
    """row · birth? · sex? · sex_phrase?"""
    is_sex = pl.col("role").is_in(_SEXES)
    people = told.filter(pl.col("role").is_in(HEADER_ROLES)).group_by("row", maintain_order=True)
    return people.agg(
        birth=pl.col("time").filter(pl.col("role") == "birth").drop_nulls().first(),
        sex=pl.col("role").filter(is_sex).first(),
        sex_phrase=pl.col("phrase").filter(is_sex).first(),
    )


def _persons(known: pl.DataFrame, first_free: int, style: Style) -> tuple[list[pl.DataFrame], pl.Series]:
    """row · phrase · number tables, in the order of telling, and the texts that the new phrases stand for."""
    text = _noun_phrase() if style.person == "sentence" else _age_fact()
    told = known.select("row", "sex_phrase", text=text)
    texts = told.select("text").drop_nulls().unique(maintain_order=True).with_row_index("phrase", first_free)
    persons = told.select("row", "text").join(texts, on="text", how="inner", maintain_order="left")
    tables = [persons.select("row", "phrase")]
    if style.person == "facts":
        tables.insert(0, told.drop_nulls("sex_phrase").select("row", phrase="sex_phrase"))
    return [table.with_columns(number=pl.lit(NONE, pl.Int32)) for table in tables], texts["text"]


def _items(told: pl.DataFrame) -> Items:
    nothing = np.full(told.height, NONE, dtype=np.int32)
    return Items(
        row=told["row"].to_numpy(),
        section=np.full(told.height, HEADER, dtype=np.int8),
        group=told["row"].to_numpy().astype(np.int64),
        heading=nothing,
        phrase=told["phrase"].to_numpy().astype(np.int32),
        number=told["number"].to_numpy().astype(np.int32),
        note=nothing,
    )


def _months() -> pl.Expr:
    """Completed months of life at the prediction time; null where the birth is unknown."""
    now, birth = pl.col("prediction_time"), pl.col("birth")
    months = (now.dt.year() - birth.dt.year()) * 12 + now.dt.month().cast(pl.Int32) - birth.dt.month()
    completed = months - (now.dt.day() < birth.dt.day()).cast(pl.Int32)
    return pl.when(completed >= 0).then(completed)


def _age() -> tuple[pl.Expr, pl.Expr]:
    """Years, or months below the age of two, and their unit: 7, year."""
    months, young = pl.col("months"), pl.col("months") < 24
    number = pl.when(young).then(months).otherwise(months // 12).cast(pl.String)
    return number, pl.when(young).then(pl.lit("month")).otherwise(pl.lit("year"))


def _noun_phrase() -> pl.Expr:
    """63-year-old woman; 63 years old; woman."""
    number, unit = _age()
    plural = pl.when(number == "1").then(pl.lit("")).otherwise(pl.lit("s"))
    child = pl.col("months") < 12 * ADULT
    noun = (
        pl.when(pl.col("sex") == "female")
        .then(pl.when(child).then(pl.lit("girl")).otherwise(pl.lit("woman")))
        .when(pl.col("sex") == "male")
        .then(pl.when(child).then(pl.lit("boy")).otherwise(pl.lit("man")))
    )
    return pl.coalesce(number + "-" + unit + "-old " + noun, number + " " + unit + plural + " old", noun)


def _age_fact() -> pl.Expr:
    number, unit = _age()
    months = pl.when(unit == "month").then(pl.lit(" months")).otherwise(pl.lit(""))
    return "Demographic Age " + number + months
