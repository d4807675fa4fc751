"""Temperature scaling on the tuning split, and the data of a reliability curve.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit

from epicrisis.evaluation.predictions import PROBABILITY, class_arrays, kind_of_predictions
from epicrisis.settings.problems import refuse

MIN_ROWS = 50
# Beyond these, probabilities are all but flat, or all but 0 and 1: the fit has left the data.
LOWEST, HIGHEST = 0.05, 20.0
# Probabilities of exactly 0 and 1 have no logit.
EDGE = 1e-7


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by: above 1 tempers an overconfident arm, below 1 sharpens, 1 changes nothing.

    n_positive: rows with the label; None of several classes or labels together. note: why the temperature stayed at 1,
    or that it met a bound; empty after an ordinary fit. of_labels: in a multilabel task each label's own, of which
    `value` is the geometric mean.
    """

    value: float
    n: int
    n_positive: int | None
    fitted_on: str = "tuning"
    note: str = ""
    of_labels: Mapping[str, Temperature] = field(default_factory=dict)

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """The calibrated probabilities; their order stays as it was."""
        if self.value == 1.0:
            return np.asarray(probabilities, dtype=np.float64)
        return expit(_logits(probabilities) / self.value)


def fit_temperature(predictions: pl.DataFrame) -> Temperature:
    """The temperature that minimises the negative log-likelihood of tuning predictions.

    predictions: a predictions table with the cohort's `split` column (`predictions.with_split`). Of several
    classes, one temperature divides the log-probabilities before they are normalised again; of several labels,
    each has its own. Below 50 rows, or with one class only, the temperature stays 1 and says so. Raises InputError
    for rows of any split but tuning.
    """
    _check_tuning(predictions)
    kind = kind_of_predictions(predictions)
    if kind == "binary":
        return _fit_binary(predictions["boolean_value"].to_numpy(), predictions[PROBABILITY].to_numpy())
    classes, _, labels, probabilities = class_arrays(predictions)
    if kind == "multiclass":
        return _fit_multiclass(labels, probabilities)
    fitted = {name: _fit_binary(labels[:, c], probabilities[:, c]) for c, name in enumerate(classes)}
    values = [one.value for one in fitted.values()]
    note = f"one for each of {len(fitted)} labels, {min(values):.2g} to {max(values):.2g}"
    unfitted = sum(one.note.startswith("not fitted") for one in fitted.values())
    note += f"; {unfitted} labels not fitted: too few tuning rows, or all of one kind" if unfitted else ""
    return Temperature(float(np.exp(np.mean(np.log(values)))), len(labels), None, note=note, of_labels=fitted)


def apply_temperature(predictions: pl.DataFrame, temperature: Temperature, threshold: float = 0.5) -> pl.DataFrame:
    """The predictions table with calibrated probabilities; further columns and the rows' order stay."""
    kind = kind_of_predictions(predictions)
    if kind == "binary":
        calibrated = pl.Series(PROBABILITY, temperature.apply(predictions[PROBABILITY].to_numpy()))
        return predictions.with_columns(calibrated, (calibrated >= threshold).alias("predicted_boolean_value"))
    if kind == "multiclass":
        # p^(1/T), normalised over the row's classes: a softmax of its log-probabilities divided by T
        raised = pl.col("probability").clip(EDGE).pow(1 / temperature.value)
        return predictions.with_columns(probability=raised / raised.sum().over("subject_id", "prediction_time"))
    names, values = predictions["class"].to_numpy(), predictions["probability"].to_numpy().copy()
    for name, own in temperature.of_labels.items():
        values[names == name] = own.apply(values[names == name])
    return predictions.with_columns(pl.Series("probability", values))


def _fit_binary(labels: np.ndarray, probabilities: np.ndarray) -> Temperature:
    n, n_positive = len(labels), int(labels.sum())
    if n_positive in (0, n) and n >= MIN_ROWS:
        note = f"not fitted: one class only, {n_positive} of {n} tuning rows are positive"
        return Temperature(1.0, n, n_positive, note=note)
    logits, targets = _logits(probabilities), labels.astype(np.float64)
    return _fit(lambda t: _negative_log_likelihood(logits / t, targets), n, n_positive)


def _fit_multiclass(labels: np.ndarray, probabilities: np.ndarray) -> Temperature:
    logits = np.log(np.clip(probabilities, EDGE, None))
    return _fit(lambda t: -float(log_softmax(logits / t, axis=1)[labels].mean()), len(labels), None)


def _fit(loss: Callable[[float], float], n: int, n_positive: int | None) -> Temperature:
    """The temperature with the lowest loss between the bounds; 1 where there are too few rows."""
    if n < MIN_ROWS:
        return Temperature(1.0, n, n_positive, note=f"not fitted: {n} tuning rows are fewer than {MIN_ROWS}")
    found = minimize_scalar(lambda t: loss(float(np.exp(t))), bounds=np.log([LOWEST, HIGHEST]))
    value = float(np.exp(found.x))
    at_bound = min(value / LOWEST, HIGHEST / value) < 1.01
    note = f"the fit met its bound ({value:.2g}): the probabilities carry little on tuning" if at_bound else ""
    return Temperature(value, n, n_positive, note=note)


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
