"""A 4-bit base spread over two processes (FSDP 2) learns what one process does, and is saved and resumed whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from epicrisis.training.checkpoints import load_trained_weights, trained_weights
from epicrisis.training.sharding import is_sharded, make_whole, whole
from tests.llm import sharded_run

ROOT = Path(__file__).parents[2]
LAUNCH = "from accelerate.commands.accelerate_cli import main; main()"


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo to join CPU processes")
def test_two_processes_that_share_the_weights_learn_what_one_does(bases, accelerator, tmp_path):
    flags = ["--config_file", str(ROOT / "configs" / "accelerate" / "cpu_two_processes.yaml")]
    ended = subprocess.run(
        [sys.executable, "-c", LAUNCH, "launch", *flags, sharded_run.__file__, str(bases["llama"]), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert ended.returncode == 0, ended.stderr
    alone, spread = sharded_run.learn(bases["llama"], tmp_path / "alone", accelerator)
    assert not spread
    sharded, resumed = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert sharded.keys() == alone.keys()
    for name, weights in alone.items():
        torch.testing.assert_close(sharded[name], weights, atol=1e-5, rtol=1e-3)
        assert torch.equal(resumed[name], sharded[name]), name


def test_what_is_not_sharded_passes_through_unchanged():
    module = torch.nn.Linear(3, 2)
    before = trained_weights(module)
    assert not is_sharded(module)
    with whole(module):
        make_whole(module)
    load_trained_weights(module, {name: weights + 1 for name, weights in before.items()})
    assert all(torch.equal(now, before[name] + 1) for name, now in trained_weights(module).items())
