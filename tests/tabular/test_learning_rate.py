"""`tabular.learning_rate` changes boosted trees, and is refused where no trees are boosted."""

from __future__ import annotations

import numpy as np
import pytest
from tests.tabular.test_tabular_arms import Log, cohort

from epicrisis.settings import InputError, settings_from
from epicrisis.tabular import ARMS


@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_a_slower_rate_grows_more_trees_of_other_predictions(name: str) -> None:
    rows, history = cohort(600)
    fitted, told = {}, {}
    for rate in (0.05, 0.5):
        run = Log()
        settings = settings_from({"arm": name, "tabular": {"learning_rate": rate}})
        fitted[rate] = ARMS[name].of(settings).fit(rows, history, run).predict(rows, history)
        told[rate] = run.lines[0]["n_trees"]
    assert not np.allclose(fitted[0.05], fitted[0.5])
    assert told[0.05] > told[0.5]
    assert np.array_equal(fitted[0.05], ARMS[name]().fit(rows, history, Log()).predict(rows, history)), "the default"


@pytest.mark.parametrize("name", ["logistic_regression", "random_forest"])
def test_an_arm_without_boosting_has_none(name: str) -> None:
    ARMS[name].of(settings_from({"arm": name, "tabular": {"learning_rate": 0.05}}))
    with pytest.raises(InputError, match=r"tabular\.learning_rate: the arm .* has none"):
        ARMS[name].of(settings_from({"arm": name, "tabular": {"learning_rate": 0.1}}))
