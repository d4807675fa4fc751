"""Histories → narratives: one text per subject and prediction time, by table lookups over all events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from epicrisis.narrative.assembly import Assembly
from epicrisis.narrative.budget import CountTokens, row_lengths, within_budget
from epicrisis.narrative.coded import NONE, changes
from epicrisis.narrative.header import HEADER_ROLES, header_items
from epicrisis.narrative.inventory import take_inventory
from epicrisis.narrative.items import Items, body_items, merge_by_row
from epicrisis.narrative.layout import Layout, lay_out
from epicrisis.narrative.narrator import Narrator
from epicrisis.narrative.styles import HEADER, Style
from epicrisis.settings.problems import refuse

ROW = ("subject_id", "prediction_time")
_EVENT = ("code", "numeric_value", "text_value", "unit")

NARRATIVE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "narrative": pl.String,
    "n_events": pl.UInt32,
    "n_events_dropped": pl.UInt32,
    "style": pl.String,
}


@dataclass(frozen=True)
class Told:
    """The narratives of some rows, before they are text or tokens.

    table: subject_id · prediction_time · n_events · n_events_dropped (by the token budget) · style, in the
    order of the rows asked for. header_pieces: int64 [n_rows], how many pieces the header is.
    """

    table: pl.DataFrame
    assembly: Assembly
    header_pieces: np.ndarray

    def narratives(self) -> pl.DataFrame:
        """The table with its texts, NARRATIVE_SCHEMA."""
        texts = pl.from_arrow(self.assembly.narratives())
        assert isinstance(texts, pl.Series)
        whole = self.table.with_columns(narrative=texts)
        return whole.select(pl.col(name).cast(kind) for name, kind in NARRATIVE_SCHEMA.items())


def render(history: pl.LazyFrame | pl.DataFrame, rows: pl.DataFrame, narrator: Narrator) -> pl.DataFrame:
    """The whole narrative of each row as text: NARRATIVE_SCHEMA. See `tell`."""
    return tell(history, rows, narrator).narratives()


def tell(
    history: pl.LazyFrame | pl.DataFrame,
    rows: pl.DataFrame,
    narrator: Narrator,
    *,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
) -> Told:
    """The narrative of each row, in the order of `rows`.

    history: the visible events of the rows, subject_id · prediction_time · time? · code · numeric_value? ·
        text_value? · unit?; events of equal time in the order in which they are to be told.
    rows: subject_id · prediction_time, unique; further columns are ignored.
    count_tokens: the tokens of each piece of text, needed where max_tokens is given.

    n_events counts all events of the history, n_events_dropped those that the token budget left out. A row
    without events has a narrative too.

    Raises: InputError for rows given twice and for a budget without a counter, ValueError for events after
    the prediction time, which only a history that bypassed the cohort can hold.
    """
    keyed = _keyed(rows, count_tokens, max_tokens)
    events = _events(history, keyed)
    inventory = take_inventory(events, narrator)
    in_header = inventory.phrases["role"].is_in(HEADER_ROLES).to_numpy()[inventory.phrase]
    in_header |= events["time"].is_null().to_numpy()
    head, body = np.flatnonzero(in_header), np.flatnonzero(~in_header)
    facts = events.select("row", "time")[head]
    heads, persons = header_items(facts, head, keyed, inventory, narrator.style)
    dated = events.select("row", "time", "prediction_time", "numeric_value").filter(pl.Series(~in_header))
    bodies, words = body_items(dated, body, inventory, narrator)
    items = merge_by_row([heads, bodies])

    def laid(kept: Items) -> Layout:
        shown = _without_first_gap(kept) if narrator.tells_gaps else kept
        return lay_out(shown, inventory, persons, words, narrator.style)

    kept, layout = items, laid(items)
    if max_tokens is not None and count_tokens is not None:
        kept, layout = _fitted(items, layout, laid, narrator.style, keyed.height, count_tokens, max_tokens)
    dropped = _per_row(items.row, keyed.height) - _per_row(kept.row, keyed.height)
    table = keyed.select(
        *ROW,
        n_events=_per_row(events["row"].to_numpy(), keyed.height),
        n_events_dropped=dropped,
        style=pl.lit(narrator.style.label),
    )
    header = layout.sizes() * (kept.section == HEADER)
    header_pieces = np.bincount(kept.row, weights=header, minlength=keyed.height).astype(np.int64)
    return Told(table, layout.assembly(keyed.height, dropped > 0), header_pieces)


def _fitted(
    items: Items,
    layout: Layout,
    laid: Callable[[Items], Layout],
    style: Style,
    n_rows: int,
    count_tokens: CountTokens,
    max_tokens: int,
) -> tuple[Items, Layout]:
    """The items that fit, laid out. What ends an event changes when its successor goes, so it is counted again."""
    while True:
        lengths = count_tokens(layout.texts)
        if (row_lengths(layout, lengths, n_rows) <= max_tokens).all():
            return items, layout
        items = items.take(within_budget(items, layout, lengths, max_tokens, style))
        layout = laid(items)


def _without_first_gap(items: Items) -> Items:
    """A gap that follows nothing, because the budget left out what it followed, says nothing."""
    body = items.section != HEADER
    first = np.flatnonzero(changes(items.row, body) & body)
    return replace(items, heading=np.where(np.isin(items.group, items.group[first]), NONE, items.heading))


def _per_row(row: np.ndarray, n_rows: int) -> np.ndarray:
    return np.bincount(row, minlength=n_rows)


def _keyed(rows: pl.DataFrame, count_tokens: CountTokens | None, max_tokens: int | None) -> pl.DataFrame:
    if max_tokens is not None and count_tokens is None:
        raise refuse("narrative.max_tokens", "a budget of tokens, but no tokenizer to count them", "give count_tokens")
    keyed = rows.select(ROW)
    twice = keyed.height - keyed.n_unique()
    if twice:
        raise refuse("rows", f"{twice} rows repeat a subject and prediction time", "keep one row of each")
    return keyed.with_row_index("row").with_columns(pl.col("row").cast(pl.Int32))


def _events(history: pl.LazyFrame | pl.DataFrame, keyed: pl.DataFrame) -> pl.DataFrame:
    """The events of the rows, in the order of rows and, within a row, of time, undated ones first."""
    events = history.lazy().select(*ROW, "time", *_EVENT).collect()
    begins = np.flatnonzero(changes(*(events[name].to_physical().to_numpy() for name in ROW)))
    runs = events[begins].select(ROW).join(keyed, on=ROW, how="left", maintain_order="left")["row"]
    row = np.repeat(runs.cast(pl.Int32).fill_null(NONE).to_numpy(), np.diff(np.append(begins, events.height)))
    events = events.with_columns(row=row)
    if runs.null_count():
        events = events.filter(pl.col("row") != NONE)
    late = events.select((pl.col("time") > pl.col("prediction_time")).sum()).item()
    if late:
        raise ValueError(f"the history holds {late} events after their prediction time: take it from the cohort")
    return events if _in_order(events) else events.sort("row", "time", nulls_last=False, maintain_order=True)


def _in_order(events: pl.DataFrame) -> bool:
    """Whether the events are sorted already, as a cohort's history is: to see it is cheaper than to sort."""
    row, time = pl.col("row"), pl.col("time")
    earlier = (time < time.shift()) | (time.is_null() & time.shift().is_not_null())
    falls = (row < row.shift()) | ((row == row.shift()) & earlier)
    return not events.select(falls.any()).item()
