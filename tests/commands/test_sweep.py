"""Sweeps over real runs: the shipped files, a killed search, a W&B agent, and two processes in one trial."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from epicrisis.commands import main
from epicrisis.settings import load_settings
from epicrisis.settings.watched import logged_metrics
from epicrisis.tracking.sweeps.search import Plan, search
from epicrisis.tracking.sweeps.study import open_study
from epicrisis.tracking.sweeps.sweep_file import read_sweep
from tests.commands.conftest import QUESTION, TABULAR, data_keys
from tests.tracking.wandb_server import ENTITY, PROJECT, SWEEP, WandbServer, serving

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
TINY = ["training.max_steps=2", "training.eval_steps=1", "evaluation.bootstrap_resamples=100", "data.oracle_dir=null"]
TRAIN = {
    "program": str(ROOT / "scripts" / "train.py"),
    "command": ["${env}", "${interpreter}", "${program}", "${args}"],
    "metric": {"name": "tuning/auroc", "goal": "maximize"},
}
FIXED = {"arm": {"value": "logistic_regression"}, "stage": {"value": "classify"}}


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shipped files name configs and scripts as seen from the repository's root."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def clinical(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining of two steps, whose adapter a fused trial lies over."""
    folder = tmp_path_factory.mktemp("clinical") / "run"
    keys = [*data_keys(dataset), f"model.model_name={base}", "model.max_length=256", f"model.question={QUESTION}"]
    steps = ["stage=pretrain", "training.max_steps=2", "training.bf16=false"]
    assert main(["train", *keys, *steps, f"training.output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="session")
def body(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining of two steps of the model of codes that the demo classifies with."""
    folder = tmp_path_factory.mktemp("body") / "run"
    given = ["--config_filepath", str(ROOT / "configs" / "structured" / "demo_pretrain.yaml"), *data_keys(dataset)]
    assert main(["train", *given, "training.max_steps=2", f"training.output_dir={folder}"]) == 0
    return folder


@pytest.fixture
def overrides(dataset: Path, base: Path, clinical: Path, body: Path, request: Any) -> list[str]:
    """What makes a trial of a shipped file tiny, and gives it the test's data and models."""
    of_base = [f"model.model_name={base}", "model.max_length=256"]
    own = {
        "pretrain": [*of_base, "training.bf16=false"],
        "fused": [*of_base, f"model.question={QUESTION}", f"model.clinical_adapter={clinical}"],
        "encoder": ["model.max_length=64"],
        "structured": [f"structured.pretrained={body}"],
        "tabular": [],
    }
    searched = yaml.safe_load((ROOT / "sweeps" / f"{request.param}.yaml").read_text())["parameters"]
    tiny = [] if request.param == "tabular" else TINY[:2]
    return [*own[request.param], *data_keys(dataset), *(key for key in tiny if key not in searched), *TINY[2:]]


def test_a_sweep_is_shipped_for_every_kind_of_model() -> None:
    assert SHIPPED == ["encoder", "fused", "pretrain", "structured", "tabular"]
    for name in SHIPPED:
        parameters = yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())["parameters"]
        assert any(
            "learning_rate" in key for key in (*parameters, *parameters.get("tabular", {}).get("parameters", []))
        )


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize(("name", "overrides"), [(name, name) for name in SHIPPED], indirect=["overrides"])
def test_a_shipped_sweep_is_sound_and_its_trial_runs(
    name: str, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = f"sweeps/{name}.yaml"
    assert main(["check", "--config_filepath", file, *overrides]) == 0
    told = capsys.readouterr().out
    assert "sweep is sound: bayes" in told
    assert "the first trial has the config's own values" in told
    assert list(tmp_path.iterdir()) == []

    place = tmp_path / "sweep"
    assert main(["sweep", file, "--count", "1", "--output_dir", str(place), *overrides]) == 0, capsys.readouterr().err
    table = pl.read_csv(place / "ranking.csv")
    assert table["state"].to_list() == ["finished"], table["reason"].to_list()
    run = place / "trial-0000"
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    settings = load_settings(run / "config.yaml", check_files=False)
    if name == "fused":
        assert (run / "adapters" / "clinical").is_dir()
        assert resolved["model"]["clinical_adapter"] is not None
    logged = {key for line in (run / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    of_runs = {key for key in logged if key.partition("/")[0] in ("train", "eval", "tuning")}
    assert of_runs == set(logged_metrics(settings, "binary")), "what is said to be logged is what is logged"


@pytest.fixture
def sweep_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep of scripts/train.py into the test's folder."""

    def write(parameters: dict[str, Any], **changes: Any) -> Path:
        file = tmp_path / "own.yaml"
        file.write_text(
            yaml.safe_dump({**TRAIN, "method": "grid", "parameters": parameters, **changes}, sort_keys=False)
        )
        return file

    return write


def test_a_killed_sweep_ends_as_it_would_have_and_its_best_config_runs(
    dataset: Path, tmp_path: Path, sweep_file: Callable[..., Path]
) -> None:
    file = sweep_file({"tabular.min_subjects": {"values": [3, 5]}, **FIXED})
    place = tmp_path / "sweep"
    given = ["sweep", str(file), "--output_dir", str(place), *data_keys(dataset), TABULAR[1]]
    code = "import sys; from epicrisis.commands import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *given], stderr=subprocess.PIPE, text=True)
    for _ in range(6000):
        if (place / "trial-0001" / "config.yaml").exists():
            break
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = place / "trial-0000"
    kept = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    assert main(given) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    table = pl.read_csv(place / "ranking.csv")
    assert table["state"].to_list() == ["finished"] * 2
    assert sorted(table["tabular.min_subjects"].to_list()) == [3, 5]
    assert table.filter(trial=0)["tabular.min_subjects"].item() == 5, "the config's own value first"
    assert main(["train", "--config_filepath", str(place / "best.yaml")]) == 0
    best, trial = (json.loads((place / name / "summary.json").read_text()) for name in ("best", _best(table)))
    assert best["metrics"] == trial["metrics"]


def _best(table: pl.DataFrame) -> str:
    return Path(table["run"][0]).name


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--count", "0"], "--count: is 0"),
        ([], "--count: is not given, and method random has no end"),
        (["--count", "1", "training.seed=3"], "training.seed: is searched"),
        (["--count", "1", "training.class_weights=balanced"], "training.class_weights: the arm logistic_regression"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(
    given: list[str],
    told: str,
    dataset: Path,
    tmp_path: Path,
    sweep_file: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = sweep_file({"training.seed": {"min": 0, "max": 9}, **FIXED}, method="random")
    place = tmp_path / "sweep"
    assert main(["sweep", str(file), "--output_dir", str(place), *data_keys(dataset), *given]) == 2
    assert told in capsys.readouterr().err
    assert not place.exists()


def test_a_value_that_only_the_arm_refuses_is_told_too(
    dataset: Path, sweep_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"tabular.learning_rate": {"values": [0.05, 0.1]}, **FIXED}
    assert main(["check", "--config_filepath", str(sweep_file(space)), *data_keys(dataset)]) == 2
    told = capsys.readouterr().err
    assert "tabular.learning_rate=0.1: tabular.learning_rate: the arm logistic_regression has none" in told
    assert told.count("\n- ") == 1


def test_a_wandb_agent_gives_each_trial_its_values(
    dataset: Path, tmp_path: Path, sweep_file: Callable[..., Path]
) -> None:
    """`wandb sweep` and `wandb agent` themselves, against a stand-in for W&B's server."""
    space = {"tabular": {"parameters": {"min_subjects": {"values": [3, 7]}, "value_features": {"values": [["max"]]}}}}
    data = dict(key.split("=") for key in data_keys(dataset))
    fixed = {**data, "training.output_dir": str(tmp_path / "runs"), "evaluation.bootstrap_resamples": 100}
    sweep = sweep_file({**space, **FIXED, **{key: {"value": value} for key, value in fixed.items()}})
    drawn = {"tabular": {"min_subjects": 7, "value_features": ["last", "max"]}}
    run = {**{key: own["value"] for key, own in FIXED.items()}, **fixed, **drawn}
    with serving(WandbServer(TRAIN["program"], {"run1": run})) as server:
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}
        environment |= {
            "WANDB_DIR": str(tmp_path),
            "WANDB_ENTITY": ENTITY,
            "WANDB_PROJECT": PROJECT,
            "HOME": str(tmp_path),
        }
        environment |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
        for words in (["sweep", str(sweep)], ["agent", f"{ENTITY}/{PROJECT}/{SWEEP}"]):
            ended = subprocess.run(
                [sys.executable, "-m", "wandb", *words],
                **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": False},
            )
            assert ended.returncode == 0, ended.stderr
    assert yaml.safe_load(server.config)["parameters"]["tabular"]["parameters"]["min_subjects"] == {"values": [3, 7]}
    place = tmp_path / "runs" / "run1"
    assert (place / "summary.json").is_file(), ended.stderr
    resolved = yaml.safe_load((place / "config.yaml").read_text())
    assert resolved["arm"] == "logistic_regression"
    assert resolved["tabular"]["min_subjects"] == 7
    assert resolved["tabular"]["value_features"] == ["last", "max"]


RANKS = """
import os, sys
from pathlib import Path
from epicrisis.settings import load_settings
settings = load_settings(None, sys.argv[1:])
place = settings.training.output_dir
place.mkdir(parents=True, exist_ok=True)
(place / f"rank-{os.environ['RANK']}").write_text(str(settings.training.learning_rate))
(place / "metrics.jsonl").write_text('{"step": 1, "eval/auroc": 0.5}\\n')
(place / "config.yaml").write_text("training: {}\\n")
(place / "summary.json").write_text("{}")
"""


def test_every_process_of_a_launched_trial_gets_the_same_values(tmp_path: Path) -> None:
    program = tmp_path / "ranks.py"
    program.write_text(RANKS)
    launch = ["accelerate", "launch", "--config_file", str(ROOT / "configs" / "accelerate" / "cpu_two_processes.yaml")]
    tree = {
        **{"program": str(program), "command": [*launch, "${program}", "${args}"], "method": "random"},
        **{"metric": {"name": "eval/auroc", "goal": "maximize"}},
        **{"parameters": {"training.learning_rate": {"min": 0.1, "max": 0.9}}},
    }
    (tmp_path / "ranks.yaml").write_text(yaml.safe_dump(tree))
    sweep = read_sweep(tmp_path / "ranks.yaml")
    (tmp_path / "out").mkdir()
    study = open_study(sweep, tmp_path / "out" / "study.db")
    search(sweep, Plan(tmp_path / "out", 1), study, lambda _: None)
    rate = study.best_trial.params["training.learning_rate"]
    found = [(tmp_path / "out" / "trial-0000" / f"rank-{rank}").read_text() for rank in (0, 1)]
    assert found == [str(rate)] * 2
