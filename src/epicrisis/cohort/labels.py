"""MEDS label folders in: `<labels_dir>/**/*.parquet`, read leniently and understood as one task.

Label tables hold subject_id, prediction_time and up to four value columns, of which most writers fill one
(ACES writes all four). The filled one says what the task is: boolean → binary; integer → multiclass;
categorical → multiclass, or multilabel where a (subject, time) has several rows or the value is a list;
float, with a Boolean column event_observed beside it → survival, in days from the prediction time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from epicrisis.cohort.task import BINARY_CLASSES, Task, class_order
from epicrisis.events.meds import TIME, UNREADABLE
from epicrisis.settings.problems import InputError, Problem, refuse

KEY = ("subject_id", "prediction_time")
_VALUE_TYPES: dict[str, pl.DataType] = {
    "boolean_value": pl.Boolean(),
    "integer_value": pl.Int64(),
    "float_value": pl.Float64(),
    "categorical_value": pl.List(pl.String),
}
OBSERVED = "event_observed"
"""Beside float_value: whether the event came after so many days, or only the follow-up ended."""
_SEVERAL_TASKS = "point data.labels_dir at one task's folder, and keep one value column filled in it"


@dataclass(frozen=True)
class Labels:
    """rows: subject_id, prediction_time, label; unique by (subject_id, prediction_time) and sorted by
    them."""

    rows: pl.DataFrame
    task: Task
    notes: list[str] = field(default_factory=list)


def read_labels(labels_dir: Path) -> Labels:
    """Reads every label file below the folder.

    Raises InputError: no folder or files, wrong columns, no or several filled value columns, floats that are no
    days to an event, null times or values, rows of one (subject, time) that disagree.
    """
    table = _read_label_files(Path(labels_dir))
    value = _filled_value_column(table, labels_dir)
    _refuse_nulls(table, value, labels_dir)
    if value == "float_value":
        return _survival_labels(table, labels_dir)
    if value == "categorical_value":
        return _categorical_labels(table, labels_dir)
    label = pl.col(value) if value == "boolean_value" else pl.col(value).cast(pl.String)
    rows = one_label_each(table.select(*KEY, label.alias("label")), str(labels_dir))
    if value == "boolean_value":
        task = Task(Path(labels_dir).name, "binary", BINARY_CLASSES)
    else:
        task = Task(Path(labels_dir).name, "multiclass", class_order(rows["label"]))
    return Labels(rows, task, _duplicate_notes(table, rows))


def one_label_each(rows: pl.DataFrame, where: str) -> pl.DataFrame:
    """The rows sorted and without repetitions; InputError where rows of one (subject, time) disagree."""
    rows = rows.unique().sort(*KEY)
    conflicts = rows.filter(pl.struct(*KEY).is_duplicated()).select(KEY).unique().height
    if conflicts:
        what = f"{conflicts} (subject, time) pairs have rows with conflicting labels"
        raise refuse(where, what, f"keep one label for each; if it holds several tasks, {_SEVERAL_TASKS}")
    return rows


def _read_label_files(labels_dir: Path) -> pl.DataFrame:
    if not labels_dir.is_dir():
        raise refuse(str(labels_dir), "no such folder", "set data.labels_dir to a folder of label files")
    files = sorted(path for path in labels_dir.rglob("*.parquet") if path.name[0] != ".")
    if not files:
        fix = "set data.labels_dir to a task's folder"
        raise refuse(str(labels_dir), "no label files (**/*.parquet)", fix)
    tables, problems = [], []
    for path in files:
        try:
            tables.append(_read_label_file(path))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    return pl.concat(tables)


def _read_label_file(path: Path) -> pl.DataFrame:
    """One file in the full label schema; categorical values as lists, whatever way they are written."""
    try:
        table = pl.read_parquet(path, glob=False, hive_partitioning=False)
    except UNREADABLE as error:
        what = f"cannot be read as Parquet ({type(error).__name__})"
        raise refuse(str(path), what, "write or copy the file again") from error
    if "subject_id" not in table.columns and "patient_id" in table.columns:
        table = table.rename({"patient_id": "subject_id"})
    problems = _column_problems(table, path)
    if problems:
        raise InputError(problems)
    if isinstance(table.schema.get("categorical_value"), (pl.String, pl.Categorical, pl.Enum)):
        word = pl.col("categorical_value").cast(pl.String)
        as_list = pl.when(word.is_not_null()).then(pl.concat_list(word))
        table = table.with_columns(as_list.alias("categorical_value"))
    return table.select(
        pl.col("subject_id").cast(pl.Int64),
        pl.col("prediction_time").cast(TIME),
        *(
            (pl.col(name) if name in table.columns else pl.lit(None)).cast(dtype).alias(name)
            for name, dtype in {**_VALUE_TYPES, OBSERVED: pl.Boolean()}.items()
        ),
    )


def _column_problems(table: pl.DataFrame, path: Path) -> list[Problem]:
    found = f"found: {', '.join(f'{name} ({dtype})' for name, dtype in table.schema.items())}"
    fix = "write MEDS labels: subject_id (integer), prediction_time (datetime), and one value column"
    wrong = [name for name in KEY if not _right_key_type(name, table.schema.get(name))]
    values = [name for name in _VALUE_TYPES if name in table.columns]
    wrong += [name for name in values if not _right_value_type(name, table.schema[name])]
    if "float_value" in values and table.schema.get(OBSERVED, pl.Boolean()) not in (pl.Boolean, pl.Null):
        wrong.append(OBSERVED)
    if not values:
        wrong.append(" or ".join(_VALUE_TYPES))
    what = "is missing or of a wrong type"
    return [Problem(str(path), f"column {name} {what}; {found}", fix) for name in wrong]


def _right_key_type(name: str, dtype: pl.DataType | None) -> bool:
    if dtype is None:
        return False
    if name == "subject_id":
        return dtype.is_integer()
    return dtype == pl.Date or (isinstance(dtype, pl.Datetime) and dtype.time_zone is None)


def _right_value_type(name: str, dtype: pl.DataType) -> bool:
    if dtype == pl.Null:
        return True
    if name == "categorical_value":
        words = dtype.inner if isinstance(dtype, pl.List) else dtype
        return isinstance(words, (pl.String, pl.Categorical, pl.Enum))
    expected = {"boolean_value": dtype == pl.Boolean, "integer_value": dtype.is_integer()}
    return expected.get(name, dtype.is_numeric())


def _filled_value_column(table: pl.DataFrame, labels_dir: Path) -> str:
    if table.is_empty():
        raise refuse(str(labels_dir), "the label files hold no rows", "check how the labels were extracted")
    filled = [name for name in _VALUE_TYPES if table[name].null_count() < table.height]
    if not filled:
        raise refuse(str(labels_dir), "every label value is null", f"fill one of {', '.join(_VALUE_TYPES)}")
    if len(filled) > 1:
        what = f"which column is the label is ambiguous: {', '.join(filled)} all hold values"
        raise refuse(str(labels_dir), what, _SEVERAL_TASKS)
    if filled == ["float_value"] and table[OBSERVED].null_count() == table.height:
        fix = (
            f"add a Boolean column {OBSERVED}, which makes the values days to an event (survival); "
            "or bin the values into categorical_value, or threshold them into boolean_value"
        )
        raise refuse(str(labels_dir), "float_value alone asks for regression, which is not supported", fix)
    return filled[0]


def _refuse_nulls(table: pl.DataFrame, value: str, labels_dir: Path) -> None:
    """Null values are refused except among words, where a null says "none of them" once it is multilabel."""
    required = [*KEY] if value == "categorical_value" else [*KEY, value]
    required += [OBSERVED] if value == "float_value" else []
    problems = [
        Problem(str(labels_dir), f"{count} rows have a null {name}", "fill or remove them")
        for name in required
        if (count := table[name].null_count())
    ]
    if problems:
        raise InputError(problems)


def _survival_labels(table: pl.DataFrame, labels_dir: Path) -> Labels:
    days = pl.col("float_value")
    wrong = table.filter((days < 0) | ~days.is_finite()).height
    if wrong:
        what = f"{wrong} rows have a float_value that is negative, NaN or infinite"
        raise refuse(str(labels_dir), what, "give the days from prediction_time to the event or the end of follow-up")
    label = pl.struct(days.alias("days"), pl.col(OBSERVED).alias("observed")).alias("label")
    rows = one_label_each(table.select(*KEY, label), str(labels_dir))
    return Labels(rows, Task(Path(labels_dir).name, "survival", ()), _duplicate_notes(table, rows))


def _categorical_labels(table: pl.DataFrame, labels_dir: Path) -> Labels:
    sets = _label_sets(table)
    name, words = Path(labels_dir).name, sets["label"].list.len()
    classes = class_order(sets["label"].explode().drop_nulls())
    written_as_list = bool((table["categorical_value"].list.len() != 1).any())
    if written_as_list or (words > 1).any():
        several = f"{(words > 1).sum()} of {sets.height} rows have more than one label: read as multilabel"
        return Labels(sets, Task(name, "multilabel", classes), [several])
    if (words == 0).any():
        what = f"{(words == 0).sum()} rows have a null categorical_value"
        raise refuse(str(labels_dir), what, "fill or remove them")
    rows = sets.with_columns(pl.col("label").list.first())
    return Labels(rows, Task(name, "multiclass", classes), _duplicate_notes(table, rows))


def _label_sets(table: pl.DataFrame) -> pl.DataFrame:
    """Per (subject, time) the sorted set of its labels."""
    words = pl.col("categorical_value").explode().drop_nulls().unique().sort().alias("label")
    return table.group_by(*KEY).agg(words).sort(*KEY)


def _duplicate_notes(table: pl.DataFrame, rows: pl.DataFrame) -> list[str]:
    repeated = table.height - rows.height
    return [f"{repeated} repeated label rows were counted once"] if repeated else []
