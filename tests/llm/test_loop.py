"""The training loop: accumulation, order, warm-up, and a resume that leaves no trace."""

import math
import os
import re
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from epicrisis.llm.adapters import DOWNSTREAM
from epicrisis.llm.backends import backend_for
from epicrisis.llm.base_model import load_base
from epicrisis.llm.heads import NextToken
from epicrisis.llm.pretrain import NarrativeLesson, token_loss
from epicrisis.settings import InputError
from epicrisis.settings.schema import TrainingSettings
from epicrisis.training.checkpoints import Checkpoints, trained_weights
from epicrisis.training.loop import items_of_step, make_plan, train
from epicrisis.training.signals import Stopped


def test_warm_up_is_a_number_of_steps_whatever_way_it_is_given():
    by_ratio = make_plan(100, TrainingSettings(batch_size=10, epochs=4, warmup_ratio=0.25))
    by_steps = make_plan(100, TrainingSettings(batch_size=10, epochs=4, warmup_steps=7))
    assert (by_ratio.n_steps, by_ratio.warmup_steps) == (40, 10)
    assert by_steps.warmup_steps == 7


def test_max_steps_ends_the_plan():
    assert make_plan(100, TrainingSettings(batch_size=10, epochs=4, max_steps=3)).n_steps == 3


def test_an_epoch_holds_every_item_once_and_two_epochs_differ():
    plan = make_plan(23, TrainingSettings(batch_size=4, epochs=2))
    epochs = [[i for step in range(e * 6, e * 6 + 6) for i in items_of_step(plan, step, 0)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(23))
    assert epochs[0] != epochs[1]
    assert items_of_step(plan, 3, 0) == items_of_step(plan, 3, 0) != items_of_step(plan, 3, 1)


@pytest.fixture
def learn(settings, accelerator, tokens, tokenizer):
    """Train a fresh adapter in `folder` and give the trained weights, what was logged, and the position."""

    def run(folder, stop_at=None, dropout=0.0, rank=4, tuning=None, **training):
        lora = {"lora.lora_dropout": dropout, "lora.r": rank}
        s = settings("llama", **{f"training.{k}": v for k, v in training.items()}, **lora)
        model = backend_for("peft").attach(load_base(s, accelerator), DOWNSTREAM, s.lora, 0)
        module, lesson = NextToken(model), NarrativeLesson(tokens, tokenizer, 128)
        logged = []

        def log(**fields):
            logged.append(fields)
            if stop_at is not None and fields["step"] == stop_at and "train/loss" in fields:
                raise KeyboardInterrupt

        scripted = iter(tuning or [])

        def evaluate(module):
            if tuning is None:
                return token_loss(module, lesson, 2, accelerator)
            metrics = next(scripted)
            if metrics == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
                return token_loss(module, lesson, 2, accelerator)
            return metrics

        checkpoints = Checkpoints(folder, 2, accelerator)
        position = train(module, lesson, s.training, accelerator, checkpoints, title="test", evaluate=evaluate, log=log)
        return trained_weights(module), logged, position

    return run


def test_accumulating_eight_times_one_equals_one_time_eight(learn, tmp_path):
    shared = {"epochs": 3, "keep_best": False}
    together, *_ = learn(tmp_path / "a", batch_size=8, gradient_accumulation_steps=1, **shared)
    apart, *_ = learn(tmp_path / "b", batch_size=1, gradient_accumulation_steps=8, **shared)
    for name in together:
        torch.testing.assert_close(apart[name], together[name], atol=1e-5, rtol=1e-3)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(learn, tmp_path):
    _, logged, _ = learn(tmp_path, batch_size=1, epochs=5, warmup_steps=4, logging_steps=1, learning_rate=1.0)
    rates = [fields["train/learning_rate"] for fields in logged if "train/learning_rate" in fields]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [{}, {"dropout": 0.3}, {"optimizer": "adamw_8bit", "rank": 64, "load_in_4bit": False}],
    ids=str,
)
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(learn, tmp_path, options):
    shared = {"batch_size": 1, "epochs": 6, "save_steps": 2, "eval_steps": 2, "logging_steps": 1, **options}
    whole, _, position = learn(tmp_path / "whole", **shared)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", stop_at=5, **shared)
    torch.manual_seed(99)
    resumed, logged, resumed_position = learn(tmp_path / "cut", resume=True, **shared)
    assert logged[0]["step"] == 5, "it began again instead of going on after step 4"
    assert resumed_position == position
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_torn_checkpoint_is_passed_over(learn, tmp_path, capsys):
    shared = {"batch_size": 1, "epochs": 6, "save_steps": 2, "eval_steps": 2, "logging_steps": 1}
    whole, *_ = learn(tmp_path / "whole", **shared)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", stop_at=5, **shared)
    torn = tmp_path / "cut" / "step-0000004" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:100])
    resumed, logged, _ = learn(tmp_path / "cut", resume=True, **shared)
    assert logged[0]["step"] == 3
    assert "step-0000004 is torn" in capsys.readouterr().err
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_half_written_checkpoint_is_not_one(learn, tmp_path):
    shared = {"batch_size": 1, "epochs": 6, "save_steps": 2, "logging_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, stop_at=5, **shared)
    shutil.move(tmp_path / "step-0000004", tmp_path / ".step-0000004.partial")
    _, logged, _ = learn(tmp_path, resume=True, **shared)
    assert logged[0]["step"] == 3


def test_keep_best_ends_with_the_weights_of_the_lowest_tuning_loss(learn, tmp_path):
    shared = {"batch_size": 2, "max_steps": 4, "epochs": 9, "eval_steps": 1, "warmup_steps": 0}
    tuning = [{"loss": loss} for loss in (3.0, 1.0, 2.0, 2.5)]
    kept, _, position = learn(tmp_path / "best", tuning=tuning, **shared)
    assert (position.best_step, position.best_value, position.step) == (2, 1.0, 4)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "second", stop_at=3, logging_steps=1, save_steps=1, **shared)
    second = load_file(tmp_path / "second" / "step-0000002" / "trained.safetensors")
    assert all(torch.equal(kept[name], second[name]) for name in kept)
    last, *_ = learn(tmp_path / "last", keep_best=False, tuning=tuning, **shared)
    assert any(not torch.equal(kept[name], last[name]) for name in kept)


