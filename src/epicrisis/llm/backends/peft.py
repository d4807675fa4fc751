"""Bases through transformers and bitsandbytes, adapters through PEFT: works with any causal model."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from epicrisis.settings.schema import LoraSettings


class PeftBackend:
    """`training.framework: peft`."""

    def load_base(
        self, source: str, *, load_in_4bit: bool, dtype: torch.dtype, device: torch.device, max_length: int
    ) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            quantization_config=nf4_config(dtype) if load_in_4bit else None,
            device_map={"": device},
            attn_implementation="sdpa",
        )
        return model.requires_grad_(False)

    def attach(self, model: PreTrainedModel, name: str, lora: LoraSettings, seed: int) -> PeftModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(model, lora_config(lora), adapter_name=name)


def nf4_config(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantisation, as in QLoRA (Dettmers et al. 2023, arXiv:2305.14314)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def lora_config(lora: LoraSettings) -> LoraConfig:
    """The adapter settings in PEFT's terms."""
    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # PEFT scales by any number
        lora_dropout=lora.lora_dropout,
        target_modules=modules,
        use_rslora=lora.use_rslora,
        task_type="CAUSAL_LM",
    )
