"""Which visit an event belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from epicrisis.narrative.coded import changes

DAY = 86_400_000_000
WEEK = 7 * DAY
"""Microseconds."""

START, END, BIRTH, SEX = 1, 2, 3, 4
"""What a code says beside being a code; 0 where it says nothing of the kind."""

_ROLES = {"visit_start": START, "visit_end": END, "birth": BIRTH, "female": SEX, "male": SEX}
_STARTS, _ENDS = r"^(?i:visit|encounter)(?:_start)?/", r"^(?i:visit|encounter)_end/"


def roles_of(matched: pl.DataFrame) -> np.ndarray:
    """int8 [n] of codes as `match_codes` takes them apart: START, END, BIRTH, SEX or 0.

    Beside what the pattern table says, `Visit/IP` and `ENCOUNTER//…` start a visit, as OMOP conversions write.
    """
    code, role = pl.col("code"), pl.col("role").replace_strict(_ROLES, default=0, return_dtype=pl.Int8)
    named = pl.when(code.str.contains(_STARTS)).then(START).when(code.str.contains(_ENDS)).then(END).otherwise(0)
    return matched.select(pl.when(role == 0).then(named).otherwise(role).cast(pl.Int8)).to_series().to_numpy()


@dataclass(frozen=True)
class Visits:
    """Visits of events that are sorted by row and time; arrays are [n_events]."""

    number: np.ndarray
    """int32, 1 = the row's oldest; 0 outside of visits."""
    first: np.ndarray
    """bool, the visit's first event."""
    last: np.ndarray
    """bool, the last event of a visit that has ended by the prediction time."""


def find_visits(
    row: np.ndarray, time: np.ndarray, role: np.ndarray, now: np.ndarray, which: Literal["auto", "codes", "days"]
) -> Visits:
    """The visits of dated events.

    row, time (microseconds), role: of the events. now: int64 [n_events], the row's prediction time.

    A visit begins with each event that starts one. It ends when as many ends as starts have come, with all
    events of that very time; a visit whose end is not recorded, with a week without events. Outside of these
    (`auto`) each day with events is a visit. The last visit has ended if its end is seen, if it is a day that
    is over, or after a week without events.
    """
    new_row, day = changes(row), time // DAY
    silent = ~new_row & (np.diff(time, prepend=time[:1]) > WEEK)
    new_day = new_row | changes(day)
    if which == "days":
        recorded, opened, begins = (np.zeros(len(row), dtype=bool), np.zeros(len(row), dtype=bool), new_day)
    else:
        start, end = role == START, role == END
        depth, before = _depths(new_row | silent, start, end)
        closed = end & (depth == 0) & (before > 0)
        outside = (before == 0) & ~start
        recorded = ~outside | (outside & (time == _last_where(closed, time, new_row)))
        opened = depth > 0
        after_recorded = np.append(False, recorded[:-1])[: len(row)]
        begins = new_row | silent | start | (~recorded & (new_day | after_recorded))
    number = _count(begins, new_row)
    if which == "codes":
        number = np.where(recorded, _count(role == START, new_row), 0).astype(np.int32)
        begins = changes(row, number) & (number > 0)
    goes_on = ~changes(row[::-1])[::-1]
    ended = np.where(opened, now - time > WEEK, recorded | (day < now // DAY))
    same = np.append(number[1:] == number[:-1], False)[: len(row)]
    last = (number > 0) & np.where(goes_on, ~same, ended)
    return Visits(number, begins & (number > 0), last)


def _depths(new: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] visits open after and before each event, from none at each `new`; an end of nothing changes nothing."""
    # Starts and ends are few beside all events, and only they change anything.
    steps = np.flatnonzero(start | end)
    table = pl.DataFrame({"segment": np.cumsum(new)[steps], "step": start[steps].astype(np.int64) - end[steps]})
    total = pl.col("step").cum_sum().over("segment")
    floor = pl.min_horizontal(total.cum_min().over("segment"), 0)
    changed = np.zeros(len(new), dtype=np.int64)
    changed[steps] = table.select(total - floor).to_series().to_numpy()
    # Each event has the depth of the last change, if that is of its segment.
    place = np.maximum.accumulate(np.where(start | end | new, np.arange(len(new)), 0))
    after = changed[place]
    before = np.where(new, 0, np.append(0, after[:-1])[: len(after)])
    return after, before


def _last_where(chosen: np.ndarray, values: np.ndarray, new_row: np.ndarray) -> np.ndarray:
    """int64 [n]: per event the value at the last chosen event of its row so far; before all times where none was."""
    place = np.maximum.accumulate(np.where(chosen, np.arange(len(values)), -1))
    begin = np.maximum.accumulate(np.where(new_row, np.arange(len(values)), 0))
    return np.where(place >= begin, values[place], np.iinfo(np.int64).min)


def _count(begins: np.ndarray, new_row: np.ndarray) -> np.ndarray:
    """int32 [n]: how many have begun in the row so far."""
    so_far = np.cumsum(begins)
    starts = np.flatnonzero(new_row)
    sizes = np.diff(np.append(starts, len(begins)))
    return (so_far - np.repeat(so_far[starts] - begins[starts], sizes)).astype(np.int32)
