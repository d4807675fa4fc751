"""Two CPU processes are one run: the same metrics as one process, written once, refused with one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epicrisis.commands import main
from tests.commands.conftest import QUESTION, TABULAR, data_keys
from tests.launching import launch

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"


def test_two_processes_learn_what_one_does(dataset: Path, base: Path, tmp_path: Path) -> None:
    keys = [*data_keys(dataset), f"model.model_name={base}", f"model.question={QUESTION}", "model.max_length=256"]
    keys += [
        "stage=pretrain",
        "training.max_steps=3",
        "training.batch_size=4",
        "training.bf16=false",
        "training.learning_rate=2e-2",
        "training.gradient_checkpointing=true",  # with frozen weights DDP bears only the kind that is not re-entrant
    ]
    assert main(["train", *keys, f"training.output_dir={tmp_path / 'one'}"]) == 0
    ended = launch(SCRIPT, *keys, f"training.output_dir={tmp_path / 'two'}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("adapter in") == 1
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert two["perplexity_before"] == pytest.approx(one["perplexity_before"], rel=1e-4)
    assert two["perplexity"] == pytest.approx(one["perplexity"], rel=1e-3)
    assert one["perplexity"] != pytest.approx(one["perplexity_before"], rel=2e-2)


def test_bad_input_is_told_once_and_no_process_waits_for_another(dataset: Path, tmp_path: Path) -> None:
    keys = [*TABULAR, *data_keys(dataset, "time_to_event"), f"training.output_dir={tmp_path / 'run'}"]
    ended = launch(SCRIPT, *keys)
    assert ended.returncode != 0
    assert ended.stderr.count("bad input") == 1
    assert ended.stderr.count("are times to an event") == 1
    assert "[rank1]" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
