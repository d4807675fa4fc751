"""The predictions tables, checked and compared: the five meds-evaluation columns for a binary task, else long.

The long table has a line for each row and class: subject_id · prediction_time · class · label (whether the row
has the class) · probability. That of a time to an event has one for each row and horizon (see `survival_predictions`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from epicrisis.cohort.task import FOLLOWED, TaskKind, class_order, kind_of_labels, label_matrix
from epicrisis.evaluation.survival_predictions import SURVIVAL_SCHEMA, survival_faults, survival_predictions
from epicrisis.settings.problems import InputError, Problem, refuse
from epicrisis.tracking.run_directory import replacing

KEY = ("subject_id", "prediction_time")
SCHEMA = pl.Schema(
    {
        "subject_id": pl.Int64(),
        "prediction_time": pl.Datetime("us"),
        "boolean_value": pl.Boolean(),
        "predicted_boolean_value": pl.Boolean(),
        "predicted_boolean_probability": pl.Float64(),
    }
)
PROBABILITY = "predicted_boolean_probability"
CLASS_SCHEMA = pl.Schema(
    {
        "subject_id": pl.Int64(),
        "prediction_time": pl.Datetime("us"),
        "class": pl.String(),
        "label": pl.Boolean(),
        "probability": pl.Float64(),
    }
)
SUM_TOLERANCE = 1e-4
"""So far may the probabilities of a row's classes be from one in sum."""


def task_predictions(rows: pl.DataFrame, classes: Sequence[str], probability: np.ndarray) -> pl.DataFrame:
    """The predictions table of any task, by its labels: binary, of classes, or of a time to an event.

    classes, probability: as a fitted arm gives them; of a time to an event of `risk` and the horizons.
    """
    if rows.schema.get("label") == pl.Boolean:
        return binary_predictions(rows, probability)
    if rows.schema.get("label") == FOLLOWED:
        return checked(survival_predictions(rows, classes, probability), "predictions")
    return class_predictions(rows, classes, probability)


def binary_predictions(rows: pl.DataFrame, probability: np.ndarray, threshold: float = 0.5) -> pl.DataFrame:
    """The predictions table for `rows` (subject_id, prediction_time, Boolean label), in their order.

    probability: of the label being true, [n_rows]; or [n_rows, 2] with the classes (False, True).
    predicted_boolean_value is probability >= threshold. Raises InputError where lengths or values do not fit.
    """
    probability = np.asarray(probability, dtype=np.float64)
    probability = probability[:, -1] if probability.ndim == 2 and probability.shape[1] == 2 else probability
    if probability.shape != (rows.height,):
        what = f"{rows.height} rows but probabilities of shape {probability.shape}"
        raise refuse("predictions", what, "give one probability per row, or one per row and class (False, True)")
    if rows.schema.get("label") != pl.Boolean:
        what = f"label is {rows.schema.get('label')}, not Boolean"
        raise refuse("predictions", what, "a predictions table of this kind is for binary tasks only")
    table = rows.select(
        pl.col("subject_id").cast(pl.Int64),
        pl.col("prediction_time").cast(pl.Datetime("us")),
        pl.col("label").alias("boolean_value"),
        pl.Series("predicted_boolean_value", probability >= threshold),
        pl.Series(PROBABILITY, probability),
    )
    return checked(table, "predictions")


def class_predictions(rows: pl.DataFrame, classes: Sequence[str], probability: np.ndarray) -> pl.DataFrame:
    """The long table for `rows` (subject_id, prediction_time, label: a word or a list of words), in their order.

    probability: [n_rows, n_classes], in the order of `classes`. Raises InputError where shapes or values do not
    fit, and where a label is none of the classes.
    """
    probability = np.asarray(probability, dtype=np.float64)
    if probability.shape != (rows.height, len(classes)):
        what = f"{rows.height} rows and {len(classes)} classes but probabilities of shape {probability.shape}"
        raise refuse("predictions", what, "give one probability per row and class")
    known = _check_classes(rows, tuple(classes))
    table = pl.DataFrame(
        {
            **{name: rows[name].gather(np.repeat(np.arange(rows.height), len(classes))) for name in KEY},
            "class": list(classes) * rows.height,
            "label": known.ravel(),
            "probability": probability.ravel(),
        },
        schema_overrides=CLASS_SCHEMA,
    )
    return checked(table, "predictions")


