"""Tokens per second of pretraining on codes: batches of so many tokens here, against transformers' Trainer.

    python benchmarks/structured_throughput.py

Both train the same GPT-2 from the same weights on the same records with AdamW in float32. The Trainer takes as many
records at once, in the order that it shuffles them to, as make the same number of tokens on average, and pads them to
the longest. Records' lengths are those of a skewed distribution. Padding is not counted on either side.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.utils import logging

from epicrisis.settings import Settings, settings_from
from epicrisis.structured.batches import BOS, EOS, PAD
from epicrisis.structured.lesson import RecordLesson
from epicrisis.structured.objectives import Pretraining
from epicrisis.structured.pretrain import batches_as_items, make_pretraining
from epicrisis.structured.sequences import Sequences
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.loop import train
from timing import finish

VOCABULARY, RECORDS, CONTEXT, BUDGET, REPEATS = 4_000, 400, 512, 2_048, 3


def make_records() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(4.2, 1.0, RECORDS), 8, CONTEXT - 2).astype(int)
    return [generator.integers(7, VOCABULARY, length) for length in lengths]


def make_settings(directory: Path) -> Settings:
    code = {"architecture": "gpt2", "size": "demo", "context": CONTEXT, "tokens_per_batch": BUDGET}
    training = {"output_dir": str(directory), "epochs": 1, "logging_steps": 10_000, "bf16": False, "keep_best": False}
    tree = {"arm": "structured", "stage": "pretrain", "structured": code, "training": training}
    return settings_from(tree, check_files=False)


def as_sequences(records: list[np.ndarray]) -> Sequences:
    bounds = np.cumsum([0] + [len(record) for record in records])
    tokens = np.concatenate(records).astype(np.int32)
    keys = pl.DataFrame({"subject_id": range(len(records)), "prediction_time": 0})
    return Sequences(keys, tokens, tokens.astype(np.float32), tokens, tokens, bounds)


def ours(module: Pretraining, settings: Settings, records: list[np.ndarray]) -> tuple[int, float]:
    """Supervised tokens of an epoch, and the seconds that it took, its checkpoint included."""
    accelerator = Accelerator(cpu=True)
    lesson = RecordLesson(as_sequences(records), settings.structured, VOCABULARY)
    training = batches_as_items(settings.training, accelerator)
    with tempfile.TemporaryDirectory() as place:
        checkpoints = Checkpoints(Path(place), 1, accelerator)
        start = time.perf_counter()
        train(
            *(module, lesson, training, accelerator, checkpoints),
            title="here",
            evaluate=lambda _: {"loss": 0.0},
            log=lambda **_: None,
        )
        return lesson.units(range(lesson.n_items)), time.perf_counter() - start


def trainers(module: Pretraining, records: list[np.ndarray]) -> tuple[int, float]:
    """The same of a plain Trainer."""
    model = GPT2LMHeadModel(module.body.net.config)
    model.transformer.load_state_dict(module.body.net.state_dict())
    documents = [{"input_ids": [BOS, *record.tolist(), EOS]} for record in records]
    mean = np.mean([len(document["input_ids"]) for document in documents])

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(one["input_ids"]) for one in batch)
        ids = torch.full((len(batch), longest), PAD)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, one in enumerate(batch):
            size = len(one["input_ids"])
            ids[row, :size] = labels[row, :size] = torch.tensor(one["input_ids"])
            mask[row, :size] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            output_dir=place,
            num_train_epochs=1,
            per_device_train_batch_size=max(1, round(BUDGET / mean)),
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=documents, data_collator=collate)  # type: ignore[arg-type]
        start = time.perf_counter()
        trainer.train()
        return sum(len(document["input_ids"]) - 1 for document in documents), time.perf_counter() - start


def trainer_useful_share(records: list[np.ndarray]) -> float:
    """About how many places of the Trainer's batches hold a token: records in random batches of as many."""
    lengths = np.random.default_rng(0).permutation([len(record) + 2 for record in records])
    size = max(1, round(BUDGET / lengths.mean()))
    places = sum(len(batch) * batch.max() for batch in np.split(lengths, range(size, len(lengths), size)))
    return float(lengths.sum() / places)


def main() -> None:
    logging.set_verbosity_error()
    records = make_records()
    rates: dict[str, list[float]] = {"trainer": [], "here": []}
    with tempfile.TemporaryDirectory() as place:
        settings = make_settings(Path(place))
        for _ in range(REPEATS):
            module = make_pretraining(settings, VOCABULARY)
            tokens, spent = trainers(module, records)
            rates["trainer"].append(tokens / spent)
            tokens, spent = ours(module, settings, records)
            rates["here"].append(tokens / spent)
    trainer, here = median(rates["trainer"]), median(rates["here"])
    print(f"{RECORDS} records, {tokens:,} tokens: Trainer {trainer:,.0f} tokens/s, here {here:,.0f}")
    share = RecordLesson(as_sequences(records), settings.structured, VOCABULARY).layout()["useful_token_share"]
    padded = trainer_useful_share(records)
    print(f"useful places: Trainer {padded:.1%}, here {share:.1%}")
    figures = {"tokens": tokens, "trainer_tokens_per_s": trainer, "tokens_per_s": here}
    figures |= {"trainer_useful_share": padded, "useful_share": share}
    finish("structured_throughput", here / trainer, 1, figures)


if __name__ == "__main__":
    main()
