"""A synthetic cohort with a known oracle, written as a MEDS 0.4 dataset of any size in bounded memory.

Nothing here stems from a person. docs/synthetic_cohort.md tells what is simulated and by which formulas.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from epicrisis import __version__
from epicrisis.events.meds import SPLITS
from epicrisis.events.synthetic_block import BLOCK_SUBJECTS, Block, simulate_block
from epicrisis.events.synthetic_vocabulary import LOCAL_TERMS, Vocabulary, build_vocabulary, lookup_key, parents_of
from epicrisis.settings.problems import InputError, Problem, refuse

MEDS_VERSION = "0.4.1"
LOOKUPS = Path(__file__).parents[3] / "lookups"
MEAN_VISITS = 6.5

_SUBJECT = pa.field("subject_id", pa.int64(), nullable=False)
_ROW = [_SUBJECT, pa.field("prediction_time", pa.timestamp("us"), nullable=False)]
EVENTS = pa.schema(
    [
        _SUBJECT,
        pa.field("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("text_value", pa.large_string()),
        pa.field("unit", pa.string()),
    ]
)
SPLIT_COLUMNS = pa.schema([_SUBJECT, pa.field("split", pa.string(), nullable=False)])
CODES = pa.schema([("code", pa.string()), ("description", pa.string()), ("parent_codes", pa.list_(pa.string()))])
_BOOLEAN = pa.schema([*_ROW, ("boolean_value", pa.bool_())])
_CATEGORICAL = pa.schema([*_ROW, ("categorical_value", pa.string())])
LABELS = {
    "cancer": _BOOLEAN,
    "order_free": _BOOLEAN,
    "in_hospital_mortality": _BOOLEAN,
    "length_of_stay": _CATEGORICAL,
    "prolonged_stay": _BOOLEAN,
    "diagnoses": _CATEGORICAL,
    "time_to_event": pa.schema([*_ROW, ("float_value", pa.float32()), ("event_observed", pa.bool_())]),
}
_RISK = pa.schema([*_ROW, ("true_risk", pa.float64())])
ORACLE = dict.fromkeys(LABELS, _RISK) | {
    "length_of_stay": pa.schema([*_ROW, ("true_risk", pa.list_(pa.float64()))]),
    "diagnoses": pa.schema([*_ROW, ("class", pa.string()), ("true_risk", pa.float64())]),
}


def synthesize(
    output_dir: Path,
    n_subjects: int,
    seed: int,
    *,
    shard_size: int = 10_000,
    novel_code_probability: float = 0.01,
    undescribed_code_share: float = 0.1,
    mean_visits: float = MEAN_VISITS,
    split_shares: Sequence[float] = (0.7, 0.1, 0.2),
    progress: Callable[[int], None] | None = None,
    lookups_dir: Path = LOOKUPS,
) -> None:
    """Write a cohort of `n_subjects` to `output_dir`, which must be absent or empty.

    The same arguments give the same bytes. A subject depends on the seed and its own number only, not on
    n_subjects or shard_size.

    novel_code_probability: of an everyday diagnosis to carry a code that no table knows. undescribed_code_share:
    of the codes that have no term anywhere. mean_visits: visits per subject before the prediction time, at least
    4; 6.5 give about 38 dated events. split_shares: of train, tuning, held_out. progress: called with the number
    of subjects just simulated. lookups_dir: where the terms of codes.parquet come from.

    Raises InputError for impossible arguments, a folder that holds something, or missing lookups. Nothing
    half-written is left behind: the folder appears when all is in it.
    """
    output_dir = Path(output_dir).resolve()
    numbers = {
        "novel_code_probability": novel_code_probability,
        "undescribed_code_share": undescribed_code_share,
    }
    _check(output_dir, n_subjects, seed, shard_size, mean_visits, numbers, split_shares)
    terms = _terms(Path(lookups_dir))
    vocabulary = build_vocabulary(undescribed_code_share)
    partial = output_dir.with_name(f".{output_dir.name}.partial-{os.getpid()}")
    try:
        _write_metadata(partial, vocabulary, terms)
        with CohortWriter(partial, split_shares) as writer:
            for shard, (first, last) in enumerate(_shards(n_subjects, shard_size)):
                blocks = _blocks(seed, first, last, vocabulary, mean_visits, novel_code_probability, progress)
                writer.add(shard, list(blocks))
        if output_dir.is_dir():
            output_dir.rmdir()
        partial.replace(output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(
    output_dir: Path,
    n_subjects: int,
    seed: int,
    shard_size: int,
    mean_visits: float,
    probabilities: dict[str, float],
    split_shares: Sequence[float],
) -> None:
    problems = []
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        what = "is a file or a folder that already holds something"
        problems.append(Problem(str(output_dir), what, "choose a new folder, or empty this one"))
    counts = {"n_subjects": n_subjects, "seed": seed, "shard_size": shard_size, "mean_visits": mean_visits}
    for (name, value), minimum in zip(counts.items(), (1, 0, 1, 4), strict=True):
        if not value >= minimum:
            problems.append(Problem(name, f"is {value}", f"give a number of at least {minimum}"))
    for name, value in probabilities.items():
        upper = 0.5 if name == "undescribed_code_share" else 1
        if not 0 <= value <= upper:
            problems.append(Problem(name, f"is {value}", f"give a number between 0 and {upper}"))
    if len(split_shares) != len(SPLITS) or min(split_shares) < 0 or abs(sum(split_shares) - 1) > 1e-9:
        fix = f"give {len(SPLITS)} shares ({', '.join(SPLITS)}) that add up to 1"
        problems.append(Problem("split_shares", f"are {tuple(split_shares)}", fix))
    if problems:
        raise InputError(problems)


def _shards(n_subjects: int, shard_size: int) -> Iterator[tuple[int, int]]:
    """First and last subject id of each shard."""
    for first in range(1, n_subjects + 1, shard_size):
        yield first, min(first + shard_size - 1, n_subjects)


def _blocks(
    seed: int,
    first: int,
    last: int,
    vocabulary: Vocabulary,
    mean_visits: float,
    novel: float,
    progress: Callable[[int], None] | None,
) -> Iterator[Block]:
    """The blocks, or parts of them, that hold the subjects first..last."""
    for number in range((first - 1) // BLOCK_SUBJECTS, (last - 1) // BLOCK_SUBJECTS + 1):
        block = simulate_block(seed, number, vocabulary, mean_visits, novel).keep(first, last)
        yield block
        if progress:
            progress(block.splits.height)


class CohortWriter:
    """Writes a cohort shard by shard: event files per shard and split, one growing file per label table and split."""

    def __init__(self, root: Path, split_shares: Sequence[float]):
        self._root = root
        self._bounds = [sum(split_shares[:1]), sum(split_shares[:2])]
        self._open = ExitStack()
        self._writers: dict[Path, pq.ParquetWriter] = {}

    def __enter__(self) -> CohortWriter:
        for split in SPLITS:
            for task, schema in LABELS.items():
                self._writer(Path("labels", task, f"{split}.parquet"), schema)
            for task, schema in ORACLE.items():
                self._writer(Path("oracle", task, f"{split}.parquet"), schema)
        self._writer(Path("metadata", "subject_splits.parquet"), SPLIT_COLUMNS)
        self._dates = self._open.enter_context((self._root / "labels/cancer_index_dates.csv").open("w", newline=""))
        csv.writer(self._dates, lineterminator="\n").writerow(["subject_id", "site", "cancerdate", "is_case"])
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def add(self, shard: int, blocks: list[Block]) -> None:
        """One shard's subjects, in order."""
        splits = pl.concat([block.splits for block in blocks]).select("subject_id", split=self._split())
        self._append(Path("metadata", "subject_splits.parquet"), splits, SPLIT_COLUMNS)
        pl.concat([block.index_dates for block in blocks]).write_csv(self._dates, include_header=False)
        for split in SPLITS:
            ids = splits.filter(pl.col("split") == split).select("subject_id")
            self._write_events(shard, split, [_of(block.events, ids) for block in blocks])
            for task, schema in LABELS.items():
                table = _of(pl.concat([block.labels[task] for block in blocks]), ids)
                self._append(Path("labels", task, f"{split}.parquet"), table, schema)
            for task, schema in ORACLE.items():
                table = _of(pl.concat([block.oracle[task] for block in blocks]), ids)
                self._append(Path("oracle", task, f"{split}.parquet"), table, schema)

    def _split(self) -> pl.Expr:
        position = pl.col("position")
        later = pl.when(position < self._bounds[1]).then(pl.lit(SPLITS[1])).otherwise(pl.lit(SPLITS[2]))
        return pl.when(position < self._bounds[0]).then(pl.lit(SPLITS[0])).otherwise(later)

    def _write_events(self, shard: int, split: str, parts: list[pl.DataFrame]) -> None:
        events = pl.concat(parts)
        if events.height:
            path = self._root / "data" / split / f"{shard}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(arrow(events, EVENTS), path, compression="zstd")

    def _writer(self, path: Path, schema: pa.Schema) -> pq.ParquetWriter:
        if path not in self._writers:
            (self._root / path).parent.mkdir(parents=True, exist_ok=True)
            writer = pq.ParquetWriter(self._root / path, schema, compression="zstd")
            self._writers[path] = self._open.enter_context(writer)
        return self._writers[path]

    def _append(self, path: Path, table: pl.DataFrame, schema: pa.Schema) -> None:
        if table.height:
            self._writer(path, schema).write_table(arrow(table, schema))


