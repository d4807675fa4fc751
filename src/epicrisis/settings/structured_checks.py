"""Settings of models of codes that cannot work together, told before any data are read."""

from __future__ import annotations

from epicrisis.settings.problems import Problem
from epicrisis.settings.schema import Settings, TrainingSettings
from epicrisis.settings.structured_section import OBJECTIVES, SIZES
from epicrisis.settings.watched import WATCHED

_BIDIRECTIONAL = ("bert", "t5")
_BATCH_SIZE = TrainingSettings().batch_size


def structured_problems(settings: Settings) -> list[Problem]:
    """What is wrong with `structured`, and with what other sections ask of its arm."""
    if settings.arm != "structured":
        return []
    problems = _shape_problems(settings) + _objective_problems(settings) + _training_problems(settings)
    if settings.stage == "pretrain":
        return problems + _pretraining_problems(settings)
    return problems + _classification_problems(settings)


def _shape_problems(settings: Settings) -> list[Problem]:
    code, problems = settings.structured, []
    sizes = SIZES[code.architecture]
    if code.size not in sizes:
        what = f"{code.architecture} has no size `{code.size}`"
        problems.append(Problem("structured.size", what, f"one of {', '.join(sizes)}"))
    if code.tokens_per_batch < code.context:
        what = f"{code.tokens_per_batch} tokens cannot hold one sequence of {code.context} (structured.context)"
        problems.append(Problem("structured.tokens_per_batch", what, f"set it to {code.context} or more"))
    if code.dropout and code.architecture == "mamba":
        problems.append(Problem("structured.dropout", "Mamba has no dropout", "leave it out"))
    return problems


def _objective_problems(settings: Settings) -> list[Problem]:
    code = settings.structured
    possible = OBJECTIVES[code.architecture]
    if code.objective in (None, possible):
        return []
    both_ways = code.architecture in _BIDIRECTIONAL
    reads = "sees what comes after a token" if both_ways else "reads in one direction"
    what = f"`{code.objective}` cannot be learnt by {code.architecture}, which {reads}"
    if code.objective == "spans" or code.architecture == "t5":
        what = f"`{code.objective}` is not what {code.architecture} is made for: spans need t5's decoder, and t5 spans"
    return [Problem("structured.objective", what, f"set it to {possible}, or leave it out")]


def _training_problems(settings: Settings) -> list[Problem]:
    code, training, problems = settings.structured, settings.training, []
    if training.framework == "unsloth":
        problems.append(Problem("training.framework", "Unsloth is for language models", "leave it out (peft)"))
    if training.gradient_checkpointing and code.architecture == "lstm":
        what = "torch's LSTM computes all its layers at once, so there is nothing to recompute"
        problems.append(Problem("training.gradient_checkpointing", what, "set it to false"))
    watched = WATCHED.get(settings.stage or "", ())
    if training.metric_for_best not in watched:
        what = f"{training.metric_for_best!r} is not evaluated in the stage {settings.stage}"
        problems.append(Problem("training.metric_for_best", what, f"one of {', '.join(watched)}"))
    return problems


def _pretraining_problems(settings: Settings) -> list[Problem]:
    code, training, problems = settings.structured, settings.training, []
    if code.pretrained is not None:
        what = "pretraining begins from scratch"
        problems.append(Problem("structured.pretrained", what, "remove it, or set stage: classify"))
    if code.finetune != "full":
        what = f"`{code.finetune}` trains a part of a pretrained model, and pretraining makes one"
        problems.append(Problem("structured.finetune", what, "leave it out, or set stage: classify"))
    if code.pooling is not None:
        what = "pretraining reads every token's state by itself"
        problems.append(Problem("structured.pooling", what, "leave it out, or set stage: classify"))
    said = "structured.tokens_per_batch says what a device holds, and gradient_accumulation_steps how many such batches"
    if training.batch_size != _BATCH_SIZE:
        problems.append(Problem("training.batch_size", f"{said} make a step", "leave it out"))
    if training.effective_batch_size is not None:
        problems.append(Problem("training.effective_batch_size", f"{said} make a step", "leave it out"))
    if training.class_weights != "none":
        problems.append(Problem("training.class_weights", "pretraining has no classes", "leave it out"))
    return problems


def _classification_problems(settings: Settings) -> list[Problem]:
    code, problems = settings.structured, []
    if code.pooling == "last" and code.architecture in _BIDIRECTIONAL:
        what = f"the last token of {code.architecture} has not read the record any more than the others have"
        problems.append(Problem("structured.pooling", what, "set it to mean or max"))
    if code.checkpoint_tokens:
        what = "counts the tokens of a pretraining"
        problems.append(Problem("structured.checkpoint_tokens", what, "remove it, or set stage: pretrain"))
    if settings.training.batch_size == "auto":
        what = "is looked for with language models only"
        problems.append(Problem("training.batch_size", what, "give a number"))
    if code.finetune == "head" and code.pretrained is None:
        what = "a head alone would read the states of an untrained model"
        problems.append(Problem("structured.finetune", what, "give structured.pretrained, or set it to full"))
    if code.finetune == "head" and settings.training.gradient_checkpointing:
        what = "a frozen body keeps no activations that could be recomputed"
        problems.append(Problem("training.gradient_checkpointing", what, "set it to false"))
    if code.finetune == "lora":
        problems += _adapter_problems(settings)
    return problems


def _adapter_problems(settings: Settings) -> list[Problem]:
    code, lora, problems = settings.structured, settings.lora, []
    if code.architecture == "lstm":
        what = "an LSTM has no linear layer to adapt"
        problems.append(Problem("structured.finetune", what, "set it to full or head"))
    if code.pretrained is None:
        what = "adapters would be trained on an untrained model"
        problems.append(Problem("structured.finetune", what, "give structured.pretrained, or set it to full"))
    if lora.method != "lora":
        problems.append(Problem("lora.method", f"models of codes know no `{lora.method}`", "set it to lora"))
    if lora.init_lora_weights == "loftq":
        what = "mends the rounding of a 4-bit base, and models of codes are not rounded"
        problems.append(Problem("lora.init_lora_weights", what, "leave it out"))
    if lora.modules_to_train or lora.new_code_tokens:
        what = "are a language model's embeddings and tokens"
        problems.append(Problem("lora.modules_to_train, lora.new_code_tokens", what, "leave them out"))
    return problems
