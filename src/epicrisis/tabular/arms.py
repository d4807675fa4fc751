"""The tabular arms behind the protocol of every arm: fit → fitted; predict, save, load."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import polars as pl

from epicrisis.cohort.task import BINARY_CLASSES, TaskKind, classes_of_labels, kind_of_labels, label_matrix
from epicrisis.settings import Settings, refuse
from epicrisis.tabular.boosted_trees import TreesModel, fit_trees
from epicrisis.tabular.counts import CountFeatures, RowCodes, fit_features, group_by_code
from epicrisis.tabular.examples import Examples, Tried
from epicrisis.tabular.logistic import LogisticModel, fit_logistic
from epicrisis.tracking.run_directory import replacing

MIN_TUNING_ROWS = 50
ArmName = Literal["logistic_regression", "xgboost"]
FILE = "arm.json"


class History(Protocol):
    """The visible events of a cohort's rows."""

    def shards(self) -> Iterator[tuple[pl.DataFrame, pl.LazyFrame]]:
        """Per event file its rows and their visible events, in time order within a row.

        Columns of the events: subject_id, prediction_time, time, code, numeric_value, and others.
        """
        ...


class Run(Protocol):
    """Where an arm may write and what it reports to."""

    @property
    def dir(self) -> Path: ...

    def log(self, **fields: Any) -> None: ...


class Model(Protocol):
    """What the two kinds of model have in common."""

    def probability(self, features: CountFeatures, table: RowCodes) -> np.ndarray: ...

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class FittedArm:
    """A fitted tabular arm.

    classes: in the order of the probabilities. notes: what a reader of its results must know, such as what was not
    tuned.
    """

    name: ArmName
    features: CountFeatures
    model: Model
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = BINARY_CLASSES

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """Probabilities [n_rows, n_classes], in the order of `rows` and `classes`.

        A row without any visible event gets the prediction of an empty record.
        """
        return self.model.probability(self.features, group_by_code(rows, (events for _, events in history.shards())))

    def save(self, folder: Path) -> None:
        """Write arm.json, the features and the model: JSON, safetensors and UBJ only."""
        folder.mkdir(parents=True, exist_ok=True)
        self.features.save(folder)
        self.model.save(folder)
        with replacing(folder / FILE) as part:
            about = {"arm": self.name, "notes": self.notes, "classes": self.classes}
            part.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class TabularArm:
    """Counts of visible codes, last values and age, into a model that the two arms below name.

    seed: of the model's own draws. min_subjects: train subjects that a code needs to enter the vocabulary.
    """

    name: ClassVar[ArmName]
    seed: int = 0
    min_subjects: int = 5

    def fit(self, rows: pl.DataFrame, history: History, run: Run) -> FittedArm:
        """Fit on the train rows, choose on the tuning rows; rows of any other split are not looked at.

        rows: subject_id, prediction_time, split, label. history: of these rows. Below 50 tuning rows, or where a
        class is not among them, nothing is chosen (C = 0.1, or 100 trees) and the notes say so; of several labels,
        only those whose tuning rows are all alike are not tuned. Raises InputError for labels that are neither
        Boolean nor words and for train rows that lack a class, or all have it.
        """
        train, tuning = rows.filter(pl.col("split") == "train"), rows.filter(pl.col("split") == "tuning")
        kind, classes = kind_of_labels(rows), classes_of_labels(pl.concat([train, tuning]))
        _check_trainable(rows, train, classes)
        both = group_by_code(pl.concat([train, tuning]), (events for _, events in history.shards()))
        train_table = both.between(0, train.height)
        features = fit_features(train_table, self.min_subjects)
        known = label_matrix(tuning, classes)
        reason = _why_not_tuned(known, kind)
        tuning_table = None if reason else both.between(train.height, both.n_rows)
        matrix = features.for_linear if self.name == "logistic_regression" else features.for_trees
        fit: Callable[..., tuple[Model, Tried]] = fit_logistic if self.name == "logistic_regression" else fit_trees
        examples = Examples(matrix(train_table), label_matrix(train, classes).to_numpy())
        tuning_examples = None if tuning_table is None else Examples(matrix(tuning_table), known.to_numpy())
        model, tried = fit(examples, tuning_examples, kind, self.seed)
        notes = (f"{_untuned(self.name)}: {reason}",) if reason else _labels_not_tuned(self.name, known, kind)
        sizes = {
            "n_train": train.height,
            "n_codes": len(features.codes),
            "n_values": len(features.value_codes),
        }
        run.log(arm=self.name, **sizes, tuning_auroc=tried, **_chosen(model), notes=list(notes))
        return FittedArm(self.name, features, model, notes, classes)

    def load(self, directory: Path) -> FittedArm:
        """Read what a fitted arm of this kind saved. Raises InputError for a folder of another."""
        fitted = load_arm(directory)
        if fitted.name != self.name:
            raise refuse(str(directory), f"it holds a fitted {fitted.name}, not {self.name}", "mend the path or `arm`")
        return fitted


