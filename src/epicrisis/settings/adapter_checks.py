"""Ways of adapting a base that exclude each other, told before any model is loaded."""

from __future__ import annotations

from epicrisis.settings.problems import Problem
from epicrisis.settings.schema import LoraSettings, Settings

_LORA_ALONE = {
    "use_rslora": False,
    "use_dora": False,
    "init_lora_weights": "default",
    "modules_to_train": (),
    "new_code_tokens": None,
}
"""What only method: lora does, and the value at which it does nothing."""
_PROMPTS = ("prefix", "prompt", "p_tuning")


def adapter_problems(settings: Settings) -> list[Problem]:
    """What is wrong with `lora` in this stage, on this base and under this training."""
    return (
        _method_problems(settings)
        + _variant_problems(settings)
        + _beginning_problems(settings)
        + _trained_module_problems(settings)
    )


def _method_problems(settings: Settings) -> list[Problem]:
    lora, model, training, problems = settings.lora, settings.model, settings.training, []
    method = lora.method
    if method == "lora":
        return []
    where = "lora.method"
    if method == "none":
        if settings.stage == "pretrain":
            problems.append(Problem(where, "without an adapter there is nothing to pretrain", "set lora.method: lora"))
        elif model.head != "score" and not model.clinical_trainable:
            what = "without a new adapter only the head is trained, and the answers' tokens have none"
            problems.append(Problem(where, what, "set model.head: score, or model.clinical_trainable: true"))
    elif settings.stage == "classify":
        what = f"`{method}` is compared in pretraining only: {_why_not_stacked(method)}"
        problems.append(Problem(where, what, "set lora.method: lora (or none), or stage: pretrain"))
    for key, idle in _LORA_ALONE.items():
        if getattr(lora, key) != idle:
            problems.append(
                Problem(f"lora.{key}", f"`{method}` has no such thing", "leave it out, or set method: lora")
            )
    if method == "prefix" and training.gradient_checkpointing:
        what = "recomputing a layer drops the keys and values before it, which are the prefix"
        problems.append(Problem("training.gradient_checkpointing", what, "set it to false"))
    if method == "adalora":
        problems += _adalora_problems(settings)
    return problems


def _why_not_stacked(method: str) -> str:
    if method in _PROMPTS:
        return "it has no weights beside the layers that a downstream adapter's could be added to"
    return "its ranks are shared out while it is trained alone, and PEFT puts no LoRA adapter beside it"


def _adalora_problems(settings: Settings) -> list[Problem]:
    lora, training, problems = settings.lora, settings.training, []
    if lora.initial_r is not None and lora.initial_r <= lora.r:
        what = f"{lora.initial_r} leaves no rank to take away down to lora.r {lora.r}"
        problems.append(Problem("lora.initial_r", what, "make it larger than lora.r"))
    if training.keep_best:
        what = "the best step may be one before AdaLoRA had shared out its ranks"
        problems.append(Problem("training.keep_best", what, "set training.keep_best: false"))
    return problems


def _variant_problems(settings: Settings) -> list[Problem]:
    lora, problems = settings.lora, []
    if lora.use_dora and settings.model.clinical_adapter:
        what = "PEFT's DoRA rescales what the adapter below it adds, and in training otherwise than in scoring"
        problems.append(Problem("lora.use_dora", what, "leave it out for the downstream adapter"))
    if lora.initial_r is not None and lora.method != "adalora":
        problems.append(Problem("lora.initial_r", "only AdaLoRA has one", "leave it out, or set lora.method: adalora"))
    return problems


def _beginning_problems(settings: Settings) -> list[Problem]:
    lora, where = settings.lora, "lora.init_lora_weights"
    if lora.init_lora_weights == "pissa":
        what = (
            "PiSSA takes its adapter out of the base's weights, so that it fits no other copy of the base, "
            "cannot lie over or under another adapter, and a 4-bit base cannot give it up exactly"
        )
        return [Problem(where, what, "use default or gaussian, or loftq on a 4-bit base")]
    if lora.init_lora_weights != "loftq":
        return []
    problems = []
    if not settings.training.load_in_4bit:
        problems.append(Problem(where, "a base of 16 bits has no 4-bit rounding to mend", "use default"))
    if settings.model.clinical_adapter:
        what = "the clinical adapter was trained on the 4-bit base as it is"
        problems.append(Problem(where, what, "use loftq in pretraining, and default here"))
    if lora.use_dora:
        problems.append(Problem(where, "DoRA measures the weights before LoftQ mends them", "leave one of the two out"))
    return problems


def _trained_module_problems(settings: Settings) -> list[Problem]:
    lora, problems = settings.lora, []
    if lora.modules_to_train and lora.new_code_tokens:
        what = "the whole embedding is trained, new tokens with it"
        problems.append(Problem("lora.new_code_tokens", f"{what}, and would not be saved", "leave one of the two out"))
    if lora.modules_to_train and _adapted_by_name(lora):
        what = f"{', '.join(_adapted_by_name(lora))} would be trained in full and adapted at once"
        problems.append(Problem("lora.target_modules", what, "leave them out there"))
    if settings.training.embedding_learning_rate and not (lora.modules_to_train or lora.new_code_tokens):
        what = "no embedding is trained"
        problems.append(
            Problem("training.embedding_learning_rate", what, "give lora.modules_to_train or lora.new_code_tokens")
        )
    if lora.new_code_tokens and settings.model.clinical_adapter:
        what = "the clinical adapter decides how narratives are tokenised"
        problems.append(Problem("lora.new_code_tokens", what, "give it in pretraining, and leave it out here"))
    return problems


def _adapted_by_name(lora: LoraSettings) -> list[str]:
    if isinstance(lora.target_modules, str):
        return []
    return sorted({"embed_tokens", "lm_head"} & set(lora.target_modules))
