"""The predictions table of a time to an event: a line for each row and horizon.

subject_id · prediction_time · days (to the event or the end of follow-up) · observed (which of them) · risk (higher the
earlier the event is expected) · horizon_days · probability (of the event by then).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from epicrisis.cohort.labels import KEY
from epicrisis.cohort.task import follow_up
from epicrisis.settings.problems import refuse

SURVIVAL_SCHEMA = pl.Schema(
    {
        "subject_id": pl.Int64(),
        "prediction_time": pl.Datetime("us"),
        "days": pl.Float64(),
        "observed": pl.Boolean(),
        "risk": pl.Float64(),
        "horizon_days": pl.Float64(),
        "probability": pl.Float64(),
    }
)
ROUNDING = 1e-9
"""So much may a probability fall from one horizon to the next."""


@dataclass(frozen=True)
class SurvivalArrays:
    """A valid table as arrays, rows sorted by subject and time.

    subject_id, days, observed, risk: [n_rows]; horizons: [n_horizons], rising; probabilities: [n_rows, n_horizons].
    """

    subject_id: np.ndarray
    days: np.ndarray
    observed: np.ndarray
    risk: np.ndarray
    horizons: np.ndarray
    probabilities: np.ndarray


def survival_predictions(rows: pl.DataFrame, columns: Sequence[str], found: np.ndarray) -> pl.DataFrame:
    """The table for `rows` (subject_id, prediction_time, label: days and observed), in their order; not yet checked.

    columns: `risk`, then horizons in days. found: [n_rows, n_columns]. Raises InputError where these do not fit.
    """
    named, fits = [*columns[:1]] == ["risk"] and len(columns) > 1, np.shape(found) == (rows.height, len(columns))
    if not named or not fits:
        what = f"{rows.height} rows but predictions of shape {np.shape(found)}, of {', '.join(columns) or 'nothing'}"
        raise refuse("predictions", what, "give each row's risk, and the probability of the event by each horizon")
    found, horizons = np.asarray(found, dtype=np.float64), np.array([float(name) for name in columns[1:]])
    days, observed = follow_up(rows)
    each = np.repeat(np.arange(rows.height), len(horizons))
    return pl.DataFrame(
        {
            **{name: rows[name].gather(each) for name in KEY},
            "days": days[each],
            "observed": observed[each],
            "risk": found[each, 0],
            "horizon_days": np.tile(horizons, rows.height),
            "probability": found[:, 1:].ravel(),
        },
        schema_overrides=SURVIVAL_SCHEMA,
    )


def survival_arrays(predictions: pl.DataFrame) -> SurvivalArrays:
    """What a valid table holds."""
    table = predictions.sort(*KEY, "horizon_days")
    horizons = table["horizon_days"].unique().sort().to_numpy()
    of_row = table[:: max(1, len(horizons))]
    probabilities = table["probability"].to_numpy().reshape(of_row.height, len(horizons))
    subject_id, days, observed, risk = (of_row[name].to_numpy() for name in ("subject_id", "days", "observed", "risk"))
    return SurvivalArrays(subject_id, days, observed, risk, horizons, probabilities)


def survival_faults(predictions: pl.DataFrame) -> list[tuple[int, str, str]]:
    """What is wrong with a table of the right columns: (how many lines or rows, what, how to mend it)."""
    days, risk, probability = pl.col("days"), pl.col("risk"), pl.col("probability")
    falls = (probability.diff().over(KEY, order_by="horizon_days") < -ROUNDING).fill_null(False)
    n_horizons = predictions["horizon_days"].n_unique()
    rows = predictions.group_by(KEY).agg(
        pl.len().alias("lines"), pl.struct("days", "observed", "risk").n_unique().alias("told")
    )
    wrong = {
        "hold an empty value": (pl.any_horizontal(pl.all().is_null()), "every line needs all seven values"),
        "hold a probability that is NaN or outside [0, 1]": (
            probability.is_nan() | ~probability.is_between(0, 1),
            "mend the model's output",
        ),
        "hold days that are negative or no number": ((days < 0) | ~days.is_finite(), "mend the labels"),
        "hold a risk that is no finite number": (~risk.is_finite(), "mend the model's output"),
        "repeat a subject and time and horizon": (pl.struct(*KEY, "horizon_days").is_duplicated(), "predict each once"),
        "hold a probability lower than that of a nearer horizon": (falls, "mend the model's output"),
    }
    faults = [(predictions.filter(which).height, what, fix) for what, (which, fix) in wrong.items()]
    faults.append((rows.filter(pl.col("lines") != n_horizons).height, "lack a horizon", "give every horizon of each"))
    told = "have different days, observed or risk from horizon to horizon"
    return [*faults, (rows.filter(pl.col("told") != 1).height, told, "a row has one of each")]
