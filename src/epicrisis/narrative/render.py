"""Histories → narratives: one text per subject and prediction time, by table expressions over all events."""

from __future__ import annotations

import polars as pl

from epicrisis.narrative.budget import CountTokens, within_budget
from epicrisis.narrative.groups import Dates, grouped, tells_gaps
from epicrisis.narrative.header import HEADER_ROLES, headers
from epicrisis.narrative.lookups import Lookups
from epicrisis.narrative.phrases import KEYS, phrase_ids, phrase_table
from epicrisis.narrative.styles import Style
from epicrisis.settings.problems import refuse

ROW = ("subject_id", "prediction_time")

NARRATIVE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "narrative": pl.String,
    "n_events": pl.UInt32,
    "n_events_dropped": pl.UInt32,
    "style": pl.String,
}


def render(
    history: pl.LazyFrame,
    rows: pl.DataFrame,
    lookups: Lookups,
    style: Style,
    *,
    dates: Dates = "relative",
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
) -> pl.DataFrame:
    """The narrative of each row, in the order of `rows`.

    history: the visible events of the rows, subject_id · prediction_time · time? · code · numeric_value? ·
        text_value? · unit?; events of equal time in the order in which they are to be told.
    rows: subject_id · prediction_time, unique; further columns are ignored.
    dates: `relative` as the style tells it (distances back from the prediction time, or gaps), `gap`, or
        `calendar`.
    count_tokens: the number of tokens of each text, needed where max_tokens is given.

    Returns: subject_id · prediction_time · narrative · n_events · n_events_dropped · style. n_events counts
    all events of the history, n_events_dropped those that the token budget left out. A row without events
    has a narrative too.

    Raises: InputError for rows given twice and for a budget without a counter, ValueError for events after
    the prediction time, which only a history that bypassed the cohort can hold.
    """
    keyed = _keyed(rows, count_tokens, max_tokens)
    events = _events(history, keyed)
    phrases = phrase_table(events, lookups, style)
    told = events.select("row", "time", "prediction_time", phrase_id=phrase_ids(events, phrases))
    in_header = phrases["role"].is_in(HEADER_ROLES).gather(told["phrase_id"]) | told["time"].is_null()
    heads = headers(_facts(told.filter(in_header), phrases), keyed, style)
    body = grouped(told.filter(~in_header), dates, style, lookups.gaps)
    kept = body
    if max_tokens is not None and count_tokens is not None:
        kept = within_budget(body, phrases["phrase"], heads, style, count_tokens, max_tokens)
    texts = _texts(kept, phrases["phrase"], style, tells_gaps(dates, style))
    return _narratives(keyed, heads, texts, _counts(told, body, kept), style)


def _keyed(rows: pl.DataFrame, count_tokens: CountTokens | None, max_tokens: int | None) -> pl.DataFrame:
    if max_tokens is not None and count_tokens is None:
        raise refuse("narrative.max_tokens", "a budget of tokens, but no tokenizer to count them", "give count_tokens")
    keyed = rows.select(ROW)
    twice = keyed.height - keyed.n_unique()
    if twice:
        raise refuse("rows", f"{twice} rows repeat a subject and prediction time", "keep one row of each")
    return keyed.with_row_index("row")


def _events(history: pl.LazyFrame, keyed: pl.DataFrame) -> pl.DataFrame:
    """The events of the rows, in the order of rows and, within a row, of time, undated ones first."""
    wanted = history.select(*ROW, "time", *KEYS)
    events = wanted.join(keyed.lazy(), on=ROW, how="inner", maintain_order="left").collect()
    late = events.select((pl.col("time") > pl.col("prediction_time")).sum()).item()
    if late:
        raise ValueError(f"the history holds {late} events after their prediction time: take it from the cohort")
    return events.sort("row", "time", nulls_last=False, maintain_order=True)


def _facts(told: pl.DataFrame, phrases: pl.DataFrame) -> pl.DataFrame:
    return told.join(phrases.select("phrase_id", "phrase", "role"), on="phrase_id", how="left", maintain_order="left")


def _texts(kept: pl.DataFrame, phrases: pl.Series, style: Style, gaps: bool) -> pl.DataFrame:
    """row · body: the openings, separators and phrases of a row, one after the other."""
    begins, first = ((pl.col(name) != pl.col(name).shift()).fill_null(True) for name in ("group", "row"))
    opening = pl.col("opening")
    if gaps:
        # A gap that follows nothing, because the budget left out what it followed, says nothing.
        opening = pl.when(first).then(pl.lit(style.plain_opening)).otherwise(opening)
    between = pl.when(begins).then(opening).otherwise(pl.lit(style.separator))
    pieces = kept.select("row", piece=between + phrases.gather(kept["phrase_id"]))
    return pieces.group_by("row").agg(body=pl.col("piece").str.join(""))


def _counts(told: pl.DataFrame, body: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """row · n_events · n_events_dropped."""
    counts = told.group_by("row").agg(n_events=pl.len())
    for name, part in (("in_body", body), ("in_text", kept)):
        counts = counts.join(part.group_by("row").agg(pl.len().alias(name)), on="row", how="left")
    dropped = pl.col("in_body").fill_null(0) - pl.col("in_text").fill_null(0)
    return counts.select("row", "n_events", n_events_dropped=dropped)


def _narratives(
    keyed: pl.DataFrame, heads: pl.DataFrame, texts: pl.DataFrame, counts: pl.DataFrame, style: Style
) -> pl.DataFrame:
    told = keyed
    for part in (heads, texts, counts):
        told = told.join(part, on="row", how="left")
    # Without a header, what opens the first group separates it from nothing.
    alone = pl.col("body").str.strip_chars_start("\n; ")
    nothing = pl.when(pl.col("n_events_dropped") > 0).then(pl.lit(style.cut)).otherwise(pl.lit(style.empty))
    columns = told.sort("row").with_columns(
        pl.col("n_events", "n_events_dropped").fill_null(0),
        narrative=pl.coalesce(pl.col("header") + pl.col("body"), "header", alone, nothing),
        style=pl.lit(style.label),
    )
    return columns.select(pl.col(name).cast(kind) for name, kind in NARRATIVE_SCHEMA.items())
