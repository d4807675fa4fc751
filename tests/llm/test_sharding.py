"""A 4-bit base spread over two processes (FSDP 2) learns what one process does, and is saved and resumed whole."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from epicrisis.training.checkpoints import load_trained_weights, trained_weights
from epicrisis.training.sharding import is_sharded, make_whole, whole
from tests.launching import launch
from tests.llm import sharded_run

TOLERANCE = {"float32": {"atol": 1e-5, "rtol": 1e-3}, "bfloat16": {"atol": 5e-4, "rtol": 1e-2}}


@pytest.fixture(scope="module")
def sharded(bases, tmp_path_factory):
    """The folder in which two processes that share the weights have left what they learnt."""
    folder = tmp_path_factory.mktemp("sharded")
    ended = launch(sharded_run.__file__, bases["llama"], folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo to join CPU processes")
@pytest.mark.parametrize("precision", sharded_run.PRECISIONS)
def test_two_processes_that_share_the_weights_learn_what_one_does(sharded, bases, accelerator, tmp_path, precision):
    alone, spread = sharded_run.learn(bases["llama"], tmp_path, accelerator, precision)
    assert not spread
    whole, resumed = (load_file(sharded / precision / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == alone.keys()
    for name, weights in alone.items():
        torch.testing.assert_close(whole[name], weights, **TOLERANCE[precision])
        assert torch.equal(resumed[name], whole[name]), name


def test_what_is_not_sharded_passes_through_unchanged():
    module = torch.nn.Linear(3, 2)
    before = trained_weights(module)
    assert not is_sharded(module)
    with whole(module):
        make_whole(module)
    load_trained_weights(module, {name: weights + 1 for name, weights in before.items()})
    assert all(torch.equal(now, before[name] + 1) for name, now in trained_weights(module).items())
