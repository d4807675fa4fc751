"""The whole road through the commands, on a cohort of 100: what they write, reuse, and never write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from epicrisis.commands import COMMANDS, main
from tests.commands.conftest import FIRST_SUBJECT, QUESTION, TABULAR, data_keys

ROOT = Path(__file__).parents[2]
KEYS = ["subject_id", "prediction_time"]
RESULT_COLUMNS = "dataset,task,arm,split,k,replicate,metric,value,lower,upper,n,n_positive"
PREDICTIONS = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "boolean_value": pl.Boolean,
    "predicted_boolean_value": pl.Boolean,
    "predicted_boolean_probability": pl.Float64,
}


def run(command: str, *arguments: object) -> None:
    assert main([command, *map(str, arguments)]) == 0


def arms_config(dataset: Path, output_dir: Path) -> str:
    return f"""
data:
  meds_dir: {dataset}
  labels_dir: {dataset / "labels" / "cancer"}
  oracle_dir: {dataset / "oracle" / "cancer"}
  medical_lookup_filepath: {output_dir.parent / "medical.csv"}
training: {{output_dir: {output_dir}}}
evaluation: {{bootstrap_resamples: 100}}
benchmark:
  reference: counts + LR
  arms:
    - {{name: counts + LR, overrides: {{arm: logistic_regression}}}}
    - {{name: counts + XGBoost, overrides: {{arm: xgboost, tabular.min_subjects: 3}}}}
