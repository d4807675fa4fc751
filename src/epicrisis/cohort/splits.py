"""Which split each row belongs to, and whether the train split can teach anything."""

from __future__ import annotations

import polars as pl

from epicrisis.cohort.task import Task
from epicrisis.events.meds import SPLITS
from epicrisis.settings.problems import Problem, refuse


def assign_splits(rows: pl.DataFrame, splits: pl.DataFrame, where: str) -> pl.DataFrame:
    """The rows with their subject's split; InputError counting rows whose subject has none."""
    placed = rows.join(splits, on="subject_id", how="left", maintain_order="left")
    missing = placed["split"].null_count()
    if missing:
        fix = f"give each of their subjects a split ({', '.join(SPLITS)}) in metadata/subject_splits.parquet"
        raise refuse(where, f"{missing} rows name subjects that are in no split", fix)
    return placed


def learning_problems(rows: pl.DataFrame, task: Task, where: str) -> list[Problem]:
    """Why nothing could be learned from the train split: no rows, or labels that never differ."""
    train = rows.filter(pl.col("split") == "train")
    if train.is_empty():
        return [Problem(where, "the train split has no rows", "give some labelled subjects the split train")]
    if task.kind == "none" or _labels_differ(train["label"], task):
        return []
    what = f"all {train.height} train rows have the same label: there is nothing to learn"
    return [Problem(where, what, "use a larger cohort, a commoner outcome, or other splits")]


def _labels_differ(label: pl.Series, task: Task) -> bool:
    return label.list.join("\x1f").n_unique() > 1 if task.kind == "multilabel" else label.n_unique() > 1


def split_notes(rows: pl.DataFrame, task: Task) -> list[str]:
    """One line per split for the report: rows, subjects, and positives where the task is binary."""
    notes = []
    for split in SPLITS:
        part = rows.filter(pl.col("split") == split)
        note = f"{split}: {part.height} rows of {part['subject_id'].n_unique()} subjects"
        if task.kind == "binary":
            note += f", {part['label'].sum()} positive"
        notes.append(note)
    return notes
