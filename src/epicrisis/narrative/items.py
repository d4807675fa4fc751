"""Which events a style tells, in which order and under which headings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta

import numpy as np
import polars as pl

from epicrisis.narrative.coded import NONE, changes, coded
from epicrisis.narrative.inventory import Inventory
from epicrisis.narrative.narrator import Narrator
from epicrisis.narrative.styles import Section
from epicrisis.narrative.times import code_words, distance_codes, gap_words
from epicrisis.narrative.values import flag_values

FLAGS = ("low", "normal", "high")


@dataclass(frozen=True)
class Items:
    """What is told, in the order of telling; every array is [n_items].

    row: the narrative. section: its part, in the style's order. group: a number that is new for every group.
    heading: what opens the group (NONE: nothing), the same for all its items, so that the group can begin at
    any of them. phrase, number: of the inventory. note: what follows the event (NONE: nothing).
    """

    row: np.ndarray
    section: np.ndarray
    group: np.ndarray
    heading: np.ndarray
    phrase: np.ndarray
    number: np.ndarray
    note: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: np.ndarray) -> Items:
        """The items at these places, or those where a mask is true."""
        return Items(*(getattr(self, field.name)[which] for field in fields(self)))


@dataclass(frozen=True)
class Words:
    """Texts that items refer to by number, each distinct one once."""

    headings: pl.Series
    notes: pl.Series


def body_items(body: pl.DataFrame, places: np.ndarray, inventory: Inventory, narrator: Narrator) -> tuple[Items, Words]:
    """The items of all sections but the header.

    body: row · time · prediction_time, in the order of row and time. places: where each stands in the events
    that the inventory was taken of.
    """
    headings, notes, parts = _Texts(), _Texts(), []
    for number, section in enumerate(narrator.style.sections):
        if section.picks == "header":
            continue
        picked = _picked(section, body, places, inventory)
        events, at = body.filter(picked), places[picked]
        group, heading = _groups(section, events, inventory.phrases["role"].gather(inventory.phrase[at]), narrator)
        note = _notes(events, at, inventory, narrator) if section.notes else _no_texts(len(at))
        items = Items(
            row=events["row"].to_numpy(),
            section=np.full(len(at), number, dtype=np.int8),
            group=group,
            heading=headings.add(heading),
            phrase=inventory.phrase[at],
            number=inventory.number[at],
            note=notes.add(note),
        )
        parts.append(items.take(_newest_first(items)) if section.newest_first else items)
    return merge_by_row(parts), Words(headings.series(), notes.series())


def merge_by_row(parts: Sequence[Items]) -> Items:
    """Parts, each in the order of rows, as one: row by row, and within a row part by part."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0] + [int(part.group.max(initial=0)) + 1 for part in parts])
    parts = [replace(part, group=part.group + offset) for part, offset in zip(parts, offsets, strict=False)]
    joined = Items(*(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Items)))
    return joined.take(np.argsort(joined.row, kind="stable"))


class _Texts:
    """Columns of texts, null for none, numbered over all of them."""

    def __init__(self) -> None:
        self._parts: list[pl.Series] = []
        self._count = 0

    def add(self, coded: tuple[np.ndarray, pl.Series]) -> np.ndarray:
        places, texts = coded
        numbers = np.where(places < 0, NONE, places + self._count).astype(np.int32)
        self._parts.append(texts)
        self._count += len(texts)
        return numbers

    def series(self) -> pl.Series:
        return pl.concat(self._parts) if self._parts else pl.Series(dtype=pl.String)


Coded = tuple[np.ndarray, pl.Series]
"""int [n] places in a series of texts, NONE for no text."""


def _no_texts(length: int) -> Coded:
    return np.full(length, NONE), pl.Series(dtype=pl.String)


def _picked(section: Section, body: pl.DataFrame, places: np.ndarray, inventory: Inventory) -> np.ndarray:
    phrase = inventory.phrase[places]
    if section.picks == "all":
        return np.ones(len(places), dtype=bool)
    measured = inventory.phrases.select(pl.col("has_number") | pl.col("value_class").is_not_null()).to_series()
    with_value = measured.to_numpy()[phrase]
    if section.picks == "unmeasured":
        return ~with_value
    code = coded(inventory.phrases["code"])[0][phrase]
    if section.picks == "latest_each":
        return _latest(body["row"].to_numpy(), code)
    picked = np.flatnonzero(with_value)
    latest = np.zeros(len(places), dtype=bool)
    latest[picked] = _latest(body["row"].to_numpy()[picked], code[picked])
    return latest


def _latest(row: np.ndarray, code: np.ndarray) -> np.ndarray:
    """bool [n]: no later event of the row has the same code."""
    return pl.Series(row.astype(np.int64) << 32 | code).is_last_distinct().to_numpy()