def class_arrays(predictions: pl.DataFrame) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
    """(classes, subject_id [n_rows], labels bool [n_rows, n_classes], probabilities likewise) of a long table.

    Rows are sorted by subject and time, classes are in `class_order`.
    """
    classes = class_order(predictions["class"].unique())
    rank = pl.col("class").replace_strict({name: place for place, name in enumerate(classes)}, return_dtype=pl.Int64)
    table = predictions.sort(*KEY, rank)
    labels, probabilities = (table[name].to_numpy().reshape(-1, len(classes)) for name in ("label", "probability"))
    return classes, table["subject_id"].to_numpy()[:: len(classes)], labels, probabilities


def kind_of_predictions(predictions: pl.DataFrame) -> TaskKind:
    """What kind of task a valid table is of; multiclass where all rows have one class and probabilities sum to one."""
    if "horizon_days" in predictions.columns:
        return "survival"
    if "class" not in predictions.columns:
        return "binary"
    per_row = predictions.group_by(KEY).agg(pl.col("label").sum(), pl.col("probability").sum())
    one_each = (pl.col("label") == 1) & ((pl.col("probability") - 1).abs() < SUM_TOLERANCE)
    return "multiclass" if per_row.select(one_each.all()).item() else "multilabel"


def one_against_rest(predictions: pl.DataFrame, threshold: float = 0.5) -> dict[str, pl.DataFrame]:
    """Each class of a long table as a binary predictions table, for what knows of yes and no only (curves)."""
    binary = predictions.with_columns(
        pl.col("label").alias("boolean_value"),
        (pl.col("probability") >= threshold).alias("predicted_boolean_value"),
        pl.col("probability").alias(PROBABILITY),
    )
    classes = class_order(predictions["class"].unique())
    return {name: binary.filter(pl.col("class") == name).select(SCHEMA.names()) for name in classes}


def write_predictions(predictions: pl.DataFrame, path: Path) -> Path:
    """Write the table as zstd Parquet, in one piece, after the same checks as on reading."""
    checked(predictions, str(path))
    with replacing(path) as part:
        predictions.write_parquet(part, compression="zstd")
    return path


def read_predictions(path: Path) -> pl.DataFrame:
    """Read and check a predictions table. Raises InputError if it is absent, unreadable or not as agreed."""
    if not path.is_file():
        raise refuse(str(path), "there is no predictions table", "run predict first, or mend the path")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise refuse(str(path), "this is not a readable Parquet file", "write the predictions again") from error
    return checked(table, str(path))


def checked(predictions: pl.DataFrame, where: str) -> pl.DataFrame:
    """The table itself if it is a valid predictions table; else an InputError with every problem found."""
    schema = CLASS_SCHEMA if "class" in predictions.columns else SCHEMA
    schema = SURVIVAL_SCHEMA if "horizon_days" in predictions.columns else schema
    if predictions.schema != schema:
        expected = ", ".join(f"{name} {kind}" for name, kind in schema.items())
        found = ", ".join(f"{name} {kind}" for name, kind in predictions.schema.items())
        raise refuse(where, f"columns are ({found})", f"exactly these columns, in this order: {expected}")
    problems = [Problem(where, f"{count} rows {what}", fix) for count, what, fix in _faults(predictions) if count]
    if problems:
        raise InputError(problems)
    return predictions


