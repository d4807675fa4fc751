"""What is said to be logged, for a sweep to be ranked by, is what tiny runs of every kind really log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epicrisis.cohort import build_cohort
from epicrisis.commands import main
from epicrisis.settings import load_settings
from epicrisis.settings.watched import logged_metrics
from tests.commands.conftest import data_keys

STEPS = ["training.max_steps=1", "training.batch_size=8"]
DEMO = ["arm=structured", "structured.size=demo", "structured.context=64"]


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("length_of_stay", ["arm=logistic_regression", "stage=classify"]),
        ("diagnoses", ["arm=logistic_regression", "stage=classify"]),
        ("time_to_event", ["stage=classify", *DEMO, *STEPS]),
        ("cancer", ["stage=pretrain", *DEMO, STEPS[0]]),
        ("cancer", ["arm=behrt", "stage=pretrain", "behrt.objective=next_visit", *STEPS]),
        ("cancer", ["arm=exmed_bert", "stage=pretrain", "exmed.preset=tiny", *STEPS]),
        ("cancer", ["arm=event_encoder", "stage=pretrain", "encoder.width=16", "encoder.layers=1", *STEPS]),
    ],
)
def test_a_run_logs_what_is_said(task: str, keys: list[str], dataset: Path, tmp_path: Path) -> None:
    given = [*keys, *data_keys(dataset, task), "evaluation.bootstrap_resamples=100"]
    if "arm=event_encoder" in keys:
        given.append("model.model_name=epicrisis/tiny-bert")
    assert main(["train", *given, f"training.output_dir={tmp_path / 'run'}"]) == 0
    known = build_cohort(dataset, labels_dir=dataset / "labels" / task).task
    said = set(logged_metrics(load_settings(None, given), known.kind, known.classes))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = {key for line in lines for key in json.loads(line) if key.partition("/")[0] in ("train", "eval", "tuning")}
    assert logged <= said
    undefined = {name.partition("/")[2].partition(":")[0].partition("@")[0].partition("_")[0] for name in said - logged}
    assert undefined <= {"auroc", "auprc", "plos", "c", "ibs", "brier"}, "what ten tuning rows may not have"
    assert {name for name in said - logged if "loss" in name} == set()
    assert any(name.startswith("tuning/") for name in logged)
    assert set(logged_metrics(load_settings(None, given))) >= {name for name in logged if ":" not in name}
