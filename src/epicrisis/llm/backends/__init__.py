"""Libraries that load a base model and attach adapters to it, behind one small protocol."""

from __future__ import annotations

from typing import Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from epicrisis.settings.schema import LoraSettings


class Backend(Protocol):
    """What a library must do to be `training.framework`."""

    def load_base(
        self,
        source: str,
        *,
        load_in_4bit: bool,
        dtype: torch.dtype,
        device: torch.device,
        max_length: int,
        attention: str = "sdpa",
        quant_storage: str = "uint8",
    ) -> PreTrainedModel:
        """The frozen base model on one device, in NF4 with double quantisation or in `dtype`.

        attention: an implementation that transformers knows (see llm/attention.py). quant_storage: what packed 4-bit
        weights are stored as, of the same bits whatever it is called.
        """
        ...

    def attach(self, model: PreTrainedModel, name: str, lora: LoraSettings, seed: int) -> PeftModel:
        """The base with one new trainable adapter called `name`."""
        ...


def backend_for(framework: str) -> Backend:
    """The backend of `training.framework`; InputError with the install line where it is not installed."""
    if framework == "unsloth":
        from epicrisis.llm.backends.unsloth import UnslothBackend

        return UnslothBackend()
    from epicrisis.llm.backends.peft import PeftBackend

    return PeftBackend()
