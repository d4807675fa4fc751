"""Several classes and several labels from the cohort to the judgement, by every arm, and what is refused before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from epicrisis.commands.arms import make_arm
from epicrisis.commands.inputs import open_cohort, open_lookups
from epicrisis.commands.oracle import OracleArm
from epicrisis.commands.preflight import refuse_unless_runnable
from epicrisis.evaluation.judge import Scope, judge
from epicrisis.evaluation.predictions import class_arrays, kind_of_predictions, task_predictions
from epicrisis.events.synthetic import synthesize
from epicrisis.settings import InputError, Settings, settings_from
from epicrisis.tracking.run_directory import open_run

KINDS = {"length_of_stay": "multiclass", "diagnoses": "multilabel"}
COMMON = 3
"""So many labels of `diagnoses` are kept: the rarer ones no train row of a cohort this small may have."""


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "synthetic"
    synthesize(folder, 160, seed=2)
    for kept in ("labels", "oracle"):
        column = "categorical_value" if kept == "labels" else "class"
        for path in (folder / kept / "diagnoses").rglob("*.parquet"):
            table = pl.read_parquet(path)
            rare = ~pl.col(column).is_in(_common(folder))
            if kept == "labels":  # a row without any label stays, with null
                named = table.with_columns(pl.when(rare).then(None).otherwise(pl.col(column)).alias(column)).unique()
                keys = ["subject_id", "prediction_time"]
                named.filter(pl.col(column).is_not_null() | pl.col(column).is_null().all().over(keys)).write_parquet(
                    path
                )
            else:
                table.filter(~rare).write_parquet(path)
    return folder


def _common(folder: Path) -> list[str]:
    """The classes with the highest mean risk."""
    risks = pl.read_parquet(folder / "oracle" / "diagnoses" / "train.parquet")
    return risks.group_by("class").agg(pl.col("true_risk").mean()).sort("true_risk")["class"].tail(COMMON).to_list()


def settings_for(several: Path, task: str, directory: Path, **sections: object) -> Settings:
    data = {"meds_dir": several, "labels_dir": several / "labels" / task}
    tree = {"stage": "classify", "data": data, "training": {"output_dir": directory}, **sections}
    return settings_from(tree)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("arm", ["logistic_regression", "xgboost", "llm"])
def test_fitted_kept_predicted_and_judged(several: Path, base: Path, tmp_path: Path, task: str, arm: str) -> None:
    training = {"output_dir": tmp_path / "run", "max_steps": 2, "batch_size": 4, "load_in_4bit": False}
    training |= {"class_weights": "balanced"} if arm == "llm" else {}
    model = {"model_name": str(base), "head": "score", "max_length": 256, "prior_correction": arm == "llm"}
    settings = settings_for(
        several, task, tmp_path / "run", arm=arm, model=model if arm == "llm" else {}, training=training
    )
    cohort = open_cohort(settings)
    lookups = open_lookups(settings, cohort)
    refuse_unless_runnable(settings, cohort, lookups)
    run = open_run(tmp_path / "run", {})
    learnt_on = cohort.rows.filter(pl.col("split") != "held_out")
    fitted = make_arm(settings, lookups).fit(learnt_on, cohort.history(learnt_on), run)
    assert fitted.classes == cohort.task.classes
    rows = cohort.select("held_out")
    found = fitted.predict(rows, cohort.history(rows))
    table = task_predictions(rows, fitted.classes, found)
    assert kind_of_predictions(table) == KINDS[task]
    fitted.save(run.dir)
    again = make_arm(settings, lookups).load(run.dir)
    assert again.classes == fitted.classes
    assert again.predict(rows, cohort.history(rows)) == pytest.approx(found, abs=1e-5)
    oracle = OracleArm(several / "oracle" / task)
    assert oracle.classes == cohort.task.classes
    truth = task_predictions(rows, oracle.classes, oracle.predict(rows, cohort.history(rows)))
    judgement = judge({"oracle": truth, arm: table}, rows, Scope("synthetic", task), n_resamples=20)
    assert judgement.kind == KINDS[task]
    assert judgement.estimates[arm]["auroc"].value is not None


def test_the_oracle_knows_which_class_is_which(several: Path) -> None:
    """Rows of a class have a higher true risk of it than the others have, whatever order the classes are in."""
    for task in KINDS:
        settings = settings_for(several, task, Path("unused"))
        rows = open_cohort(settings).rows
        oracle = OracleArm(several / "oracle" / task)
        _, _, labels, risks = class_arrays(task_predictions(rows, oracle.classes, oracle.predict(rows, None)))  # type: ignore[arg-type]
        assert np.mean([risks[labels[:, c], c].mean() - risks[~labels[:, c], c].mean() for c in range(3)]) > 0.02


@pytest.mark.parametrize(
    ("task", "sections", "what"),
    [
        ("length_of_stay", {"model": {}}, "model.answers: 2 answers for the 4 classes 1-2 weeks, 3-7 days, <3 days"),
        ("diagnoses", {"model": {}}, "model.head: one question has one answer"),
        (
            "length_of_stay",
            {"model": {"head": "score"}, "training": {"class_weights": [1, 2]}},
            "training.class_weights: 2 weights for the 4 classes",
        ),
        (
            "length_of_stay",
            {"model": {"head": "score", "attn_implementation": "flex_attention"}},
            "flex_attention has no gradient on a CPU",
        ),
        ("length_of_stay", {"model": {"head": "score", "num_classes": 3}}, "3, but the task `length_of_stay` has 4"),
        ("length_of_stay", {"arm": "xgboost", "training": {"class_weights": "balanced"}}, "knows no class weights"),
    ],
)
def test_what_cannot_end_well_is_refused_before_anything_is_loaded(
    several: Path, base: Path, task: str, sections: dict, what: str
) -> None:
    settings = settings_for(several, task, Path("unused"), **{"arm": "llm", **sections})
    cohort = open_cohort(settings)
    with pytest.raises(InputError) as refused:
        refuse_unless_runnable(settings, cohort, open_lookups(settings, cohort))
    assert what in str(refused.value)


def test_a_class_that_no_train_row_has_is_refused(several: Path, tmp_path: Path) -> None:
    settings = settings_for(several, "length_of_stay", tmp_path, arm="xgboost")
    cohort = open_cohort(settings)
    is_long = (pl.col("split") == "train") & (pl.col("label") == ">2 weeks")
    object.__setattr__(cohort, "rows", cohort.rows.filter(~is_long))
    with pytest.raises(InputError, match="no train row has >2 weeks"):
        refuse_unless_runnable(settings, cohort, open_lookups(settings, cohort))
