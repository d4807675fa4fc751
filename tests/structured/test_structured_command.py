"""From a cohort to predictions by the command line alone."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from epicrisis.commands import main
from epicrisis.events.synthetic import synthesize

MODEL = ["arm=structured", "structured.architecture=gpt2", "structured.size=demo", "structured.context=48"]
QUICK = ["structured.tokens_per_batch=512", "training.learning_rate=3e-3", "training.bf16=false"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command") / "synthetic"
    synthesize(folder, 80, seed=1)
    return folder


def test_pretrain_classify_and_predict(data: Path, tmp_path: Path) -> None:
    pretrained, run = tmp_path / "pretrained", tmp_path / "run"
    keys = [*MODEL, *QUICK, f"data.meds_dir={data}", f"data.labels_dir={data / 'labels' / 'cancer'}"]
    first = ["stage=pretrain", "training.max_steps=6", "structured.checkpoint_tokens=[1000]"]
    assert main(["train", *keys, *first, f"training.output_dir={pretrained}"]) == 0
    summary = json.loads((pretrained / "summary.json").read_text())
    assert summary["loss"] < summary["loss_before"]
    assert (pretrained / "plots" / "loss_curve.png").is_file()
    for folder in (pretrained / "model", pretrained / "snapshots" / "1000"):
        assert {"config.json", "model.safetensors", "tokenizer"} == {path.name for path in folder.iterdir()}
    second = ["stage=classify", "training.max_steps=4", f"structured.pretrained={pretrained / 'snapshots' / '1000'}"]
    judged = [*second, "evaluation.bootstrap_resamples=100", f"training.output_dir={run}"]
    assert main(["train", *keys, *judged]) == 0
    again = ["predict", "--config_filepath", str(run / "config.yaml"), f"evaluation.predictions_dir={tmp_path}"]
    assert main(again) == 0
    before, after = (pl.read_parquet(f / "held_out.parquet") for f in (run / "predictions", tmp_path))
    score = "predicted_boolean_probability"
    assert before.drop(score).equals(after.drop(score))
    assert (before[score] - after[score]).abs().max() < 1e-6
    assert not [path for path in run.rglob("*") if path.suffix in (".pkl", ".pickle", ".bin")]


def test_tokens_that_are_never_reached_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*MODEL, *QUICK, "stage=pretrain", "training.max_steps=1", "structured.checkpoint_tokens=[100000]"]
    assert main(["train", *keys, f"data.meds_dir={data}", f"training.output_dir={tmp_path / 'run'}"]) == 2
    assert "are never reached" in capsys.readouterr().err
