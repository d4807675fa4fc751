"""Histories as sequences of token ids, all rows in one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from epicrisis.narrative.coded import changes
from epicrisis.settings.problems import refuse
from epicrisis.tracking.run_directory import replacing

KEYS = ("subject_id", "prediction_time")
PER_TOKEN = {"tokens": np.int32, "days": np.float32, "visits": np.int32, "events": np.int32}
"""The arrays with one entry per token."""


@dataclass(frozen=True)
class Sequences:
    """Rows' visible events as tokens, oldest first; what is known without a date stands at the front.

    Arrays are those in memory, or memory-mapped from where they were saved.
    """

    keys: pl.DataFrame
    """subject_id · prediction_time, one line per row."""
    tokens: np.ndarray
    """int32 [n_tokens], all rows one after the other."""
    days: np.ndarray
    """float32 [n_tokens], age in days at the token's event; 0 where the birth is unknown or the event has no time."""
    visits: np.ndarray
    """int32 [n_tokens], the visit's number within the row, 1 = the oldest; 0 outside of visits and at the front."""
    events: np.ndarray
    """int32 [n_tokens], the event's running number within the row, 1 = the oldest that has a date; the front counts
    up to 0. Tokens with the same number belong to one event."""
    bounds: np.ndarray
    """int64 [n_rows + 1]: row k has the tokens bounds[k] to bounds[k + 1] - 1."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def lengths(self) -> np.ndarray:
        """int64 [n_rows], tokens per row."""
        return np.diff(self.bounds)

    def row(self, index: int) -> slice:
        """Where a row's tokens stand in the arrays."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        return slice(int(self.bounds[index]), int(self.bounds[index + 1]))

    def latest(self, max_tokens: int) -> Sequences:
        """Rows of at most `max_tokens` tokens: the front, then the latest events that fit, each with all its tokens.

        Numbers of visits and events stay what they were. Where the front alone is too long, its last events go.
        Raises ValueError for a budget below 1.
        """
        return self.filter(within(self.bounds, self.events, max_tokens))

    def filter(self, kept: np.ndarray) -> Sequences:
        """Only the tokens where `kept`, bool [n_tokens], is true."""
        if kept.all():
            return self
        so_far = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
        return replace(self, bounds=so_far[self.bounds], **{name: getattr(self, name)[kept] for name in PER_TOKEN})

    def take(self, places: np.ndarray) -> Sequences:
        """The rows at these places, in this order."""
        starts, sizes = self.bounds[:-1][places], self.lengths()[places]
        where = ranges(starts, sizes)
        bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        arrays = {name: getattr(self, name)[where] for name in PER_TOKEN}
        return Sequences(self.keys[pl.Series(places, dtype=pl.Int64)], **arrays, bounds=bounds)

    def select(self, rows: pl.DataFrame) -> Sequences:
        """The sequences of these rows (subject_id, prediction_time), in their order. Raises ValueError for others."""
        numbered = self.keys.with_row_index("place")
        found = rows.select(KEYS).join(numbered, on=KEYS, how="left", maintain_order="left")["place"]
        if found.null_count():
            raise ValueError(f"{found.null_count()} rows have no sequence here")
        return self.take(found.to_numpy().astype(np.int64))

    def save(self, directory: Path) -> None:
        """One .npy file per array, and keys.parquet."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in (*PER_TOKEN, "bounds"):
            with replacing(directory / f"{name}.npy") as part, part.open("wb") as stream:
                np.save(stream, getattr(self, name))
        with replacing(directory / "keys.parquet") as part:
            self.keys.write_parquet(part)

    @classmethod
    def load(cls, directory: Path) -> Sequences:
        """What `save` wrote, memory-mapped. Raises InputError where a file is missing or does not fit the others."""
        files = [directory / name for name in (*(f"{name}.npy" for name in (*PER_TOKEN, "bounds")), "keys.parquet")]
        absent = [file.name for file in files if not file.is_file()]
        fix = "encode the rows anew"
        if absent:
            raise refuse(str(directory), f"{', '.join(absent)} is missing", fix)
        arrays = {file.stem: np.load(file, mmap_mode="r") for file in files[:-1]}
        found = cls(pl.read_parquet(files[-1]), **arrays)
        n_tokens = {len(arrays[name]) for name in PER_TOKEN} | {int(found.bounds[-1])}
        if len(n_tokens) > 1 or len(found) != found.keys.height:
            raise refuse(str(directory), "the files do not belong together", fix)
        return found


def within(bounds: np.ndarray, events: np.ndarray, max_tokens: int) -> np.ndarray:
    """bool [n_tokens]: what `Sequences.latest` keeps."""
    if max_tokens < 1:
        raise ValueError(f"a budget of {max_tokens} tokens")
    sizes = np.diff(bounds)
    if not (sizes > max_tokens).any():
        return np.ones(len(events), dtype=bool)
    row = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.flatnonzero(changes(row, events))
    ends = np.append(starts[1:], len(events))
    # Per event: tokens of the row up to its end, and from its start on.
    row_of, front = row[starts], events[starts] <= 0
    upto, onward = ends - bounds[row_of], bounds[row_of + 1] - starts
    kept = front & (upto <= max_tokens)
    taken = np.bincount(row_of, weights=(ends - starts) * kept, minlength=len(sizes)).astype(np.int64)
    kept |= ~front & (onward <= max_tokens - taken[row_of])
    return np.repeat(kept, ends - starts)


def concatenate(parts: Sequence[Sequences]) -> Sequences:
    """The rows of all parts, one part after the other."""
    keys = pl.concat([part.keys for part in parts])
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in PER_TOKEN}
    sizes = np.concatenate([part.lengths() for part in parts])
    return Sequences(keys, **arrays, bounds=np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))


def empty(keys: pl.DataFrame) -> Sequences:
    """Rows without any token."""
    arrays = {name: np.zeros(0, dtype=kind) for name, kind in PER_TOKEN.items()}
    return Sequences(keys.select(KEYS), **arrays, bounds=np.zeros(keys.height + 1, dtype=np.int64))


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """int64: start, start + 1, … for each start, one range after the other."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(int(ends[-1]) if len(ends) else 0)
