"""Time as tokens: how long it was from one visit, or one event, to the next."""

from __future__ import annotations

import numpy as np

from epicrisis.narrative.coded import NONE
from epicrisis.structured.tokenizers.manner import TimeTokens
from epicrisis.structured.tokenizers.visits import DAY

MINUTE, HOUR, MONTH = DAY // 1440, DAY // 24, DAY * 304_375 // 10_000
"""Microseconds; a month is the mean one, 30.4375 days."""

MOST_DAYS = 1080
WEEKS = ("W0", "W1", "W2", "W3", *(f"M{k}" for k in range(1, 13)), "LT")
DAYS = (*(f"D{k}" for k in range(1, MOST_DAYS + 1)), "LT")
INTERVALS = {
    "5m-15m": 5 * MINUTE,
    "15m-1h": 15 * MINUTE,
    "1h-2h": HOUR,
    "2h-6h": 2 * HOUR,
    "6h-12h": 6 * HOUR,
    "12h-1d": 12 * HOUR,
    "1d-3d": DAY,
    "3d-1w": 3 * DAY,
    "1w-2w": 7 * DAY,
    "2w-1mt": 14 * DAY,
    "1mt-3mt": MONTH,
    "3mt-6mt": 3 * MONTH,
    "6mt": 6 * MONTH,
}
"""Token → the shortest gap that it tells; `6mt` is repeated, rounded to whole half years."""

TIME_TOKENS: dict[TimeTokens, tuple[str, ...]] = {
    "none": (),
    "weeks": WEEKS,
    "days": DAYS,
    "intervals": tuple(INTERVALS),
}
"""The tokens of each manner of telling time, in the order of the places below."""


def week_places(days: np.ndarray) -> np.ndarray:
    """Places in `WEEKS` of gaps in whole days: weeks below 28 days, months of 30 days below 365, then LT."""
    months = 3 + np.clip(days // 30, 1, 12)
    return np.where(days < 28, days // 7, np.where(days < 365, months, len(WEEKS) - 1))


def day_places(days: np.ndarray) -> np.ndarray:
    """Places in `DAYS` of gaps in whole days, LT beyond 1080; NONE for visits of one day, which no token parts."""
    return np.where(days < 1, NONE, np.minimum(days, MOST_DAYS + 1) - 1)


def interval_places(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in `INTERVALS` of gaps in microseconds, NONE below five minutes, and how often the token is said."""
    place = np.searchsorted(np.array(list(INTERVALS.values())), gaps, side="right") - 1
    half_year = 6 * MONTH
    times = np.where(place == len(INTERVALS) - 1, np.maximum((2 * gaps + half_year) // (2 * half_year), 1), 1)
    return np.where(place < 0, NONE, place), times


def gaps_before(
    row: np.ndarray, time: np.ndarray, first: np.ndarray, number: np.ndarray, manner: TimeTokens
) -> tuple[np.ndarray, np.ndarray]:
    """Which time token stands before each event (a place in `TIME_TOKENS[manner]`, or NONE), and how many of it.

    row, time: of dated events, sorted. first, number: of their visits. Weeks and days are calendar days from the
    last event of one visit to the first of the next, and intervals the time from any event to the next.
    """
    place, times = np.full(len(row), NONE), np.ones(len(row), dtype=np.int64)
    if manner == "none":
        return place, times
    told = np.arange(len(row)) if manner == "intervals" else np.flatnonzero(number > 0)
    follows = np.append(False, row[told][1:] == row[told][:-1])[: len(told)]
    if manner == "intervals":
        gaps = np.diff(time, prepend=time[:1])
        found, said = interval_places(gaps[follows])
        place[follows], times[follows] = found, said
        return place, times
    day = time[told] // DAY
    days = np.diff(day, prepend=day[:1])
    begins = follows & first[told]
    place[told[begins]] = (week_places if manner == "weeks" else day_places)(days[begins])
    return place, times
