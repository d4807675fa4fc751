"""Bases through transformers and bitsandbytes, adapters through PEFT: works with any causal model."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from epicrisis.llm.loftq import mend_rounding
from epicrisis.llm.methods import adapter_config
from epicrisis.llm.trained_modules import keep_in_float32
from epicrisis.settings.schema import LoraSettings


class PeftBackend:
    """`training.framework: peft`."""

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
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            quantization_config=nf4_config(dtype, quant_storage) if load_in_4bit else None,
            device_map={"": device},
            attn_implementation=attention,
        )
        return model.requires_grad_(False)

    def attach(self, model: PreTrainedModel, name: str, lora: LoraSettings, seed: int) -> PeftModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, adapter_config(model, lora), adapter_name=name)
        keep_in_float32(adapted, name)
        if lora.init_lora_weights == "loftq":
            mend_rounding(adapted, name, str(model.name_or_path))
        return adapted


def nf4_config(compute_dtype: torch.dtype, quant_storage: str = "uint8") -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantisation, as in QLoRA (Dettmers et al. 2023, arXiv:2305.14314)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=quant_storage,
    )
