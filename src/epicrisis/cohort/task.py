"""What is to be predicted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from epicrisis.settings.problems import InputError, refuse

TaskKind = Literal["binary", "multiclass", "multilabel", "survival", "none"]
BINARY_CLASSES = ("false", "true")
FOLLOWED = pl.Struct({"days": pl.Float64(), "observed": pl.Boolean()})
"""A label of a survival task: days from the prediction time to the event or, not observed, to the end of follow-up."""


@dataclass(frozen=True)
class Task:
    """A prediction task.

    name: the label folder's or file's name. classes: for binary ("false", "true"); for the others the class
    names in `class_order`; empty where there is nothing to predict, and of a time to an event.
    """

    name: str
    kind: TaskKind
    classes: tuple[str, ...]


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names: whole numbers in numeric order, words in alphabetical order."""
    distinct = sorted(set(names))
    numbers = all(name.removeprefix("-").isdecimal() for name in distinct)
    return tuple(sorted(distinct, key=int) if numbers else distinct)


def kind_of_labels(rows: pl.DataFrame) -> TaskKind:
    """What kind of task the column `label` belongs to: Boolean, a word for each row, a list of words, or FOLLOWED."""
    dtype = rows.schema["label"]
    if dtype == pl.Boolean:
        return "binary"
    if dtype == pl.String:
        return "multiclass"
    if dtype == FOLLOWED:
        return "survival"
    return "multilabel" if dtype == pl.List(pl.String) else "none"


def classes_of_labels(rows: pl.DataFrame) -> tuple[str, ...]:
    """The classes that these rows' labels name, as `Task.classes` orders them; InputError for times to an event."""
    kind = kind_of_labels(rows)
    if kind == "survival":
        raise _no_classes()
    if kind == "binary":
        return BINARY_CLASSES
    names = rows["label"].explode() if kind == "multilabel" else rows["label"]
    return class_order(names.drop_nulls().to_list()) if kind != "none" else ()


def label_matrix(rows: pl.DataFrame, classes: tuple[str, ...]) -> pl.DataFrame:
    """Which class each row has: one Boolean column per class, named after it, in the order of `rows`.

    Raises InputError for times to an event, which are no classes.
    """
    kind = kind_of_labels(rows)
    if kind == "survival":
        raise _no_classes()
    if kind == "binary":
        return rows.select((~pl.col("label")).alias(classes[0]), pl.col("label").alias(classes[1]))
    if kind == "multilabel":
        has = pl.col("label")
        return rows.select(has.list.contains(name).fill_null(False).alias(name) for name in classes)
    return rows.select((pl.col("label") == name).fill_null(False).alias(name) for name in classes)


def follow_up(rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(days float64 [n_rows], observed bool [n_rows]) of the labels of a survival task."""
    label = rows["label"].struct
    return label.field("days").to_numpy(), label.field("observed").to_numpy()


def _no_classes() -> InputError:
    return refuse(
        "data.labels_dir",
        "its labels are times to an event (survival), and this arm or head tells classes apart",
        "use an arm that learns survival (docs/survival.md), or labels that are true or false",
    )
