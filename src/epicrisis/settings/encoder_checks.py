"""What text encoders and models of events cannot do, told before any model is loaded."""

from __future__ import annotations

from typing import Any

from epicrisis.settings.problems import Problem
from epicrisis.settings.schema import Settings

ARMS = ("encoder", "frozen_encoder", "event_encoder")
EMBEDDED_POSITIONS = {"epicrisis/tiny-bert": 512}
"""Embedded encoders and their longest sequence, special tokens included."""

_DECODERS = ("tiny-llama", "tiny-mistral")
_MODEL_IDLE = {"clinical_adapter": None, "fused": None, "answer_mass": False, "chat_template": False}
_LORA_IDLE = {"method": "lora", "initial_r": None, "modules_to_train": (), "new_code_tokens": None}
_TRAINING_IDLE = {"framework": "peft", "quant_storage": "uint8"}
"""By section, what only language models have, and the value at which it asks for nothing."""


def encoder_problems(settings: Settings) -> list[Problem]:
    """What is wrong with a run of one of these arms; nothing for any other."""
    if settings.arm not in ARMS:
        return []
    problems = _idle_problems(settings) + _base_problems(settings) + _training_problems(settings)
    if settings.arm == "event_encoder":
        return problems + _event_problems(settings)
    return problems + _narrative_problems(settings)


def _idle_problems(settings: Settings) -> list[Problem]:
    sections: dict[str, dict[str, Any]] = {"model": _MODEL_IDLE, "lora": _LORA_IDLE, "training": _TRAINING_IDLE}
    return [
        Problem(f"{section}.{key}", f"the arm `{settings.arm}` has no such thing", "leave it out, or set arm: llm")
        for section, idle in sections.items()
        for key, value in idle.items()
        if getattr(getattr(settings, section), key) != value
    ]


def _base_problems(settings: Settings) -> list[Problem]:
    model, problems = settings.model, []
    if model.model_name.rpartition("/")[2] in _DECODERS:
        what = f"{model.model_name} is a decoder, whose tokens see only those before them"
        problems.append(Problem("model.model_name", what, "name an encoder, e.g. epicrisis/tiny-bert"))
    most = EMBEDDED_POSITIONS.get(model.model_name)
    if most is not None and settings.arm != "event_encoder" and model.max_length > most:
        what = f"{model.max_length} tokens are more than the {most} positions that {model.model_name} has"
        fix = f"set it to {most} or less; encoder.long: chunk reads longer records"
        problems.append(Problem("model.max_length", what, fix))
    if model.attn_implementation == "flex_attention":
        what = "rows of padded text are no work for it"
        problems.append(Problem("model.attn_implementation", what, "use auto, sdpa, eager or flash_attention_2"))
    if settings.arm != "encoder" and settings.encoder.finetune == "lora":
        what = f"the text encoder of `{settings.arm}` is frozen"
        problems.append(Problem("encoder.finetune", what, "leave it out, or set arm: encoder"))
    if settings.arm == "encoder" and settings.encoder.finetune == "lora" and _has_no_plain_beginning(settings):
        what = "it mends the rounding of 4-bit weights, and an encoder's are not rounded"
        problems.append(Problem("lora.init_lora_weights", what, "use default or gaussian"))
    return problems


def _has_no_plain_beginning(settings: Settings) -> bool:
    return settings.lora.init_lora_weights not in ("default", "gaussian")


def _training_problems(settings: Settings) -> list[Problem]:
    training, problems = settings.training, []
    if training.batch_size == "auto":
        what = "is looked for among language models only"
        problems.append(Problem("training.batch_size", what, "give a number, e.g. 16"))
    watched = ("loss", "auroc") if settings.stage == "classify" else ("loss",)
    if training.metric_for_best not in watched:
        what = f"{training.metric_for_best!r} is not evaluated by the arm {settings.arm} in the stage {settings.stage}"
        problems.append(Problem("training.metric_for_best", what, f"one of {', '.join(watched)}"))
    return problems


def _event_problems(settings: Settings) -> list[Problem]:
    encoder, problems = settings.encoder, []
    if encoder.long == "chunk":
        what = "events are one vector each, so that no record is cut into windows"
        problems.append(Problem("encoder.long", what, "leave it out; encoder.max_events says how many are read"))
    if encoder.width % encoder.heads:
        what = f"{encoder.width} cannot be shared evenly by {encoder.heads} heads"
        problems.append(Problem("encoder.width", what, "make it a multiple of encoder.heads"))
    if settings.narrative.max_tokens is not None:
        what = "events are counted, not tokens"
        problems.append(Problem("narrative.max_tokens", what, "leave it out; encoder.max_events is the budget"))
    if settings.narrative.records == "whole":
        problems.append(Problem("narrative.records", "the latest events are read", "leave it out"))
    if settings.training.gradient_checkpointing:
        what = "a model of events is small, and keeps its activations"
        problems.append(Problem("training.gradient_checkpointing", what, "set it to false"))
    if settings.stage == "pretrain" and encoder.pretrained is not None:
        what = "this stage makes what it would name"
        problems.append(Problem("encoder.pretrained", what, "leave it out, or set stage: classify"))
    if settings.stage == "pretrain" and encoder.finetune != "full":
        what = "pretraining trains all weights"
        problems.append(Problem("encoder.finetune", what, "leave it out"))
    if settings.stage == "classify" and encoder.finetune == "head" and encoder.pretrained is None:
        what = "a head alone would read a model of events that has learnt nothing"
        problems.append(Problem("encoder.finetune", what, "give encoder.pretrained, or set it to full"))
    return problems


def _narrative_problems(settings: Settings) -> list[Problem]:
    encoder, problems = settings.encoder, []
    if encoder.pretrained is not None:
        what = "only models of events are pretrained here"
        problems.append(Problem("encoder.pretrained", what, "leave it out; model.model_name may be a folder"))
    if settings.narrative.max_tokens is not None and encoder.long == "chunk":
        what = "encoder.max_chunks says how much of a record is read"
        problems.append(Problem("narrative.max_tokens", what, "leave it out"))
    if settings.arm == "frozen_encoder" and settings.training.gradient_checkpointing:
        what = "no gradient passes through a frozen encoder"
        problems.append(Problem("training.gradient_checkpointing", what, "set it to false"))
    return problems
