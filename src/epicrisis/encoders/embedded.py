"""The embedded default encoder: a tiny BERT that has learnt the language of narratives, made on the spot and cached.

It stands in for hub encoders where there is no network. Tokenizer and weights come from the shipped lookup terms and
a synthetic population of its own (see `corpus.tiny_population`), by masked-language modelling.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import nn
from transformers import BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from epicrisis.corpus.packing import IGNORED
from epicrisis.corpus.tiny_population import build_alone, new_folder, population_texts, prepare_population, recipe
from epicrisis.encoders.tiny_bert import SHAPE, VOCABULARY, new_bert, train_wordpiece
from epicrisis.encoders.windows import Reading, WindowBatch, frame_of, lay
from epicrisis.settings.schema import TrainingSettings
from epicrisis.tracking.progress import say
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.device import make_accelerator
from epicrisis.training.loop import train

EMBEDDED = ("epicrisis/tiny-bert",)
WINDOW = 256
MASKED = 0.15
REVISION = 1
"""Counts up with every change that makes training end in other weights, so that no older ones are used."""
TRAINING: dict[str, Any] = {
    "epochs": 4.0,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "warmup_ratio": 0.1,
    "logging_steps": 50,
    "bf16": False,
}


def embedded_encoder(name: str, cache_dir: Path) -> Path:
    """The folder of an embedded encoder (weights and tokenizer), trained in full there on first use."""
    target = cache_dir / f"{name.rpartition('/')[2]}-{recipe(VOCABULARY, SHAPE, WINDOW, MASKED, TRAINING, REVISION)}"
    if not target.is_dir() and PartialState().num_processes > 1:
        build_alone("epicrisis.encoders.embedded", "embedded_encoder", name, cache_dir)
    if not target.is_dir():
        say(f"embedded encoder: training {name} in full on a synthetic population (once, then cached)")
        say("embedded encoder: it reads narratives and nothing else; for real work name a hub encoder")
        with new_folder(target) as partial:
            tokenizer = train_wordpiece(population_texts(partial / "work" / "population"))
            _train(tokenizer, partial / "work").save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            shutil.rmtree(partial / "work")
    return target


class MaskedTokens(nn.Module):
    """Summed cross-entropy of hidden tokens. labels: int64 [n, length], IGNORED where nothing is hidden."""

    def __init__(self, model: BertForMaskedLM):
        super().__init__()
        self.model = model

    def forward(self, batch: WindowBatch, labels: torch.Tensor) -> torch.Tensor:
        states = self.model.bert(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        hidden = labels != IGNORED
        return nn.functional.cross_entropy(self.model.cls(states[hidden]), labels[hidden], reduction="sum")


class MaskingLesson:
    """Narratives of which 15% of the tokens are hidden (Devlin et al. 2019), others in each epoch.

    Of the hidden ones 80% read as [MASK], 10% as another token, 10% as they are. An item is a narrative.
    """

    def __init__(self, tokens: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, reading: Reading):
        self._tokens = tokens
        self._reading = reading
        self._mask, self._n_ids = tokenizer.mask_token_id, len(tokenizer)
        self._n_special = len(tokenizer.all_special_ids)
        self._seed = (0, 0)
        self.item_lengths = np.asarray(tokens["n_tokens"])

    @property
    def n_items(self) -> int:
        return len(self._tokens)

    @property
    def fewest_items(self) -> int:
        return self.n_items

    def start_epoch(self, epoch: int, seed: int) -> None:
        self._seed = (seed % 2**32, epoch)

    def _hidden(self, item: int, n_tokens: int) -> np.ndarray:
        """Places of one window's hidden tokens; at least one."""
        draws = np.random.default_rng([*self._seed, item]).random(n_tokens)
        return np.argsort(draws)[: max(1, round(MASKED * n_tokens))] + len(self._reading.frame.before)

    def collate(self, items: Sequence[int]) -> WindowBatch:
        ids = self._tokens[list(items)]["input_ids"]
        return lay([self._reading.cut(one) for one in ids], self._reading.frame.pad_id)

    def units(self, items: Sequence[int]) -> int:
        return sum(len(self._hidden(item, int(self.item_lengths[item]))) for item in items)

    def loss_sum(self, module: nn.Module, batch: WindowBatch, items: Sequence[int]) -> torch.Tensor:
        read, labels = batch.input_ids.clone(), torch.full_like(batch.input_ids, IGNORED)
        for row, item in enumerate(items):
            places = self._hidden(item, int(self.item_lengths[item]))
            rng = np.random.default_rng([*self._seed, item, 1])
            how, others = rng.random(len(places)), rng.integers(self._n_special, self._n_ids, len(places))
            at = torch.as_tensor(places, device=read.device)
            labels[row, at] = batch.input_ids[row, at]
            written = np.where(how < 0.8, self._mask, np.where(how < 0.9, others, labels[row, at].cpu().numpy()))
            read[row, at] = torch.as_tensor(written, device=read.device)
        return module(WindowBatch(read, batch.attention_mask, batch.document, batch.n_documents), labels)


def _train(tokenizer: PreTrainedTokenizerFast, work: Path) -> BertModel:
    frame = frame_of(tokenizer)
    reading = Reading(frame, WINDOW - frame.n_tokens)
    prepared = prepare_population(tokenizer, work, reading.max_tokens)
    training = TrainingSettings(output_dir=work, keep_best=False, **TRAINING)
    lesson, tuning = (MaskingLesson(prepared.tokens(split), tokenizer, reading) for split in ("train", "tuning"))
    accelerator = make_accelerator(training)
    model = new_bert(tokenizer).to(accelerator.device)  # type: ignore[arg-type]
    train(
        MaskedTokens(model),
        lesson,
        training,
        accelerator,
        Checkpoints(work / "checkpoints", keep=1, accelerator=accelerator),
        title="embedded encoder",
        evaluate=lambda module: _masked_loss(module, tuning, accelerator),
        log=lambda **_: None,
    )
    return model.cpu().bert


def _masked_loss(module: nn.Module, lesson: MaskingLesson, accelerator: Accelerator) -> dict[str, float]:
    size, total = TRAINING["batch_size"], 0.0
    items = list(range(lesson.n_items))
    with torch.inference_mode():
        for start in range(0, len(items), size):
            some = items[start : start + size]
            total += float(lesson.loss_sum(module, lesson.collate(some).to(accelerator.device), some))
    return {"loss": total / lesson.units(items)}
