"""Visible histories as events: which phrase each is told with, its number, and how long before the prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from epicrisis.cohort import History
from epicrisis.corpus.prepare import EVENTS_PER_PART, KEYS
from epicrisis.narrative import Narrator
from epicrisis.narrative.coded import NONE, changes, renumbered
from epicrisis.narrative.header import HEADER_ROLES
from epicrisis.narrative.inventory import Inventory, take_inventory

FEWEST_NUMBERS = 10
"""Train numbers that a phrase needs for its scale to be known; the numbers of others are not told."""

_DAY = 86_400e6
"""Microseconds."""


@dataclass(frozen=True)
class EventTable:
    """The latest events of some rows, oldest first; what a header would tell (birth, sex, undated) comes before.

    keys: subject_id · prediction_time of the rows. texts: the distinct phrases. phrase: int32 [n_events], a place in
    texts. number: float32 [n_events], NaN where none was measured. days: float32 [n_events] before the prediction
    time, NaN where undated. bounds: int64 [n_rows + 1], where each row's events begin.
    """

    keys: pl.DataFrame
    texts: tuple[str, ...]
    phrase: np.ndarray
    number: np.ndarray
    days: np.ndarray
    bounds: np.ndarray

    @property
    def n_events(self) -> np.ndarray:
        """int64 [n_rows]."""
        return np.diff(self.bounds)

    def take(self, places: np.ndarray) -> EventTable:
        """The same for some of its rows."""
        counts = self.n_events[places]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        at = np.repeat(self.bounds[places] - bounds[:-1], counts) + np.arange(bounds[-1])
        return EventTable(self.keys[places], self.texts, self.phrase[at], self.number[at], self.days[at], bounds)

    def of_split(self, rows: pl.DataFrame, split: str) -> EventTable:
        """The same for the rows of a split; rows: with the columns split and the keys."""
        splits = self.keys.join(rows.select(*KEYS, "split"), on=KEYS, how="left", maintain_order="left")["split"]
        return self.take(np.flatnonzero((splits == split).to_numpy()))


def read_events(history: History, narrator: Narrator, max_events: int) -> EventTable:
    """The rows' latest `max_events` visible events, facts of a header included: those are the last to go.

    A phrase is what the narrator tells an event with, but for its digits: `Haemoglobin g/dL`, `Weight loss`, with
    classes of values `Haemoglobin: low`. Read part by part; memory is bounded by what is kept.
    """
    parts = [_part(part, narrator, max_events) for part in history.parts(EVENTS_PER_PART)]
    if not parts:
        none = np.zeros(0)
        return EventTable(history.rows.select(KEYS).clear(), (), none.astype(np.int32), none, none, np.zeros(1, int))
    texts = pl.concat([pl.Series(part.texts, dtype=pl.String) for part in parts])
    distinct = texts.unique().sort().to_frame("text").with_row_index("place")  # in an order of their own, always
    place = texts.to_frame("text").join(distinct, on="text", how="left", maintain_order="left")["place"].to_numpy()
    offsets = np.cumsum([0] + [len(part.texts) for part in parts])
    phrase = [place[part.phrase + offset] for part, offset in zip(parts, offsets, strict=False)]
    counts = np.concatenate([part.n_events for part in parts])
    return EventTable(
        pl.concat([part.keys for part in parts]),
        tuple(distinct["text"]),
        np.concatenate(phrase).astype(np.int32),
        np.concatenate([part.number for part in parts]),
        np.concatenate([part.days for part in parts]),
        np.concatenate([[0], np.cumsum(counts)]),
    )


def _part(history: History, narrator: Narrator, max_events: int) -> EventTable:
    keys = history.rows.select(KEYS).with_row_index("row")
    events = history.events().collect().join(keys, on=KEYS, how="left", maintain_order="left")
    events = events.sort("row", maintain_order=True)
    inventory = take_inventory(events, narrator)
    in_header = inventory.phrases["role"].is_in(HEADER_ROLES).to_numpy()[inventory.phrase]
    in_header |= events["time"].is_null().to_numpy()
    at = _latest(events["row"].to_numpy(), in_header, max_events)
    chosen = events[at]
    phrase, used = renumbered(inventory.phrase[at], inventory.phrases.height)
    measured = inventory.number[at] != NONE
    days = (chosen["prediction_time"] - chosen["time"]).cast(pl.Int64).to_numpy() / _DAY
    return EventTable(
        keys.drop("row"),
        tuple(_texts(inventory).gather(used)),
        phrase,
        np.where(measured, chosen["numeric_value"].cast(pl.Float32).to_numpy(), np.nan).astype(np.float32),
        days.astype(np.float32),
        np.concatenate([[0], np.cumsum(np.bincount(chosen["row"].to_numpy(), minlength=keys.height))]),
    )


def _texts(inventory: Inventory) -> pl.Series:
    """Each phrase without digits: the term, and the unit that its number would have."""
    term = pl.col("before").str.strip_suffix(":")
    return inventory.phrases.select(pl.concat_str(term, "after", separator=" ", ignore_nulls=True)).to_series()


def _latest(row: np.ndarray, in_header: np.ndarray, most: int) -> np.ndarray:
    """Places of each row's kept events: those of the header first, then the latest others, in the order of time."""
    order = np.lexsort((np.arange(len(row)), ~in_header, row))
    begins = np.flatnonzero(changes(row)) if len(row) else np.zeros(0, dtype=int)
    counts = np.diff(np.append(begins, len(row)))
    run = np.repeat(np.arange(len(begins)), counts)
    from_end = np.repeat(begins + counts, counts) - np.arange(len(row))  # 1 for the last event of a row
    n_header = np.bincount(run, weights=in_header, minlength=len(begins)).astype(int)
    kept = from_end <= np.maximum(most - n_header, 0)[run]
    kept |= np.arange(len(row)) - begins[run] < np.minimum(n_header, most)[run]
    return order[kept]


@dataclass(frozen=True)
class NumberScales:
    """What the numbers of each phrase usually are, by train: {phrase: (median, half the distance of the quartiles)}."""

    of: Mapping[str, tuple[float, float]]

    @classmethod
    def fit(cls, table: EventTable) -> NumberScales:
        """From the events of train rows; phrases with fewer than FEWEST_NUMBERS numbers have no scale."""
        number = pl.col("number")
        low, high = number.quantile(0.25, "linear"), number.quantile(0.75, "linear")
        measured = pl.DataFrame({"phrase": table.phrase, "number": table.number}).filter(number.is_not_nan())
        found = measured.group_by("phrase").agg(
            n=pl.len(), median=number.median(), scale=(high - low) / 2, least=number.abs().median()
        )
        # numbers that hardly ever differ are measured by their own size
        scale = pl.when(pl.col("scale") > 0).then("scale").when(pl.col("least") > 0).then("least").otherwise(1.0)
        rows = found.filter(pl.col("n") >= FEWEST_NUMBERS).with_columns(scale=scale).sort("phrase")
        return cls({table.texts[r["phrase"]]: (r["median"], r["scale"]) for r in rows.iter_rows(named=True)})

    def apply(self, table: EventTable) -> np.ndarray:
        """float32 [n_events]: how far from the median, in logarithmic steps of either sign; NaN where not told."""
        known = [self.of.get(text, (np.nan, np.nan)) for text in table.texts]
        median, scale = np.array(known, dtype=np.float64).reshape(-1, 2).T
        away = (table.number - median[table.phrase]) / scale[table.phrase]
        return (np.sign(away) * np.log1p(np.abs(away))).astype(np.float32)
