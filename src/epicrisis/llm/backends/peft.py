"""Bases through transformers and bitsandbytes, adapters through PEFT: works with any causal model."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from epicrisis.llm.attention import choose_attention
from epicrisis.llm.backends import Loading
from epicrisis.llm.loftq import mend_rounding
from epicrisis.llm.methods import adapter_config
from epicrisis.llm.trained_modules import keep_in_float32
from epicrisis.settings.schema import LoraSettings


class PeftBackend:
    """`training.framework: peft`."""

    def load(self, loading: Loading) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(
            loading.source,
            dtype=loading.dtype,
            quantization_config=nf4_config(loading.dtype, loading.quant_storage) if loading.load_in_4bit else None,
            device_map={"": loading.device},
            attn_implementation=choose_attention(loading.attention, loading.device, loading.dtype),
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


def nf4_config(compute_dtype: torch.dtype, quant_storage: str) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantisation, as in QLoRA (Dettmers et al. 2023, arXiv:2305.14314)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=quant_storage,
    )