def _of(table: pl.DataFrame, ids: pl.DataFrame) -> pl.DataFrame:
    """The lines of these subjects, in their order."""
    return table.join(ids, on="subject_id", how="semi", maintain_order="left")


def arrow(table: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """A polars table in exactly this Arrow schema."""
    return table.select(schema.names).to_arrow().cast(schema)


def _terms(lookups_dir: Path) -> dict[tuple[str, str], str]:
    """(table, key) → term, from the shipped lookups."""
    columns = {"medical": ("code", "term"), "lab": ("code", "term"), "region": ("regionid", "Description")}
    terms = {}
    for table, (key, term) in columns.items():
        path = lookups_dir / f"{table}_lookup.csv"
        if not path.is_file():
            raise refuse(str(path), "the file does not exist", "give lookups_dir, the project's folder of lookups")
        for line in pl.read_csv(path, infer_schema=False).select(key, term).iter_rows():
            terms[table, line[0]] = line[1]
    return terms


def _write_metadata(root: Path, vocabulary: Vocabulary, terms: dict[tuple[str, str], str]) -> None:
    """codes.parquet with the terms and parents of all codes but the novel ones, and dataset.json."""
    used = vocabulary.codes()
    codes = sorted({*used, *(parent for code in used for parent in parents_of(code))})
    undescribed = set(vocabulary.undescribed)
    described = {code: LOCAL_TERMS.get(code) or terms.get(lookup_key(code) or ("", "")) for code in codes}
    columns = {
        "code": codes,
        "description": [None if code in undescribed else described[code] for code in codes],
        "parent_codes": [parents_of(code) for code in codes],
    }
    table = pl.DataFrame(columns, schema_overrides={"parent_codes": pl.List(pl.String)})
    (root / "metadata").mkdir(parents=True)
    pq.write_table(arrow(table, CODES), root / "metadata" / "codes.parquet", compression="zstd")
    about = {
        "dataset_name": "epicrisis synthetic cohort",
        "dataset_version": __version__,
        "etl_name": "epicrisis synthesize",
        "etl_version": __version__,
        "meds_version": MEDS_VERSION,
        "code_modifier_columns": ["unit"],
    }
    (root / "metadata" / "dataset.json").write_text(json.dumps(about, indent=2) + "\n")
