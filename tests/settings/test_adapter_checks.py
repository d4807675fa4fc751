"""Ways of adapting a base that cannot be had together are refused with the reason, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from epicrisis.settings import InputError, settings_from

PRETRAIN: dict[str, Any] = {"arm": "llm", "stage": "pretrain"}
CLASSIFY: dict[str, Any] = {"arm": "llm", "stage": "classify"}


def problems_of(tree: dict[str, Any]) -> dict[str, str]:
    """What is wrong with a config, by key."""
    with pytest.raises(InputError) as error:
        settings_from(tree, check_files=False)
    return {problem.where: problem.what for problem in error.value.problems}


@pytest.mark.parametrize(
    ("tree", "where", "what"),
    [
        *(
            ({**CLASSIFY, "lora": {"method": method}, "training": {"keep_best": False}}, "lora.method", reason)
            for method, reason in (
                ("adalora", "PEFT puts no LoRA adapter beside it"),
                ("prefix", "no weights beside the layers"),
                ("prompt", "no weights beside the layers"),
                ("p_tuning", "no weights beside the layers"),
            )
        ),
        ({**PRETRAIN, "lora": {"method": "none"}}, "lora.method", "nothing to pretrain"),
        ({**CLASSIFY, "lora": {"method": "none"}}, "lora.method", "only the head is trained"),
        ({**PRETRAIN, "lora": {"method": "prompt", "use_dora": True}}, "lora.use_dora", "`prompt` has no such thing"),
        (
            {**PRETRAIN, "lora": {"method": "prefix"}, "training": {"gradient_checkpointing": True}},
            "training.gradient_checkpointing",
            "which are the prefix",
        ),
        (
            {**PRETRAIN, "model": {"attn_implementation": "flash_attention_2"}, "training": {"framework": "unsloth"}},
            "model.attn_implementation",
            "Unsloth chooses its attention by itself",
        ),
        (
            {**PRETRAIN, "training": {"framework": "unsloth", "quant_storage": "bfloat16"}},
            "training.quant_storage",
            "as uint8 only",
        ),
        (
            {**PRETRAIN, "training": {"load_in_4bit": False, "quant_storage": "bfloat16"}},
            "training.quant_storage",
            "only 4-bit weights are packed",
        ),
        ({**PRETRAIN, "lora": {"method": "adalora"}}, "training.keep_best", "the best step may be one before"),
        (
            {**PRETRAIN, "lora": {"method": "adalora", "r": 8, "initial_r": 8}, "training": {"keep_best": False}},
            "lora.initial_r",
            "leaves no rank to take away",
        ),
        ({**PRETRAIN, "lora": {"initial_r": 12}}, "lora.initial_r", "only AdaLoRA has one"),
        ({**PRETRAIN, "lora": {"init_lora_weights": "pissa"}}, "lora.init_lora_weights", "out of the base's weights"),
        (
            {**PRETRAIN, "lora": {"init_lora_weights": "loftq"}, "training": {"load_in_4bit": False}},
            "lora.init_lora_weights",
            "no 4-bit rounding to mend",
        ),
        (
            {**PRETRAIN, "lora": {"init_lora_weights": "loftq", "use_dora": True}},
            "lora.init_lora_weights",
            "before LoftQ mends them",
        ),
        (
            {**CLASSIFY, "model": {"clinical_adapter": "a"}, "lora": {"init_lora_weights": "loftq"}},
            "lora.init_lora_weights",
            "trained on the 4-bit base as it is",
        ),
        ({**CLASSIFY, "model": {"clinical_adapter": "a"}, "lora": {"use_dora": True}}, "lora.use_dora", "rescales"),
        (
            {**CLASSIFY, "model": {"clinical_adapter": "a"}, "lora": {"new_code_tokens": "b.csv"}},
            "lora.new_code_tokens",
            "decides how narratives are tokenised",
        ),
        (
            {**PRETRAIN, "lora": {"new_code_tokens": "b.csv", "modules_to_train": ["embeddings"]}},
            "lora.new_code_tokens",
            "the whole embedding is trained",
        ),
        (
            {**PRETRAIN, "lora": {"target_modules": ["q_proj", "lm_head"], "modules_to_train": ["head"]}},
            "lora.target_modules",
            "lm_head would be trained in full and adapted",
        ),
        (
            {**PRETRAIN, "training": {"embedding_learning_rate": 1e-5}},
            "training.embedding_learning_rate",
            "no embedding is trained",
        ),
    ],
)
def test_what_cannot_go_together_is_refused(tree: dict[str, Any], where: str, what: str) -> None:
    found = problems_of(tree)
    assert list(found) == [where]
    assert what in found[where]


@pytest.mark.parametrize(
    "tree",
    [
        {**PRETRAIN, "lora": {"method": "adalora"}, "training": {"keep_best": False}},
        {**PRETRAIN, "lora": {"method": "prefix"}},
        {**PRETRAIN, "lora": {"method": "prompt"}, "training": {"framework": "unsloth"}},
        {**PRETRAIN, "model": {"attn_implementation": "eager"}, "training": {"framework": "unsloth"}},
        {**PRETRAIN, "training": {"quant_storage": "bfloat16"}},
        {**PRETRAIN, "lora": {"use_dora": True, "use_rslora": True, "init_lora_weights": "gaussian"}},
        {**PRETRAIN, "lora": {"init_lora_weights": "loftq"}},
        {**PRETRAIN, "lora": {"modules_to_train": ["head"]}, "training": {"embedding_learning_rate": 1e-5}},
        {**CLASSIFY, "model": {"head": "score"}, "lora": {"method": "none"}},
        {**CLASSIFY, "model": {"clinical_adapter": "a", "clinical_trainable": True}, "lora": {"method": "none"}},
    ],
)
def test_what_can_be_had_is_not_refused(tree: dict[str, Any]) -> None:
    assert settings_from(tree, check_files=False).lora is not None


@pytest.mark.parametrize("mode", ["stack", "cat", "merge16", "ties", "dare", "svd:8"])
def test_modes_of_fusing(mode: str) -> None:
    assert settings_from({**CLASSIFY, "fuse": {"mode": mode}}, check_files=False).fuse.mode == mode


@pytest.mark.parametrize("mode", ["linear", "svd", "svd:0", "merge4", ""])
def test_modes_that_are_none(mode: str) -> None:
    assert list(problems_of({**CLASSIFY, "fuse": {"mode": mode}})) == ["fuse.mode"]
