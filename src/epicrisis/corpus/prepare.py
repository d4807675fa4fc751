"""Visible histories → narratives on disk → token ids on disk, one event shard at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import polars as pl
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from epicrisis.cohort import History, rows_fingerprint
from epicrisis.corpus.tokens import count_tokens, encode_narratives, tokenizer_fingerprint
from epicrisis.narrative import Lookups, Style, render
from epicrisis.narrative.groups import Dates
from epicrisis.tracking.progress import bar
from epicrisis.tracking.stamps import hash_of, mark_done, stage_done

KEYS = ["subject_id", "prediction_time"]
_TOKENS = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("input_ids", pa.list_(pa.uint32())),
        ("n_tokens", pa.int32()),
        ("n_events", pa.int32()),
        ("n_events_dropped", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Telling:
    """How histories are told and counted: everything that decides a narrative's token ids."""

    lookups: Lookups
    style: Style
    dates: Dates
    max_tokens: int
    tokenizer: PreTrainedTokenizerBase

    def inputs(self) -> dict[str, str | int]:
        """What a finished stage's stamp remembers of this."""
        return {
            "style": f"{self.style.name}@{self.style.version}",
            "dates": self.dates,
            "max_tokens": self.max_tokens,
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "lookups": lookups_fingerprint(self.lookups),
        }


def lookups_fingerprint(lookups: Lookups) -> str:
    """A hash of everything that decides a code's words."""
    tables = [lookups.terms, lookups.codes.select("code", "description"), lookups.codes.explode("parent_codes")]
    parts = [table.sort(table.columns).write_csv() for table in tables if table.height]
    return hash_of({"tables": parts, "patterns": repr(lookups.patterns), "gaps": repr(lookups.gaps)})


@dataclass(frozen=True)
class Prepared:
    """Narratives and token ids of a set of rows under one directory."""

    directory: Path

    def tokens(self, split: str) -> datasets.Dataset:
        """Token ids of a split, memory-mapped: KEYS, input_ids, n_tokens, n_events, n_events_dropped."""
        return datasets.Dataset.from_file(str(self.directory / "tokens" / split / "tokens.arrow"))

    def narratives(self, split: str) -> pl.LazyFrame:
        """The narratives table of a split."""
        return pl.scan_parquet(self.directory / "narratives" / split / "*.parquet")

    def statistics(self) -> pl.DataFrame:
        """Rows, token lengths and dropped events per split."""
        return pl.concat([_split_statistics(folder) for folder in sorted((self.directory / "tokens").iterdir())])


def prepare(rows: pl.DataFrame, history: History, telling: Telling, directory: Path) -> Prepared:
    """Tell and tokenise every row's history; skipped where the same was finished in `directory` before.

    rows: subject_id, prediction_time, split. Each shard is read, told and written by itself, so memory is
    bounded by the largest shard.
    """
    prepared = Prepared(directory)
    inputs = {
        **telling.inputs(),
        "data": history.dataset.fingerprint(),
        "rows": rows_fingerprint(rows),
        "strict": history.strict,
    }
    if stage_done(directory, "prepare", inputs):
        return prepared
    splits = sorted(rows["split"].unique())
    shutil.rmtree(directory / "narratives", ignore_errors=True)  # of an earlier, different preparation
    with ExitStack() as stack, bar("prepare", history.records["shard"].n_unique()) as progress:
        writers = {split: stack.enter_context(_token_writer(directory, split)) for split in splits}
        for number, (shard_rows, events) in enumerate(history.shards()):
            told_events = events.collect().lazy()
            for split in splits:
                told = _tell(shard_rows.filter(pl.col("split") == split), told_events, telling)
                _write_narratives(told, directory / "narratives" / split / f"{number}.parquet")
                writers[split].write_table(_token_table(told))
            progress.advance()
    mark_done(directory, "prepare", inputs)
    return prepared


def _tell(rows: pl.DataFrame, events: pl.LazyFrame, telling: Telling) -> pl.DataFrame:
    """Narratives with their input_ids, within the token budget.

    The budget is first kept by the token counts of single phrases; joins between phrases can cost a token
    more, so rows that exceed it are told again with that much less.
    """
    told = _render(rows, events, telling, telling.max_tokens)
    excess = told["input_ids"].list.len().cast(pl.Int64) - telling.max_tokens
    if told.height == 0 or excess.max() <= 0:  # type: ignore[operator]
        return told
    over = told.filter(excess > 0).select(KEYS)
    shorter = telling.max_tokens - int(excess.max())  # type: ignore[arg-type]
    again = _render(rows.join(over, on=KEYS, how="semi"), events, telling, shorter)
    return pl.concat([told.join(over, on=KEYS, how="anti"), again]).sort(KEYS)


def _render(rows: pl.DataFrame, events: pl.LazyFrame, telling: Telling, max_tokens: int) -> pl.DataFrame:
    told = render(
        events.join(rows.lazy().select(KEYS), on=KEYS, how="semi"),
        rows,
        telling.lookups,
        telling.style,
        dates=telling.dates,
        count_tokens=lambda texts: count_tokens(telling.tokenizer, texts),
        max_tokens=max_tokens,
    )
    ids = encode_narratives(telling.tokenizer, told["narrative"].to_list())
    return told.with_columns(input_ids=pl.Series(ids, dtype=pl.List(pl.UInt32)))


@contextmanager
def _token_writer(directory: Path, split: str) -> Iterator[pa.ipc.RecordBatchStreamWriter]:
    target = directory / "tokens" / split / "tokens.arrow"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, _TOKENS) as writer:
        yield writer
    os.replace(partial, target)


def _token_table(told: pl.DataFrame) -> pa.Table:
    columns = told.select(
        *KEYS, "input_ids", pl.col("input_ids").list.len().alias("n_tokens"), "n_events", "n_events_dropped"
    )
    return columns.to_arrow().cast(_TOKENS)


def _write_narratives(told: pl.DataFrame, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    told.drop("input_ids").write_parquet(partial, compression="zstd")
    os.replace(partial, target)


def _split_statistics(folder: Path) -> pl.DataFrame:
    tokens = datasets.Dataset.from_file(str(folder / "tokens.arrow")).remove_columns("input_ids").to_polars()
    return tokens.select(
        split=pl.lit(folder.name),
        n=pl.len(),
        tokens_mean=pl.col("n_tokens").mean(),
        tokens_median=pl.col("n_tokens").median(),
        tokens_max=pl.col("n_tokens").max(),
        events_told=pl.col("n_events").sum(),
        events_dropped=pl.col("n_events_dropped").sum(),
    )
