"""Events gathered under what says when they were: distances, gaps or dates."""

from __future__ import annotations

from typing import Literal

import polars as pl

from epicrisis.narrative.styles import Style
from epicrisis.narrative.times import GapLabel, code_words, distance_code, gap_words

Dates = Literal["relative", "gap", "calendar"]


def grouped(body: pl.DataFrame, dates: Dates, style: Style, labels: tuple[GapLabel, ...]) -> pl.DataFrame:
    """The events, of body (row · time · prediction_time · …) in time order, with group · opening.

    group: a number that changes from one group to the next and from one row to the next; opening: the text
    that opens the group, the same for all its events, so that the group can begin at any of them.
    """
    if dates == "calendar":
        marked = body.with_columns(pl.col("time").dt.date().alias("mark"))
        words = _distinct(marked, "mark").with_columns(heading=pl.col("mark").dt.to_string("%Y-%m-%d"))
    elif tells_gaps(dates, style):
        marked, words = _by_gaps(body, labels)
    else:
        marked = body.with_columns(distance_code(pl.col("prediction_time") - pl.col("time")).alias("mark"))
        before = pl.coalesce(code_words("mark") + " before", pl.lit("last hour"))
        words = _distinct(marked, "mark").with_columns(heading=before)
    new = pl.any_horizontal((pl.col(name) != pl.col(name).shift()).fill_null(True) for name in ("row", "mark"))
    numbered = marked.with_columns(new.cum_sum().alias("group"))
    opened = words.select("mark", opening=_opening(style))
    return numbered.join(opened, on="mark", how="left", maintain_order="left")


def tells_gaps(dates: Dates, style: Style) -> bool:
    """Whether times are told from one event to the next."""
    return dates == "gap" or (dates == "relative" and style.times == "gap")


def _distinct(table: pl.DataFrame, column: str) -> pl.DataFrame:
    return table.select(column).unique()


def _opening(style: Style) -> pl.Expr:
    before, after = style.opening.split("{heading}")
    return pl.coalesce(before + pl.col("heading") + after, pl.lit(style.plain_opening))


def _by_gaps(body: pl.DataFrame, labels: tuple[GapLabel, ...]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A group begins where the gap before an event is worth telling; its mark is the number of that event."""
    gap = pl.when(pl.col("row") == pl.col("row").shift()).then(pl.col("time").diff())
    timed = body.with_columns(gap.alias("gap"), pl.int_range(pl.len()).alias("mark"))
    words = gap_words(timed["gap"], labels)
    timed = timed.join(words, on="gap", how="left", maintain_order="left")
    first = (pl.col("row") != pl.col("row").shift()).fill_null(True)
    begins = first | pl.col("words").is_not_null()
    timed = timed.with_columns(pl.when(begins).then("mark").forward_fill().alias("mark"))
    headings = timed.filter(begins).select("mark", heading="words")
    return timed.drop("gap", "words"), headings
