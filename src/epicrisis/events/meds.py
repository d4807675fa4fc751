"""MEDS datasets in (versions 0.3 and 0.4): one folder of Parquet event files and its metadata, read lazily.

Layout: `data/**/*.parquet` holds the events, flat or in folders (a first folder named as a split makes its
files that split's), `metadata/` holds `codes.parquet`, `subject_splits.parquet` and `dataset.json`. Real
files differ in small ways (nanosecond times, integer values, `patient_id` in 0.3, many extra columns); all
of them leave here in one schema. Source of the format: the Medical Event Data Standard,
https://github.com/Medical-Event-Data-Standard/meds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from epicrisis.settings.problems import InputError, Problem, refuse

TIME = pl.Datetime("us")
EVENT_SCHEMA: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "time": TIME,
    "code": pl.String(),
    "numeric_value": pl.Float32(),
    "text_value": pl.String(),
    "unit": pl.String(),
}
CODE_SCHEMA: dict[str, pl.DataType] = {
    "code": pl.String(),
    "description": pl.String(),
    "parent_codes": pl.List(pl.String),
}
SPLITS = ("train", "tuning", "held_out")
BIRTH = "MEDS_BIRTH"
SEX_PREFIXES = ("GENDER//", "SEX//")
RECORD_COLUMNS = (
    "subject_id",
    "shard",
    "n_events",
    "first_time",
    "last_time",
    "record_start",
    "birth_time",
    "sex",
)
UNREADABLE = (pl.exceptions.PolarsError, OSError)


@dataclass(frozen=True)
class MedsDataset:
    """A MEDS folder, read only when asked. `open_meds` makes one and checks that the folder is sane."""

    root: Path

    def shards(self, split: str | None = None) -> list[Path]:
        """The event files, sorted by path. With `split`: those of its folder, or all where there are no
        folders.

        In a dataset without split folders any file may hold subjects of any split, so none can be left out.
        """
        files = _parquet_files(self.root / "data")
        foldered = [shard for shard in files if self.split_of(shard) is not None]
        if split is None or len(foldered) < len(files):
            return files
        return [shard for shard in files if self.split_of(shard) == split]

    def split_of(self, shard: Path) -> str | None:
        """The split whose folder holds the event file, or None where folders say nothing about splits."""
        folders = shard.relative_to(self.root / "data").parts[:-1]
        return folders[0] if folders and folders[0] in SPLITS else None

    def events(self, shards: Sequence[Path] | None = None) -> pl.LazyFrame:
        """The events of these files (all by default) in EVENT_SCHEMA, in file order."""
        files = self.shards() if shards is None else shards
        if not files:
            return pl.LazyFrame(schema=EVENT_SCHEMA)
        return pl.concat([scan_shard(shard) for shard in files])

    def codes(self) -> pl.DataFrame:
        """One row per described code: code, description, parent_codes; empty where none is described.

        Where a code has several rows, its first description and its first parents count.
        """
        path = self.root / "metadata" / "codes.parquet"
        if not path.is_file():
            return pl.DataFrame(schema=CODE_SCHEMA)
        return _read_codes(path)

    def splits(self) -> pl.DataFrame:
        """subject_id, split (train, tuning or held_out): from the metadata, else from the split folders.

        Raises InputError where neither says who belongs where, or a subject is in two splits.
        """
        path = _splits_file(self.root)
        table = _splits_from_folders(self) if path is None else _read_splits(path)
        return _one_split_each(table, path or self.root / "data")

    def metadata(self) -> dict:
        """What `metadata/dataset.json` says of the dataset (name, versions); empty where there is none."""
        path = self.root / "metadata" / "dataset.json"
        if not path.is_file():
            return {}
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise refuse(str(path), "not a JSON object", "write it as {...} or remove it: it is optional") from error

    def check(self) -> pl.DataFrame:
        """Reads every event once, one file at a time, and returns the records: one row per subject.

        Columns: subject_id · shard u32 (position in `shards()`) · n_events u32 · first_time and last_time
        of its dated events · record_start (as first_time, birth not counted) · birth_time · sex (the code's
        last part). All times datetime[us], null where nothing of the kind is known. Raises InputError
        naming each corrupt file, and counting values that are not finite, events without subject or code,
        subjects in two files, and subjects whose file lies in another split's folder.
        """
        shards = self.shards()
        problems: list[Problem] = []
        surveys = []
        for number, shard in enumerate(shards):
            try:
                survey = _survey(shard).with_columns(pl.lit(number, dtype=pl.UInt32).alias("shard"))
            except UNREADABLE as error:
                problems.append(_corrupt(shard, error))
                continue
            problems.extend(_content_problems(shard, survey))
            surveys.append(survey)
        records = pl.concat(surveys) if surveys else pl.DataFrame()
        if not problems:
            problems.extend(_placement_problems(self, records, shards))
        if problems:
            raise InputError(problems)
        return records.select(*RECORD_COLUMNS).sort("subject_id")

    def fingerprint(self) -> str:
        """A hash of the dataset's files (names and bytes), read once: equal iff nothing that is read has changed."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        metadata = [self.root / "metadata" / name for name in ("codes.parquet", "dataset.json")]
        splits = _splits_file(self.root)
        files = [*self.shards(), *metadata, *([splits] if splits else [])]
        for path in filter(Path.is_file, files):
            digest.update(path.relative_to(self.root).as_posix().encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
        return digest.hexdigest()


def open_meds(meds_dir: Path) -> MedsDataset:
    """Opens a MEDS folder after reading every file's header and the metadata, but no events.

    Raises InputError with all problems found: no such folder, no event files, a file that is no Parquet, a
    column missing or of a wrong type, splits that overlap or are unknown. What lies inside the events is
    `check()`'s.
    """
    dataset = MedsDataset(Path(meds_dir))
    if not dataset.root.is_dir():
        raise refuse(str(meds_dir), "no such folder", "set data.meds_dir to a MEDS dataset (it holds data/)")
    shards = dataset.shards()
    if not shards:
        what = "no event files (data/**/*.parquet)"
        raise refuse(str(meds_dir), what, "set data.meds_dir to the folder that holds data/ and metadata/")
    problems = [problem for shard in shards for problem in _schema_problems(shard)]
    problems.extend(_metadata_problems(dataset))
    if problems:
        raise InputError(problems)
    return dataset


def scan_shard(shard: Path) -> pl.LazyFrame:
    """One event file, lazily, in EVENT_SCHEMA: extra columns dropped, absent optional columns null."""
    scan = pl.scan_parquet(shard, glob=False, hive_partitioning=False)
    present = scan.collect_schema().names()
    columns = []
    for name, dtype in EVENT_SCHEMA.items():
        source = _source_column(name, present)
        columns.append((pl.lit(None) if source is None else pl.col(source)).cast(dtype).alias(name))
    return scan.select(columns)


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.parquet") if path.is_file() and path.name[0] != ".")


def _source_column(name: str, present: Sequence[str]) -> str | None:
    """The column that holds `name` in this file: MEDS 0.3 called the subject a patient."""
    if name in present:
        return name
    return "patient_id" if name == "subject_id" and "patient_id" in present else None


def _schema_problems(shard: Path) -> list[Problem]:
    try:
        schema = pl.read_parquet_schema(shard)
    except UNREADABLE as error:
        return [_corrupt(shard, error)]
    problems = []
    for name in EVENT_SCHEMA:
        source = _source_column(name, list(schema))
        if source is None and name in ("subject_id", "time", "code"):
            fix = f"add the column {name}; found: {', '.join(schema)}"
            problems.append(Problem(str(shard), f"column {name} is missing", fix))
        elif source is not None and not _castable(name, schema[source]):
            what = f"column {source} is {schema[source]}, expected {EVENT_SCHEMA[name]}"
            problems.append(Problem(str(shard), what, _TYPE_FIXES[name]))
    return problems


_TYPE_FIXES = {
    "subject_id": "map each subject to an integer, the same one in every file",
    "time": "store local times as datetime without a time zone (null for static events)",
    "code": "store codes as strings",
    "numeric_value": "store numbers as floats and words in text_value",
    "text_value": "store text as strings",
    "unit": "store units as strings",
}


def _castable(name: str, dtype: pl.DataType) -> bool:
    """Whether a column of this type can be read as `name` without changing what it says."""
    if name == "subject_id":
        return dtype.is_integer()
    if name == "time":
        return dtype == pl.Date or dtype == pl.Null or (isinstance(dtype, pl.Datetime) and dtype.time_zone is None)
    if name == "numeric_value":
        return dtype.is_numeric() or dtype == pl.Null
    return isinstance(dtype, (pl.String, pl.Categorical, pl.Enum)) or (dtype == pl.Null and name != "code")


def _corrupt(path: Path, error: Exception) -> Problem:
    fix = "write or copy the file again, or move it out of the folder"
    return Problem(str(path), f"cannot be read as Parquet ({type(error).__name__})", fix)


def _metadata_problems(dataset: MedsDataset) -> list[Problem]:
    checks = [dataset.codes, dataset.metadata]
    if _splits_file(dataset.root) is not None:
        checks.append(dataset.splits)
    problems = []
    for check in checks:
        try:
            check()
        except InputError as error:
            problems.extend(error.problems)
    return problems


def _read_metadata(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, glob=False, hive_partitioning=False)
    except UNREADABLE as error:
        raise InputError(_corrupt(path, error)) from error


def _read_codes(path: Path) -> pl.DataFrame:
    table = _read_metadata(path)
    if "code" not in table.columns:
        raise refuse(str(path), "column code is missing", "add it, or remove the file: it is optional")
    if table.schema.get("parent_codes") == pl.String:
        table = table.with_columns(pl.concat_list("parent_codes"))
    try:
        table = table.select(
            (pl.col(name) if name in table.columns else pl.lit(None)).cast(dtype).alias(name)
            for name, dtype in CODE_SCHEMA.items()
        )
    except pl.exceptions.PolarsError as error:
        fix = "store code and description as strings, parent_codes as a list of strings"
        raise refuse(str(path), "a column has a wrong type", fix) from error
    first = pl.col("description", "parent_codes").drop_nulls().first()
    return table.drop_nulls("code").group_by("code", maintain_order=True).agg(first)


def _splits_file(root: Path) -> Path | None:
    for name in ("subject_splits.parquet", "patient_splits.parquet"):
        if (root / "metadata" / name).is_file():
            return root / "metadata" / name
    return None


def _read_splits(path: Path) -> pl.DataFrame:
    table = _read_metadata(path)
    subject = _source_column("subject_id", table.columns)
    if subject is None or "split" not in table.columns:
        what = f"columns subject_id and split are expected, found: {', '.join(table.columns)}"
        raise refuse(str(path), what, "write one row per subject with these two columns")
    if not table[subject].dtype.is_integer():
        raise refuse(str(path), f"column {subject} is {table[subject].dtype}", "store subject ids as integers")
    return table.select(pl.col(subject).cast(pl.Int64).alias("subject_id"), pl.col("split").cast(pl.String))


def _splits_from_folders(dataset: MedsDataset) -> pl.DataFrame:
    shards = dataset.shards()
    if any(dataset.split_of(shard) is None for shard in shards):
        fix = f"add metadata/subject_splits.parquet, or sort the files into data/<{'|'.join(SPLITS)}>/"
        raise refuse(str(dataset.root), "nothing says which subject belongs to which split", fix)
    parts = []
    for shard in shards:
        try:
            subjects = scan_shard(shard).select("subject_id").unique().collect()
        except UNREADABLE as error:
            raise InputError(_corrupt(shard, error)) from error
        parts.append(subjects.with_columns(pl.lit(dataset.split_of(shard)).alias("split")))
    return pl.concat(parts)


def _one_split_each(table: pl.DataFrame, where: Path) -> pl.DataFrame:
    table = table.unique().sort("subject_id", "split")
    unknown = sorted({str(name) for name in table["split"].unique()} - set(SPLITS))
    if unknown:
        raise refuse(str(where), f"unknown split names: {', '.join(unknown)}", f"use {', '.join(SPLITS)}")
    twice = table.height - table["subject_id"].n_unique()
    if twice:
        raise refuse(str(where), f"{twice} subjects are in more than one split", "keep each subject in one split")
    return table


def _survey(shard: Path) -> pl.DataFrame:
    """One row per subject of the file: extent of its record, and how many of its events are bad.

    Every column is decoded, so that a corrupt page anywhere is met here and not in the middle of a run.
    """
    time, code = pl.col("time"), pl.col("code")
    is_sex = pl.any_horizontal(code.str.starts_with(prefix) for prefix in SEX_PREFIXES)
    value = pl.col("numeric_value")
    survey = scan_shard(shard).group_by("subject_id", maintain_order=True)
    return survey.agg(
        pl.len().cast(pl.UInt32).alias("n_events"),
        time.min().alias("first_time"),
        time.max().alias("last_time"),
        pl.when(code != BIRTH).then(time).min().alias("record_start"),
        pl.when(code == BIRTH).then(time).min().alias("birth_time"),
        pl.when(is_sex).then(code.str.split("//").list.last()).drop_nulls().first().alias("sex"),
        (value.is_nan() | value.is_infinite()).sum().alias("not_finite"),
        code.null_count().alias("without_code"),
        (pl.col("text_value").count() + pl.col("unit").count()).alias("n_texts"),
    ).collect()


def _content_problems(shard: Path, survey: pl.DataFrame) -> list[Problem]:
    found = {
        "events without subject_id": survey.filter(pl.col("subject_id").is_null())["n_events"].sum(),
        "events without code": survey["without_code"].sum(),
        "numeric values that are NaN or infinite (in 32 bits)": survey["not_finite"].sum(),
    }
    fixes = ("fill or remove them", "fill or remove them", "write unknown values as null")
    return [
        Problem(str(shard), f"{count} {what}", fix)
        for (what, count), fix in zip(found.items(), fixes, strict=True)
        if count
    ]


def _placement_problems(dataset: MedsDataset, records: pl.DataFrame, shards: list[Path]) -> list[Problem]:
    """A subject belongs to one file, and that file to the subject's split."""
    data_dir = str(dataset.root / "data")
    if records.is_empty():
        return [Problem(data_dir, "no events in any file", "convert the dataset again")]
    folders = pl.Series("folder", [dataset.split_of(shard) for shard in shards], dtype=pl.String)
    placed = records.select("subject_id", folders.gather(records["shard"]).alias("folder"))
    per_subject = placed.group_by("subject_id").agg(pl.len().alias("files"), pl.col("folder").n_unique())
    apart = per_subject.filter(pl.col("folder") > 1).height
    scattered = per_subject.filter(pl.col("files") > 1).height - apart
    problems = []
    if apart:
        what = f"{apart} subjects have events in the folders of more than one split"
        problems.append(Problem(data_dir, what, "keep each subject's events in one split"))
    if scattered:
        fix = "write each subject's events to one file, as MEDS asks"
        problems.append(Problem(data_dir, f"{scattered} subjects have events in more than one file", fix))
    if _splits_file(dataset.root) is not None and not apart:
        stray = placed.join(dataset.splits(), on="subject_id").filter(pl.col("folder") != pl.col("split")).height
        if stray:
            what = f"{stray} subjects lie in another split's folder than their subject_splits.parquet says"
            problems.append(Problem(data_dir, what, "move their events, or correct the splits file"))
    return problems
