"""A fitted tokenizer of any kind: rows and their visible events in, sequences out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from epicrisis.cohort import History
from epicrisis.narrative.coded import NONE, changes
from epicrisis.settings.problems import refuse
from epicrisis.structured.sequences import KEYS, Sequences, concatenate, empty
from epicrisis.structured.tokenizers.counting import EVENTS_PER_PART
from epicrisis.structured.tokenizers.gaps import TIME_TOKENS, gaps_before
from epicrisis.structured.tokenizers.layout import (
    AGE,
    CLOSES,
    CODE,
    GAP,
    NO_TIME,
    OPENS,
    VALUE,
    YEAR,
    Items,
    Pieces,
    joined,
    lay_out,
)
from epicrisis.structured.tokenizers.tables import Fitted
from epicrisis.structured.tokenizers.tokens_of_events import Coded, code_events, told_codes
from epicrisis.structured.tokenizers.visits import BIRTH, SEX, find_visits
from epicrisis.structured.vocabulary import UNKNOWN, Vocabulary

VISIT_OPENS, VISIT_CLOSES = "[VS]", "[VE]"
AGE_YEARS, OLDEST = 5, 100
AGES = (*(f"AGE//{k}-{k + AGE_YEARS - 1}" for k in range(0, OLDEST, AGE_YEARS)), f"AGE//{OLDEST}+")
"""Ages when a sequence begins, in completed years."""

COVERAGE = ("vocabulary", "n_events", "n_codes", "known", "parent", "unknown")
EVERY = "*"
"""Stands for all vocabularies together."""

_EVENT = ("time", "code", "numeric_value", "text_value", "unit")


@dataclass(frozen=True)
class EventTokenizer:
    """See `CodeTokenizer`."""

    fitted: Fitted
    events_per_part: int = EVENTS_PER_PART

    @property
    def label(self) -> str:
        """Name and version."""
        return self.fitted.manner.label

    @property
    def vocabulary(self) -> Vocabulary:
        """What the ids stand for."""
        return self.fitted.vocabulary

    @property
    def fitted_on(self) -> str:
        """The split it was fitted on."""
        return self.fitted.fitted_on

    def encode(self, rows: pl.DataFrame, history: History, *, max_tokens: int | None = None) -> Sequences:
        """See `CodeTokenizer`. Raises InputError for rows given twice."""
        keys = rows.select(KEYS)
        if twice := keys.height - keys.n_unique():
            raise refuse("rows", f"{twice} rows repeat a subject and prediction time", "keep one row of each")
        parts = [
            encode_events(part.rows.select(KEYS), part.events().collect(), self.fitted, max_tokens)
            for part in replace(history, rows=rows).parts(self.events_per_part)
        ]
        return concatenate(parts).select(keys) if parts else empty(keys)

    def coverage(self, rows: pl.DataFrame, history: History) -> pl.DataFrame:
        """vocabulary · n_events · n_codes · known · parent · unknown (events), sorted; `*` is all of them.

        An event counts once for each row that sees it. parent: told by a parent, or by the broader of its levels.
        """
        counts = replace(history, rows=rows).code_counts().sort("code")
        told = told_codes(counts["code"], self.fitted).select("code", "vocabulary", "source")
        known = counts.join(told, on="code", how="left")
        every = pl.concat([known, known.with_columns(vocabulary=pl.lit(EVERY))])
        by_source = [
            pl.col("n_events").filter(pl.col("source") == source).sum().alias(source)
            for source in ("known", "parent", "unknown")
        ]
        table = every.group_by("vocabulary").agg(pl.col("n_events").sum(), *by_source, n_codes=pl.len())
        return table.select(COVERAGE).sort("vocabulary")

    def save(self, directory: Path) -> None:
        """JSON, for `load`."""
        self.fitted.save(directory)

    @classmethod
    def load(cls, directory: Path) -> EventTokenizer:
        """What `save` wrote. Raises InputError where it is missing, broken, or of another version."""
        return cls(Fitted.load(directory))


def encode_events(keys: pl.DataFrame, events: pl.DataFrame, fitted: Fitted, max_tokens: int | None = None) -> Sequences:
    """The sequences of rows, in their order.

    keys: subject_id · prediction_time, unique. events: their visible events, each row's together and in order of
    time, undated ones first, as `History.events` gives them.
    """
    row = _rows_of(keys, events)
    pieces = Pieces(len(fitted.vocabulary))
    told = code_events(events.select(_EVENT), fitted, pieces)
    time = events["time"].cast(pl.Int64).fill_null(NO_TIME).to_numpy()
    front = (time == NO_TIME) | (told.role == BIRTH) | (told.role == SEX)
    births = _births(row, time, told.role, keys.height)
    body = _body(np.flatnonzero(~front), row, time, told, _microseconds(keys), fitted, pieces)
    facts = _facts(np.flatnonzero(front), row, time, told, fitted)
    starts = _starts(body, births, fitted)
    items = joined([facts, starts, body])
    sequences, item = lay_out(items, keys, births, _body_rank(fitted), pieces, max_tokens)
    return _with_starts(sequences, items, item, births, fitted)


def _rows_of(keys: pl.DataFrame, events: pl.DataFrame) -> np.ndarray:
    """int64 [n_events], the place of each event's row in `keys`."""
    begins = np.flatnonzero(changes(*(events[name].to_physical().to_numpy() for name in KEYS)))
    runs = events[begins].select(KEYS).join(keys.with_row_index("row"), on=KEYS, how="left", maintain_order="left")
    places = runs["row"].cast(pl.Int64)
    if places.null_count() or len(begins) > keys.height:
        raise ValueError("the events are not those of the rows, or not sorted by row")
    return np.repeat(places.to_numpy(), np.diff(np.append(begins, events.height)))


