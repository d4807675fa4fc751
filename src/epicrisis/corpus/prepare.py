"""Visible histories → narratives on disk → token ids on disk: independent parts, on many cores or machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import polars as pl

from epicrisis.cohort import History, rows_fingerprint
from epicrisis.corpus.executors import Executor
from epicrisis.corpus.lengths import length_statistics
from epicrisis.corpus.part import KEYS, TOKENS, Part, prepare_part
from epicrisis.corpus.telling import Telling
from epicrisis.narrative.coverage import CoverageCounts, merge_counts
from epicrisis.tracking.cores import available_cores
from epicrisis.tracking.progress import bar
from epicrisis.tracking.stamps import mark_done, stage_done

__all__ = ["EVENTS_PER_PART", "KEYS", "Prepared", "prepare"]

EVENTS_PER_PART = 500_000
"""Events of a part, unless one subject has more: some 300 MB of memory for each process."""

EVENTS_PER_WORKER = 400_000
"""Below so many events for each, processes take longer to start than they save."""


@dataclass(frozen=True)
class Prepared:
    """Narratives and token ids of a set of rows under one directory."""

    directory: Path

    def tokens(self, split: str) -> datasets.Dataset:
        """Token ids of a split, memory-mapped; the columns are those of TOKENS."""
        files = sorted((self.directory / "tokens" / split).glob("*.arrow"))
        if not files:
            return datasets.Dataset(datasets.table.InMemoryTable(TOKENS.empty_table()))
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])

    def narratives(self, split: str) -> pl.LazyFrame:
        """The narratives table of a split."""
        return pl.scan_parquet(sorted((self.directory / "narratives" / split).glob("*.parquet")))

    def splits(self) -> list[str]:
        """The splits that have rows."""
        return sorted({file.parent.name for file in (self.directory / "tokens").glob("*/*.arrow")})

    def coverage(self) -> CoverageCounts:
        """How the visible events' codes became words."""
        return merge_counts(
            CoverageCounts(
                pl.read_parquet(codes), pl.read_parquet(codes.with_name(codes.name.replace("codes", "subjects")))
            )
            for codes in sorted((self.directory / "coverage").glob("*.codes.parquet"))
        )

    def lengths(self, splits: Sequence[str] | None = None) -> pl.DataFrame:
        """split · n_tokens · n_header_tokens · n_events · n_events_dropped, one row per narrative of these or all."""
        parts = [
            self.tokens(split).remove_columns([*KEYS, "input_ids"]).to_polars().with_columns(split=pl.lit(split))
            for split in splits or self.splits()
        ]
        return pl.concat(parts)

    def statistics(self) -> pl.DataFrame:
        """Per split, how long narratives are and what the token budget left out; see `length_statistics`."""
        return length_statistics(self.lengths())


def prepare(
    rows: pl.DataFrame, history: History, telling: Telling, directory: Path, executor: Executor | None = None
) -> Prepared:
    """Tell and tokenise every row's history; what was finished in `directory` before is not done again.

    rows: subject_id, prediction_time, split, label. history: of these rows. The rows are divided into parts of
    some EVENTS_PER_PART events, each read, told and written by itself: memory is bounded by the parts that
    are worked on at a time, and a preparation that was broken off goes on with the parts that are missing.
    The result does not depend on the executor.
    """
    data = history.dataset.fingerprint()
    inputs = {**telling.inputs(), "data": data, "rows": rows_fingerprint(rows), "strict": history.strict}
    if stage_done(directory, "prepare", inputs):
        return Prepared(directory)
    parts = _parts(replace(history, rows=rows), directory, data)
    done = {part.name: part.is_done(telling) for part in parts}
    missing = [part for part in parts if not done[part.name]]
    _remove_others(directory, [part for part in parts if done[part.name]])
    with bar("prepare", len(parts)) as progress:
        progress.advance(len(parts) - len(missing))
        for _ in (executor or _fitting_executor(missing)).run(prepare_part, telling, missing):
            progress.advance()
    mark_done(directory, "prepare", inputs, [directory / "tokens", directory / "narratives"])
    return Prepared(directory)


def _parts(history: History, directory: Path, data: str) -> list[Part]:
    """Named by the place of their file among the dataset's and their own place in it."""
    parts: list[Part] = []
    count: Counter[int] = Counter()
    for part in history.parts(EVENTS_PER_PART):
        shard = part.records["shard"][0]
        parts.append(Part(part, directory, f"{shard:05d}-{count[shard]:05d}", data))
        count[shard] += 1
    return parts


def _remove_others(directory: Path, finished: list[Part]) -> None:
    """What an earlier, different preparation left."""
    ours = {directory / file for part in finished for file in part.files()}
    for folder in ("narratives", "tokens", "coverage"):
        for file in (directory / folder).rglob("*.*"):
            if file not in ours:
                file.unlink()


def _fitting_executor(parts: list[Part]) -> Executor:
    """As many processes as the work is worth."""
    events = sum(int(part.history.records["n_events"].sum()) for part in parts)
    return Executor(workers=max(1, min(len(available_cores()), events // EVENTS_PER_WORKER)))
