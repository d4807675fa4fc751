"""`training.batch_size: auto` finds what fits, keeps the optimiser step, and gives memory back."""

from __future__ import annotations

import psutil
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from epicrisis.llm import batch_size
from epicrisis.llm.adapters import DOWNSTREAM
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_base
from epicrisis.llm.batch_size import largest_that_fits, settle_batch_size
from epicrisis.llm.heads import NextToken
from epicrisis.llm.pretrain import NarrativeLesson, token_loss
from epicrisis.settings import InputError
from epicrisis.training.checkpoints import Checkpoints, trained_weights
from epicrisis.training.loop import train

AUTO = {"training.batch_size": "auto", "training.effective_batch_size": 2, "training.load_in_4bit": False}


@given(limit=st.integers(1, 300), room=st.integers(0, 400))
def test_the_largest_that_fits_is_found_to_within_an_eighth(limit: int, room: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= room

    found, exact = largest_that_fits(limit, fits), min(limit, room)
    assert found <= exact <= found + max(1, found // 8)
    assert max(tried) <= limit
    assert len(tried) <= 14


@pytest.fixture
def parts(settings, accelerator, tokens, tokenizer):
    s = settings("llama", **AUTO)
    module = NextToken(backend_for("peft").attach(load_base(s, accelerator), DOWNSTREAM, s.lora, 0))
    return module, NarrativeLesson(tokens, tokenizer, 128), s.training


def test_on_a_cpu_free_memory_decides(parts, accelerator, tmp_path, monkeypatch):
    module, lesson, training = parts
    told = []
    checkpoints = Checkpoints(tmp_path, 2, accelerator)
    settled = settle_batch_size(module, lesson, training, accelerator, checkpoints, told.append)
    assert settled.batch_size == 2
    assert told == [
        "batch size 2 (by an estimate of RAM, all of a step): 2 sequences per optimiser step in 1 batches on each "
        "of 1 processes"
    ]

    class Full:
        available = 1_000_000

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Full)
    with pytest.raises(InputError, match="not even one sequence fits"):
        settle_batch_size(module, lesson, training, accelerator, checkpoints, told.append)


def test_what_runs_out_of_memory_is_lowered_and_leaves_nothing_behind(parts):
    module, lesson, training = parts
    seen = []

    class Machine:
        device, num_processes = torch.device("cpu"), 1
        autocast = Accelerator(cpu=True).autocast

    class Roomy:
        """Eleven items fit; more are too many."""

        n_items = 40
        error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        def collate(self, items):
            return lesson.collate([0])

        def loss_sum(self, module, batch, items):
            seen.append(len(items))
            if len(items) > 11:
                raise self.error
            return lesson.loss_sum(module, batch, [0])

    roomy = Roomy()
    found = largest_that_fits(40, lambda n: batch_size._runs(module, roomy, n, training, Machine()))
    assert found in (10, 11)
    assert seen[:5] == [1, 2, 4, 8, 16]
    assert all(parameter.grad is None for parameter in module.parameters())
    roomy.error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        batch_size._runs(module, roomy, 12, training, Machine())


def test_found_batches_learn_what_batches_of_one_do_and_a_resumed_run_keeps_them(
    settings, accelerator, tokens, tokenizer, tmp_path, monkeypatch
):
    told: list[str] = []

    def learn(folder, **changes):
        s = settings("llama", **{**AUTO, "training.epochs": 3, "training.keep_best": False, **changes})
        module = NextToken(backend_for("peft").attach(load_base(s, accelerator), DOWNSTREAM, s.lora, 0))
        lesson = NarrativeLesson(tokens, tokenizer, 128)
        checkpoints = Checkpoints(folder, 2, accelerator)
        training = settle_batch_size(module, lesson, s.training, accelerator, checkpoints, told.append)
        position = train(
            *(module, lesson, training, accelerator, checkpoints),
            title="test",
            evaluate=lambda m: token_loss(m, lesson, 2, accelerator),
            log=lambda **_: None,
        )
        return trained_weights(module), position

    auto, position = learn(tmp_path / "auto")
    assert position.batch_size == 2
    fixed, _ = learn(tmp_path / "fixed", **{"training.batch_size": 1})
    for name in fixed:
        torch.testing.assert_close(auto[name], fixed[name], atol=1e-5, rtol=1e-3)
    monkeypatch.setattr(batch_size, "_by_estimate", lambda *_: 1)
    _, resumed = learn(tmp_path / "auto", **{"training.resume": True, "training.epochs": 4})
    assert resumed.batch_size == 2
    assert told[-1].startswith("batch size 2 (as in the checkpoint)")
