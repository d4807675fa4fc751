"""The search over trials that learn nothing: what is asked, told, stopped, resumed and ranked."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest
import yaml
from optuna.trial import TrialState

from epicrisis.settings import InputError
from epicrisis.tracking.sweeps.command_line import cores
from epicrisis.tracking.sweeps.ranking import gain, write_report
from epicrisis.tracking.sweeps.search import STUDY, Plan, only_search, refuse_another, search
from epicrisis.tracking.sweeps.study import ask, open_study, quiet_optuna
from epicrisis.tracking.sweeps.sweep_file import Sweep, read_sweep
from epicrisis.tracking.sweeps.trial_metrics import logged_values, value_of
from epicrisis.tracking.sweeps.trial_process import TrialProcess, end_orphans

HERE = Path(__file__).parent
TREE: dict[str, Any] = {
    "program": str(HERE / "fake_trial.py"),
    "method": "random",
    "metric": {"name": "eval/auroc", "goal": "maximize"},
    "parameters": {"training.learning_rate": {"min": 0.1, "max": 0.9}},
}


def sweep_of(folder: Path, **changes: Any) -> Sweep:
    file = folder / "fake.yaml"
    file.write_text(yaml.safe_dump({**TREE, **changes}, sort_keys=False))
    return read_sweep(file)


def searched(sweep: Sweep, folder: Path, count: int, **plan: Any) -> optuna.Study:
    made = Plan(folder / "out", count, **plan)
    with only_search(made.output_dir), quiet_optuna():
        refuse_another(sweep, made)
        study = open_study(sweep, made.output_dir / STUDY)
        search(sweep, made, study, lambda _: None)
    return study


def rates(study: optuna.Study) -> list[float]:
    return [trial.params["training.learning_rate"] for trial in study.get_trials()]


def test_each_trial_is_run_with_its_values_in_its_own_folder(tmp_path: Path) -> None:
    study = searched(sweep_of(tmp_path), tmp_path, 3, overrides=("steps=2",))
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 3
    assert [trial.value for trial in study.get_trials()] == pytest.approx(rates(study))
    assert len(set(rates(study))) == 3
    for number, rate in enumerate(rates(study)):
        folder = tmp_path / "out" / f"trial-{number:04d}"
        config = yaml.safe_load((folder / "config.yaml").read_text())["training"]
        assert (config["learning_rate"], config["output_dir"]) == (rate, str(folder))
        assert list(logged_values(folder, "eval/auroc")) == [10, 20]


def test_a_grid_ends_by_itself_and_begins_with_the_configs_own_values(tmp_path: Path) -> None:
    space = {"training.learning_rate": {"values": [0.1, 0.2, 0.3]}, "steps": {"min": 1, "max": 2}}
    sweep = sweep_of(tmp_path, method="grid", parameters=space)
    assert sweep.n_grid == 6
    study = searched(sweep, tmp_path, 6, jobs=3, default={"training.learning_rate": 0.2, "steps": 2})
    combinations = [(trial.params["training.learning_rate"], trial.params["steps"]) for trial in study.get_trials()]
    assert combinations == [(0.2, 2), (0.1, 1), (0.1, 2), (0.2, 1), (0.3, 1), (0.3, 2)]


@pytest.mark.parametrize(("method", "sampler"), [("random", "tpe"), ("bayes", "tpe"), ("bayes", "gp")])
def test_what_is_drawn_does_not_depend_on_interruptions(method: str, sampler: Any, tmp_path: Path) -> None:
    drawn = []
    for pieces in ((8,), (2, 5, 1)):
        sweep = sweep_of(tmp_path, method=method)
        file = tmp_path / f"{len(pieces)}.db"
        with quiet_optuna():
            for piece in pieces:
                study = open_study(sweep, file)
                for _ in range(piece):
                    trial, values = ask(study, sweep, sampler, 0, {"training.learning_rate": 0.25})
                    study.tell(trial, -((values["training.learning_rate"] - 0.7) ** 2))
        drawn.append(rates(study))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == 0.25, "the config's own value first"
    assert len(set(drawn[0])) == 8


def test_failing_trials_are_told_and_the_search_goes_on(tmp_path: Path) -> None:
    space = {"training.learning_rate": {"values": [0.1, 0.2]}, "fail": {"values": ["", "3"]}}
    sweep = sweep_of(tmp_path, method="grid", parameters=space)
    study = searched(sweep, tmp_path, 4)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]
    assert study.get_trials()[1].user_attrs["reason"] == "exit code 3: the disk is on fire"
    plan = Plan(tmp_path / "out", 4)
    report = write_report(study, sweep, plan, []).read_text()
    assert "* trial 3: exit code 3: the disk is on fire" in report
    assert "2 finished, 2 failed" in report
    assert "2 finished trials are fewer than 4" in report


@pytest.mark.parametrize(
    ("overrides", "told"), [(("fail=4",), "exit code 4"), (("diverge=1",), "no finite eval/auroc")]
)
def test_a_search_whose_first_trials_all_fail_says_why(overrides: tuple[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"the first 3 trials all failed, the last with {told}"):
        searched(sweep_of(tmp_path), tmp_path, 9, overrides=overrides)
    study = open_study(sweep_of(tmp_path), tmp_path / "out" / "study.db")
    assert len(study.get_trials()) == 3


def test_a_trial_that_does_badly_is_given_up(tmp_path: Path) -> None:
    space = {"training.learning_rate": {"values": [0.9, 0.8, 0.1, 0.2]}}
    early = {"type": "hyperband", "max_iter": 9, "s": 1, "eta": 3}
    sweep = sweep_of(tmp_path, method="grid", parameters=space, early_terminate=early)
    study = searched(sweep, tmp_path, 4, overrides=("steps=9", "pause=0.15"))
    states = [trial.state.name for trial in study.get_trials()]
    assert states[0] == "COMPLETE"
    assert "PRUNED" in states[1:]
    for trial in study.get_trials():
        folder = tmp_path / "out" / f"trial-{trial.number:04d}"
        n_logged, finished = len(logged_values(folder, "eval/auroc")), (folder / "summary.json").exists()
        assert finished == (trial.state == TrialState.COMPLETE)
        if not finished:
            assert max(trial.intermediate_values) <= n_logged < 9
            assert trial.user_attrs["value"] == pytest.approx(max(logged_values(folder, "eval/auroc").values()))


def start(folder: Path, *arguments: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(HERE / "search_run.py"), str(folder / "fake.yaml"), *map(str, arguments)]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL)


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(3000):
        if file.exists():
            return
        assert process.poll() is None
        time.sleep(0.02)
    raise TimeoutError(file)


def test_a_killed_search_goes_on_without_losing_or_repeating_a_trial(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    slow = ("steps=4", "pause=0.15")
    process = start(tmp_path, tmp_path / "out", 6, 2, *slow)
    wait_for(tmp_path / "out" / "trial-0003" / "begun.txt", process)
    time.sleep(random.random() * 0.4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = open_study(sweep, tmp_path / "out" / "study.db").get_trials()
    done = [trial for trial in before if trial.state == TrialState.COMPLETE]
    assert 2 <= len(done) < len(before), "some have ended, some are cut off"
    assert (tmp_path / "out" / "ranking.csv").is_file()

    study = searched(sweep, tmp_path, 6, jobs=2, overrides=slow)
    after = study.get_trials()
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 6
    assert after[: len(done)] == done
    assert [trial.params for trial in after[: len(before)]] == [trial.params for trial in before]
    for trial in after:
        folder = tmp_path / "out" / f"trial-{trial.number:04d}"
        begun = (folder / "begun.txt").read_text().split()
        assert len(begun) <= 2
        assert begun[1:] == ["true"] * (len(begun) - 1), "a second time it is resumed"
        if trial in done:
            assert begun == ["false"]
        assert list(logged_values(folder, "eval/auroc")) == [10, 20, 30, 40], "each evaluation once"


def test_two_searches_of_one_folder_exclude_each_other(tmp_path: Path) -> None:
    with only_search(tmp_path), pytest.raises(InputError, match="another process searches"), only_search(tmp_path):
        pass
    with only_search(tmp_path):
        pass


def test_ctrl_c_has_trials_save_their_state_and_go_on_later(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    slow = ("steps=20", "pause=0.1")
    process = start(tmp_path, tmp_path / "out", 1, 1, *slow)
    wait_for(tmp_path / "out" / "trial-0000" / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    (trial,) = open_study(sweep, tmp_path / "out" / "study.db").get_trials()
    assert trial.state == TrialState.RUNNING
    study = searched(sweep, tmp_path, 1, overrides=slow)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"]
    assert (tmp_path / "out" / "trial-0000" / "begun.txt").read_text().split() == ["false", "true"]


def test_a_folder_with_another_sweep_is_refused(tmp_path: Path) -> None:
    searched(sweep_of(tmp_path), tmp_path, 1)
    searched(sweep_of(tmp_path, run_cap=9), tmp_path, 2)
    with pytest.raises(InputError, match="holds trials of another sweep: space, overrides differs"):
        searched(
            sweep_of(tmp_path, parameters={"training.learning_rate": {"min": 0.1, "max": 0.5}}),
            *(tmp_path, 3),
            overrides=("steps=1",),
        )


def test_processes_that_outlive_a_search_are_found_by_their_folder(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    environment = {**os.environ, "EPICRISIS_TRIAL": str(tmp_path / "one")}
    trial = TrialProcess(words, tmp_path / "one", environment)
    other = TrialProcess(words, tmp_path / "two", {**os.environ, "EPICRISIS_TRIAL": str(tmp_path / "two")})
    try:
        assert end_orphans(tmp_path / "one") == 1
        assert trial.exit_code is not None
        assert other.exit_code is None
    finally:
        other.kill()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps no process to cores")
def test_trials_at_the_same_time_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = sorted(os.sched_getaffinity(0))
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    trial = TrialProcess(words, tmp_path, dict(os.environ), ours[-1:])
    try:
        assert os.sched_getaffinity(trial._process.pid) == {ours[-1]}
    finally:
        trial.kill()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 4})
    assert [cores(slot, 2) for slot in range(2)] == [[0, 2, 4], [1, 3]]
    assert cores(6, 7) == cores(0, 1) == [0, 1, 2, 3, 4]


def test_a_value_is_the_best_evaluation_or_the_last_of_anything_else(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "eval/loss": 0.5, "tuning/auroc": 0.9}\n{"step": 2, "eval/loss": 0.3}\n'
        '{"step": 2, "eval/loss": 0.4, "tuning/auroc": 0.8}\n{"step": 3, "eval/loss": "NaN"}\n{"step": 4, "eval/lo'
    )
    assert value_of(tmp_path, "eval/loss", "minimize") == 0.4
    assert value_of(tmp_path, "eval/loss", "maximize") == 0.5
    assert value_of(tmp_path, "tuning/auroc", "maximize") == 0.8
    assert value_of(tmp_path, "tuning/brier", "minimize") is None


def test_the_report_ranks_draws_and_says_what_was_gained(tmp_path: Path) -> None:
    space = {**TREE["parameters"], "steps": {"values": [1, 2]}}
    sweep = sweep_of(tmp_path, parameters=space)
    plan = Plan(tmp_path / "out", 5, default={"training.learning_rate": 0.2, "steps": 1})
    study = searched(sweep, tmp_path, 5, default=plan.default)
    report = write_report(study, sweep, plan, ["one thing is odd"]).read_text()
    table = pl.read_csv(tmp_path / "out" / "ranking.csv")
    assert table["value"].to_list() == sorted(table["value"].to_list(), reverse=True)
    assert table.columns == ["rank", "trial", "value", "state", "seconds", *space, "run", "reason"]
    best = table["value"][0]
    assert (
        gain(study, sweep, plan)
        == f"default 0.2000 (trial 0) → best eval/auroc {best:.4f} (trial {table['trial'][0]}): {best - 0.2:+.4f}"
    )
    assert "Note: one thing is odd." in report
    for name in ("importance", "parallel_coordinates"):
        assert f"(plots/{name}.png)" in report
        assert (tmp_path / "out" / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    config = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())["training"]
    assert config["output_dir"] == str(tmp_path / "out" / "best")
    assert config["resume"] is False
    assert config["learning_rate"] == pytest.approx(best)
