"""The tabular arms behind the protocol of every arm: fit → fitted; predict, save, load."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import polars as pl
from scipy import sparse

from epicrisis.cohort.task import BINARY_CLASSES, TaskKind, classes_of_labels, kind_of_labels, label_matrix
from epicrisis.settings import Settings, refuse
from epicrisis.settings.tabular_section import TabularSettings
from epicrisis.tabular.boosted_trees import TreesModel, fit_trees
from epicrisis.tabular.counts import CountFeatures, FeatureChoice, RowCodes, fit_features, group_by_code
from epicrisis.tabular.examples import Examples, Tried
from epicrisis.tabular.forest import ForestModel, fit_forest
from epicrisis.tabular.light_trees import LightModel, fit_light
from epicrisis.tabular.logistic import LogisticModel, fit_logistic
from epicrisis.tracking.run_directory import replacing

MIN_TUNING_ROWS = 50
LEARNING_RATE = TabularSettings().learning_rate
ArmName = Literal["logistic_regression", "random_forest", "xgboost", "lightgbm"]
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
    """What the kinds of model have in common."""

    @property
    def chosen(self) -> dict[str, Any]:
        """What was chosen on the tuning rows, or fixed without them."""
        ...

    def probability(self, features: CountFeatures, table: RowCodes) -> np.ndarray: ...

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Family:
    """A kind of model: the matrix it reads, how it is fitted and loaded, and what is fixed where nothing is tuned.

    boosted: its `fit` takes a learning rate too.
    """

    matrix: Callable[[CountFeatures, RowCodes], sparse.csr_matrix]
    fit: Callable[..., tuple[Model, Tried]]
    load: Callable[[Path], Model]
    untuned: str
    boosted: bool = False


FAMILIES: dict[ArmName, Family] = {
    "logistic_regression": Family(CountFeatures.for_linear, fit_logistic, LogisticModel.load, "C fixed at 0.1"),
    "random_forest": Family(CountFeatures.for_forest, fit_forest, ForestModel.load, "leaves of one row or more"),
    "xgboost": Family(CountFeatures.for_trees, fit_trees, TreesModel.load, "100 trees, no early stopping", True),
    "lightgbm": Family(CountFeatures.for_forest, fit_light, LightModel.load, "100 trees, no early stopping", True),
}


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
        shards = (events for _, events in history.shards())
        return self.model.probability(self.features, group_by_code(rows, shards, self.features.choice))

    def save(self, folder: Path) -> None:
        """Write arm.json, the features and the model: JSON, safetensors, UBJ and LightGBM's text only."""
        folder.mkdir(parents=True, exist_ok=True)
        self.features.save(folder)
        self.model.save(folder)
        with replacing(folder / FILE) as part:
            about = {"arm": self.name, "notes": self.notes, "classes": self.classes}
            part.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class TabularArm:
    """Counts of visible codes, their numbers and the age, into a model that the arms below name.

    seed: of the model's own draws. min_subjects: train subjects that a code needs to enter the vocabulary. choice:
    what is counted and which numbers are taken. learning_rate: of boosted trees.
    """

    name: ClassVar[ArmName]
    seed: int = 0
    min_subjects: int = 5
    choice: FeatureChoice = field(default_factory=FeatureChoice)
    learning_rate: float = LEARNING_RATE

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The arm of these settings. InputError for a learning rate of an arm that boosts no trees."""
        keys = settings.tabular
        if keys.learning_rate != LEARNING_RATE and not FAMILIES[cls.name].boosted:
            fix = "leave it out, or set arm: xgboost or lightgbm"
            raise refuse("tabular.learning_rate", f"the arm {cls.name} has none", fix)
        return cls(settings.training.seed, keys.min_subjects, FeatureChoice.of(keys), keys.learning_rate)

    def fit(self, rows: pl.DataFrame, history: History, run: Run) -> FittedArm:
        """Fit on the train rows, choose on the tuning rows; rows of any other split are not looked at.

        rows: subject_id, prediction_time, split, label. history: of these rows. Below 50 tuning rows, or where a
        class is not among them, nothing is chosen (see `FAMILIES`) and the notes say so; of several labels, only those
        whose tuning rows are all alike are not tuned. Raises InputError for labels that are neither
        Boolean nor words and for train rows that lack a class, or all have it.
        """
        train, tuning = rows.filter(pl.col("split") == "train"), rows.filter(pl.col("split") == "tuning")
        kind, classes = kind_of_labels(rows), classes_of_labels(pl.concat([train, tuning]))
        _check_trainable(rows, train, classes)
        both = group_by_code(pl.concat([train, tuning]), (events for _, events in history.shards()), self.choice)
        train_table = both.between(0, train.height)
        features = fit_features(train_table, self.min_subjects)
        known = label_matrix(tuning, classes)
        reason = _why_not_tuned(known, kind)
        tuning_table = None if reason else both.between(train.height, both.n_rows)
        family = FAMILIES[self.name]
        examples = Examples(family.matrix(features, train_table), label_matrix(train, classes).to_numpy())
        tuning_examples = None
        if tuning_table is not None:
            tuning_examples = Examples(family.matrix(features, tuning_table), known.to_numpy())
        own = {"learning_rate": self.learning_rate} if family.boosted else {}
        model, tried = family.fit(examples, tuning_examples, kind, self.seed, **own)
        notes = (f"{family.untuned}: {reason}",) if reason else _labels_not_tuned(family, known, kind)
        sizes = {
            "n_train": train.height,
            "n_codes": len(features.codes),
            "n_values": len(features.mean),
            "n_columns": examples.matrix.shape[1],
        }
        run.log(arm=self.name, **sizes, tuning_auroc=tried, **model.chosen, notes=list(notes))
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


class RandomForestArm(TabularArm):
    """Averaged trees; see `forest`."""

    name = "random_forest"


class XGBoostArm(TabularArm):
    """Gradient-boosted trees; see `boosted_trees`."""

    name = "xgboost"


class LightGBMArm(TabularArm):
    """Gradient-boosted trees; see `light_trees`."""

    name = "lightgbm"


ARMS: dict[str, type[TabularArm]] = {
    arm.name: arm for arm in (LogisticRegressionArm, RandomForestArm, XGBoostArm, LightGBMArm)
}


def logistic_regression(settings: Settings, _: Any) -> TabularArm:
    """The arm of these settings."""
    return LogisticRegressionArm.of(settings)


def random_forest(settings: Settings, _: Any) -> TabularArm:
    """The arm of these settings."""
    return RandomForestArm.of(settings)


def xgboost(settings: Settings, _: Any) -> TabularArm:
    """The arm of these settings."""
    return XGBoostArm.of(settings)


def lightgbm(settings: Settings, _: Any) -> TabularArm:
    """The arm of these settings."""
    return LightGBMArm.of(settings)


def load_arm(folder: Path) -> FittedArm:
    """Read a saved arm. Raises InputError if the folder holds none."""
    if not (folder / FILE).is_file():
        raise refuse(
            str(folder),
            "this folder holds no tabular arm",
            "point at a folder that a fitted arm was saved in",
        )
    about = json.loads((folder / FILE).read_text(encoding="utf-8"))
    model = FAMILIES[about["arm"]].load(folder)
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


def _labels_not_tuned(family: Family, tuning: pl.DataFrame, kind: TaskKind) -> tuple[str, ...]:
    alike = [label for label, column in tuning.to_dict().items() if column.n_unique() < 2]
    if kind != "multilabel" or not alike:
        return ()
    return (f"{family.untuned} for {', '.join(alike)}: none, or all, of the tuning rows have it",)
