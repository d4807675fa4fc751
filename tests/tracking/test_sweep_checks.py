"""Before the first trial: every value is one that a config could have, and the metric one that trials log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from epicrisis.settings import InputError, settings_from
from epicrisis.settings.watched import higher_is_better, logged_metrics
from epicrisis.tracking.sweeps.checks import Checked, check_sweep
from epicrisis.tracking.sweeps.sweep_file import read_sweep
from tests.tracking.test_sweep_file import TREE

CONFIG = {"arm": "structured", "stage": "classify", "structured": {"size": "demo"}, "training": {"learning_rate": 1e-3}}


def checked(folder: Path, *overrides: str, config: dict[str, Any] = CONFIG, **changes: Any) -> Checked:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["${interpreter}", "${program}", "--config_filepath", str(folder / "config.yaml"), "${args}"]
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**TREE, "command": command, **changes}, sort_keys=False))
    return check_sweep(read_sweep(file), overrides)


def problems(folder: Path, *overrides: str, **changes: Any) -> list[str]:
    with pytest.raises(InputError) as raised:
        checked(folder, *overrides, **changes)
    return [str(problem) for problem in raised.value.problems]


RATE = {"training.learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}}


def test_a_sound_sweep_knows_the_configs_own_values(tmp_path: Path) -> None:
    space = {**RATE, "training.weight_decay": {"values": [0.0, 0.1]}, "training.max_steps": {"value": 4}}
    found = checked(tmp_path, "training.seed=7", parameters=space)
    assert found.default == {"training.learning_rate": 1e-3, "training.weight_decay": 0.0}
    assert (found.settings.training.max_steps, found.settings.training.seed) == (4, 7)
    assert sorted(found.candidates) == [
        "training.learning_rate=0.0001",
        "training.learning_rate=0.01",
        "training.weight_decay=0.0",
        "training.weight_decay=0.1",
    ]


def test_a_value_that_the_config_has_outside_of_the_space_is_named(tmp_path: Path) -> None:
    found = checked(tmp_path, parameters={**RATE, "training.weight_decay": {"values": [0.1, 0.2]}})
    assert found.default is None
    assert found.outside == ("training.weight_decay",)


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"training.learning_rat": {"min": 0.1, "max": 0.2}}, "is no key of a config\n    fix: did you mean"),
        ({"nonsense.key": {"values": [1, 2]}}, "parameters.nonsense.key: is no key of a config"),
        ({"training.learning_rate": {"min": -1.0, "max": 0.2}}, "parameters.training.learning_rate = -1.0: training."),
        ({"training.lr_scheduler_type": {"values": ["cosine", "step"]}}, "= step: training.lr_scheduler_type: input"),
        ({"structured.architecture": {"values": ["gpt2", "lstm"]}, **RATE}, ""),
        ({"structured.dropout": {"min": 0.0, "max": 1.0}}, "parameters.structured.dropout = 1.0"),
        ({"training.output_dir": {"values": ["a", "b"]}}, "each trial has its own run directory"),
        ({"training.resume": {"values": [True, False]}}, "not to be searched: the search says which trials go on"),
        ({"data.cutoff_months": {"values": [0, 12]}}, "decides which rows are learnt from"),
        ({"wandb.project": {"values": ["a", "b"]}}, "changes nothing of what a trial learns"),
        ({"stage": {"values": ["pretrain", "classify"]}}, "stages log different metrics"),
        ({**RATE, "training.output_dir": {"value": "x"}}, "is not to be set here"),
    ],
)
def test_values_that_no_config_could_have_are_told_one_by_one(space: dict[str, Any], told: str, tmp_path: Path) -> None:
    if not told:
        checked(tmp_path, parameters=space)
        return
    (problem,) = problems(tmp_path, parameters=space)
    assert told in problem


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    space = {"training.learning_rate": {"min": -1.0, "max": 0.0}, "training.batch_size": {"values": [0, 8, "many"]}}
    found = problems(tmp_path, parameters=space, metric={"name": "held_out/auroc"})
    assert [line.partition(":")[0] for line in found] == [
        "parameters.training.learning_rate = -1.0",
        "parameters.training.learning_rate = 0.0",
        "parameters.training.batch_size = 0",
        "parameters.training.batch_size = many",
        "metric.name",
    ]
    assert "choosing by them is leakage" in found[-1]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.learning_rate=0.1", "is searched, and an override would take its place"),
        ("--training.output_dir=runs/x", "--output_dir is the sweep's folder"),
        ("training.epochs=-1", "config.yaml: training.epochs: input should be greater than 0"),
    ],
)
def test_overrides_that_defeat_the_search_are_refused(override: str, told: str, tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, override, parameters=RATE)
    assert told in problem


@pytest.mark.parametrize(
    ("metric", "space", "told"),
    [
        ("eval/auroca", RATE, "did you mean eval/auroc?"),
        ("auroc", RATE, "is not logged by the arm structured, stage classify"),
        ("eval/answer_mass", RATE, "it logs train/loss"),
        ("held_out/brier", RATE, "leakage"),
        (
            "eval/auroc",
            {"arm": {"values": ["structured", "xgboost"]}},
            "by the arm xgboost, stage classify (arm=xgboost)",
        ),
    ],
)
def test_a_metric_that_no_trial_would_log_is_refused(
    metric: str, space: dict[str, Any], told: str, tmp_path: Path
) -> None:
    (problem,) = problems(tmp_path, parameters=space, metric={"name": metric, "goal": "maximize"})
    assert told in problem


def test_nothing_is_stopped_early_by_a_number_of_the_end(tmp_path: Path) -> None:
    early = {"type": "hyperband", "min_iter": 1}
    (problem,) = problems(tmp_path, metric={"name": "tuning/auroc"}, early_terminate=early, parameters=RATE)
    assert problem.startswith("early_terminate: tuning/auroc is known when a trial has ended")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metric": {"name": "eval/auroc"}}, "metric.goal is minimize, and of eval/auroc more is better"),
        ({"metric": {"name": "tuning/brier", "goal": "maximize"}}, "of tuning/brier less is better"),
        ({}, "training.metric_for_best=auroc would keep those"),
        ({"parameters": {"training.batch_size": {"values": [1, None]}}}, None),
    ],
)
def test_what_is_likely_meant_otherwise_is_said(changes: dict[str, Any], told: str | None, tmp_path: Path) -> None:
    if told is None:
        assert "batch_size = null" in problems(tmp_path, **changes)[0]
        return
    found = checked(tmp_path, **{"parameters": RATE, **changes})
    assert any(told in warning for warning in found.warnings), found.warnings


def test_a_sweep_that_is_meant_so_is_told_nothing(tmp_path: Path) -> None:
    space = {**RATE, "training.metric_for_best": {"value": "auroc"}}
    assert checked(tmp_path, parameters=space).warnings == ()


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        *[("eval/auroc", True), ("tuning/brier@365", False), ("tuning/auroc:stroke: left@home", True)],
        *[("tuning/auprc_weighted", True), ("eval/loss", False), ("tuning/ibs", False), ("train/seconds_left", None)],
    ],
)
def test_the_better_way_is_known_of_every_kind_of_name(metric: str, higher: bool | None) -> None:
    assert higher_is_better(metric) is higher


def test_metrics_are_of_the_arm_the_stage_and_the_task() -> None:
    llm = settings_from({"arm": "llm", "stage": "classify", "model": {"answer_mass": True}})
    assert {"eval/loss", "eval/auroc", "eval/answer_mass", "tuning/brier"} <= set(logged_metrics(llm, "binary"))
    assert "eval/c_index" not in logged_metrics(llm, "binary")
    assert "eval/auroc" not in logged_metrics(llm, "survival")
    assert "tuning/brier@365" in logged_metrics(llm, "survival")
    assert "tuning/auroc:b" in logged_metrics(llm, "multiclass", ("a", "b"))
    trees = settings_from({"arm": "xgboost", "stage": "classify"})
    assert not [name for name in logged_metrics(trees) if not name.startswith("tuning/")]
    assert not [name for name in logged_metrics(llm) if name.startswith("held_out/")]
