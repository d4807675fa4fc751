"""A text encoder with a linear head over whole records, trained in full, through an adapter, or in the head alone."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from epicrisis.encoders.pooling import pool_tokens, pool_windows
from epicrisis.encoders.windows import WindowBatch
from epicrisis.settings import Settings, refuse
from epicrisis.settings.schema import EncoderSettings, LoraSettings
from epicrisis.training.device import compute_dtype

ADAPTER = "downstream"


class RecordEncoder(nn.Module):
    """Each record's vector, float32 [n_documents, hidden]: its windows read apart, their pooled states pooled again.

    compute: the precision of the matrix products; weights and sums stay in float32.
    """

    def __init__(self, encoder: nn.Module, encoding: EncoderSettings, compute: torch.dtype = torch.float32):
        super().__init__()
        self.encoder = encoder
        self._encoding = encoding
        self._compute = compute
        self._learns = any(parameter.requires_grad for parameter in encoder.parameters())

    def train(self, mode: bool = True) -> RecordEncoder:
        """A frozen encoder never drops anything: what it says of a record is the same each time."""
        super().train(mode)
        self.encoder.train(mode and self._learns)
        return self

    def forward(self, batch: WindowBatch) -> torch.Tensor:
        device, lowered = batch.input_ids.device.type, self._compute != torch.float32
        with (
            torch.set_grad_enabled(self._learns and torch.is_grad_enabled()),
            torch.autocast(device, dtype=self._compute if lowered else None, enabled=lowered),
        ):
            states = self.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        pooled = pool_tokens(states.float(), batch.attention_mask, self._encoding.pooling)
        return pool_windows(pooled, batch.document, batch.n_documents, self._encoding.chunk_pooling)


class RecordClassifier(nn.Module):
    """Logits, float32 [n_documents, n_outputs], by dropout and a linear layer on what `body` gives of a batch."""

    def __init__(self, body: nn.Module, width: int, n_outputs: int, dropout: float, seed: int):
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.head = nn.Linear(width, n_outputs)
            nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Any) -> torch.Tensor:
        return self.head(self.dropout(self.body(batch)))


def narrative_classifier(settings: Settings, encoder: PreTrainedModel, n_outputs: int) -> RecordClassifier:
    """The module of the arm `encoder`; what encoder.finetune leaves out is frozen."""
    width, device = int(encoder.config.hidden_size), encoder.device
    finetune, body = settings.encoder.finetune, encoder
    if finetune == "lora":
        body = with_adapter(encoder, settings.lora, settings.training.seed)
    elif finetune == "head":
        encoder.requires_grad_(False)
    records = RecordEncoder(body, settings.encoder, compute_dtype(settings.training))
    seed, dropout = settings.training.seed, settings.encoder.dropout
    return RecordClassifier(records, width, n_outputs, dropout, seed).to(device)


def with_adapter(encoder: PreTrainedModel, lora: LoraSettings, seed: int) -> Any:
    """The frozen encoder with a LoRA adapter (Hu et al. 2021, arXiv:2106.09685) of this run.

    Raises InputError for target modules that the encoder does not have.
    """
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # peft multiplies by it, whole or not
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights="gaussian" if lora.init_lora_weights == "gaussian" else True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(encoder, config, adapter_name=ADAPTER)
        except ValueError as error:
            what = f"{lora.target_modules} does not fit this encoder ({str(error).splitlines()[0]})"
            raise refuse("lora.target_modules", what, "use all-linear, or names of its linear layers") from None
