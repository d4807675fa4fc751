"""The arm `encoder`: a text encoder such as PubMedBERT, fine-tuned to foretell from narratives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from epicrisis.cohort import History
from epicrisis.corpus.prepare import KEYS
from epicrisis.corpus.run_narratives import NARRATOR, Run, check_telling, keys_of, prepare_once
from epicrisis.encoders.classifier import ADAPTER, RecordClassifier, narrative_classifier
from epicrisis.encoders.lesson import NarrativeRows, RowLesson
from epicrisis.encoders.narratives import Told, tell_as_saved, tell_for_fit
from epicrisis.encoders.saving import check_saved, read_about, write_about
from epicrisis.encoders.text_encoder import load_encoder, weights_fingerprint
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings
from epicrisis.tracking.progress import say
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.device import make_accelerator
from epicrisis.training.loop import train
from epicrisis.training.outcome import Outcome, completed, load_outcome, outcome_for, row_metrics, row_predictions

FOLDER = "adapters"
"""Where weights lie in a run directory, whatever part of a model they are."""

DECISIVE = ("finetune", "pooling", "long", "max_chunks", "chunk_pooling")
"""Keys of `encoder` that a saved classifier goes with."""


@dataclass
class FittedEncoder:
    """A classifier of narratives. base: a hash of the weights that it was built on; None where all are its own."""

    settings: Settings
    told: Told
    module: RecordClassifier
    accelerator: Accelerator
    outcome: Outcome
    directory: Path
    base: str | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The task's classes, in the order of the probabilities; of a time to an event its risk and horizons."""
        return self.outcome.columns

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """float64 [n_rows, n_columns] in the order of `rows` and of `classes`."""
        settings, folder = self.settings, self.directory / "judged"
        prepared = prepare_once(settings, rows, history, self.told.telling, folder, self.accelerator)
        ordered = []
        for split in sorted(rows["split"].unique()):
            tokens = prepared.tokens(split)
            lesson = NarrativeRows(tokens, self.told.reading, self.outcome)
            scores = row_predictions(self.module, lesson, sequences(settings), self.accelerator)
            ordered.append(keys_of(tokens).with_columns(scores=pl.Series(scores.tolist())))
        return in_order(rows, pl.concat(ordered))

    def save(self, directory: Path) -> None:
        """Weights, what the narratives were told with, and what they go with; safetensors and JSON only."""
        folder, encoder = directory / FOLDER, self._encoder()
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(encoder, PeftModel):
            encoder.save_pretrained(str(folder), selected_adapters=[ADAPTER])
            (folder / "README.md").unlink(missing_ok=True)
        elif self.settings.encoder.finetune == "full":
            encoder.save_pretrained(folder / "encoder")
            self.told.telling.tokenizer.save_pretrained(folder / "encoder")
        save_file(
            {k: v.cpu().contiguous() for k, v in self.module.head.state_dict().items()}, folder / "head.safetensors"
        )
        self.told.telling.narrator.save(folder / NARRATOR)
        about = {**self.outcome.saved(), **self.told.telling.inputs(), "base": self.base}
        write_about(folder, about, self.settings, DECISIVE)

    def _encoder(self) -> Any:
        return self.module.body.encoder


