"""Libraries that load a base model and attach adapters to it, behind one small protocol.

What comes after is the same code for both: training (training/loop.py), stacking and saving (llm/adapters.py), scoring
(llm/heads.py) and writing (llm/sampling.py) take any model that a backend has loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from epicrisis.settings import Settings
from epicrisis.settings.schema import LoraSettings
from epicrisis.training.device import compute_dtype


@dataclass(frozen=True)
class Loading:
    """Which base is to be loaded, and how.

    source: a hub name or a folder. load_in_4bit: NF4 with double quantisation; else weights are in `dtype`, which is
    what is computed in either way. max_length: tokens of the longest sequence. attention: as
    model.attn_implementation, `auto` included. quant_storage: what packed 4-bit weights are stored as, of the same
    bits whatever it is called.
    """

    source: str
    load_in_4bit: bool
    dtype: torch.dtype
    device: torch.device
    max_length: int
    attention: str
    quant_storage: str

    @classmethod
    def of(cls, settings: Settings, source: str, device: torch.device, dtype: torch.dtype | None = None) -> Loading:
        """The base in `source` as the settings want bases; dtype: in place of theirs."""
        model, training = settings.model, settings.training
        return cls(
            source,
            load_in_4bit=training.load_in_4bit,
            dtype=dtype or compute_dtype(training),
            device=device,
            max_length=model.max_length,
            attention=model.attn_implementation,
            quant_storage=training.quant_storage,
        )


class Backend(Protocol):
    """What a library must do to be `training.framework`."""

    def load(self, loading: Loading) -> PreTrainedModel:
        """The base, frozen and on one device; InputError where the library would load another than asked for."""
        ...

    def attach(self, model: PreTrainedModel, name: str, lora: LoraSettings, seed: int) -> PeftModel:
        """The base with one new trainable adapter called `name`; InputError for one that it cannot have."""
        ...


def backend_for(framework: str) -> Backend:
    """The backend of `training.framework`; InputError with the install line where it is not installed."""
    if framework == "unsloth":
        from epicrisis.llm.backends.unsloth import UnslothBackend

        return UnslothBackend()
    from epicrisis.llm.backends.peft import PeftBackend

    return PeftBackend()
