"""One part of a corpus: the visible histories of some subjects become narratives and token ids on disk."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from epicrisis.cohort import History, rows_fingerprint
from epicrisis.corpus.phrase_tokens import PhraseTokens
from epicrisis.corpus.telling import Telling
from epicrisis.corpus.tokens import opening_ids
from epicrisis.narrative.coded import renumbered
from epicrisis.narrative.coverage import CodeWords, coverage_counts
from epicrisis.narrative.render import Told, tell
from epicrisis.tracking.stamps import mark_done, stage_done

KEYS = ["subject_id", "prediction_time"]
TOKENS = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("input_ids", pa.list_(pa.uint32())),
        ("n_tokens", pa.int32()),
        ("n_header_tokens", pa.int32()),
        ("n_events", pa.int32()),
        ("n_events_dropped", pa.int32()),
    ]
)
AUDITED = 2
"""Narratives of each part that are tokenised again as a whole, to be compared."""


@dataclass(frozen=True)
class Part:
    """A job: the rows of some subjects of one file, and where their narratives go."""

    history: History
    directory: Path
    name: str
    data: str
    """The dataset's fingerprint."""

    def files(self) -> list[Path]:
        """All that the job writes, in `directory`."""
        splits = sorted(self.history.rows["split"].unique())
        told = [narratives_file(self.directory, split, self.name) for split in splits]
        tokens = [tokens_file(self.directory, split, self.name) for split in splits]
        return told + tokens + list(coverage_files(self.directory, self.name))

    def inputs(self, telling: Telling) -> dict[str, object]:
        """What decides the content of the files."""
        rows = self.history.rows
        return {
            **telling.inputs(),
            "data": self.data,
            "rows": rows_fingerprint(rows),
            "splits": rows_fingerprint(rows.with_columns(label="split")),
            "strict": self.history.strict,
        }

    def is_done(self, telling: Telling) -> bool:
        """Whether the files are there already, from the same inputs."""
        return stage_done(self.directory, self.stage, self.inputs(telling))

    @property
    def stage(self) -> str:
        return f"prepare.{self.name}"


def narratives_file(directory: Path, split: str, name: str) -> Path:
    return directory / "narratives" / split / f"{name}.parquet"


def tokens_file(directory: Path, split: str, name: str) -> Path:
    return directory / "tokens" / split / f"{name}.arrow"


def coverage_files(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / "coverage" / f"{name}.codes.parquet", directory / "coverage" / f"{name}.subjects.parquet"


def prepare_part(telling: Telling, part: Part) -> int:
    """Tell and tokenise the part's rows, and write them; returns the number of events read.

    Memory is bounded by the part. Every file appears whole or not at all, and the part counts as done only
    when all of them are there.
    """
    # In one piece: to gather from several takes many times as long.
    events, rows, memory = part.history.events().collect().rechunk(), part.history.rows, _memory(telling)
    told, ids = tell_within(rows, events, telling, memory.tokens)
    memory.tokens.audit(told.assembly, ids, AUDITED, seed=0)
    n_opening = len(opening_ids(telling.tokenizer))
    tokens = _token_table(told, ids, _header_tokens(told, memory.tokens) + n_opening)
    narratives = told.narratives()
    for split in sorted(rows["split"].unique()):
        ours = rows["split"] == split
        whole = bool(ours.all())
        _write(narratives if whole else narratives.filter(ours), narratives_file(part.directory, split, part.name))
        table = tokens if whole else tokens.filter(pa.array(ours.to_numpy()))
        _write(table, tokens_file(part.directory, split, part.name))
    counts = coverage_counts(events, memory.words, rows.select("subject_id", "split").unique())
    for counted, path in zip((counts.codes, counts.subjects), coverage_files(part.directory, part.name), strict=True):
        _write(counted, path)
    mark_done(part.directory, part.stage, part.inputs(telling), part.files())
    return events.height


def tell_within(
    rows: pl.DataFrame, events: pl.DataFrame, telling: Telling, tokens: PhraseTokens
) -> tuple[Told, pa.LargeListArray]:
    """The rows' narratives and their token ids, BOS included, within the token budget.

    The budget is kept by adding up the tokens of pieces. Where a tokenizer joins pieces the sum can be wrong,
    so rows that exceed it are told again with that much less.
    """
    budget = telling.max_tokens
    room = None if budget is None else budget - len(opening_ids(telling.tokenizer))
    while True:
        told = tell(events, rows, telling.narrator, count_tokens=tokens.lengths, max_tokens=room)
        ids = tokens.encode(told.assembly)
        longest = int(np.diff(ids.offsets.to_numpy()).max(initial=0))
        if budget is None or room is None or longest <= budget or room < 0:  # below 0 nothing is left to drop
            return told, ids
        room -= longest - budget


@dataclass(frozen=True)
class _Memory:
    """What a thread keeps between the parts that it prepares: their codes and phrases are mostly the same."""

    telling: Telling
    tokens: PhraseTokens
    words: CodeWords


_LATEST = threading.local()


def _memory(telling: Telling) -> _Memory:
    """What this thread remembers, of this telling only."""
    if getattr(_LATEST, "memory", None) is None or _LATEST.memory.telling is not telling:
        _LATEST.memory = _Memory(telling, PhraseTokens(telling.tokenizer), CodeWords(telling.lookups))
    return _LATEST.memory


def _token_table(told: Told, ids: pa.LargeListArray, header_tokens: np.ndarray) -> pa.Table:
    offsets = ids.offsets.to_numpy()
    columns = {
        "input_ids": pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), ids.values),
        "n_tokens": np.diff(offsets),
        "n_header_tokens": header_tokens,
        **{name: told.table[name].to_arrow() for name in (*KEYS, "n_events", "n_events_dropped")},
    }
    return pa.table([columns[name] for name in TOKENS.names], names=TOKENS.names).cast(TOKENS)


def _header_tokens(told: Told, tokens: PhraseTokens) -> np.ndarray:
    """Tokens of the header, int64 [n_rows]."""
    assembly, counts = told.assembly, told.header_pieces
    begins = np.repeat(assembly.bounds[:-1], counts)
    within = np.arange(len(begins)) - np.repeat(np.cumsum(counts) - counts, counts)
    which, distinct = renumbered(assembly.pieces[begins + within], len(assembly.texts))
    begin = np.zeros(len(assembly.texts), dtype=bool)
    begin[assembly.pieces[assembly.bounds[:-1]]] = True
    lengths = tokens.lengths(assembly.texts.take(pa.array(distinct)), first=begin[distinct])[which]
    upto = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ends = np.cumsum(counts)
    return upto[ends] - upto[ends - counts]


def _write(table: pl.DataFrame | pa.Table, target: Path) -> None:
    """Parquet for tables, an Arrow stream (which can be memory-mapped) for tokens; whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    if isinstance(table, pl.DataFrame):
        table.write_parquet(partial, compression="zstd", compression_level=1)
    else:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    os.replace(partial, target)
