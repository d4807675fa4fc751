"""Two processes under DeepSpeed's ZeRO learn what one process does without it, and resume to the same weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import launch
from tests.llm import deepspeed_run

CASES = {2: ["4bit", "dropout"], 3: ["4bit", "checkpointed", "bfloat16"]}
SAME_AS_ONE = [(stage, case) for stage, cases in CASES.items() for case in cases if case not in ("dropout", "bfloat16")]

pytestmark = [
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra: pip install 'epicrisis[deepspeed]'"),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo to join CPU processes"),
]


@pytest.fixture(scope="module")
def launched(bases, tmp_path_factory):
    """Gives the folder in which two processes of a stage have left what they learnt."""
    folders: dict[int, Path] = {}

    def of_stage(stage: int) -> Path:
        if stage not in folders:
            folders[stage] = tmp_path_factory.mktemp(f"zero{stage}")
            ended = launch(
                *(deepspeed_run.__file__, bases["llama"], folders[stage], *CASES[stage]),
                recipe=f"deepspeed_zero{stage}",
                flags=("--main_process_port", "0"),
                DS_ACCELERATOR="cpu",
            )
            assert ended.returncode == 0, ended.stderr
        return folders[stage]

    return of_stage


@pytest.mark.parametrize(("stage", "case"), SAME_AS_ONE)
def test_two_processes_under_zero_learn_what_one_does(launched, bases, accelerator, tmp_path, stage, case):
    folder = launched(stage) / case
    alone, logged, _ = deepspeed_run.learn(deepspeed_run.settings_of(bases["llama"], tmp_path, case), accelerator)
    whole = load_file(folder / "whole.safetensors")
    assert whole.keys() == alone.keys()
    for name, weights in alone.items():
        torch.testing.assert_close(whole[name], weights, atol=1e-4, rtol=1e-3)
    for field in ("train/loss", "train/grad_norm", "train/learning_rate", "eval/loss"):
        ours, theirs = (_values(lines, field) for lines in (logged, json.loads((folder / "logged.json").read_text())))
        assert len(ours) >= 2
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-9)
    assert min(_values(logged, "train/grad_norm")) > deepspeed_run.TRAINING["max_grad_norm"]  # all were shortened


@pytest.mark.parametrize(("stage", "case"), [(stage, case) for stage, cases in CASES.items() for case in cases])
def test_a_resumed_run_under_zero_is_the_uninterrupted_run_bit_for_bit(launched, stage, case):
    whole, resumed = (load_file(launched(stage) / case / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(resumed[name], weights) for name, weights in whole.items())
    assert any(weights.any() for name, weights in whole.items() if "lora_B" in name)


def test_bfloat16_bases_lose_nothing_but_roundings_when_they_are_spread(launched, bases, accelerator, tmp_path):
    settings = deepspeed_run.settings_of(bases["llama"], tmp_path, "bfloat16")
    _, logged, _ = deepspeed_run.learn(settings, accelerator)
    spread = json.loads((launched(3) / "bfloat16" / "logged.json").read_text())
    assert _values(spread, "train/loss") == pytest.approx(_values(logged, "train/loss"), rel=1e-3)
    assert _values(spread, "train/grad_norm") == pytest.approx(_values(logged, "train/grad_norm"), rel=1e-2)


def _values(logged, field):
    return [fields[field] for fields in logged if field in fields]