def with_split(predictions: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The predictions with the cohort's `split` of each row. Raises InputError for rows not in the cohort."""
    joined = predictions.join(rows.select(*KEY, "split"), on=KEY, how="left", maintain_order="left")
    unknown = joined["split"].null_count()
    if unknown:
        raise refuse("predictions", f"{unknown} rows are not in the cohort", "predict on the cohort that is judged")
    return joined


def rows_hash(predictions: pl.DataFrame) -> str:
    """A hash of the set of (subject_id, prediction_time, label), whatever the order of the rows.

    Takes predictions of either form (boolean_value, or class and label) or cohort rows (label).
    """
    table = _labelled(predictions).sort(pl.all())
    times = table.select(pl.col("subject_id"), pl.col("prediction_time").cast(pl.Int64))
    digest = hashlib.blake2b(times.to_numpy().astype("<i8").tobytes(), digest_size=16)
    digest.update("\n".join(table["label"]).encode())
    return digest.hexdigest()


def check_rows_match(predictions_by_arm: Mapping[str, pl.DataFrame], rows: pl.DataFrame) -> None:
    """Hold that every arm predicted exactly the labelled rows, with the same labels.

    Raises InputError that names each arm that left rows out, added some or has other labels (by count).
    """
    expected = rows_hash(rows)
    problems = [
        Problem(f"predictions of {arm}", _mismatch(table, rows), "every arm must predict each labelled row once")
        for arm, table in predictions_by_arm.items()
        if rows_hash(table) != expected
    ]
    if problems:
        raise InputError(problems)


def _labelled(table: pl.DataFrame) -> pl.DataFrame:
    """subject_id, prediction_time and label as one string (the row's classes, joined), a line for each row."""
    keys = (pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(pl.Datetime("us")))
    if "class" in table.columns:
        names = pl.col("class").filter("label").sort().str.join("\x1f")
        return table.group_by(*keys).agg(names.fill_null("").alias("label"))
    if "horizon_days" in table.columns:
        table = table.select(*KEY, pl.struct("days", "observed").alias("label")).unique()
    label = pl.col("boolean_value" if "boolean_value" in table.columns else "label")
    if isinstance(table.schema[label.meta.output_name()], pl.List):
        label = label.list.sort().list.join("\x1f").fill_null("")
    return table.select(*keys, label.cast(pl.String).alias("label"))


def _check_classes(rows: pl.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
    """Which classes each row has, bool [n_rows, n_classes]; InputError where a label is none of them."""
    if kind_of_labels(rows) not in ("multiclass", "multilabel"):
        what = f"label is {rows.schema.get('label')}, neither a word nor a list of words"
        raise refuse("predictions", what, "a predictions table of this kind is for multiclass and multilabel tasks")
    known = label_matrix(rows, classes).to_numpy()
    words = (
        rows["label"].list.n_unique()
        if rows.schema["label"] == pl.List(pl.String)
        else pl.repeat(1, rows.height, eager=True)
    )
    unknown = int((known.sum(axis=1) != words.to_numpy()).sum())
    if unknown:
        what = f"{unknown} rows have a label that is none of the classes {', '.join(classes)}"
        raise refuse("data.labels_dir", what, "give labels of the classes that the model was trained for")
    return known


def _mismatch(table: pl.DataFrame, rows: pl.DataFrame) -> str:
    found, expected = _labelled(table), _labelled(rows)
    missing = expected.join(found, on=KEY, how="anti").height
    added = found.join(expected, on=KEY, how="anti").height
    both = expected.join(found, on=KEY, suffix="_found")
    relabelled = both.filter(pl.col("label") != pl.col("label_found")).height
    return (
        f"{found.height} rows for {rows.height} labels: {missing} labelled rows are missing, "
        f"{added} rows have no label, {relabelled} carry another label"
    )


def _faults(predictions: pl.DataFrame) -> list[tuple[int, str, str]]:
    if "horizon_days" in predictions.columns:
        return survival_faults(predictions)
    long = "class" in predictions.columns
    probability = pl.col("probability" if long else PROBABILITY)
    nulls = pl.any_horizontal(pl.all().is_null())
    outside = probability.is_nan() | ~probability.is_between(0, 1)
    line = (*KEY, "class") if long else KEY
    faults = [
        (predictions.filter(nulls).height, "hold an empty value", "every row needs all five values"),
        (
            predictions.filter(outside).height,
            "hold a probability that is NaN or outside [0, 1]",
            "mend the model's output",
        ),
        (
            int(predictions.select(pl.struct(line).is_duplicated().sum()).item()),
            f"repeat a {' and '.join(('subject', 'time', 'class') if long else ('subject', 'time'))}",
            "predict each row once",
        ),
    ]
    if long:
        n_classes = predictions["class"].n_unique()
        incomplete = predictions.group_by(KEY).len().filter(pl.col("len") != n_classes).height
        faults.append((incomplete, "lack a class", "give every class of every row"))
    return faults
