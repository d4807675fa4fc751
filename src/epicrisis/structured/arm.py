"""The arm `structured`: a model of codes, pretrained or not, with a head that classifies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.torch import load_file
from torch import nn

from epicrisis.cohort import History
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, refuse
from epicrisis.settings.structured_section import OBJECTIVES
from epicrisis.structured.adapt import adapt
from epicrisis.structured.batches import frame_width
from epicrisis.structured.classify import Classifier, RowLesson, pooling_of
from epicrisis.structured.coding import Coder, make_coder, split_of
from epicrisis.structured.models import Body, BodyConfig, build_body
from epicrisis.structured.pretrain import Run, autocast_of
from epicrisis.structured.store import (
    body_config,
    check_pretrained,
    load_body,
    load_weights,
    model_directory,
    read_about,
    save_model,
    weights_of,
)
from epicrisis.structured.tokenizers import load_tokenizer
from epicrisis.training.checkpoints import Checkpoints
from epicrisis.training.device import make_accelerator
from epicrisis.training.loop import train
from epicrisis.training.outcome import Outcome, completed, load_outcome, outcome_for, row_metrics, row_predictions

MODEL = "model"
"""The folder of a run that holds what it learnt."""
AT_ONCE = 1
"""Batches that are only read go by structured.tokens_per_batch, whatever their rows."""


@dataclass
class FittedStructured:
    """A classifier and what turns rows into its sequences."""

    settings: Settings
    coder: Coder
    module: Classifier
    outcome: Outcome
    directory: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """The task's classes, in the order of the probabilities; of a time to an event its risk and horizons."""
        return self.outcome.columns

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """float64 [n_rows, n_columns] in the order of `rows` and of `classes`."""
        place = self.directory / "sequences" / "judged"
        sequences = self.coder.encode(rows, history, place, longest(self.settings))
        lesson = RowLesson(sequences, self.settings.structured, self.outcome)
        return row_predictions(self.module.eval(), lesson, AT_ONCE, self.coder.accelerator)

    def save(self, directory: Path) -> None:
        """Body, adapters and head with the tokenizer, in `model/`; safetensors and JSON only."""
        about = {
            "stage": "classify",
            "body": self.module.body.config.saved(),
            "reading": reading(self.settings),
            "answers": self.outcome.saved(),
        }
        save_model(directory / MODEL, weights_of(self.module), about, self.coder.tokenizer)


class StructuredArm:
    """`arm: structured`, stage classify. Raises InputError where `structured.pretrained` is another model."""

    def __init__(self, settings: Settings, lookups: Lookups):
        check_pretrained(settings.structured)
        self._settings = settings
        self._lookups = lookups

    def fit(self, rows: pl.DataFrame, history: History, run: Run) -> FittedStructured:
        """Train on the train rows, watching tuning. `rows` holds both splits."""
        settings = self._settings
        accelerator = make_accelerator(settings.training)
        outcome = outcome_for(settings, rows)
        place = run.dir / "sequences"
        coder = make_coder(settings, self._lookups, rows, history, place / "tokenizer", accelerator)
        lessons = {}
        for split in ("train", "tuning"):
            own = split_of(rows, split)
            sequences = coder.encode(own, history, place / split, longest(settings))
            lessons[split] = RowLesson(sequences, settings.structured, outcome, outcome.targets(own))
        module = beginning(settings, coder.vocabulary, outcome.n_outputs).to(accelerator.device)

        def evaluate(module: nn.Module) -> dict[str, float]:
            return row_metrics(module, lessons["tuning"], AT_ONCE, accelerator)

        checkpoints = Checkpoints(run.dir / "checkpoints", settings.training.save_total_limit, accelerator)
        log = run.log if accelerator.is_main_process else lambda **_: None
        train(
            *(module, lessons["train"], settings.training, accelerator, checkpoints),
            title="classify",
            evaluate=evaluate,
            log=log,
        )
        outcome = completed(module.eval(), lessons["train"], AT_ONCE, accelerator)
        return FittedStructured(settings, coder, module, outcome, run.dir)

    def load(self, directory: Path) -> FittedStructured:
        """A saved classifier. Raises InputError where the settings would have it read otherwise than in training."""
        settings, folder = self._settings, model_directory(directory)
        about = read_about(folder)
        if about["stage"] != "classify":
            raise refuse(str(directory), "holds a pretrained model that tells no classes", "set stage: classify first")
        now = reading(settings)
        changed = [key for key, value in about["reading"].items() if now[key] != value]
        if changed:
            what = "is not what this model was trained with"
            raise refuse(f"structured ({', '.join(changed)})", what, "use the section structured of its config.yaml")
        accelerator = make_accelerator(settings.training)
        outcome = load_outcome(about["answers"], settings)
        body = build_body(BodyConfig(**about["body"]), settings.training.seed, autocast_of(settings.training))
        adapt(body, settings)
        module = Classifier(body, outcome.n_outputs, pooling_of(settings.structured), settings.training.seed)
        load_weights(module, load_file(folder / "model.safetensors"), folder)
        coder = Coder(load_tokenizer(folder / "tokenizer"), accelerator)
        return FittedStructured(settings, coder, module.to(accelerator.device).eval(), outcome, directory)


def longest(settings: Settings) -> int:
    """The most tokens of a row that are read: its frame counts too."""
    return settings.structured.context - frame_width(OBJECTIVES[settings.structured.architecture])


def reading(settings: Settings) -> dict[str, Any]:
    """The settings that decide what a saved classifier answers."""
    code = settings.structured
    found = {"architecture": code.architecture, "size": code.size, "context": code.context}
    tokenizer = code.tokenizer.model_dump(mode="json")
    return {**found, "pooling": pooling_of(code), "finetune": code.finetune, "tokenizer": tokenizer}


def beginning(settings: Settings, vocabulary: int, n_classes: int) -> Classifier:
    """The classifier before its first step: on a pretrained body, or on one made here."""
    code, training = settings.structured, settings.training
    config = BodyConfig.of(code, vocabulary)
    directory = model_directory(code.pretrained) if code.pretrained is not None else None
    if directory is not None:
        found = body_config(directory)
        config = replace(found, dropout=found.dropout if code.dropout is None else code.dropout)
    body: Body = build_body(config, training.seed, autocast_of(training))
    if directory is not None:
        load_body(body, directory)
    if training.gradient_checkpointing:
        body.checkpoint_activations()
    adapt(body, settings)
    return Classifier(body, n_classes, pooling_of(code), training.seed)