def _microseconds(keys: pl.DataFrame) -> np.ndarray:
    return keys["prediction_time"].cast(pl.Datetime("us")).cast(pl.Int64).to_numpy()


def _births(row: np.ndarray, time: np.ndarray, role: np.ndarray, n_rows: int) -> np.ndarray:
    """int64 [n_rows], the time of each row's first dated birth; NO_TIME where none is known."""
    births = np.full(n_rows, NO_TIME)
    dated = np.flatnonzero((role == BIRTH) & (time != NO_TIME))[::-1]
    births[row[dated]] = time[dated]
    return births


def _body_rank(fitted: Fitted) -> int:
    return len(fitted.manner.demographics)


def _body(
    which: np.ndarray,
    row: np.ndarray,
    time: np.ndarray,
    told: Coded,
    now: np.ndarray,
    fitted: Fitted,
    pieces: Pieces,
) -> Items:
    """Dated events, with the time and visit tokens around them."""
    manner, vocabulary = fitted.manner, fitted.vocabulary
    # Rows may come in any order: what follows compares neighbours only, and each row's events are neighbours.
    row, time = row[which], time[which]
    visits = find_visits(row, time, told.role[which], now[row], fitted.settings.visits)
    slots = np.full((len(row), 5), NONE, dtype=np.int32)
    slots[:, CODE], slots[:, VALUE] = told.code[which], told.value[which]
    if manner.visit_tokens:
        slots[visits.first, OPENS] = vocabulary.id(VISIT_OPENS)
        slots[visits.last, CLOSES] = vocabulary.id(VISIT_CLOSES)
    place, times = gaps_before(row, time, visits.first, visits.number, manner.time_tokens)
    at = np.flatnonzero(place != NONE)
    if len(at):
        ids = np.array([vocabulary.id(token) for token in TIME_TOKENS[manner.time_tokens]])
        most = int(times[at].max()) + 1
        distinct, inverse = np.unique(place[at] * most + times[at], return_inverse=True)
        numbers = pieces.add([[int(ids[code // most])] * int(code % most) for code in distinct])
        slots[at, GAP] = numbers[inverse]
    nothing = np.zeros(len(row), dtype=np.int8)
    return Items(row, np.full(len(row), _body_rank(fitted)), slots, time, visits.number, nothing)


def _facts(which: np.ndarray, row: np.ndarray, time: np.ndarray, told: Coded, fitted: Fitted) -> Items:
    """Events that the front tells, each once."""
    ranks = {name: rank for rank, name in enumerate(fitted.manner.demographics)}
    role = told.role[which]
    named = np.where(role == BIRTH, ranks.get("birth", NONE), np.where(role == SEX, ranks.get("sex", NONE), NONE))
    rank = np.where((role != BIRTH) & (role != SEX), ranks.get("static", NONE), named)
    which, rank = which[rank != NONE], rank[rank != NONE]
    facts = pl.DataFrame({"row": row[which], "rank": rank, "code": told.code[which], "value": told.value[which]})
    once = facts.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    which, rank = which[once], rank[once]
    slots = np.full((len(which), 5), NONE, dtype=np.int32)
    slots[:, CODE], slots[:, VALUE] = told.code[which], told.value[which]
    return _front_items(row[which], rank, slots, 0)


def _starts(body: Items, births: np.ndarray, fitted: Fitted) -> Items:
    """Places for the age and the year in which a sequence begins, in rows that begin and where they are known."""
    begun = body.row[changes(body.row)]
    parts = [_front_items(begun[:0], begun[:0], np.full((0, 5), NONE, dtype=np.int32), 0)]
    for rank, name in enumerate(fitted.manner.demographics):
        if name not in ("age", "year"):
            continue
        rows = begun[births[begun] != NO_TIME] if name == "age" else begun
        slots = np.full((len(rows), 5), NONE, dtype=np.int32)
        slots[:, CODE] = UNKNOWN
        parts.append(_front_items(rows, np.full(len(rows), rank), slots, AGE if name == "age" else YEAR))
    return joined(parts)


def _front_items(row: np.ndarray, rank: np.ndarray, slots: np.ndarray, begins: int) -> Items:
    size = len(row)
    nothing, kind = np.zeros(size, dtype=np.int32), np.full(size, begins, dtype=np.int8)
    return Items(row, rank, slots, np.full(size, NO_TIME), nothing, kind)


def _with_starts(sequences: Sequences, items: Items, item: np.ndarray, births: np.ndarray, fitted: Fitted) -> Sequences:
    """With the age and the year of each row's first dated event that is in its sequence."""
    at = np.flatnonzero(items.begins[item] > 0)
    if not len(at):
        return sequences
    row = items.row[item[at]]
    first = sequences.bounds[:-1] + np.bincount(items.row[item[sequences.events <= 0]], minlength=len(sequences))
    begun = first[row] < sequences.bounds[row + 1]
    at, row = at[begun], row[begun]
    known = pl.DataFrame({"time": items.time[item[first[row]]], "birth": births[row]})
    times = known.select(pl.when(pl.all() != NO_TIME).then(pl.all())).cast(pl.Datetime("us"))
    is_age = items.begins[item[at]] == AGE
    tokens = sequences.tokens.copy()
    ages = np.array([fitted.vocabulary.id(name) for name in AGES])
    years = np.clip(times.select(_completed_years()).to_series().fill_null(0).to_numpy(), 0, OLDEST)
    calendar = times.select(pl.format("YEAR//{}", pl.col("time").dt.year())).to_series().unique()
    year_ids = {name: fitted.vocabulary.id(name) for name in calendar}
    year = times.select(pl.format("YEAR//{}", pl.col("time").dt.year()).replace_strict(year_ids)).to_series().to_numpy()
    tokens[at] = np.where(is_age, ages[years // AGE_YEARS], year)
    return replace(sequences, tokens=tokens)


def _completed_years() -> pl.Expr:
    time, birth = pl.col("time"), pl.col("birth")
    months = (time.dt.year() - birth.dt.year()) * 12 + time.dt.month().cast(pl.Int32) - birth.dt.month()
    return (months - (time.dt.day() < birth.dt.day()).cast(pl.Int32)) // 12
