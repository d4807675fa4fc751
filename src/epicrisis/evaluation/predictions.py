"""The predictions table of a binary task: the five meds-evaluation columns, checked and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

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
    if predictions.schema != SCHEMA:
        expected = ", ".join(f"{name} {kind}" for name, kind in SCHEMA.items())
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

    Takes predictions (boolean_value) or cohort rows (label).
    """
    label = "boolean_value" if "boolean_value" in predictions.columns else "label"
    table = predictions.select(
        pl.col("subject_id").cast(pl.Int64),
        pl.col("prediction_time").cast(pl.Datetime("us")).cast(pl.Int64),
        pl.col(label).cast(pl.Int64),
    ).sort(pl.all())
    return hashlib.blake2b(table.to_numpy().astype("<i8").tobytes(), digest_size=16).hexdigest()


def check_rows_match(predictions_by_arm: Mapping[str, pl.DataFrame], rows: pl.DataFrame) -> None:
    """Hold that every arm predicted exactly the labelled rows, with the same labels.

    Raises InputError that names each arm that left rows out, added some or has other labels (by count).
    """
    expected = rows_hash(rows)
    problems = [
        Problem(f"predictions of {arm}", _mismatch(table, rows), "every arm must predict each labelled row once")
        for arm, table in predictions_by_arm.items()
        if table.height != rows.height or rows_hash(table) != expected
    ]
    if problems:
        raise InputError(problems)


def _mismatch(table: pl.DataFrame, rows: pl.DataFrame) -> str:
    missing = rows.join(table, on=KEY, how="anti").height
    added = table.join(rows, on=KEY, how="anti").height
    both = rows.select(*KEY, "label").join(table.select(*KEY, "boolean_value"), on=KEY)
    relabelled = both.filter(pl.col("label") != pl.col("boolean_value")).height
    return (
        f"{table.height} rows for {rows.height} labels: {missing} labelled rows are missing, "
        f"{added} rows have no label, {relabelled} carry another label"
    )


def _faults(predictions: pl.DataFrame) -> list[tuple[int, str, str]]:
    probability = pl.col(PROBABILITY)
    nulls = pl.any_horizontal(pl.all().is_null())
    outside = probability.is_nan() | ~probability.is_between(0, 1)
    return [
        (predictions.filter(nulls).height, "hold an empty value", "every row needs all five values"),
        (
            predictions.filter(outside).height,
            "hold a probability that is NaN or outside [0, 1]",
            "mend the model's output",
        ),
        (
            int(predictions.select(pl.struct(KEY).is_duplicated().sum()).item()),
            "repeat a subject and time",
            "predict each row once",
        ),
    ]
