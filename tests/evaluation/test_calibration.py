"""Temperature: fitted on tuning only, mends overconfidence, leaves the order of rows alone."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.evaluation.calibration import (
    Temperature,
    apply_temperature,
    fit_temperature,
    reliability_curve,
)
from epicrisis.evaluation.metrics import point_scores
from epicrisis.evaluation.predictions import SCHEMA, binary_predictions
from epicrisis.settings.problems import InputError


def tuning(n: int, sharpness: float, seed: int = 0, split: str = "tuning") -> pl.DataFrame:
    """Predictions whose logits are `sharpness` times the true ones."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1, 1.5, n)
    labels = generator.random(n) < 1 / (1 + np.exp(-logits))
    times = [datetime(2020, 1, 1) + timedelta(days=i) for i in range(n)]
    rows = pl.DataFrame({"subject_id": range(n), "prediction_time": times, "label": labels})
    table = binary_predictions(rows, 1 / (1 + np.exp(-sharpness * logits)))
    return table.with_columns(split=pl.lit(split))


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_the_sharpness(sharpness: float) -> None:
    fitted = fit_temperature(tuning(4000, sharpness))
    assert fitted.value == pytest.approx(sharpness, rel=0.1)
    assert (fitted.fitted_on, fitted.n, fitted.note) == ("tuning", 4000, "")


def test_calibration_lowers_ece_and_keeps_auroc() -> None:
    fitted = fit_temperature(tuning(2000, 4.0))
    held_out = tuning(2000, 4.0, seed=1).drop("split")
    calibrated = apply_temperature(held_out, fitted)
    assert calibrated.schema == SCHEMA
    before, after = (
        point_scores(t["boolean_value"].to_numpy(), t["predicted_boolean_probability"].to_numpy())
        for t in (held_out, calibrated)
    )
    assert after["ece"] < before["ece"] / 3
    assert after["brier"] < before["brier"]
    # Probabilities that the edge of 1e-7 makes equal are the only change to the order.
    assert after["auroc"] == pytest.approx(before["auroc"], abs=1e-3)


@pytest.mark.parametrize("split", ["train", "held_out", None])
def test_other_splits_are_refused(split: str | None) -> None:
    table = pl.concat([tuning(100, 1.0), tuning(1, 1.0).with_columns(split=pl.lit(split, pl.String))])
    with pytest.raises(InputError, match="1 rows are not of the tuning split"):
        fit_temperature(table)


def test_predictions_without_a_split_are_refused() -> None:
    with pytest.raises(InputError, match="carry no split"):
        fit_temperature(tuning(100, 1.0).drop("split"))


def test_too_little_to_fit_on_is_said() -> None:
    few = fit_temperature(tuning(49, 3.0))
    assert (few.value, few.note) == (1.0, "not fitted: 49 tuning rows are fewer than 50")
    one_class = fit_temperature(tuning(60, 3.0).with_columns(boolean_value=False))
    assert one_class.value == 1.0
    assert "one class only, 0 of 60 tuning rows are positive" in one_class.note


def test_probabilities_that_carry_nothing_meet_the_bound_and_say_so() -> None:
    table = tuning(500, 1.0)
    upside_down = table.with_columns(predicted_boolean_probability=1 - pl.col("predicted_boolean_probability"))
    assert "the fit met its bound (20)" in fit_temperature(upside_down).note


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(0.05, 20))
@settings(deadline=None)
def test_calibrated_probabilities_are_probabilities_in_the_same_order(values: list[float], temperature: float) -> None:
    found = Temperature(temperature, 100, 10).apply(np.sort(values))
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()


def test_reliability_bins_hold_equal_counts_and_ties_stay_together() -> None:
    labels = np.array([0, 0, 1, 1, 0, 1, 1, 1])
    probabilities = np.array([0.1, 0.1, 0.1, 0.4, 0.5, 0.6, 0.8, 0.9])
    curve = reliability_curve(labels, probabilities, n_bins=4)
    assert curve["n"].to_list() == [3, 1, 2, 2]
    assert curve["mean_probability"].to_list() == pytest.approx([0.1, 0.4, 0.55, 0.85])
    assert curve["observed_rate"].to_list() == pytest.approx([1 / 3, 1, 0.5, 1])
    assert (curve["lower"] <= curve["observed_rate"]).all()
    assert (curve["upper"] >= curve["observed_rate"] - 1e-12).all()
