"""Temperature scaling on the tuning split, and the data of a reliability curve.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from epicrisis.evaluation.predictions import PROBABILITY
from epicrisis.settings.problems import refuse

MIN_ROWS = 50
# Beyond these, probabilities are all but flat, or all but 0 and 1: the fit has left the data.
LOWEST, HIGHEST = 0.05, 20.0
# Probabilities of exactly 0 and 1 have no logit.
EDGE = 1e-7


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by: above 1 tempers an overconfident arm, below 1 sharpens, 1 changes nothing.

    note: why the temperature stayed at 1, or that it met a bound; empty after an ordinary fit.
    """

    value: float
    n: int
    n_positive: int
    fitted_on: str = "tuning"
    note: str = ""

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """The calibrated probabilities; their order stays as it was."""
        if self.value == 1.0:
            return np.asarray(probabilities, dtype=np.float64)
        return expit(_logits(probabilities) / self.value)


def fit_temperature(predictions: pl.DataFrame) -> Temperature:
    """The temperature that minimises the negative log-likelihood of tuning predictions.

    predictions: a predictions table with the cohort's `split` column (`predictions.with_split`). Below 50
    rows, or with one class only, the temperature stays 1 and says so. Raises InputError for rows of any split
    but tuning.
    """
    _check_tuning(predictions)
    labels = predictions["boolean_value"].to_numpy().astype(np.float64)
    n, n_positive = len(labels), int(labels.sum())
    if n < MIN_ROWS:
        return Temperature(1.0, n, n_positive, note=f"not fitted: {n} tuning rows are fewer than {MIN_ROWS}")
    if n_positive in (0, n):
        return Temperature(
            1.0,
            n,
            n_positive,
            note=f"not fitted: one class only, {n_positive} of {n} tuning rows are positive",
        )
    logits = _logits(predictions[PROBABILITY].to_numpy())
    found = minimize_scalar(
        lambda t: _negative_log_likelihood(logits / np.exp(t), labels), bounds=np.log([LOWEST, HIGHEST])
    )
    value = float(np.exp(found.x))
    at_bound = min(value / LOWEST, HIGHEST / value) < 1.01
    note = f"the fit met its bound ({value:.2g}): the probabilities carry little on tuning" if at_bound else ""
    return Temperature(value, n, n_positive, note=note)


def apply_temperature(predictions: pl.DataFrame, temperature: Temperature, threshold: float = 0.5) -> pl.DataFrame:
    """The predictions table with calibrated probabilities; further columns and the rows' order stay."""
    calibrated = pl.Series(PROBABILITY, temperature.apply(predictions[PROBABILITY].to_numpy()))
    return predictions.with_columns(calibrated, (calibrated >= threshold).alias("predicted_boolean_value"))


def reliability_curve(labels: np.ndarray, probabilities: np.ndarray, n_bins: int = 10) -> pl.DataFrame:
    """Mean probability and observed rate in bins of equal row count, with a 95% Wilson interval of the rate.

    Columns: mean_probability, observed_rate, lower, upper, n. Bins of equal count, unlike those of the ECE,
    have the same support everywhere, which a picture needs for a rare outcome. Equal probabilities never fall
    into two bins.
    """
    table = pl.DataFrame({"probability": probabilities, "label": np.asarray(labels, dtype=np.float64)})
    bins = (pl.col("probability").rank("min") - 1) * n_bins // pl.len()
    curve = (
        table.group_by(bins.alias("bin"))
        .agg(
            pl.col("probability").mean().alias("mean_probability"),
            pl.col("label").mean().alias("observed_rate"),
            pl.len().cast(pl.Int64).alias("n"),
        )
        .sort("mean_probability")
    )
    return curve.with_columns(*_wilson(pl.col("observed_rate"), pl.col("n"))).select(
        "mean_probability", "observed_rate", "lower", "upper", "n"
    )


def _check_tuning(predictions: pl.DataFrame) -> None:
    if "split" not in predictions.columns:
        raise refuse("calibration", "the predictions carry no split", "join the cohort's split (with_split) first")
    others = predictions.filter(pl.col("split").ne_missing("tuning")).height
    if others:
        raise refuse("calibration", f"{others} rows are not of the tuning split", "fit the temperature on tuning only")


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return logit(np.clip(np.asarray(probabilities, dtype=np.float64), EDGE, 1 - EDGE))


def _negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))


def _wilson(rate: pl.Expr, n: pl.Expr, z: float = 1.959964) -> tuple[pl.Expr, pl.Expr]:
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * (rate * (1 - rate) / n + z**2 / (4 * n**2)).sqrt() / (1 + z**2 / n)
    return (centre - half).alias("lower"), (centre + half).alias("upper")