"""


@pytest.fixture
def benchmarked(dataset: Path, tmp_path: Path, write: Callable[[str, str], Path]) -> Path:
    """A benchmark of two arms in tmp_path/run; its config is tmp_path/benchmark.yaml."""
    write("medical.csv", "code,term\nICD10CM//I10,Hypertension\n")
    path = write("benchmark.yaml", arms_config(dataset, tmp_path / "run"))
    run("benchmark", "--config_filepath", path)
    return path


def test_training_leaves_the_contracts_products(dataset: Path, finished: Path) -> None:
    assert finished.joinpath("results.csv").read_text().splitlines()[0] == RESULT_COLUMNS
    results = pl.read_csv(finished / "results.csv")
    assert {"auroc", "auprc", "brier", "ece"} <= set(results["metric"])
    assert set(results["arm"]) == {"logistic_regression"}
    for split in ("tuning", "held_out"):
        labels = pl.read_parquet(dataset / "labels" / "cancer" / f"{split}.parquet")
        predictions = pl.read_parquet(finished / "predictions" / f"{split}.parquet")
        assert dict(predictions.schema) == PREDICTIONS
        assert (
            predictions.select(*KEYS, "boolean_value")
            .sort(KEYS)
            .equals(labels.select(*KEYS, "boolean_value").sort(KEYS))
        )
        assert predictions["predicted_boolean_probability"].is_between(0, 1).all()
    assert results["n"].unique().to_list() == [labels.height]
    for name in ("config.yaml", "environment.json", "summary.json", "SUMMARY.txt", "report.html"):
        assert (finished / name).stat().st_size > 0
    assert {path.suffix for path in (finished / "plots").iterdir()} == {".png"}


def test_predict_repeats_what_training_predicted(dataset: Path, finished: Path, tmp_path: Path) -> None:
    keys = [*TABULAR, *data_keys(dataset), f"training.output_dir={finished}"]
    run("predict", *keys, f"evaluation.predictions_dir={tmp_path}")
    again, first = (pl.read_parquet(folder / "held_out.parquet") for folder in (tmp_path, finished / "predictions"))
    assert again.equals(first)
    run("predict", *keys, f"evaluation.predictions_dir={tmp_path}", "evaluation.split=train")
    assert pl.read_parquet(tmp_path / "train.parquet").height == 70


def test_evaluate_repeats_the_results(dataset: Path, tmp_path: Path) -> None:
    keys = [*TABULAR, *data_keys(dataset), f"training.output_dir={tmp_path / 'run'}"]
    run("train", *keys)
    first = (tmp_path / "run" / "results.csv").read_bytes()
    (tmp_path / "run" / "results.csv").unlink()
    run("evaluate", *keys)
    assert (tmp_path / "run" / "results.csv").read_bytes() == first


def test_an_unfinished_run_is_begun_again_and_a_finished_one_on_demand(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    keys = [*TABULAR, *data_keys(dataset), f"training.output_dir={folder}"]
    run("train", *keys)
    (folder / "notes.txt").write_text("mine")
    (folder / "summary.json").unlink()
    run("train", *keys)
    assert (folder / "summary.json").is_file()
    run("train", *keys, "training.overwrite_output_dir=true", "training.seed=7")
    assert (folder / "notes.txt").read_text() == "mine"
    assert "seed: 7" in (folder / "config.yaml").read_text()
    run("train", *keys, "training.resume=true", "training.seed=7")
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "resumed" in [event.get("event") for event in events]


def test_a_benchmark_judges_its_arms_on_the_same_rows_beside_the_oracle(benchmarked: Path) -> None:
    results = pl.read_csv(benchmarked.parent / "run" / "results.csv")
    assert ",".join(results.columns) == RESULT_COLUMNS
    assert results["arm"].unique(maintain_order=True).to_list() == ["oracle", "counts + LR", "counts + XGBoost"]
    assert results["n"].n_unique() == 1
    assert results.filter(pl.col("metric") == "oracle_lift_share").height == 3
    assert "counts + XGBoost" in (benchmarked.parent / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changed", "refitted"),
    [
        ("", []),
        ("evaluation.bootstrap_resamples=120", []),
        ("training.resume=true", []),
        ("tabular.min_subjects=9", ["counts-lr"]),
        ("training.seed=3", ["counts-lr", "counts-xgboost"]),
        ("training.overwrite_output_dir=true", ["counts-lr", "counts-xgboost"]),
        ("lookup", ["counts-lr", "counts-xgboost"]),
        ("damage", ["counts-lr"]),
    ],
)
def test_a_benchmark_fits_again_only_what_changed(benchmarked: Path, changed: str, refitted: list[str]) -> None:
    arms = benchmarked.parent / "run" / "arms"
    written = {path: path.stat().st_mtime_ns for path in arms.glob("*/predictions/held_out.parquet")}
    assert len(written) == 2
    if changed == "lookup":
        (benchmarked.parent / "medical.csv").write_text("code,term\nICD10CM//I10,High blood pressure\n")
    if changed == "damage":
        (arms / "counts-lr" / "predictions" / "tuning.parquet").unlink()
    run("benchmark", "--config_filepath", benchmarked, *([changed] if "=" in changed else []))
    again = [path.parts[-3] for path, time in written.items() if path.stat().st_mtime_ns != time]
    assert sorted(again) == refitted


@pytest.mark.parametrize("task", ["cancer", "in_hospital_mortality", "prolonged_stay"])
def test_check_says_what_a_run_would_do_and_writes_nothing(
    task: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("check", *TABULAR, *data_keys(dataset, task), f"training.output_dir={tmp_path / 'run'}")
    told = capsys.readouterr().out
    assert "config is sound: arm logistic_regression, stage classify" in told
    assert "train: " in told
    assert "read as words" in told
    assert list(tmp_path.iterdir()) == []


def test_check_counts_tokens_and_steps_for_a_language_model(
    dataset: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*data_keys(dataset), f"model.model_name={base}", "model.max_length=256", "training.batch_size=7"]
    run("check", *keys, "stage=classify", f"training.output_dir={tmp_path / 'run'}")
    told = capsys.readouterr().out
    assert "70 train narratives of" in told
    assert "about 10 optimiser steps" in told
    assert list(tmp_path.iterdir()) == []


def test_prepare_tells_every_row_within_the_budget(dataset: Path, base: Path, tmp_path: Path) -> None:
    keys = [*data_keys(dataset, "diagnoses"), f"model.model_name={base}", "model.max_length=256"]
    run("prepare", *keys, "narrative.max_tokens=100", f"training.output_dir={tmp_path}")
    told = pl.read_parquet(tmp_path / "narratives" / "**" / "*.parquet")
    labels = pl.read_parquet(dataset / "labels" / "diagnoses" / "*.parquet").unique(KEYS)
    assert told.select(KEYS).sort(KEYS).equals(labels.select(KEYS).sort(KEYS))
    assert told["style"].unique().to_list() == ["timeline@2"]
    assert told["n_events_dropped"].sum() > 0
    assert list((tmp_path / "tokens" / "train").glob("*.arrow"))

    assert pl.read_csv(tmp_path / "coverage.csv").height > 3
    lengths = pl.read_csv(tmp_path / "lengths.csv")
    assert lengths["split"].to_list() == ["train", "tuning", "held_out"]
    assert lengths["narratives"].sum() == told.height
    assert lengths["tokens_max"].max() <= 100
    page = (tmp_path / "report.html").read_text()
    assert all(part in page for part in ("timeline@2", "rows full", "narratives cut"))
    assert page.count("data:image/png;base64,") == 1
    assert not (tmp_path / "summary.json").exists()


def test_nothing_about_a_patient_leaves_the_folders_made_for_it(
    dataset: Path, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """After a pretraining, and a benchmark of a tabular and a fused arm, no other file and no printed line names a
    subject or tells its story."""
    model = [f"model.model_name={base}", "model.max_length=256", f"model.question={QUESTION}", "training.max_steps=2"]
    keys = [*data_keys(dataset), *model, "evaluation.bootstrap_resamples=100", "training.batch_size=2"]
    run("train", *keys, "stage=pretrain", f"training.output_dir={tmp_path / 'pretrain'}")
    fused = f"{{name: fused, overrides: {{arm: llm, model.clinical_adapter: {tmp_path / 'pretrain'}}}}}"
    counts = "{name: counts, overrides: {arm: logistic_regression}}"
    output = f"training.output_dir={tmp_path / 'run'}"
    run("benchmark", *keys, output, "stage=classify", f"benchmark.arms=[{fused}, {counts}]")

    allowed = {"narratives", "tokens", "predictions"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    told = pl.concat(pl.read_parquet(path).select("narrative") for path in files if "narratives" in path.parts)
    events = told["narrative"].str.split("\n").explode().unique()
    lines = [line.encode() for line in events if len(line) > 40]
    assert len(lines) > 100
    others = [path for path in files if not allowed & set(path.relative_to(tmp_path).parts)]
    assert {".json", ".jsonl", ".yaml", ".csv", ".html", ".txt", ".safetensors"} <= {path.suffix for path in others}
    printed = "".join(capfd.readouterr())
    assert printed.count("report: ") == 2
    _assert_narratives_reported(tmp_path / "pretrain", ["train", "tuning"])
    _assert_narratives_reported(tmp_path / "run", ["train", "tuning", "held_out"])
    for place, content in [("the terminal", printed.encode()), *((path, path.read_bytes()) for path in others)]:
        assert str(FIRST_SUBJECT)[:6].encode() not in content, place
        assert not any(line in content for line in lines), place


def _assert_narratives_reported(folder: Path, splits: list[str]) -> None:
    page, summary = (folder / "report.html").read_text(), json.loads((folder / "summary.json").read_text())
    assert [row["split"] for row in summary["lengths"]] == splits
    assert summary["narrative"]["style"] == "timeline@2"
    assert "narratives cut" in page
    assert 'alt="narrative lengths"' in page
    assert (folder / "plots" / "narrative_lengths.png").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_thin_script(command: str) -> None:
    script = (ROOT / "scripts" / f"{command}.py").read_text()
    assert len(script.splitlines()) < 20
    assert f'run_command("{command}")' in script


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(command in told for command in COMMANDS)
    assert main(["dance"]) == 2
    assert "there is no command 'dance'" in capsys.readouterr().err