def _newest_first(items: Items) -> np.ndarray:
    """The order in which the groups of each row are told backwards, and so are events without groups.

    A group keeps its own order: what happened in a visit is told forwards.
    """
    starts = np.flatnonzero(changes(items.row, items.group))
    rows = items.row[starts]
    sizes = np.diff(np.append(starts, len(items)))
    backwards = _backwards(rows)
    return _ranges(starts[backwards], sizes[backwards])


def _backwards(rows: np.ndarray) -> np.ndarray:
    """Places of a column sorted by row, each row's places in reverse."""
    first = np.flatnonzero(changes(rows))
    counts = np.diff(np.append(first, len(rows)))
    return np.repeat(first + np.append(first[1:], len(rows)) - 1, counts) - np.arange(len(rows))


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """start, start + 1, … for each start, one range after the other."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(int(ends[-1]) if len(ends) else 0)


def _groups(section: Section, events: pl.DataFrame, roles: pl.Series, narrator: Narrator) -> tuple[np.ndarray, Coded]:
    row = events["row"].to_numpy()
    if section.groups == "none":
        return np.arange(len(row)), _no_texts(len(row))
    if section.groups == "visit":
        group = np.cumsum(_visit_begins(events, roles))
        first = events.with_columns(time=pl.col("time").first().over(pl.Series(group)))
        return group, _when(first, narrator)
    if narrator.tells_gaps:
        return _by_gaps(events, narrator)
    heading = _when(events, narrator)
    return np.cumsum(changes(row, heading[0])), heading


def _when(events: pl.DataFrame, narrator: Narrator) -> Coded:
    """When each event was: its distance back from the prediction time, or its date."""
    if narrator.dates == "calendar":
        marks = events.select(pl.col("time").dt.date().to_physical()).to_series()
        words = pl.col("mark").cast(pl.Date).dt.to_string("%Y-%m-%d")
    else:
        marks = distance_codes(events["prediction_time"] - events["time"])
        words = pl.coalesce(code_words("mark") + " before", pl.lit("last hour"))
    places, distinct = coded(marks)
    return places, distinct.to_frame("mark").select(words.alias("text")).to_series()


def _by_gaps(events: pl.DataFrame, narrator: Narrator) -> tuple[np.ndarray, Coded]:
    """A group begins where the gap before an event is worth telling."""
    gap = pl.when(pl.col("row") == pl.col("row").shift()).then(pl.col("time").diff())
    gaps = events.select(gap.alias("gap"))
    words = gap_words(gaps["gap"], narrator.gaps)
    texts = words.select("words").drop_nulls().unique(maintain_order=True).with_row_index("place")
    words = words.join(texts, on="words", how="left")
    places = gaps.join(words, on="gap", how="left", maintain_order="left")["place"].cast(pl.Int32).fill_null(NONE)
    begins = changes(events["row"].to_numpy()) | (places.to_numpy() != NONE)
    group = np.cumsum(begins)
    heading = places.to_numpy()[np.flatnonzero(begins)][group - 1] if len(group) else places.to_numpy()
    return group, (heading, texts["words"])


def _visit_begins(events: pl.DataFrame, roles: pl.Series) -> np.ndarray:
    """Where a visit begins: at its start, after its end, and outside of visits with each new day.

    A visit whose end is not recorded ends with a week without events.
    """
    table = events.select("row", "time", start=roles == "visit_start", end=roles == "visit_end")
    ended = (pl.col("start").cum_sum() - pl.col("end").cum_sum()).over("row") <= 0
    after_end = ended.shift().fill_null(True)
    new_day = pl.col("time").dt.date().diff() != pl.duration(days=0)
    long_silence = pl.col("time").diff() > timedelta(weeks=1)
    begins = pl.col("start") | pl.col("end").shift() | (after_end & new_day) | (long_silence)
    started = table.select(begins.fill_null(True)).to_series().to_numpy()
    return started | changes(events["row"].to_numpy())


def _notes(events: pl.DataFrame, places: np.ndarray, inventory: Inventory, narrator: Narrator) -> Coded:
    """`low, 3 days before`: whether the value is normal, where that is known, and when it was."""
    assert narrator.ranges is not None, "make_narrator gives ranges to styles with notes"
    values = events["numeric_value"].to_numpy()
    flag = flag_values(inventory.keys, inventory.key[places], values, narrator.ranges)
    when, when_texts = _when(events, narrator)
    pair, pairs = coded(pl.Series(flag.astype(np.int64) * len(when_texts) + when))
    flag_of, when_of = np.divmod(pairs.to_numpy(), len(when_texts))  # the flag NONE stays -1
    flags = pl.Series([*FLAGS, None]).gather(np.where(flag_of == NONE, len(FLAGS), flag_of))
    words = pl.DataFrame({"flag": flags, "when": when_texts.gather(when_of)})
    return pair, words.select(pl.concat_str("flag", "when", separator=", ", ignore_nulls=True)).to_series()
