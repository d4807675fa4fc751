"""What cannot work is told before any data are read, with its key and a way out."""

from __future__ import annotations

from typing import Any

import pytest

from epicrisis.settings import InputError, settings_from

PRETRAINED = {"pretrained": "runs/pre"}


def settings_with(stage: str, structured: dict[str, Any], **sections: dict[str, Any]) -> None:
    code = {"size": "demo", **structured}
    settings_from({"arm": "structured", "stage": stage, "structured": code, **sections}, check_files=False)


@pytest.mark.parametrize(
    ("stage", "structured", "sections", "where", "what"),
    [
        ("pretrain", {"architecture": "bert", "objective": "next_token"}, {}, "structured.objective", "which sees"),
        ("pretrain", {"architecture": "gpt2", "objective": "masked"}, {}, "structured.objective", "one direction"),
        ("pretrain", {"architecture": "llama", "objective": "spans"}, {}, "structured.objective", "t5's decoder"),
        ("pretrain", {"architecture": "t5", "objective": "masked"}, {}, "structured.objective", "and t5 spans"),
        ("pretrain", {"architecture": "llama", "size": "large"}, {}, "structured.size", "no size `large`"),
        ("pretrain", {"context": 512, "tokens_per_batch": 500}, {}, "structured.tokens_per_batch", "one sequence"),
        ("pretrain", {"architecture": "mamba", "dropout": 0.1}, {}, "structured.dropout", "no dropout"),
        ("pretrain", PRETRAINED, {}, "structured.pretrained", "from scratch"),
        ("pretrain", {"finetune": "head"}, {}, "structured.finetune", "pretraining makes one"),
        ("pretrain", {"pooling": "mean"}, {}, "structured.pooling", "by itself"),
        ("pretrain", {}, {"training": {"batch_size": 16}}, "training.batch_size", "tokens_per_batch"),
        ("pretrain", {}, {"training": {"effective_batch_size": 16}}, "training.effective_batch_size", "such batches"),
        ("pretrain", {}, {"training": {"metric_for_best": "auroc"}}, "training.metric_for_best", "not evaluated"),
        ("classify", {"architecture": "bert", "pooling": "last"}, {}, "structured.pooling", "any more than"),
        ("classify", {"architecture": "t5", "pooling": "last"}, {}, "structured.pooling", "any more than"),
        ("classify", {"checkpoint_tokens": [100]}, {}, "structured.checkpoint_tokens", "a pretraining"),
        ("classify", {"finetune": "head"}, {}, "structured.finetune", "untrained model"),
        ("classify", {"finetune": "lora"}, {}, "structured.finetune", "untrained model"),
        (
            *("classify", {"architecture": "lstm", "finetune": "lora", **PRETRAINED}, {}),
            *("structured.finetune", "no linear layer"),
        ),
        (
            *("classify", {"finetune": "lora", **PRETRAINED}, {"lora": {"init_lora_weights": "loftq"}}),
            *("lora.init_lora_weights", "not rounded"),
        ),
        (
            *("classify", {"architecture": "lstm"}, {"training": {"gradient_checkpointing": True}}),
            *("training.gradient_checkpointing", "all its layers at once"),
        ),
    ],
)
def test_wrong_combinations_are_named_with_their_key(
    stage: str, structured: dict[str, Any], sections: dict[str, Any], where: str, what: str
) -> None:
    with pytest.raises(InputError) as caught:
        settings_with(stage, structured, **sections)
    (problem,) = [problem for problem in caught.value.problems if problem.where == where]
    assert what in str(problem)


@pytest.mark.parametrize(
    ("stage", "structured"),
    [
        ("pretrain", {"architecture": "bert", "objective": "masked"}),
        ("pretrain", {"architecture": "t5"}),
        ("pretrain", {"checkpoint_tokens": [1000, 2000]}),
        ("classify", {"architecture": "bert", "pooling": "max"}),
        ("classify", {"finetune": "lora", **PRETRAINED}),
        ("classify", {"architecture": "lstm", "finetune": "head", **PRETRAINED}),
    ],
)
def test_what_works_is_not_refused(stage: str, structured: dict[str, Any]) -> None:
    settings_with(stage, structured)
