"""What rows turn out to be: one object for tasks of every kind, which an arm holds, learns by and predicts through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from torch import nn

from epicrisis.cohort.task import TaskKind, classes_of_labels, kind_of_labels
from epicrisis.settings import Settings, refuse
from epicrisis.training.class_losses import class_metrics, fitted_weights, loss_of, probabilities_of, targets_of
from epicrisis.training.class_weights import ClassWeights
from epicrisis.training.survival import fit_survival, load_survival


class Outcome(Protocol):
    """What a module's outputs mean for a task, and how they are learnt."""

    @property
    def kind(self) -> TaskKind:
        """The kind of task."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """What predictions are of: the classes, or of a time to an event `risk` and then each horizon in days."""
        ...

    @property
    def n_outputs(self) -> int:
        """Numbers that a module gives for each row."""
        ...

    @property
    def complete(self) -> bool:
        """Whether it can predict; else `completed` is due when all is learnt."""
        ...

    def targets(self, rows: pl.DataFrame) -> np.ndarray:
        """What the rows (with label) are, a number or a line of numbers for each."""
        ...

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss summed over rows. logits: [n, n_outputs]."""
        ...

    def predictions(self, logits: torch.Tensor) -> np.ndarray:
        """float64 [n, n_columns]."""
        ...

    def metrics(self, logits: torch.Tensor, targets: np.ndarray) -> dict[str, float]:
        """`loss`, the mean over these rows; and `auroc`, or of a time to an event `c_index`, where it exists."""
        ...

    def completed(self, logits: torch.Tensor, targets: np.ndarray) -> Self:
        """The same with what is fitted on the outputs for the train rows when all is learnt."""
        ...

    def saved(self) -> dict[str, Any]:
        """As plain JSON, for `load_outcome`."""
        ...


class RowLesson(Protocol):
    """Rows of a cohort that a module gives outputs for."""

    @property
    def outcome(self) -> Outcome: ...

    @property
    def targets(self) -> np.ndarray: ...

    @property
    def n_items(self) -> int: ...

    @property
    def item_lengths(self) -> np.ndarray:
        """What the time of each row goes by, such as its tokens; int [n_items]."""
        ...

    def collate(self, items: Sequence[int]) -> Any: ...

    def batches(self, items: np.ndarray, batch_size: int) -> Iterator[list[int]]:
        """The items in batches to be read at once without gradients."""
        ...


@dataclass(frozen=True)
class ClassOutcome:
    """Classes or labels, in the order of the probabilities, and what they weigh in the loss.

    corrected: probabilities are for the classes' true shares, where weights made training see others.
    """

    kind: TaskKind
    classes: tuple[str, ...]
    weights: ClassWeights
    corrected: bool = False
    complete: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        return self.classes

    @property
    def n_outputs(self) -> int:
        return len(self.classes)

    def targets(self, rows: pl.DataFrame) -> np.ndarray:
        """Class indices int64 [n_rows], of several labels bool [n_rows, n_classes]."""
        return targets_of(rows, self.kind, self.classes)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `class_losses.loss_of`."""
        return loss_of(logits, targets, self.weights)

    def predictions(self, logits: torch.Tensor) -> np.ndarray:
        """Probabilities of the classes."""
        return probabilities_of(logits, self.weights, corrected=self.corrected).cpu().numpy()

    def metrics(self, logits: torch.Tensor, targets: np.ndarray) -> dict[str, float]:
        """See `class_losses.class_metrics`."""
        return class_metrics(self.predictions(logits), targets, self.weights, corrected=self.corrected)

    def completed(self, logits: torch.Tensor, targets: np.ndarray) -> ClassOutcome:
        """Itself: there is nothing left to fit."""
        return self

    def saved(self) -> dict[str, Any]:
        """kind, classes, class_weights."""
        return {"kind": self.kind, "classes": list(self.classes), "class_weights": self.weights.values.tolist()}


def outcome_for(settings: Settings, rows: pl.DataFrame) -> Outcome:
    """What these rows (train and tuning, with split and label) are, as the settings want it learnt.

    Whatever is fitted (class weights, intervals) is fitted on the train rows. Raises InputError for rows without labels
    and for settings that the task cannot have.
    """
    kind, train = kind_of_labels(rows), rows.filter(pl.col("split") == "train")
    if kind == "none":
        raise refuse("data.labels_dir", "holds no label to learn", "give a task's folder of labels")
    check_outcome_settings(settings, kind)
    if kind == "survival":
        return fit_survival(settings.survival, train)
    classes = classes_of_labels(rows)
    weights = fitted_weights(settings.training.class_weights, train, kind, classes)
    return ClassOutcome(kind, classes, weights, settings.model.prior_correction)


def load_outcome(saved: Mapping[str, Any], settings: Settings) -> Outcome:
    """What `saved` gave; InputError where the settings ask for what was not trained."""
    if saved["kind"] == "survival":
        return load_survival(saved, settings.survival)
    weights = ClassWeights(np.asarray(saved["class_weights"], dtype=np.float64))
    return ClassOutcome(saved["kind"], tuple(saved["classes"]), weights, settings.model.prior_correction)


def check_outcome_settings(settings: Settings, kind: TaskKind) -> None:
    """Raise InputError for settings that a task of this kind would pass over."""
    if kind == "survival" and settings.training.class_weights != "none":
        what = "the labels are times to an event, which have no classes"
        raise refuse("training.class_weights", what, "leave it out")
    if kind == "survival" and settings.model.num_classes is not None:
        what = "the labels are times to an event, which have no classes"
        raise refuse("model.num_classes", what, "leave it out")
    if kind != "survival" and settings.survival != type(settings.survival)():
        what = "the labels are no times to an event"
        raise refuse("survival", what, "leave the section out, or name labels with float_value and event_observed")


def row_outputs(module: nn.Module, lesson: RowLesson, batch_size: int, accelerator: Accelerator) -> torch.Tensor:
    """What the module gives for each row, float64 [n_rows, n_outputs], on the CPU; processes share the rows."""
    order = np.argsort(-lesson.item_lengths, kind="stable")
    mine = order[accelerator.process_index :: accelerator.num_processes]
    shape = (lesson.n_items, lesson.outcome.n_outputs)
    outputs = torch.zeros(shape, dtype=torch.float64, device=accelerator.device)
    with torch.inference_mode():
        for items in lesson.batches(mine, batch_size):
            outputs[items] = module(lesson.collate(items).to(accelerator.device)).double()
    return accelerator.reduce(outputs, "sum").cpu()


def row_predictions(module: nn.Module, lesson: RowLesson, batch_size: int, accelerator: Accelerator) -> np.ndarray:
    """The lesson's rows as its outcome's columns, float64 [n_rows, n_columns]."""
    return lesson.outcome.predictions(row_outputs(module, lesson, batch_size, accelerator))


def row_metrics(module: nn.Module, lesson: RowLesson, batch_size: int, accelerator: Accelerator) -> dict[str, float]:
    """What the lesson's outcome tells of its rows, each of which is scored exactly once."""
    return lesson.outcome.metrics(row_outputs(module, lesson, batch_size, accelerator), lesson.targets)


def completed(module: nn.Module, train: RowLesson, batch_size: int, accelerator: Accelerator) -> Outcome:
    """The outcome of a module that has learnt all it will, with what is still to be fitted on the train rows."""
    if train.outcome.complete:
        return train.outcome
    return train.outcome.completed(row_outputs(module.eval(), train, batch_size, accelerator), train.targets)
