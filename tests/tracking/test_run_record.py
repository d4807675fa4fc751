"""The record of a run: settings that define it, how it began and ended, and its metrics by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from epicrisis import __version__
from epicrisis.settings import settings_from
from epicrisis.tracking import open_run
from epicrisis.tracking.curves import by_step, draw_curves, metrics_history, plot_curve
from epicrisis.tracking.run_directory import RunDirectory
from epicrisis.tracking.run_record import PARAMETERS, SECTIONS, TRAINED, flat, hyperparameters, recording


def config(**keys: Any) -> dict[str, Any]:
    return settings_from({"stage": "classify", **keys}, check_files=False).resolved()


def opened(tmp_path: Path, **keys: Any) -> RunDirectory:
    data = {"meds_dir": "/data/demo", "labels_dir": "/data/demo/labels/cancer"}
    return open_run(tmp_path / "first", config(arm="xgboost", data=data), **keys)


def metadata(run: RunDirectory) -> dict[str, Any]:
    return json.loads(run.metadata.read_text())


def test_a_run_that_begins_says_what_it_is(tmp_path: Path) -> None:
    told = metadata(opened(tmp_path))
    assert told["experiment"] == "first"
    assert (told["dataset"], told["task"], told["arm"], told["stage"]) == ("demo", "cancer", "xgboost", "classify")
    assert (told["status"], told["ended"], told["seeds"]) == ("running", None, {"training": 0})
    assert told["version"] == __version__
    assert told["begun"].endswith("+00:00")
    assert len(told["attempts"]) == 1


def test_hyperparameters_are_those_that_the_arm_heeds() -> None:
    trees = hyperparameters(config(arm="xgboost", training={"seed": 3}))
    assert set(trees) == {"arm", "stage", "data", "tabular", "training"}
    assert trees["training"] == {"seed": 3}
    llm = hyperparameters(config(arm="llm"))
    assert set(llm) == {"arm", "stage", "data", "model", "narrative", "lora", "training", "survival"}
    assert "learning_rate" in llm["training"]
    assert not {"output_dir", "resume", "logging_steps"} & set(llm["training"])
    assert llm["data"] == {"cutoff_months": None, "control_index_dates": "matched"}


def test_every_arm_has_its_sections() -> None:
    from epicrisis.commands.arms import ARMS

    assert set(SECTIONS) == set(ARMS) - {"oracle"}
    known = set(config())
    assert {section for sections in SECTIONS.values() for section in sections} <= known


def test_a_benchmark_is_recorded_by_its_arms(tmp_path: Path) -> None:
    run = open_run(tmp_path, config(benchmark={"arms": [{"name": "LR"}, {"name": "Light"}]}))
    assert metadata(run)["arms"] == json.loads(run.hyperparameters.read_text())["arms"] == ["LR", "Light"]
    assert metadata(run)["arm"] is None


def test_a_config_without_anything_has_a_record_too(tmp_path: Path) -> None:
    run = open_run(tmp_path / "x", {})
    run.finish({}, "done")
    assert metadata(run)["status"] == "finished"


def test_a_finished_run_knows_its_times_task_and_rows(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.log(step=0, **{PARAMETERS: 12, TRAINED: 5})
    run.finish({"dataset": "demo", "task": "breast cancer", "rows_fingerprint": "ab12", "n": 3}, "a table")
    told = metadata(run)
    assert (told["status"], told["task"], told["rows_fingerprint"]) == ("finished", "breast cancer", "ab12")
    assert told["begun"] <= told["ended"]
    assert 0 <= told["duration_seconds"] < 60
    assert "n" not in told
    sizes = json.loads(run.hyperparameters.read_text())
    assert (sizes[PARAMETERS], sizes[TRAINED]) == (12, 5)


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("of a patient"), "failed"), (SystemExit(0), "stopped"), (KeyboardInterrupt(), "stopped")],
)
def test_a_run_that_breaks_off_says_how_and_not_why(tmp_path: Path, error: BaseException, status: str) -> None:
    run = opened(tmp_path)
    run.log(step=1, **{"eval/loss": 2.0})
    with pytest.raises(type(error)), recording(run):
        raise error
    assert metadata(run)["status"] == metadata(run)["attempts"][0]["status"] == status
    assert "patient" not in run.metadata.read_text()
    assert (run.plots / "loss_curve.png").is_file()
    assert not run.finished


def test_of_several_processes_one_writes(tmp_path: Path) -> None:
    run = opened(tmp_path)
    with recording(run, active=False):
        pass
    assert metadata(run)["status"] == "running"


def test_attempts_add_up_and_one_that_was_killed_ends_with_its_last_line(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.log(step=1, loss=1.0)
    again = opened(tmp_path, resume=True)
    with recording(again):
        again.finish({"task": "cancer"}, "done")
    killed, last = metadata(run)["attempts"]
    assert (killed["status"], last["status"]) == ("interrupted", "finished")
    assert killed["begun"] <= killed["ended"] <= last["ended"]
    assert metadata(run)["begun"] == killed["begun"]


def test_what_was_only_prepared_is_no_attempt_at_the_run(tmp_path: Path) -> None:
    run = opened(tmp_path)
    with recording(run, ends="prepared"):
        pass
    assert metadata(run)["status"] == "prepared"
    assert [attempt["status"] for attempt in metadata(opened(tmp_path))["attempts"]] == ["running"]


def test_judging_again_keeps_the_times(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.finish({"task": "cancer"}, "done")
    before = metadata(run)
    run.finish({"task": "another"}, "done again")
    assert metadata(run) == before | {"task": "another"}


def test_overwriting_begins_a_new_record(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.log(step=1, **{"eval/loss": 2.0})
    run.finish({"task": "another"}, "done")
    begun_again = opened(tmp_path, overwrite=True)
    assert len(metadata(begun_again)["attempts"]) == 1
    assert metadata(begun_again)["task"] == "cancer"
    assert not (run.path / "logs").exists()


HISTORY = [
    {"time": 1.0, "step": None, "event": "resumed", "arm": "llm", "done": True},
    {"time": 1.0, "step": 0, PARAMETERS: 12, TRAINED: 5},
    {"time": 1.0, "step": 2, "train/loss": 3.0},
    {"time": 1.0, "step": 2, "eval/loss": "NaN", "eval/auroc": 0.5},
    {"time": 1.0, "step": 4, "train/loss": 9.0, "eval/loss": 9.0},
    {"time": 1.0, "step": 5, "train/loss": 9.0},
    {"time": 1.0, "step": 3, "train/loss": 2.0},
    {"time": 1.0, "step": 4, "train/loss": 1.0},
    {"time": 1.0, "step": None, "tuning/auroc": 0.75},
]
"""A run that was taken up again after step 2 and has come to step 4."""


def test_metrics_by_step_hold_of_steps_taken_twice_the_last() -> None:
    steps = by_step(HISTORY)
    assert list(steps) == [2, 3, 4]
    assert steps[4] == {"train/loss": 1.0, "eval/loss": 9.0}
    told = metrics_history(HISTORY)
    assert told["step"] == [2, 3, 4]
    assert told["metrics"]["train/loss"] == [3.0, 2.0, 1.0]
    assert told["metrics"]["eval/auroc"] == [0.5, None, None]
    assert told["final"] == {"tuning/auroc": 0.75}


def test_the_history_is_written_as_valid_json(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.log(step=1, **{"train/loss": float("nan")})
    run.finish({}, "done")
    told = json.loads((run.path / "logs" / "metrics_history.json").read_text())
    assert told == {"step": [1], "metrics": {"train/loss": ["NaN"]}, "final": {}}


def test_each_watched_metric_has_a_curve(tmp_path: Path) -> None:
    assert set(draw_curves(HISTORY, tmp_path, "demo")) == {"loss", "auroc"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["auroc_curve.png", "loss_curve.png"]
    assert draw_curves([], tmp_path / "none", "demo") == {}


def test_a_curve_is_drawn_where_it_is_known() -> None:
    steps = {
        2: {"train/loss": 3.0},
        4: {"train/loss": float("nan"), "eval/loss": 2.5},
        6: {"train/loss": 2.0, "eval/loss": float("inf")},
    }
    train, tuning = plot_curve(steps, "loss", "demo").axes[0].lines
    assert train.get_xydata().tolist() == [[2, 3.0], [6, 2.0]]
    assert tuning.get_xydata().tolist() == [[4, 2.5]]


def test_nested_keys_are_told_with_dots() -> None:
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