def test_the_best_is_that_of_the_metric_asked_for_in_its_own_direction(learn, tmp_path):
    shared = {
        "batch_size": 2,
        "max_steps": 3,
        "epochs": 9,
        "eval_steps": 1,
        "metric_for_best": "auroc",
        "load_in_4bit": False,
    }
    before, *after = [{"loss": loss, "auroc": auroc} for loss, auroc in [(4, 0.5), (3, 0.6), (2, 0.8), (1, 0.7)]]
    *_, position = learn(tmp_path, tuning=[before, *after], **shared)
    assert (position.best_step, position.best_value) == (2, 0.8)


def test_a_metric_that_no_evaluation_gives_is_refused_before_the_first_step(learn, tmp_path):
    with pytest.raises(InputError, match="give no 'auroc'"):
        learn(tmp_path, tuning=[{"loss": 1.0}], metric_for_best="auroc", load_in_4bit=False)
    assert not list(tmp_path.iterdir())


def test_nan_is_never_the_best(learn, tmp_path):
    tuning = [{"loss": loss} for loss in (math.nan, 2.0, math.nan)]
    *_, position = learn(tmp_path, tuning=tuning, batch_size=2, max_steps=3, epochs=9, eval_steps=1, load_in_4bit=False)
    assert (position.best_step, position.best_value) == (2, 2.0)


