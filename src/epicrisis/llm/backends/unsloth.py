"""Bases through Unsloth, on a GPU by its own kernels and on a CPU by transformers; adapters through PEFT.

Unsloth changes transformers when it is imported, so that happens in here and only when it is asked for. What
it would settle by itself (another precision, another checkpoint, longer positions) is refused instead.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel

from epicrisis.llm.attention import choose_attention, documents_are_apart
from epicrisis.llm.backends import Loading
from epicrisis.llm.backends.peft import PeftBackend
from epicrisis.settings import InputError, Problem, refuse
from epicrisis.settings.schema import LoraSettings

VERSION = "2026.10.9"


class UnslothBackend:
    """`training.framework: unsloth`."""

    def load(self, loading: Loading) -> PreTrainedModel:
        if loading.device.type != "cpu":
            check_length(loading.source, loading.max_length)
        with contextlib.redirect_stdout(sys.stderr):  # it prints where results are expected
            model, _ = import_unsloth().FastLanguageModel.from_pretrained(
                loading.source,
                max_seq_length=loading.max_length,
                dtype=loading.dtype,
                load_in_4bit=loading.load_in_4bit,
                load_in_16bit=not loading.load_in_4bit,
                device_map={"": loading.device},
                attn_implementation=attention_for(loading),
                use_gradient_checkpointing=False,  # is the run's own choice, made after loading
                use_exact_model_name=True,  # not a checkpoint that someone else has quantised
                fix_tokenizer=False,
                offload_embedding=False,
            )
        check_loaded(model, loading)
        keep_documents_apart(model)
        return model.requires_grad_(False)

    def attach(self, model: PreTrainedModel, name: str, lora: LoraSettings, seed: int) -> PeftModel:
        """PEFT's own adapter: Unsloth's knows one name only, and no second adapter beside it."""
        check_method(lora.method, model.device)
        return PeftBackend().attach(model, name, lora, seed)


def attention_for(loading: Loading) -> str:
    """What Unsloth is told to compute attention with, which on a CPU it does.

    Raises InputError on a GPU for anything but `auto`: there its own forward chooses.
    """
    if loading.device.type == "cpu":
        return choose_attention(loading.attention, loading.device, loading.dtype)
    if loading.attention != "auto":
        what = f"on a GPU Unsloth chooses its attention by itself, and would pass over {loading.attention}"
        raise refuse("model.attn_implementation", what, "leave it out, or set training.framework: peft")
    return "sdpa"


def check_method(method: str, device: torch.device) -> None:
    """Raise InputError for an adapter that lies before the text, which Unsloth's forward on a GPU may not read."""
    if method in ("prefix", "prompt", "p_tuning") and device.type != "cpu":
        what = f"`{method}` has not been tried with Unsloth's own forward on a GPU"
        raise refuse("lora.method", what, "set training.framework: peft")


def import_unsloth() -> ModuleType:
    """The library, imported; InputError with the install line where it is missing or cannot run here."""
    cache = Path(os.environ.get("EPICRISIS_CACHE", Path.home() / ".cache" / "epicrisis"))
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # it would tell a hub of every load
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache / "unsloth"))  # else the working directory
    try:
        import unsloth
    except (ImportError, NotImplementedError) as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == "unsloth"
        what = "Unsloth is not installed" if is_missing else f"Unsloth cannot be imported ({error})"
        raise refuse("training.framework", what, f"{_install_line()}, or choose peft") from error
    return unsloth


def _install_line() -> str:
    if torch.cuda.is_available():
        return f"pip install unsloth=={VERSION} unsloth_zoo=={VERSION}"
    # its requirements are for GPUs and would replace a CPU's torch
    return f"pip install --no-deps unsloth=={VERSION} unsloth_zoo=={VERSION}"


def check_length(source: str, max_length: int) -> None:
    """Raise InputError where Unsloth, on a GPU, would stretch the positions to reach `max_length`."""
    config = AutoConfig.from_pretrained(source).get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and max_length > longest:
        raise refuse(
            "model.max_length",
            f"{max_length} is more than this base was trained for ({longest}), and Unsloth would rescale its positions",
            f"make it {longest} or less, or set training.framework: peft",
        )


def check_loaded(model: PreTrainedModel, loading: Loading) -> None:
    """Raise InputError where another base came than asked for, or in another precision."""
    problems = []
    if str(model.name_or_path) != loading.source:
        what = f"Unsloth loaded {model.name_or_path} in place of it"
        problems.append(Problem("model.model_name", what, "name that one, or set training.framework: peft"))
    is_4bit = any(isinstance(module, Linear4bit) for module in model.modules())
    if is_4bit != loading.load_in_4bit:
        what = f"Unsloth loaded the base {'in' if is_4bit else 'without'} 4-bit"
        fix = f"set training.load_in_4bit: {str(is_4bit).lower()}, or training.framework: peft"
        problems.append(Problem("training.load_in_4bit", what, fix))
    found = model.get_input_embeddings().weight.dtype
    if found != loading.dtype:
        what = f"Unsloth loaded the base in {found} instead of {loading.dtype}"
        problems.append(Problem("training.bf16", what, "ask for what the machine has, or training.framework: peft"))
    if problems:
        raise InputError(problems)


def keep_documents_apart(model: PreTrainedModel) -> None:
    """Make sure that packed documents do not see each other; InputError where they cannot be kept from it.

    On a GPU Unsloth reads the bounds of documents from position_ids only when the batch is one row. Then the
    rows are laid end to end, which to attention is the same.
    """
    if documents_are_apart(model):
        return
    _lay_rows_end_to_end(model.get_decoder())
    if not documents_are_apart(model):
        raise refuse(
            "training.framework",
            "with Unsloth the documents of a row would see each other in this base",
            "set training.framework: peft",
        )


def _lay_rows_end_to_end(decoder: Any) -> None:
    forward = decoder.forward

    def forward_as_one_row(input_ids: Any = None, position_ids: Any = None, **others: Any) -> Any:
        if input_ids is None or position_ids is None or others.get("attention_mask") is not None:
            return forward(input_ids=input_ids, position_ids=position_ids, **others)
        output = forward(input_ids=input_ids.reshape(1, -1), position_ids=position_ids.reshape(1, -1), **others)
        output.last_hidden_state = output.last_hidden_state.reshape(*input_ids.shape, -1)
        return output

    decoder.forward = forward_as_one_row
