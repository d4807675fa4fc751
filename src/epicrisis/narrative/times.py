"""How time is told: distances back from the prediction time, gaps between events, calendar dates."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl

from epicrisis.narrative.tables import read_table, term_problems
from epicrisis.settings.problems import InputError, Problem

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
WEEK = timedelta(days=7)
MONTH = timedelta(days=30.4375)
YEAR = timedelta(days=365.25)
"""Mean months and years: a distance is told without knowing which months it spans."""


@dataclass(frozen=True)
class Step:
    """Distances below `below` are counted in whole `unit`s, called `name` (plural with s)."""

    below: timedelta | None
    unit: timedelta
    name: str


STEPS = (
    Step(DAY, HOUR, "hour"),
    Step(2 * WEEK, DAY, "day"),
    Step(2 * MONTH, WEEK, "week"),
    Step(2 * YEAR, MONTH, "month"),
    Step(None, YEAR, "year"),
)
"""Each step begins at a whole number of its units, so that nothing older reads as nearer."""

_CODES_PER_STEP = 1_000_000
_TICK = timedelta(minutes=30)
"""All units and bounds are whole ticks, so that microseconds are divided once, and small integers from then on."""


def distance_codes(distances: pl.Series) -> pl.Series:
    """Durations rounded down to whole units, each as one integer: the step's place in `STEPS`, then the count."""
    # An expression would count the ticks anew for every step.
    table = (distances.dt.total_microseconds() // _microseconds(_TICK)).cast(pl.Int32).rename("ticks").to_frame()
    ticks, code = pl.col("ticks"), pl.lit(None, dtype=pl.Int32)
    for place, step in reversed(list(enumerate(STEPS))):
        told = ticks // (step.unit // _TICK) + place * _CODES_PER_STEP
        code = told if step.below is None else pl.when(ticks < step.below // _TICK).then(told).otherwise(code)
    return table.select(code.alias(distances.name)).to_series()


def code_words(code: str) -> pl.Expr:
    """The words of one of `distance_codes`: `3 months`; null for the first hour, which is no whole unit.

    The same distance always gets the same words, so the reader knows it to within one unit.
    """
    place, count = pl.col(code) // _CODES_PER_STEP, pl.col(code) % _CODES_PER_STEP
    unit = place.replace_strict(dict(enumerate(step.name for step in STEPS)), return_dtype=pl.String)
    plural = pl.when(count == 1).then(pl.lit("")).otherwise(pl.lit("s"))
    return pl.when(pl.col(code) > 0).then(count.cast(pl.String) + " " + unit + plural)


def told_distances(words: pl.Series) -> pl.DataFrame:
    """words · at_least · below: which durations `code_words` tells as these; null for any other words."""
    shape = rf"^(?P<count>\d{{1,4}}) (?P<unit>{'|'.join(step.name for step in STEPS)})s?$"
    found = pl.col("words").str.extract_groups(shape)
    units = {step.name: _microseconds(step.unit) for step in STEPS}
    ends = {step.name: _microseconds(step.below) if step.below else None for step in STEPS}
    table = (
        words.rename("words")
        .to_frame()
        .with_columns(
            count=found.struct.field("count").cast(pl.Int64),
            unit=found.struct.field("unit").replace_strict(units, return_dtype=pl.Int64),
            end=found.struct.field("unit").replace_strict(ends, return_dtype=pl.Int64),
        )
    )
    low, high = pl.col("count") * pl.col("unit"), (pl.col("count") + 1) * pl.col("unit")
    # From 8 weeks on, below 9, months are counted; 40 hours, which nobody tells, are 40 hours all the same.
    below = pl.when(pl.col("end") > low).then(pl.min_horizontal(high, "end")).otherwise(high)
    return table.select("words", at_least=low.cast(pl.Duration("us")), below=below.cast(pl.Duration("us")))


def told_before(words: pl.Series) -> pl.DataFrame:
    """words · at_least · below: how long before the prediction time `3 months before` and `last hour` are."""
    table = told_distances(words.str.strip_suffix(" before")).with_columns(words.rename("words"))
    table = _none_unless(table, pl.col("words").str.ends_with(" before"))
    last = pl.col("words") == "last hour"
    return table.with_columns(
        at_least=pl.when(last).then(pl.lit(timedelta(0))).otherwise("at_least"),
        below=pl.when(last).then(pl.lit(HOUR)).otherwise("below"),
    )


def told_gaps(words: pl.Series, labels: tuple[GapLabel, ...]) -> pl.DataFrame:
    """words · at_least · below?: the gaps that `gap_words` tells as these; null for any other words.

    A label without an end has no `below`. Of labels with one term, the gaps of any of them.
    """
    table = told_distances(words.str.strip_suffix(" later")).with_columns(words.rename("words"))
    table = _none_unless(table, pl.col("words").str.ends_with(" later"))
    ends = pl.DataFrame(
        {
            "words": pl.Series([label.term for label in labels], dtype=pl.String),
            "low": pl.Series([label.low for label in labels], dtype=pl.Duration("us")),
            "high": pl.Series([label.high for label in labels], dtype=pl.Duration("us")),
        }
    )
    open_end = pl.col("high").is_null().any()
    merged = ends.group_by("words").agg(pl.col("low").min(), pl.when(~open_end).then(pl.col("high").max()))
    found = table.join(merged, on="words", how="left", maintain_order="left")
    labelled = pl.col("low").is_not_null()
    return found.select(
        "words",
        at_least=pl.coalesce("low", "at_least"),
        below=pl.when(labelled).then("high").otherwise("below"),
    )


def _none_unless(table: pl.DataFrame, condition: pl.Expr) -> pl.DataFrame:
    return table.with_columns(pl.when(condition).then(pl.col("at_least", "below")))


def _microseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)


@dataclass(frozen=True)
class GapLabel:
    """`term` tells a gap of at least `low` and, where there is a `high`, less than that."""

    low: timedelta
    high: timedelta | None
    term: str


_UNITS = {"min": HOUR / 60, "h": HOUR, "d": DAY, "w": WEEK, "mt": MONTH, "y": YEAR}
_LENGTH = r"(?P<{0}>\d+)(?P<{0}_unit>min|mt|h|d|w|y)"
_INTERVAL = re.compile(_LENGTH.format("low") + r"(?:\+|-" + _LENGTH.format("high") + ")")


def read_gap_labels(path: Path) -> tuple[GapLabel, ...]:
    """The time table (`code,term`), whose codes are intervals in whole units: `0h-0h`, `1d-6d`, `10y+`.

    Both ends belong to the interval, as in speech: `1d-6d` holds gaps of at least one day and less than
    seven. Units: min h d w mt (mean month) y. What a label covers is read from its code, so that no gap
    gets a label made for another length. Raises InputError for codes that are no interval, overlap, or have
    two terms.
    """
    table = read_table(path, ("code", "term"))
    problems, _ = term_problems(path, table, "code", "term")
    labels = []
    for code, term in table.drop_nulls().unique(maintain_order=True).select("code", "term").iter_rows():
        label = _label(code, term)
        if label is None:
            fix = "write an interval such as 1d-6d or 10y+ (units: min h d w mt y)"
            problems.append(Problem(str(path), f"{code!r} is no time interval", fix))
        else:
            labels.append(label)
    labels.sort(key=lambda label: label.low)
    overlaps = sum(a.high is None or a.high > b.low for a, b in pairwise(labels))
    if overlaps:
        fix = "1d-6d holds all below 7d: go on with 7d-13d"
        problems.append(Problem(str(path), f"{overlaps} intervals overlap the next", fix))
    if problems:
        raise InputError(problems)
    return tuple(labels)


def _label(code: str, term: str) -> GapLabel | None:
    found = _INTERVAL.fullmatch(code)
    if found is None:
        return None
    low = int(found["low"]) * _UNITS[found["low_unit"]]
    high = (int(found["high"]) + 1) * _UNITS[found["high_unit"]] if found["high"] else None
    return GapLabel(low, high, term) if high is None or high > low else None


def gap_words(gaps: pl.Series, labels: tuple[GapLabel, ...]) -> pl.DataFrame:
    """gap · words per distinct gap between two events: its label, or `3 days later` where no label covers it.

    No words where there is no gap, or one too short to tell: under an hour, or below the first label.
    """
    distinct = gaps.drop_nulls().unique().rename("gap").to_frame()
    coded = distinct.with_columns(distance_codes(distinct["gap"]).alias("code"))
    words = code_words("code") + " later"
    gap = pl.col("gap")
    for label in labels:
        inside = gap >= label.low if label.high is None else (gap >= label.low) & (gap < label.high)
        words = pl.when(inside).then(pl.lit(label.term)).otherwise(words)
    shortest = max(labels[0].low if labels else HOUR, timedelta(microseconds=1))
    return coded.select("gap", words=pl.when(gap >= shortest).then(words))