class EncoderArm:
    """`arm: encoder`."""

    def __init__(self, settings: Settings, lookups: Lookups):
        self._settings = settings
        self._lookups = lookups

    def fit(self, rows: pl.DataFrame, history: History, run: Run) -> FittedEncoder:
        """Train on the train rows, watching tuning. `rows` holds both splits."""
        settings = self._settings
        accelerator = make_accelerator(settings.training)
        outcome = outcome_for(settings, rows)
        told = tell_for_fit(settings, self._lookups, rows, history, run.dir, accelerator)
        encoder = load_encoder(told.source, settings, accelerator)
        base = None if settings.encoder.finetune == "full" else weights_fingerprint(encoder)
        module = narrative_classifier(settings, encoder, outcome.n_outputs)
        prepared = prepare_once(settings, rows, history, told.telling, run.dir, accelerator)
        lessons = {}
        for split in ("train", "tuning"):
            tokens = prepared.tokens(split)
            lessons[split] = NarrativeRows(tokens, told.reading, outcome, targets_of(outcome, keys_of(tokens), rows))
        outcome = learn(module, lessons["train"], lessons["tuning"], settings, accelerator, run)
        return FittedEncoder(settings, told, module.eval(), accelerator, outcome, run.dir, base)

    def load(self, directory: Path) -> FittedEncoder:
        """A saved classifier. InputError where the settings are not those that it was trained with."""
        settings, folder = self._settings, directory / FOLDER
        accelerator = make_accelerator(settings.training)
        about = read_about(folder, settings, DECISIVE)
        own = str(folder / "encoder") if settings.encoder.finetune == "full" else None
        told = tell_as_saved(settings, self._lookups, folder, accelerator, own)
        check_telling(about, told.telling)
        outcome = load_outcome(about, settings)
        encoder = load_encoder(told.source, settings, accelerator)
        if own is None:
            check_saved("model.model_name", about["base"], weights_fingerprint(encoder))
        module = narrative_classifier(settings, encoder, outcome.n_outputs)
        if settings.encoder.finetune == "lora":
            _load_adapter(module.body.encoder, folder / ADAPTER)
        module.head.load_state_dict(load_file(folder / "head.safetensors"))
        return FittedEncoder(settings, told, module.eval(), accelerator, outcome, directory, about["base"])


def encoder(settings: Settings, lookups: Lookups) -> EncoderArm:
    """The arm of these settings."""
    return EncoderArm(settings, lookups)


def sequences(settings: Settings) -> int:
    """Rows that a device reads at once."""
    assert settings.training.batch_size != "auto"  # settings have seen to it
    return settings.training.batch_size


def targets_of(outcome: Outcome, keys: pl.DataFrame, rows: pl.DataFrame) -> np.ndarray:
    """What the rows of these keys (subject_id, prediction_time) are; rows: with their labels."""
    return outcome.targets(keys.join(rows, on=KEYS, how="left", maintain_order="left"))


def in_order(rows: pl.DataFrame, scored: pl.DataFrame) -> np.ndarray:
    """float64 [n_rows, n_columns]: the `scores` of each row, by its keys."""
    joined = rows.select(KEYS).join(scored, on=KEYS, how="left", maintain_order="left")
    return np.asarray(joined["scores"].to_list(), dtype=np.float64)


def learn(
    module: nn.Module, lesson: RowLesson, tuning: RowLesson, settings: Settings, accelerator: Accelerator, run: Run
) -> Outcome:
    """Train on the lesson's rows, watching tuning, with checkpoints in the run's folder.

    Gives the outcome with what is still to be fitted when all is learnt (see `outcome.completed`).
    """
    is_main, size = accelerator.is_main_process, sequences(settings)
    if is_main:
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        say(f"classify: {trained:,} of {sum(p.numel() for p in module.parameters()):,} weights are trained")

    def evaluate(module: nn.Module) -> dict[str, float]:
        return row_metrics(module, tuning, size, accelerator)

    log = run.log if is_main else lambda **_: None
    checkpoints = Checkpoints(run.dir / "checkpoints", settings.training.save_total_limit, accelerator)
    train(module, lesson, settings.training, accelerator, checkpoints, title="classify", evaluate=evaluate, log=log)
    return completed(module, lesson, size, accelerator)


def _load_adapter(encoder: Any, folder: Path) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    found: Any = set_peft_model_state_dict(encoder, load_peft_weights(str(folder), device="cpu"), adapter_name=ADAPTER)
    absent = [name for name in found.missing_keys if f".{ADAPTER}." in name]
    if absent or found.unexpected_keys:
        check_saved("lora", "the adapter's own modules", "others")
