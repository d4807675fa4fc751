"""Times to an event from the cohort to the report by the commands that users give, and what is refused before."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from epicrisis.cohort.task import follow_up
from epicrisis.commands import main
from epicrisis.commands.arms import ARMS, make_arm
from epicrisis.commands.inputs import open_cohort, open_lookups
from epicrisis.commands.preflight import refuse_unless_runnable
from epicrisis.evaluation.predictions import read_predictions
from epicrisis.settings import InputError, Settings, settings_from
from epicrisis.settings.survival_checks import LEARNERS
from epicrisis.tracking.run_directory import open_run
from epicrisis.training.concordance import concordance_index
from tests.commands.conftest import FIRST_SUBJECT, data_keys

TASK = "time_to_event"
METRICS = {"c_index", "c_index_uno", "ibs", "auroc@180", "brier@180", "auroc@365", "brier@365", "oracle_lift_share"}
HORIZONS = "survival.horizons_days=[180,365]"
SMALL = ["model.head=score", "model.max_length=256", "training.load_in_4bit=false", "training.max_steps=2"]


def arguments(dataset: Path, base: Path, folder: Path, *more: str) -> list[str]:
    own = ["stage=classify", "arm=llm", f"model.model_name={base}", *SMALL, "training.batch_size=8", HORIZONS]
    kept = [f"training.output_dir={folder}", "evaluation.bootstrap_resamples=100"]
    return [*own, *kept, *data_keys(dataset, TASK), f"data.oracle_dir={dataset / 'oracle' / TASK}", *more]


def settings_for(dataset: Path, **sections: Any) -> Settings:
    data = {"meds_dir": dataset, "labels_dir": dataset / "labels" / sections.pop("task", TASK)}
    return settings_from({"stage": "classify", "data": data, **sections})


@pytest.mark.parametrize("head", ["discrete", "cox"])
def test_trained_predicted_evaluated_and_reported(dataset: Path, base: Path, tmp_path: Path, head: str) -> None:
    given = arguments(dataset, base, tmp_path / "run", f"survival.head={head}", "training.metric_for_best=c_index")
    assert main(["train", *given]) == 0
    results = pl.read_csv(tmp_path / "run" / "results.csv")
    assert set(results["metric"]) == METRICS
    assert results.filter(pl.col("arm") == "llm")["value"].is_not_null().all()
    kept = read_predictions(tmp_path / "run" / "predictions" / "held_out.parquet")
    assert set(results["n"]) == {kept.select("subject_id", "prediction_time").unique().height}
    assert set(results["n_positive"]) == {kept.unique("subject_id")["observed"].sum()}
    assert kept["horizon_days"].unique().sort().to_list() == [180, 365]
    ended = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert {f"{split}/{metric}" for split in ("tuning", "held_out") for metric in METRICS} - set(ended) == {
        "tuning/oracle_lift_share"
    }
    page = (tmp_path / "run" / "report.html").read_text()
    assert "C-index (Uno)" in page
    assert "Brier at 365 days" in page
    assert 'alt="kaplan_meier"' in page
    assert not re.search(str(FIRST_SUBJECT)[:7], page)
    assert "events observed" in (tmp_path / "run" / "SUMMARY.txt").read_text()
    assert main(["predict", *given, f"evaluation.predictions_dir={tmp_path}"]) == 0
    again = read_predictions(tmp_path / "held_out.parquet")
    numbers = again.select("risk", "probability").to_numpy()
    assert numbers == pytest.approx(kept.select("risk", "probability").to_numpy(), abs=1e-5)
    assert main(["evaluate", *given]) == 0
    assert pl.read_csv(tmp_path / "run" / "results.csv").equals(results)


@pytest.mark.parametrize("head", ["discrete", "cox"])
def test_models_of_codes_learn_them_too(dataset: Path, tmp_path: Path, head: str) -> None:
    """Labels of other rows give another model; what is saved predicts the same."""
    own = {"architecture": "gpt2", "size": "demo", "context": 128, "tokens_per_batch": 4096}
    found = []
    for name, shift in (("run", 0), ("other", 7)):
        training = {"output_dir": tmp_path / name, "max_steps": 3, "batch_size": 16, "learning_rate": 3e-3}
        settings = settings_for(
            dataset, arm="structured", structured=own, training=training, survival={"head": head, "n_intervals": None}
        )
        cohort = open_cohort(settings)
        rows, lookups = cohort.rows.with_columns(pl.col("label").shift(shift).fill_null(pl.col("label"))), None
        learnt_on, judged = (rows.filter(pl.col("split").is_in(part)) for part in (["train", "tuning"], ["held_out"]))
        run = open_run(tmp_path / name, {})
        fitted = make_arm(settings, lookups).fit(learnt_on, cohort.history(learnt_on), run)  # type: ignore[arg-type]
        found.append(fitted.predict(judged, cohort.history(judged)))
        fitted.save(run.dir)
        again = make_arm(settings, lookups).load(run.dir)  # type: ignore[arg-type]
        assert again.predict(judged, cohort.history(judged)) == pytest.approx(found[-1], abs=1e-5)
        assert again.classes == ("risk", "30", "90", "365")
    assert np.abs(found[0][:, 1:] - found[1][:, 1:]).max() > 1e-3


def test_a_benchmark_compares_by_the_c_index(dataset: Path, base: Path, tmp_path: Path, write: Any) -> None:
    arms = "[{name: hazards, overrides: {}}, {name: cox, overrides: {survival.head: cox}}]"
    config = write("b.yaml", f"benchmark: {{arms: {arms}, reference: hazards}}\n")
    given = arguments(dataset, base, tmp_path / "run")
    assert main(["benchmark", "--config_filepath", str(config), *given]) == 0
    assert "difference in C-index" in (tmp_path / "run" / "report.html").read_text()


def test_predictions_do_not_depend_on_labels_that_come_with_the_rows(dataset: Path, base: Path, tmp_path: Path) -> None:
    """What is predicted for a row is the same whatever became of it."""
    training = {"output_dir": tmp_path / "run", "max_steps": 1, "batch_size": 8, "load_in_4bit": False}
    model = {"model_name": str(base), "head": "score", "max_length": 256}
    settings = settings_for(dataset, arm="llm", model=model, training=training)
    cohort = open_cohort(settings)
    learnt_on = cohort.rows.filter(pl.col("split") != "held_out")
    run = open_run(tmp_path / "run", {})
    fitted = make_arm(settings, open_lookups(settings, cohort)).fit(learnt_on, cohort.history(learnt_on), run)
    rows = cohort.select("held_out")
    other = rows.with_columns(label=pl.col("label").shift(1, fill_value=rows["label"][0]))
    found = fitted.predict(rows, cohort.history(rows))
    assert np.array_equal(found, fitted.predict(other, cohort.history(other)))
    assert (np.diff(found[:, 1:], axis=1) >= 0).all()


@pytest.mark.parametrize("arm", sorted(set(ARMS) - set(LEARNERS)))
def test_arms_of_classes_refuse_times_to_an_event(dataset: Path, arm: str) -> None:
    settings = settings_from({"stage": "classify", "arm": "oracle"}).model_copy(
        update={"arm": arm, "data": settings_for(dataset, arm="oracle").data}
    )
    cohort = open_cohort(settings)
    with pytest.raises(InputError, match=f"arm: `{arm}` tells classes apart, and the labels of `{TASK}`"):
        refuse_unless_runnable(settings, cohort, open_lookups(settings, cohort))


def test_a_tabular_arm_refuses_them_when_it_is_fitted_too(dataset: Path, tmp_path: Path) -> None:
    settings = settings_for(dataset, arm="xgboost")
    cohort = open_cohort(settings)
    run = open_run(tmp_path / "run", {})
    with pytest.raises(InputError, match="its labels are times to an event"):
        make_arm(settings, open_lookups(settings, cohort)).fit(cohort.rows, cohort.history(cohort.rows), run)


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({}, "model.head: the labels are times to an event"),
        ({"model": {"head": "score"}, "training": {"class_weights": "balanced"}}, "training.class_weights: the labels"),
        ({"model": {"head": "score", "num_classes": 2}}, "model.num_classes: 2, but the task"),
        ({"model": {"head": "score"}, "survival": {"horizons_days": [9000]}}, "survival.horizons_days: 9000 is beyond"),
        ({"task": "cancer", "survival": {"head": "cox"}}, "survival: the labels of `cancer` are no times to an event"),
    ],
)
def test_what_cannot_end_well_is_refused_before_anything_is_loaded(
    dataset: Path, sections: dict[str, Any], what: str
) -> None:
    settings = settings_for(dataset, arm="llm", **sections)
    cohort = open_cohort(settings)
    with pytest.raises(InputError) as refused:
        refuse_unless_runnable(settings, cohort, open_lookups(settings, cohort))
    assert what in str(refused.value)


def test_true_risks_know_the_probability_by_any_horizon(dataset: Path) -> None:
    """The hazard of the synthetic task is constant: by a year the true risk itself, by half a year 1 − √(1 − it)."""
    data = {"oracle_dir": dataset / "oracle" / TASK}
    settings = settings_from({"arm": "oracle", "data": data, "survival": {"horizons_days": [182.5, 365]}})
    rows = open_cohort(settings_for(dataset, arm="oracle")).rows
    arm = make_arm(settings, None).fit(rows, None, None)  # type: ignore[arg-type]
    found = arm.predict(rows, None)  # type: ignore[arg-type]
    assert arm.classes == ("risk", "182.5", "365")
    keys = ["subject_id", "prediction_time"]
    true = pl.read_parquet(dataset / "oracle" / TASK / "*.parquet")
    risk = rows.select(keys).join(true, on=keys, how="left", maintain_order="left")["true_risk"].to_numpy()
    assert found[:, 2] == pytest.approx(risk)
    assert found[:, 1] == pytest.approx(1 - np.sqrt(1 - risk))
    assert concordance_index(*follow_up(rows), found[:, 0]) > 0.7
