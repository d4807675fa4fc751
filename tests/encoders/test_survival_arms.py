"""Times to an event by the encoders and the models of added embeddings: learnt, saved and loaded alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from epicrisis.cohort import Cohort
from epicrisis.cohort.task import follow_up
from epicrisis.commands.arms import make_arm
from epicrisis.narrative import load_lookups, shipped_lookup
from epicrisis.settings import InputError, Settings
from epicrisis.training.concordance import concordance_index
from tests.encoders.conftest import Log
from tests.structured import behrt_cohort

TABLES = ("medical", "lab", "region", "time")
OTHER = {"discrete": "cox", "cox": "discrete"}


@pytest.fixture(scope="module")
def at_risk(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Whoever has behrt_cohort.RISK has the event within 30 to 69 days, the others are followed for 100 without it."""
    cohort = behrt_cohort.open_cohort(behrt_cohort.write_cohort(tmp_path_factory.mktemp("at_risk") / "meds"))
    followed = pl.when("label").then(30.0 + pl.col("subject_id")).otherwise(100.0)
    rows = cohort.rows.with_columns(label=pl.struct(days=followed, observed="label"))
    return replace(cohort, rows=rows)


@pytest.fixture
def chosen(settings, tmp_path: Path):
    """chosen(arm, head): settings with which the arm learns this in seconds."""

    def make(arm: str, head: str) -> Settings:
        changes = {"survival.head": head, "survival.horizons_days": [30.0, 60.0], "training.keep_best": False}
        if arm in ("behrt", "exmed_bert"):
            return behrt_cohort.settings(arm, tmp_path, **changes)
        steps = {"training.epochs": 30, "training.max_steps": 90, "training.learning_rate": 1e-2}
        return settings(arm, **steps, **changes)

    return make


@pytest.mark.parametrize("head", ["discrete", "cox"])
@pytest.mark.parametrize("arm", ["encoder", "event_encoder", "behrt", "exmed_bert"])
def test_risks_are_learnt_saved_and_loaded(arm, head, chosen, at_risk, tmp_path) -> None:
    asked, lookups = chosen(arm, head), load_lookups(*map(shipped_lookup, TABLES))
    learnt_on, train = at_risk.rows.filter(pl.col("split") != "held_out"), at_risk.select("train")
    run = Log(tmp_path)
    model = make_arm(asked, lookups).fit(learnt_on, at_risk.history(learnt_on), run)
    assert model.classes == ("risk", "30", "60")
    assert any("eval/c_index" in line for line in run.lines), "what training watches"
    found = model.predict(train, at_risk.history(train))
    assert concordance_index(*follow_up(train), found[:, 0]) > 0.75
    assert (found[:, 2] >= found[:, 1]).all()
    held_out = at_risk.select("held_out")
    found = model.predict(held_out, at_risk.history(held_out))
    model.save(tmp_path)
    again = make_arm(asked, lookups).load(tmp_path)
    assert again.classes == model.classes
    assert np.array_equal(again.predict(held_out, at_risk.history(held_out)), found)
    with pytest.raises(InputError, match=r"survival\.head: "):
        make_arm(chosen(arm, OTHER[head]), lookups).load(tmp_path)