class LogisticRegressionArm(TabularArm):
    """L2 logistic regression on max-abs scaled features; see `logistic`."""

    name = "logistic_regression"


class XGBoostArm(TabularArm):
    """Gradient-boosted trees; see `boosted_trees`."""

    name = "xgboost"


def logistic_regression(settings: Settings, _: Any) -> LogisticRegressionArm:
    """The arm of these settings."""
    return LogisticRegressionArm(min_subjects=settings.tabular.min_subjects, seed=settings.training.seed)


def xgboost(settings: Settings, _: Any) -> XGBoostArm:
    """The arm of these settings."""
    return XGBoostArm(min_subjects=settings.tabular.min_subjects, seed=settings.training.seed)


ARMS: dict[str, type[TabularArm]] = {arm.name: arm for arm in (LogisticRegressionArm, XGBoostArm)}


def load_arm(folder: Path) -> FittedArm:
    """Read a saved arm. Raises InputError if the folder holds none."""
    if not (folder / FILE).is_file():
        raise refuse(
            str(folder),
            "this folder holds no tabular arm",
            "point at a folder that a fitted arm was saved in",
        )
    about = json.loads((folder / FILE).read_text(encoding="utf-8"))
    kinds: dict[str, type[LogisticModel] | type[TreesModel]] = {
        "logistic_regression": LogisticModel,
        "xgboost": TreesModel,
    }
    model = kinds[about["arm"]].load(folder)
    return FittedArm(about["arm"], CountFeatures.load(folder), model, tuple(about["notes"]), tuple(about["classes"]))


def _check_trainable(rows: pl.DataFrame, train: pl.DataFrame, classes: tuple[str, ...]) -> None:
    if kind_of_labels(rows) == "none":
        what = (
            f"the tabular arms know labels that are true or false, or words, and these are {rows.schema.get('label')}"
        )
        raise refuse("data.labels_dir", what, "give boolean_value, integer_value or categorical_value labels")
    known = label_matrix(train, classes)
    one_sided = [name for name in classes if not train.height or known[name].n_unique() < 2]
    if not one_sided:
        return
    if kind_of_labels(rows) == "binary":
        what = f"the {train.height} train rows are of one class only"
        raise refuse("data.labels_dir", what, "a model needs train rows of both classes")
    what = f"none, or all, of the {train.height} train rows have {', '.join(one_sided)}"
    raise refuse("data.labels_dir", what, "a model needs train rows with and without each class: join it with another")


def _why_not_tuned(tuning: pl.DataFrame, kind: TaskKind) -> str | None:
    """tuning: the label matrix of the tuning rows."""
    if tuning.height < MIN_TUNING_ROWS:
        return f"{tuning.height} tuning rows are fewer than {MIN_TUNING_ROWS}"
    if kind == "binary" and tuning["true"].n_unique() < 2:
        return "the tuning rows are of one class only"
    absent = [name for name, column in tuning.to_dict().items() if not column.any()]
    return f"no tuning row has {', '.join(absent)}" if kind == "multiclass" and absent else None


def _labels_not_tuned(name: ArmName, tuning: pl.DataFrame, kind: TaskKind) -> tuple[str, ...]:
    alike = [label for label, column in tuning.to_dict().items() if column.n_unique() < 2]
    if kind != "multilabel" or not alike:
        return ()
    return (f"{_untuned(name)} for {', '.join(alike)}: none, or all, of the tuning rows have it",)


def _untuned(name: ArmName) -> str:
    return "C fixed at 0.1" if name == "logistic_regression" else "100 trees, no early stopping"


def _chosen(model: Model) -> dict[str, Any]:
    return (
        {"C": model.c[0] if len(model.c) == 1 else model.c}
        if isinstance(model, LogisticModel)
        else {"n_trees": getattr(model, "n_trees", None)}
    )
