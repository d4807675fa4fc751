"""What `epicrisis check` predicts of memory and time, against what is measured."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, PreTrainedConfig

from epicrisis.llm.cross_entropy import LOGITS_AT_ONCE
from epicrisis.llm.forecast import _untrained, flop_per_token, matmul_speed, random_batch, seconds_per_token
from epicrisis.llm.known_bases import base_config
from epicrisis.llm.memory import Memory, Shape, memory_of
from epicrisis.settings import Settings, settings_from


def tree(**changes: Any) -> dict[str, Any]:
    made = {"stage": "pretrain", "model": {"max_length": 512}, "training": {"batch_size": 8, "bf16": False}}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        made.setdefault(section, {})[name] = value
    return made


def predicted(settings: Settings, runtime: float = 0.0) -> Memory:
    config = base_config(settings.model.model_name)
    assert config is not None
    return memory_of(Shape.of(config), settings, runtime=runtime)


def peak_of_a_batch(settings: Settings, config: PreTrainedConfig) -> int:
    """Bytes that forward and backward of one batch allocate at most, as torch counts its own tensors."""
    size, length = settings.training.batch_size, settings.model.max_length
    assert size != "auto"
    module = _untrained(settings, config, torch.device("cpu")).train()
    module(random_batch(1, 16, config.vocab_size)).sum().backward()  # gradients are there before it counts
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module(random_batch(size, length, config.vocab_size)).sum().backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize(
    "changes",
    [
        {"training__load_in_4bit": False},
        {"training__gradient_checkpointing": True},
        {"training__load_in_4bit": False, "lora__lora_dropout": 0.1, "training__bf16": True},
    ],
    ids=str,
)
def test_the_tiny_models_peak_is_predicted_within_a_factor_of_two(changes: dict[str, Any]) -> None:
    settings = settings_from(tree(**changes), check_files=False)
    config = base_config(settings.model.model_name)
    assert config is not None
    memory = predicted(settings)
    assert 0.5 < (memory.activations + memory.passing) / peak_of_a_batch(settings, config) < 2


def test_the_loss_decides_where_the_vocabulary_is_large() -> None:
    config = LlamaConfig(
        vocab_size=30_000, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2
    )
    settings = settings_from(tree(training__load_in_4bit=False, training__batch_size=1), check_files=False)
    memory = memory_of(Shape.of(config), settings, runtime=0.0)
    assert memory.passing == 512 * 30_000 * 4
    assert 0.5 < (memory.activations + memory.passing) / peak_of_a_batch(settings, config) < 2
    ten = settings_from(tree(training__load_in_4bit=False, training__batch_size=10), check_files=False)
    assert memory_of(Shape.of(config), ten, runtime=0.0).passing == LOGITS_AT_ONCE * 4  # it is taken in pieces


def test_a_shape_counts_what_the_model_has() -> None:
    config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2)
    shape = Shape.of(config)
    assert shape.linear == 2 * (4 * 8 * 8 + 3 * 8 * 20)
    assert shape.other == 2 * 50 * 8 + 5 * 8  # embedding, head, norms
    settings = settings_from({"lora": {"r": 3, "target_modules": ["q_proj", "down_proj"]}}, check_files=False)
    assert shape.adapter_weights(settings.lora) == 2 * 3 * ((8 + 8) + (20 + 8))


def test_a_published_8b_in_4_bits_is_as_large_as_it_is_known_to_be() -> None:
    changes = {"model__model_name": "meta-llama/Llama-3.1-8B", "training__bf16": True, "lora__r": 32}
    config = base_config("meta-llama/Llama-3.1-8B")
    assert config is not None
    shape = Shape.of(config)
    assert shape.weights == 8_030_261_248  # as its model card counts them
    assert shape.adapter_weights(settings_from(tree(**changes), check_files=False).lora) == 83_886_080
    memory = predicted(settings_from(tree(**changes), check_files=False))
    assert 5.4e9 < memory.weights < 6.0e9
    assert predicted(settings_from(tree(**changes, training__load_in_4bit=False), check_files=False)).weights > 16e9


def test_each_lever_moves_its_own_part() -> None:
    plain = vars(predicted(settings_from(tree(), check_files=False)))
    for change, part in [
        ({"training__gradient_checkpointing": True}, "activations"),
        ({"training__optimizer": "adamw_8bit"}, "optimizer"),
        ({"training__batch_size": 2}, "passing"),
        ({"lora__r": 2}, "adapters"),
    ]:
        changed = vars(predicted(settings_from(tree(**change), check_files=False)))
        assert changed[part] < plain[part], part
        assert changed["weights"] == plain["weights"]


def test_work_per_token_is_that_of_a_frozen_base() -> None:
    shape = Shape(hidden=8, mlp=20, layers=2, vocabulary=50, linear=1000, other=0, widths=())
    products, attention = 2 * (1000 + 50 * 8), 4 * 2 * 10 * 8
    assert flop_per_token(shape, 10, checkpointing=False) == 2 * products + 3 * attention
    assert flop_per_token(shape, 10, checkpointing=True) == 3 * products + 4 * attention


def test_time_is_measured_where_the_base_is_small_and_leaves_random_numbers_alone() -> None:
    settings = settings_from(tree(training__load_in_4bit=False, training__batch_size=2), check_files=False)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2
    )
    assert 0 < seconds_per_token(settings, config, torch.device("cpu")) < 0.1
    assert matmul_speed(torch.device("cpu"), torch.float32, seconds=0.01) > 1e8


def test_the_probed_batch_is_full() -> None:
    batch = random_batch(3, 7, 50)
    assert batch.input_ids.shape == (3, 7)
    assert batch.supervised_tokens == 3 * 6
