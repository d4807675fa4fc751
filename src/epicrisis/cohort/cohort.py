"""A cohort: rows (subject, prediction time, split, label) over a dataset, and the history visible at each
row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import polars as pl

from epicrisis.cohort.index_dates import read_index_dates, shift_back
from epicrisis.cohort.labels import BINARY_CLASSES, KEY, Labels, one_label_each, read_labels
from epicrisis.cohort.matching import match_index_dates
from epicrisis.cohort.splits import assign_splits, learning_problems, split_notes
from epicrisis.cohort.task import Task
from epicrisis.cohort.visibility import visible
from epicrisis.events.meds import SPLITS, MedsDataset, open_meds
from epicrisis.settings.problems import InputError, Problem, refuse

ROW_COLUMNS = ("subject_id", "prediction_time", "split", "label")


@dataclass(frozen=True)
class History:
    """What may be seen at some rows. Nothing is read before it is asked for.

    rows: subject_id, prediction_time; records: the dataset's, for the rows' subjects.
    """

    dataset: MedsDataset
    rows: pl.DataFrame
    records: pl.DataFrame
    strict: bool

    def events(self) -> pl.LazyFrame:
        """The visible events of all rows: subject_id, prediction_time, then the event columns.

        Sorted by subject_id, prediction_time, time (static first), and as in the file where times are equal.
        """
        parts = [self._visible(shard, rows) for shard, rows in self._rows_by_shard()]
        if not parts:
            return _in_order(visible(self.dataset.events([]), self.rows, self.strict))
        return _in_order(pl.concat(parts))

    def shards(self) -> Iterator[tuple[pl.DataFrame, pl.LazyFrame]]:
        """Per event file that holds subjects of these rows: its rows, and their visible events as `events()`.

        Each subject's events lie in one file, so every row comes exactly once, and memory stays bounded by a
        file. The rows keep their columns and order.
        """
        for shard, rows in self._rows_by_shard():
            yield rows, _in_order(self._visible(shard, rows))

    def parts(self, max_events: int) -> list[History]:
        """The same in parts that can be read independently: subjects of one file, of at most `max_events` events.

        An event counts once for each row of its subject. A subject is never divided, whatever its length. Parts
        come in the order of files and subjects, and keep the order of the rows.
        """
        counts = self.rows.group_by("subject_id").agg(pl.len().alias("n_rows"))
        subjects = self.records.join(counts, on="subject_id").sort("shard", "subject_id")
        load = (pl.col("n_events").cast(pl.Int64) * pl.col("n_rows")).cum_sum().over("shard")
        placed = subjects.select("subject_id", "shard", part=(load - 1) // max_events)
        rows = self.rows.join(placed, on="subject_id", how="inner", maintain_order="left")
        parts = rows.partition_by(["shard", "part"], as_dict=True, include_key=False)
        records = self.records.join(placed.select("subject_id", "part"), on="subject_id", how="inner")
        homes = records.partition_by(["shard", "part"], as_dict=True)
        return [replace(self, rows=parts[key], records=homes[key].drop("part")) for key in sorted(parts)]

    def code_counts(self) -> pl.DataFrame:
        """code · n_events of the visible events, each counted once for every row that sees it; in no order."""
        counts = [pl.DataFrame(schema={"code": pl.String, "n_events": pl.UInt32})]
        for shard, rows in self._rows_by_shard():
            codes = self.dataset.events([shard]).select("subject_id", "time", "code")
            seen = visible(codes, rows, self.strict, keep_order=False)
            counts.append(seen.group_by("code").agg(n_events=pl.len()).collect())
        whole = pl.concat(counts, how="vertical_relaxed").group_by("code")
        return whole.agg(pl.col("n_events").cast(pl.Int64).sum())

    def _visible(self, shard: Path, rows: pl.DataFrame) -> pl.LazyFrame:
        first, last = rows["subject_id"].min(), rows["subject_id"].max()
        # What lies outside is left out by the join below as well, but not before it has been read.
        near = self.dataset.events([shard]).filter(pl.col("subject_id").is_between(first, last))
        return visible(near, rows, self.strict)

    def _rows_by_shard(self) -> Iterator[tuple[Path, pl.DataFrame]]:
        files = self.dataset.shards()
        homes = self.records.select("subject_id", pl.col("shard").alias("_shard"))
        placed = self.rows.join(homes, on="subject_id", how="left", maintain_order="left")
        for (number,), rows in sorted(placed.partition_by("_shard", as_dict=True).items()):
            yield files[number], rows.drop("_shard")


@dataclass(frozen=True)
class Cohort:
    """Who is asked about, when, and with which answer.

    rows: subject_id · prediction_time · split · label (Boolean; String; List(String); null where the task is
    "none"), unique by (subject_id, prediction_time) and sorted by them. strict: events at prediction_time
    itself are unseen. records: one row per subject, see MedsDataset.check. notes: counts for the report.
    """

    dataset: MedsDataset
    rows: pl.DataFrame
    task: Task
    strict: bool
    records: pl.DataFrame
    notes: list[str] = field(default_factory=list)

    def select(self, split: str) -> pl.DataFrame:
        """The rows of one split."""
        if split not in SPLITS:
            raise refuse("split", f"{split!r} is no split", f"use one of {', '.join(SPLITS)}")
        return self.rows.filter(pl.col("split") == split)

    def history(self, rows: pl.DataFrame) -> History:
        """What may be seen at these rows (subject_id, prediction_time, and any other columns)."""
        strangers = rows.join(self.records, on="subject_id", how="anti").height
        if strangers:
            what = f"{strangers} rows name subjects that have no events in the dataset"
            raise refuse(str(self.dataset.root), what, "ask only about subjects of this dataset")
        records = self.records.join(rows, on="subject_id", how="semi")
        return History(self.dataset, rows, records, self.strict)


def build_cohort(
    meds_dir: Path,
    *,
    labels_dir: Path | None = None,
    index_dates_filepath: Path | None = None,
    cutoff_months: int | None = None,
    control_index_dates: Literal["matched", "given"] = "matched",
    seed: int = 0,
    training: bool = True,
) -> Cohort:
    """Opens and checks a dataset and says who is asked about, when, in which split.

    With `labels_dir`: MEDS labels; prediction_time is the label's own, seen inclusively, or with
    `cutoff_months` that many months earlier, seen strictly. With `index_dates_filepath`: prediction_time is
    the index date's midnight less the cutoff (none: 0 months), always seen strictly, so that the diagnosis
    itself, dated on that day, is unseen. Controls without an index date are given a matched one, or refused
    where `control_index_dates` is "given"; those that cannot be matched are dropped and counted in the notes.
    With neither: every dated subject at its last event, for pretraining, task kind "none".

    `training`: the train split must hold rows whose labels differ; False for predicting with a finished
    model. Raises InputError for whatever is wrong with the dataset, the labels, or the two together.
    """
    dataset = open_meds(meds_dir)
    _refuse_contradicting_choice(labels_dir, index_dates_filepath, cutoff_months)
    records = dataset.check()
    splits = dataset.splits()
    strict = index_dates_filepath is not None or cutoff_months is not None
    if index_dates_filepath is not None:
        labels = _index_date_labels(
            Path(index_dates_filepath), records, splits, cutoff_months, control_index_dates, seed
        )
    elif labels_dir is not None:
        labels = _meds_labels(Path(labels_dir), records, cutoff_months)
    else:
        labels = _whole_records(dataset.root, records)
    where = str(index_dates_filepath or labels_dir or meds_dir)
    rows = assign_splits(labels.rows, splits, where).select(ROW_COLUMNS)
    problems = _cohort_problems(rows, labels.task, where, training)
    if problems:
        raise InputError(problems)
    notes = [*split_notes(rows, labels.task), *labels.notes, *_history_notes(rows, records, strict)]
    return Cohort(dataset, rows, labels.task, strict, records, notes)


def rows_fingerprint(rows: pl.DataFrame) -> str:
    """A hash of who is asked about, when, and with which label; the order of the rows does not matter."""
    label = pl.col("label")
    if rows.schema["label"] == pl.List(pl.String):
        label = label.list.sort().list.join("\x1f")
    canonical = rows.select(*KEY, label.cast(pl.String)).sort(*KEY)
    digest = hashlib.blake2b(str(rows.schema["label"]).encode(), digest_size=16)
    digest.update(canonical.write_csv(null_value="\x00", quote_style="non_numeric").encode())
    return digest.hexdigest()


def _in_order(events: pl.LazyFrame) -> pl.LazyFrame:
    """Sorted by subject, row and time, and as they come where these are equal."""
    return events.map_batches(_sorted, projection_pushdown=False, slice_pushdown=False, predicate_pushdown=False)


def _sorted(events: pl.DataFrame) -> pl.DataFrame:
    """Sorted only where they are not: MEDS files are in order, and to see that costs a hundredth of sorting."""
    keys = ("subject_id", "prediction_time", "time")
    same, falls = pl.lit(True), pl.lit(False)
    for name in keys:
        key, before = pl.col(name), pl.col(name).shift()
        falls |= same & ((key < before) | (key.is_null() & before.is_not_null())).fill_null(False)
        same &= key.eq_missing(before)
    if not events.select(falls.any()).item():
        return events
    return events.sort(*keys, nulls_last=False, maintain_order=True)


def _refuse_contradicting_choice(
    labels_dir: Path | None, index_dates_filepath: Path | None, cutoff_months: int | None
) -> None:
    if labels_dir is not None and index_dates_filepath is not None:
        what = "data.labels_dir and data.index_dates_filepath are both given"
        raise refuse("data", what, "keep the one that holds the labels")
    if cutoff_months is None:
        return
    if labels_dir is None and index_dates_filepath is None:
        what = "a cutoff without labels or index dates has no date to count back from"
        fix = "add data.labels_dir or data.index_dates_filepath, or remove it"
        raise refuse("data.cutoff_months", what, fix)
    if cutoff_months < 0:
        raise refuse("data.cutoff_months", f"{cutoff_months} is negative", "use 0 or more months")


def _meds_labels(labels_dir: Path, records: pl.DataFrame, cutoff_months: int | None) -> Labels:
    labels = read_labels(labels_dir)
    _refuse_impossible_rows(labels.rows, records, str(labels_dir))
    time = shift_back(pl.col("prediction_time"), cutoff_months)
    rows = one_label_each(labels.rows.with_columns(time), str(labels_dir))
    merged = labels.rows.height - rows.height
    notes = [*labels.notes]
    if merged:
        notes.append(f"{merged} rows fell on another row's time after the cutoff and were counted once")
    return Labels(rows, labels.task, notes)


def _index_date_labels(
    path: Path,
    records: pl.DataFrame,
    splits: pl.DataFrame,
    cutoff_months: int | None,
    control_index_dates: Literal["matched", "given"],
    seed: int,
) -> Labels:
    table = read_index_dates(path)
    _refuse_unknown_subjects(table, records, str(path))
    undated = table["index_date"].null_count()
    notes: list[str] = []
    if undated and control_index_dates == "given":
        fix = 'give each control its date, or set data.control_index_dates to "matched"'
        raise refuse(str(path), f"{undated} controls have no index date", fix)
    if undated:
        table, notes = _with_matched_dates(table, records, splits, seed, str(path))
    time = shift_back(pl.col("index_date"), cutoff_months).alias("prediction_time")
    rows = one_label_each(table.select("subject_id", time, "label"), str(path))
    _refuse_impossible_rows(rows, records, str(path))
    return Labels(rows, Task(path.stem, "binary", BINARY_CLASSES), notes)


def _with_matched_dates(
    table: pl.DataFrame, records: pl.DataFrame, splits: pl.DataFrame, seed: int, where: str
) -> tuple[pl.DataFrame, list[str]]:
    placed = assign_splits(table, splits, where).join(records, on="subject_id", how="left")
    matched = match_index_dates(placed, seed)
    found = matched.drop_nulls("index_date").with_columns(pl.lit(False).alias("label"))
    dated = pl.concat([table.drop_nulls("index_date"), found.select(table.columns)])
    notes = [f"{found.height} controls were given a matched index date"]
    if matched.height > found.height:
        dropped = matched.height - found.height
        notes.append(f"{dropped} controls were dropped: no case's index date lies within their record")
    return dated, notes


def _whole_records(root: Path, records: pl.DataFrame) -> Labels:
    """Every dated subject at its last event, without a label."""
    dated = records.filter(pl.col("last_time").is_not_null())
    undated = records.height - dated.height
    label = pl.lit(None, dtype=pl.Boolean).alias("label")
    rows = dated.select("subject_id", pl.col("last_time").alias("prediction_time"), label)
    notes = [f"{undated} subjects without any dated event were left out"] if undated else []
    return Labels(rows.sort(*KEY), Task(root.name, "none", ()), notes)


def _unknown_subjects(rows: pl.DataFrame, records: pl.DataFrame, where: str) -> list[Problem]:
    count = rows.join(records, on="subject_id", how="anti").height
    fix = "remove them, or point data.meds_dir at the dataset that the labels belong to"
    return [Problem(where, f"{count} label rows name subjects without any event", fix)] if count else []


def _refuse_unknown_subjects(rows: pl.DataFrame, records: pl.DataFrame, where: str) -> None:
    problems = _unknown_subjects(rows, records, where)
    if problems:
        raise InputError(problems)


def _refuse_impossible_rows(rows: pl.DataFrame, records: pl.DataFrame, where: str) -> None:
    problems = _unknown_subjects(rows, records, where)
    known = rows.join(records, on="subject_id")
    late = known.filter(pl.col("prediction_time") > pl.col("last_time")).height
    if late:
        what = f"{late} rows have a prediction_time after the subject's last event"
        problems.append(Problem(where, what, "correct the times, or remove rows beyond the record"))
    if problems:
        raise InputError(problems)


def _cohort_problems(rows: pl.DataFrame, task: Task, where: str, training: bool) -> list[Problem]:
    if rows.is_empty():
        return [Problem(where, "the cohort is empty", "check that the labels belong to this dataset")]
    return learning_problems(rows, task, where) if training else []


def _history_notes(rows: pl.DataFrame, records: pl.DataFrame, strict: bool) -> list[str]:
    first, bound = pl.col("first_time"), pl.col("prediction_time")
    seen = (first < bound) if strict else (first <= bound)
    empty = rows.join(records, on="subject_id").filter(~seen.fill_null(False)).height
    return [f"{empty} rows have no dated event in sight at their prediction time"] if empty else []
