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
from epicrisis.cohort.task import TaskKind, classes_of_labels, kind_of_labels
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, refuse
from epicrisis.settings.structured_section import OBJECTIVES
from epicrisis.structured.adapt import adapt
from epicrisis.structured.batches import frame_width
from epicrisis.structured.classify import Classifier, RowLesson, pooling_of, probabilities, tuning_metrics
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
from epicrisis.training.class_losses import fitted_weights, targets_of
from epicrisis.training.class_weights import ClassWeights
from epicrisis.training.device import make_accelerator
from epicrisis.training.loop import train

MODEL = "model"
"""The folder of a run that holds what it learnt."""


@dataclass(frozen=True)
class Answers:
    """What a classifier tells apart, and what the classes weigh in its loss."""

    kind: TaskKind
    classes: tuple[str, ...]
    weights: ClassWeights

    @classmethod
    def of_task(cls, settings: Settings, rows: pl.DataFrame) -> Answers:
        """Of rows with labels; weights are fitted on train."""
        kind, classes = kind_of_labels(rows), classes_of_labels(rows)
        train = rows.filter(pl.col("split") == "train")
        return cls(kind, classes, fitted_weights(settings.training.class_weights, train, kind, classes))

    def saved(self) -> dict[str, Any]:
        """As plain JSON, for `load`."""
        weights = self.weights.values.tolist()
        return {"kind": self.kind, "classes": list(self.classes), "class_weights": weights}

    @classmethod
    def load(cls, saved: dict[str, Any]) -> Answers:
        """What was saved."""
        weights = ClassWeights(np.asarray(saved["class_weights"], dtype=np.float64))
        return cls(saved["kind"], tuple(saved["classes"]), weights)


@dataclass
class FittedStructured:
    """A classifier and what turns rows into its sequences."""

    settings: Settings
    coder: Coder
    module: Classifier
    answers: Answers
    directory: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """The task's classes, in the order of the probabilities."""
        return self.answers.classes

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """Probabilities [n_rows, n_classes] in the order of `rows` and of the task's classes."""
        place = self.directory / "sequences" / "judged"
        sequences = self.coder.encode(rows, history, place, longest(self.settings))
        lesson = RowLesson(sequences, self.settings.structured, self.answers.weights)
        corrected = self.settings.model.prior_correction
        return probabilities(self.module.eval(), lesson, self.coder.accelerator, corrected=corrected)

    def save(self, directory: Path) -> None:
        """Body, adapters and head with the tokenizer, in `model/`; safetensors and JSON only."""
        about = {
            "stage": "classify",
            "body": self.module.body.config.saved(),
            "reading": reading(self.settings),
            "answers": self.answers.saved(),
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
        answers = Answers.of_task(settings, rows)
        place = run.dir / "sequences"
        coder = make_coder(settings, self._lookups, rows, history, place / "tokenizer", accelerator)
        lessons = {}
        for split in ("train", "tuning"):
            own = split_of(rows, split)
            sequences = coder.encode(own, history, place / split, longest(settings))
            targets = targets_of(own, answers.kind, answers.classes)
            lessons[split] = RowLesson(sequences, settings.structured, answers.weights, targets)
        module = beginning(settings, coder.vocabulary, len(answers.classes)).to(accelerator.device)

        def evaluate(module: nn.Module) -> dict[str, float]:
            corrected = settings.model.prior_correction
            return tuning_metrics(module, lessons["tuning"], accelerator, corrected=corrected)

        checkpoints = Checkpoints(run.dir / "checkpoints", settings.training.save_total_limit, accelerator)
        log = run.log if accelerator.is_main_process else lambda **_: None
        train(
            *(module, lessons["train"], settings.training, accelerator, checkpoints),
            title="classify",
            evaluate=evaluate,
            log=log,
        )
        return FittedStructured(settings, coder, module.eval(), answers, run.dir)

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
        answers = Answers.load(about["answers"])
        body = build_body(BodyConfig(**about["body"]), settings.training.seed, autocast_of(settings.training))
        adapt(body, settings)
        module = Classifier(body, len(answers.classes), pooling_of(settings.structured), settings.training.seed)
        load_weights(module, load_file(folder / "model.safetensors"), folder)
        coder = Coder(load_tokenizer(folder / "tokenizer"), accelerator)
        return FittedStructured(settings, coder, module.to(accelerator.device).eval(), answers, directory)


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
