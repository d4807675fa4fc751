"""A run that is killed at any moment and resumed ends as one that was left alone, byte for byte."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from epicrisis.commands import main
from tests.commands.conftest import QUESTION, data_keys

TRAIN = "import sys; from epicrisis.commands import run_command; sys.exit(run_command('train'))"
STEPS = 9


@pytest.fixture
def keys(dataset: Path, base: Path, request: pytest.FixtureRequest) -> list[str]:
    """A short run with dropout and accumulation, that saves every second step and evaluates every third."""
    training = {
        "bf16": "false",
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "epochs": 9,
        "logging_steps": 1,
        "save_steps": 2,
        "eval_steps": 3,
        "learning_rate": 2e-2,
    }
    model = [f"model.model_name={base}", f"model.question={QUESTION}", "model.max_length=256"]
    rest = ["lora.lora_dropout=0.2", "evaluation.bootstrap_resamples=100", f"stage={request.param}"]
    return [*data_keys(dataset), *model, *rest, *(f"training.{key}={value}" for key, value in training.items())]


def begin(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRAIN, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def steps_logged(run: Path) -> Iterator[int]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return (json.loads(line)["step"] for line in lines if '"train/loss"' in line and line.endswith("}"))


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    for _ in range(60_000):
        if max(steps_logged(run), default=0) >= step:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    raise TimeoutError(f"step {step} was never reached")


def weights(run: Path, stage: str) -> bytes:
    name = "clinical" if stage == "pretrain" else "downstream"
    return (run / "adapters" / name / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("keys", "stage"), [("pretrain", "pretrain"), ("classify", "classify")], indirect=["keys"])
def test_a_run_killed_at_any_step_goes_on_to_the_very_same_weights(keys: list[str], stage: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", *keys, f"training.output_dir={whole}"]) == 0
    step = random.randrange(1, STEPS)
    process = begin(*keys, f"training.output_dir={cut}")
    wait_for_step(cut, step, process)
    time.sleep(random.random() * 0.05)  # within a step, a save or an evaluation
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cut / "summary.json").exists()
    assert main(["train", *keys, f"training.output_dir={cut}", "training.resume=true"]) == 0
    assert weights(cut, stage) == weights(whole, stage), f"killed after step {step}"
    first_again = list(steps_logged(cut))[len(range(step)) :]
    assert first_again[-1] == STEPS


@pytest.mark.parametrize("keys", ["pretrain"], indirect=True)
def test_a_run_that_is_asked_to_end_saves_and_says_how_to_go_on(keys: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", *keys, f"training.output_dir={whole}"]) == 0
    process = begin(*keys, "training.save_steps=1000", f"training.output_dir={cut}")
    wait_for_step(cut, 3, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    told = re.search(r"stopped by SIGTERM after step (\d) of 9; a checkpoint is saved\. To go on: .*resume=true", said)
    assert told, said
    assert [path.name for path in (cut / "checkpoints").glob("step-*")] == [f"step-{int(told[1]):07d}"]
    assert main(["train", *keys, f"training.output_dir={cut}", "training.resume=true"]) == 0
    assert weights(cut, "pretrain") == weights(whole, "pretrain")
