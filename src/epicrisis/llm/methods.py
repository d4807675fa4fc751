"""The adapter settings in PEFT's terms, for every method."""

from __future__ import annotations

import re
from typing import Any

from peft import (
    AdaLoraConfig,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PromptTuningInit,
)
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from epicrisis.llm.new_tokens import new_token_ids
from epicrisis.llm.trained_modules import embedding_names, is_tied, names_to_train
from epicrisis.settings.schema import LoraSettings


def adapter_config(base: PreTrainedModel, lora: LoraSettings) -> PeftConfig:
    """What PEFT is told of the adapter that `lora` describes, on this base.

    LoRA: Hu et al. 2021 (arXiv:2106.09685), with rank-stabilised scale (arXiv:2312.03732) or DoRA
    (arXiv:2402.09353). AdaLoRA: Zhang et al. 2023 (arXiv:2303.10512). Prefix: Li & Liang 2021
    (arXiv:2101.00190). Prompt: Lester et al. 2021 (arXiv:2104.08691). P-tuning: Liu et al. 2021
    (arXiv:2103.10385). Raises InputError where this base has not the modules that are to be trained.
    """
    if lora.method == "lora":
        return lora_config(base, lora)
    if lora.method == "adalora":
        return _adalora_config(lora)
    prompt: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": lora.virtual_tokens}
    if lora.method == "prefix":
        return PrefixTuningConfig(**prompt)
    if lora.method == "prompt":
        return PromptTuningConfig(prompt_tuning_init=PromptTuningInit.RANDOM, **prompt)
    if lora.method == "p_tuning":
        return PromptEncoderConfig(encoder_hidden_size=lora.encoder_hidden_size, **prompt)
    raise ValueError(f"method {lora.method!r} makes no adapter")


def lora_config(base: PreTrainedModel, lora: LoraSettings) -> LoraConfig:
    """A LoRA adapter, with what else it trains: whole modules, or the rows of new tokens in both matrices."""
    trained = names_to_train(base, lora.modules_to_train)
    new_ids = new_token_ids(base) if lora.new_code_tokens else []
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # PEFT scales by any number
        lora_dropout=lora.lora_dropout,
        target_modules=_target_modules(lora),
        exclude_modules=_inside_wrapped(base),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights="gaussian" if lora.init_lora_weights == "gaussian" else True,
        modules_to_save=trained or None,
        ensure_weight_tying=bool(trained) and is_tied(base),
        trainable_token_indices=dict.fromkeys(embedding_names(base), new_ids) if new_ids else None,
        task_type="CAUSAL_LM",
    )


def _inside_wrapped(base: PreTrainedModel) -> str | None:
    """A pattern of what an adapter below has put inside embedding and output layer, which are linear layers too."""
    wrapped = [name for name in embedding_names(base) if isinstance(base.get_submodule(name), AuxiliaryTrainingWrapper)]
    return "|".join(rf"{re.escape(name)}\..*" for name in wrapped) or None


def _adalora_config(lora: LoraSettings) -> AdaLoraConfig:
    """total_step is a stand-in: `sharing_ranks` sets it when the number of steps is known."""
    return AdaLoraConfig(
        target_r=lora.r,
        init_r=lora.initial_r or lora.r + (lora.r + 1) // 2,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=lora.lora_dropout,
        target_modules=_target_modules(lora),
        total_step=1,
        task_type="CAUSAL_LM",
    )


def _target_modules(lora: LoraSettings) -> str | list[str]:
    return lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
