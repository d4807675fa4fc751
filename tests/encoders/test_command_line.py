"""The arms from the command line: train, predict in a fresh process, resume, pretraining before classification."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from epicrisis.commands import main

ARMS = ("encoder", "frozen_encoder", "event_encoder")


@pytest.fixture
def command(dataset: Path, bert: Path, tmp_path: Path):
    """command("train", arm, *overrides) → the exit code of a run of a few seconds in tmp_path/run."""

    def keys(arm: str, *overrides: str) -> list[str]:
        return [
            *(f"arm={arm}", "stage=classify", f"model.model_name={bert}", "model.max_length=160"),
            *(f"data.meds_dir={dataset}", f"data.labels_dir={dataset / 'labels' / 'cancer'}"),
            *("training.batch_size=8", "training.learning_rate=1e-3", "training.epochs=2", "training.bf16=false"),
            "data.icd10cm=false",
            *("encoder.width=16", "encoder.layers=1", "encoder.heads=2", "evaluation.bootstrap_resamples=100"),
            *(f"training.output_dir={tmp_path / 'run'}", *overrides),
        ]

    def run(name: str, arm: str, *overrides: str) -> int:
        return main([name, *keys(arm, *overrides)])

    run.keys = keys  # type: ignore[attr-defined]
    return run


def test_a_run_is_trained_judged_and_predicts_the_same_in_a_fresh_process(command, tmp_path) -> None:
    assert command("train", "encoder", "encoder.finetune=lora", "training.metric_for_best=auroc") == 0
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text())
    results = pl.read_csv(run / "results.csv")
    assert results.filter(pl.col("arm").is_in(["encoder"]), metric="auroc").height == 1
    again = ["predict", "--config_filepath", str(run / "config.yaml"), f"evaluation.predictions_dir={tmp_path / 'new'}"]
    code = "import sys; from epicrisis.commands import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, *again], check=True)
    first, second = (pl.read_parquet(folder / "held_out.parquet") for folder in (run / "predictions", tmp_path / "new"))
    assert first.equals(second)


def test_a_resumed_run_is_the_uninterrupted_one(command, tmp_path) -> None:
    assert command("train", "encoder", "training.save_steps=2", "encoder.dropout=0.3") == 0
    whole = pl.read_parquet(tmp_path / "run" / "predictions" / "held_out.parquet")
    half = f"training.output_dir={tmp_path / 'half'}"
    options = ("training.save_steps=2", "encoder.dropout=0.3", half)
    assert command("train", "encoder", *options) == 0
    steps = sorted((tmp_path / "half" / "checkpoints").glob("step-*"))
    assert len(steps) == 2
    import shutil

    shutil.rmtree(steps[-1])
    (tmp_path / "half" / "summary.json").unlink()
    assert command("train", "encoder", *options, "training.resume=true") == 0
    assert pl.read_parquet(tmp_path / "half" / "predictions" / "held_out.parquet").equals(whole)
    assert any(line.get("event") == "resumed" for line in _log(tmp_path / "half"))


def test_events_are_pretrained_and_then_classified(command, tmp_path) -> None:
    place = tmp_path / "pretrained"
    shape = ("encoder.event_model=decoder",)
    assert command("train", "event_encoder", *shape, "stage=pretrain", f"training.output_dir={place}") == 0
    summary = json.loads((place / "summary.json").read_text())
    assert summary["loss"] < summary["loss_before"]
    assert command("train", "event_encoder", *shape, f"encoder.pretrained={place}") == 0
    assert (tmp_path / "run" / "predictions" / "held_out.parquet").is_file()


def test_a_frozen_encoder_is_trained_and_what_does_not_fit_is_refused(command, capsys, tmp_path) -> None:
    assert command("train", "frozen_encoder") == 0
    assert (tmp_path / "run" / "adapters" / "head.safetensors").is_file()
    assert command("train", "frozen_encoder", "encoder.finetune=lora") == 2
    assert "encoder.finetune: the text encoder of `frozen_encoder` is frozen" in capsys.readouterr().err


def _log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
