"""`epicrisis fuse` on finished runs, what `predict` makes of it, and pretraining and classifying without LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from epicrisis.commands import main
from tests.commands.conftest import QUESTION, data_keys

SCORE = "predicted_boolean_probability"


def keys_for(dataset: Path, base: Path) -> list[str]:
    return [
        *data_keys(dataset),
        f"model.model_name={base}",
        f"model.question={QUESTION}",
        "model.max_length=192",
        "evaluation.bootstrap_resamples=100",
        "training.max_steps=3",
        "training.batch_size=4",
        "training.bf16=false",
        "training.learning_rate=2e-2",
        "lora.r=4",
    ]


@pytest.fixture(scope="module")
def run(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A finished run with a clinical and a downstream adapter and a score head: its keys, its folder."""
    folder = tmp_path_factory.mktemp("two_steps")
    keys = keys_for(dataset, base)
    assert main(["train", *keys, "stage=pretrain", f"training.output_dir={folder / 'clinical'}"]) == 0
    keys += ["stage=classify", "model.head=score", f"model.clinical_adapter={folder / 'clinical'}"]
    keys += [f"training.output_dir={folder / 'run'}", "lora.use_rslora=true", "lora.r=3"]
    assert main(["train", *keys]) == 0
    return keys, folder / "run"


def predicted(keys: list[str], folder: Path, *more: str) -> pl.Series:
    assert main(["predict", *keys, f"evaluation.predictions_dir={folder}", *more]) == 0
    return pl.read_parquet(folder / "held_out.parquet")[SCORE]


@pytest.mark.parametrize("mode", ["stack", "cat"])
def test_what_was_fused_exactly_predicts_as_the_run_does(
    run: tuple[list[str], Path], mode: str, tmp_path: Path
) -> None:
    keys, folder = run
    assert main(["fuse", *keys, f"fuse.mode={mode}"]) == 0
    fused = folder / "fused" / mode
    told = json.loads((fused / "fuse.json").read_text())
    assert told["parity"]["max_abs_difference"] <= told["parity"]["tolerance"]
    found = predicted(keys, tmp_path, f"model.fused={fused}")
    wanted = pl.read_parquet(folder / "predictions" / "held_out.parquet")[SCORE]
    assert (found - wanted).abs().max() < 1e-5


def test_merged_weights_predict_by_themselves(run: tuple[list[str], Path], tmp_path: Path) -> None:
    keys, folder = run
    keys = [*keys, "training.load_in_4bit=false"]
    unmerged = predicted(keys, tmp_path / "unmerged")
    assert main(["fuse", *keys, "fuse.mode=merge16"]) == 0
    merged = predicted(keys, tmp_path / "merged", f"model.fused={folder / 'fused' / 'merge16'}")
    assert (merged - unmerged).abs().max() < 0.05
    assert not (folder / "fused" / "merge16" / "fused").exists()


def test_what_cannot_be_fused_is_told(
    run: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, folder = run
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").touch()
    cases = {
        "fuse.mode=merge16": "merged into a 4-bit base",
        f"fuse.output_dir={taken}": "already holds something",
        f"fuse.adapters=[{folder / 'predictions'}]": "fuse.adapters: ",
        f"training.output_dir={tmp_path / 'nowhere'}": "holds no finished run",
    }
    for override, expected in cases.items():
        assert main(["fuse", *keys, f"fuse.output_dir={tmp_path / 'out'}", override]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["predict", *keys, f"model.fused={taken}"]) == 2
    assert "was not fused from a finished run" in capsys.readouterr().err


def test_named_folders_are_fused_without_a_run(run: tuple[list[str], Path], tmp_path: Path) -> None:
    keys, folder = run
    named = f"fuse.adapters=[{folder / 'adapters' / 'clinical'},{folder / 'adapters' / 'downstream'}]"
    assert main(["fuse", *keys, named, f"fuse.output_dir={tmp_path / 'out'}", "fuse.mode=cat"]) == 0
    assert json.loads((tmp_path / "out" / "fuse.json").read_text())["rank"] == 4 + 3


@pytest.mark.parametrize("over_clinical", [False, True])
def test_a_head_alone_is_trained_saved_and_found_again(
    run: tuple[list[str], Path], dataset: Path, base: Path, over_clinical: bool, tmp_path: Path
) -> None:
    clinical = [f"model.clinical_adapter={run[1].parent / 'clinical'}"] if over_clinical else []
    keys = [*keys_for(dataset, base), "stage=classify", "model.head=score", "lora.method=none", *clinical]
    keys.append(f"training.output_dir={tmp_path / 'run'}")
    assert main(["train", *keys]) == 0
    wanted = pl.read_parquet(tmp_path / "run" / "predictions" / "held_out.parquet")[SCORE]
    assert wanted.n_unique() > 1
    assert (predicted(keys, tmp_path / "again") - wanted).abs().max() < 1e-6
    assert (tmp_path / "run" / "adapters" / "clinical" / "adapter_config.json").is_file() == over_clinical
    assert not (tmp_path / "run" / "adapters" / "downstream" / "adapter_config.json").exists()


@pytest.mark.parametrize("method", ["adalora", "prefix"])
def test_pretraining_by_another_method_ends_with_an_adapter(
    dataset: Path, base: Path, method: str, tmp_path: Path
) -> None:
    keys = [*keys_for(dataset, base), "stage=pretrain", f"lora.method={method}", "training.keep_best=false"]
    keys += ["training.max_steps=6", "training.epochs=3", f"training.output_dir={tmp_path}"]
    assert main(["train", *keys]) == 0
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["perplexity"] < told["perplexity_before"]
    assert (tmp_path / "adapters" / "clinical" / "adapter_model.safetensors").is_file()


def test_new_tokens_go_from_stage_to_stage(dataset: Path, base: Path, tmp_path: Path) -> None:
    """Pretrained with new tokens, classified over them, fused and predicted: all read the same token ids."""
    csv = tmp_path / "codes.csv"
    csv.write_text("token,description\nhypertension,high blood pressure\nasthma,wheeze and cough\n")
    keys = keys_for(dataset, base)
    clinical = ["stage=pretrain", f"lora.new_code_tokens={csv}", f"training.output_dir={tmp_path / 'clinical'}"]
    assert main(["train", *keys, *clinical]) == 0
    csv.unlink()
    keys += ["stage=classify", f"model.clinical_adapter={tmp_path / 'clinical'}"]
    keys += [f"training.output_dir={tmp_path / 'run'}"]
    assert main(["train", *keys]) == 0
    told = [
        json.loads((tmp_path / folder / "narrative.json").read_text())["tokenizer"]
        for folder in ("clinical/adapters/clinical", "run/adapters")
    ]
    assert told[0] == told[1]
    wanted = pl.read_parquet(tmp_path / "run" / "predictions" / "held_out.parquet")[SCORE]
    assert (predicted(keys, tmp_path / "again") - wanted).abs().max() < 1e-6
    assert main(["fuse", *keys, "fuse.mode=cat"]) == 0
    fused = predicted(keys, tmp_path / "fused", f"model.fused={tmp_path / 'run' / 'fused' / 'cat'}")
    assert (fused - wanted).abs().max() < 1e-5
