"""The base model and its tokenizer: where they come from, and what is made sure of before they are used."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from bitsandbytes.nn import Linear4bit
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from epicrisis.llm.adapters import adapter_directory
from epicrisis.llm.attention import documents_are_apart
from epicrisis.llm.backends import Loading, backend_for
from epicrisis.llm.embedded import EMBEDDED, embedded_base, embedded_tokenizer
from epicrisis.llm.new_tokens import FILE, add_rows, read_new_tokens, with_new_tokens
from epicrisis.settings import Settings, refuse
from epicrisis.settings.schema import ModelSettings
from epicrisis.training.model_sources import cache_directory, hub_name_or_folder

_PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<unk>")


def load_tokenizer(
    model: ModelSettings, accelerator: Accelerator, new_tokens: Path | None = None
) -> PreTrainedTokenizerBase:
    """The base's tokenizer with a padding token that is not the end of sequence, and with the run's new tokens.

    new_tokens: a CSV of them (`lora.new_code_tokens`); where not given, those of model.clinical_adapter.
    """
    if model.model_name in EMBEDDED:
        with accelerator.main_process_first():
            directory = embedded_tokenizer(cache_directory(model))
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    else:
        tokenizer = with_own_pad(AutoTokenizer.from_pretrained(hub_name_or_folder(model.model_name)))
    file = new_tokens or _clinical_new_tokens(model)
    return tokenizer if file is None else with_new_tokens(tokenizer, read_new_tokens(file))


def _clinical_new_tokens(model: ModelSettings) -> Path | None:
    if model.clinical_adapter is None:
        return None
    file = adapter_directory(model.clinical_adapter) / FILE
    return file if file.is_file() else None


def with_own_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Choose a padding token that is no other token's duty: pad = eos would hide the end of sequence."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer
    vocabulary = tokenizer.get_vocab()
    for candidate in _PAD_CANDIDATES:
        if candidate in vocabulary and vocabulary[candidate] != tokenizer.eos_token_id:
            tokenizer.pad_token = candidate
            return tokenizer
    raise refuse(
        "model.model_name",
        "this tokenizer has no token that could pad without being the end of sequence",
        f"add one of {', '.join(_PAD_CANDIDATES)} to the tokenizer",
    )


def load_base(
    settings: Settings, accelerator: Accelerator, new_tokens: Path | None = None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The frozen base of this run on this process's device, through the chosen framework.

    new_tokens: a CSV of tokens to add; where not given, the run's own. dtype: in place of the settings'.
    """
    model = settings.model
    base = load_weights(settings, _source_of_weights(model, accelerator), accelerator.device, dtype)
    if settings.stage == "pretrain" and not documents_are_apart(base):
        raise refuse(
            "model.model_name",
            "this base does not keep the documents of a packed row apart, and pretraining packs them",
            "take a base whose architecture does (Llama, Mistral, Qwen, Gemma), or model.attn_implementation: sdpa",
        )
    file = new_tokens or settings.lora.new_code_tokens or _clinical_new_tokens(model)
    if file is not None:
        add_rows(base, load_tokenizer(model, accelerator, file), read_new_tokens(file))
    return base


def load_weights(
    settings: Settings, source: str, device: torch.device, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The base in `source` (hub name or folder), frozen and ready for an adapter to be trained on it.

    Its precision, attention and recomputing of activations are the settings'; dtype: in place of theirs.
    """
    base = backend_for(settings.training.framework).load(Loading.of(settings, source, device, dtype))
    keep_differentiable(base)
    if settings.training.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return base


def keep_differentiable(base: PreTrainedModel) -> None:
    """Forbid bitsandbytes its inference layout for CPUs.

    On CPUs with AVX512-BF16 the first forward in eval mode repacks 4-bit weights for good, for a kernel that
    has no gradient: training on after an evaluation would then silently learn from wrong gradients.
    """
    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _source_of_weights(model: ModelSettings, accelerator: Accelerator) -> str:
    """Where the base's weights are: a hub name or a folder, into which an embedded base is written at first use."""
    if model.model_name not in EMBEDDED:
        return hub_name_or_folder(model.model_name)
    with accelerator.main_process_first():
        return str(embedded_base(model.model_name, cache_directory(model)))
