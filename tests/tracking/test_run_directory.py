"""The run directory: complete, repeatable, refused when finished, and free of patients."""

import getpass
import json
import platform
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from epicrisis.settings.problems import InputError
from epicrisis.tracking import RunDirectory, open_run, replacing

CONFIG = {"training": {"seed": 1, "output_dir": Path("runs/x")}, "lora": {"target": ("q", "v")}}


def test_the_layout(tmp_path: Path) -> None:
    run = open_run(tmp_path / "runs" / "x", CONFIG)
    assert sorted(str(p.relative_to(run.path)) for p in run.path.rglob("*")) == [
        "adapters",
        "adapters/clinical",
        "adapters/downstream",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "hyperparameters.json",
        "metadata.json",
        "plots",
        "predictions",
    ]
    assert run.config.read_text() == "training:\n  seed: 1\n  output_dir: runs/x\nlora:\n  target:\n  - q\n  - v\n"
    assert run.predictions("held_out", "fused") == run.path / "predictions" / "fused" / "held_out.parquet"
    assert not run.finished


def test_the_environment_names_versions_but_no_host_user_or_path(tmp_path: Path) -> None:
    text = open_run(tmp_path, CONFIG).environment.read_text()
    known = json.loads(text)
    assert known["packages"]["polars"] == pl.__version__
    assert known["cpu_count"] >= 1
    assert known["memory_gib"] > 0
    assert isinstance(known["gpus"], list)
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text
    assert f'"{getpass.getuser()}"' not in text


def test_a_log_line_has_step_and_time_and_valid_json(tmp_path: Path) -> None:
    run = open_run(tmp_path, CONFIG)
    run.log(step=3, loss=np.float32(0.5), lr=1e-4)
    run.log(loss=float("nan"))
    first, second = run.history()
    assert first["step"] == 3
    assert first["loss"] == 0.5
    assert first["time"] > 1.7e9
    assert second["step"] is None
    assert second["loss"] == "NaN"


@pytest.mark.parametrize("field", ["subject_id", "narrative", "prediction_time"])
def test_nothing_of_a_patient_is_logged(tmp_path: Path, field: str) -> None:
    run = open_run(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="patient-level"):
        run.log(**{field: 1})
    with pytest.raises(ValueError, match="arrays or tables"):
        run.log(scores=np.zeros(3))
    assert run.history() == []


def test_a_finished_run_is_refused_resumed_or_replaced(tmp_path: Path) -> None:
    run = open_run(tmp_path / "x", CONFIG)
    run.log(step=1, loss=2.0)
    (run.path / "narratives").mkdir()
    run.finish({"auroc": 0.7}, "a table")
    with pytest.raises(InputError, match="holds a finished run"):
        open_run(run.path, CONFIG)
    with pytest.raises(InputError, match="exclude each other"):
        open_run(run.path, CONFIG, overwrite=True, resume=True)
    resumed = open_run(run.path, {**CONFIG, "training": {"seed": 2, "output_dir": Path("runs/x")}}, resume=True)
    assert resumed.finished
    assert resumed.history()[-1]["changed_settings"] == ["training.seed"]
    replaced = open_run(run.path, CONFIG, overwrite=True)
    assert not replaced.finished
    assert replaced.history() == []
    assert (run.path / "narratives").is_dir()


def test_a_folder_that_is_no_run_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "mine.png").write_text("x")
    open_run(tmp_path, CONFIG, overwrite=True)
    assert (tmp_path / "plots" / "mine.png").is_file()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        open_run(tmp_path / "x", CONFIG)


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_making_the_object_touches_nothing(tmp_path: Path) -> None:
    assert not RunDirectory(tmp_path / "x").finished
    assert not (tmp_path / "x").exists()