def test_a_seed_repeats_dropout_and_another_does_not(learn, tmp_path):
    shared = {"batch_size": 3, "epochs": 2, "dropout": 0.3, "keep_best": False, "load_in_4bit": False}
    first, *_ = learn(tmp_path / "a", **shared)
    torch.rand(7)
    second, *_ = learn(tmp_path / "b", **shared)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other, *_ = learn(tmp_path / "c", seed=1, **shared)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_asked_to_stop_within_an_evaluation_it_leaves_at_once_and_goes_on_to_the_same_weights(learn, tmp_path):
    shared = {"batch_size": 1, "epochs": 3, "dropout": 0.3, "eval_steps": 2, "save_steps": 5, "load_in_4bit": False}
    whole, _, position = learn(tmp_path / "whole", **shared)
    with pytest.raises(Stopped) as stopped:
        learn(tmp_path / "cut", tuning=[{"loss": 9.0}, "stop"], **shared)
    assert stopped.value.code == 0
    assert (tmp_path / "cut" / "step-0000004" / "complete.json").is_file()
    resumed, again, resumed_position = learn(tmp_path / "cut", resume=True, **shared)
    assert again[0]["step"] == 4
    assert "eval/loss" in again[0], "the evaluation that was dropped is made up for"
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert resumed_position.step == position.step


def test_only_the_latest_checkpoints_and_the_best_weights_are_kept(learn, tmp_path):
    tuning = [{"loss": loss} for loss in (3.0, 1.0, 2.0, 2.5, 2.0, 1.5)]
    learn(tmp_path, tuning=tuning, batch_size=1, epochs=3, eval_steps=1, save_steps=1, load_in_4bit=False)
    kept = ["best-0000002.safetensors", "best.safetensors", "latest", "step-0000005", "step-0000006"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_a_checkpoint_of_another_run_is_refused(learn, tmp_path):
    learn(tmp_path, batch_size=2, epochs=1, load_in_4bit=False)
    with pytest.raises(InputError, match="of another size"):
        learn(tmp_path, batch_size=2, epochs=2, resume=True, rank=8, load_in_4bit=False)


def test_a_run_says_what_it_does_and_where_its_time_went(learn, tmp_path, capsys):
    _, logged, _ = learn(tmp_path, batch_size=1, max_steps=3, epochs=3, logging_steps=3, load_in_4bit=False)
    line = next(fields for fields in logged if "train/loss" in fields)
    names = {"loss", "learning_rate", "grad_norm", "tokens_per_second", "useful_token_share", "peak_memory_gb"}
    assert set(line) == {"step", "train/seconds_left", *(f"train/{name}" for name in names)}
    assert 0 < line["train/useful_token_share"] <= 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    assert line["train/peak_memory_gb"] == pytest.approx(peak, rel=0.05)
    parts = {key for key in logged[-1] if key.startswith("seconds/")}
    assert {"seconds/data", "seconds/forward", "seconds/backward", "seconds/optimizer", "seconds/evaluation"} <= parts
    told = capsys.readouterr().err
    assert re.search(r"test: step 3/3 \| loss \d\.\d{4} \| lr .* tokens/s \| \d\.\d\d GB \| 0:00 left", told)
    assert "where 0:" in told


def test_an_evaluation_in_between_does_not_spoil_the_gradients(settings, accelerator, tokens, tokenizer):
    s = settings("llama")
    module = NextToken(backend_for("peft").attach(load_base(s, accelerator), DOWNSTREAM, s.lora, 0))
    batch = NarrativeLesson(tokens, tokenizer, 128).collate([0, 1])

    def gradients():
        module.zero_grad()
        module.train()(batch).backward()
        return [p.grad.clone() for p in module.parameters() if p.requires_grad]

    before = gradients()
    with torch.inference_mode():
        module.eval()(batch)
    for first, second in zip(before, gradients(), strict=True):
        torch.testing.assert_close(second, first, atol=0, rtol=0)


def test_the_loss_of_a_batch_can_be_driven_to_nothing(learn, tmp_path):
    _, logged, _ = learn(tmp_path, batch_size=6, epochs=200, learning_rate=3e-2, logging_steps=200, eval_steps=200)
    losses = [fields["eval/loss"] for fields in logged if "eval/loss" in fields]
    assert losses[-1] < 1.0, "an adapter on every linear layer must be able to learn six narratives"


def test_gradient_checkpointing_changes_memory_and_not_the_result(learn, tmp_path):
    plain, *_ = learn(tmp_path / "a", batch_size=2, epochs=2, keep_best=False)
    frugal, *_ = learn(tmp_path / "b", batch_size=2, epochs=2, keep_best=False, gradient_checkpointing=True)
    for name in plain:
        torch.testing.assert_close(frugal[name], plain[name], atol=1e-6, rtol=1e-5)
