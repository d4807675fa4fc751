"""The tabular arms behind the protocol of every arm: fit → fitted; predict, save, load."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import polars as pl

from epicrisis.settings.problems import refuse
from epicrisis.tabular.boosted_trees import TreesModel, fit_trees
from epicrisis.tabular.counts import CountFeatures, RowCodes, fit_features, group_by_code
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
    """A fitted tabular arm. notes: what a reader of its results must know, such as what was not tuned."""

    name: ArmName
    features: CountFeatures
    model: Model
    notes: tuple[str, ...] = ()

    def predict(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """Probabilities [n_rows, 2] of the classes (False, True), in the order of `rows`.

        A row without any visible event gets the prediction of an empty record.
        """
        probability = self.model.probability(
            self.features, group_by_code(rows, (events for _, events in history.shards()))
        )
        return np.stack([1 - probability, probability], axis=1)

    def save(self, folder: Path) -> None:
        """Write arm.json, the features and the model: JSON, safetensors and UBJ only."""
        folder.mkdir(parents=True, exist_ok=True)
        self.features.save(folder)
        self.model.save(folder)
        with replacing(folder / FILE) as part:
            part.write_text(json.dumps({"arm": self.name, "notes": self.notes}, indent=1) + "\n", encoding="utf-8")


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

        rows: subject_id, prediction_time, split, Boolean label. history: of these rows. Below 50 tuning rows,
        or with one class in them, nothing is chosen (C = 0.1, or 100 trees) and the notes say so.
        Raises InputError for labels that are not Boolean and for train rows of one class only.
        """
        train, tuning = rows.filter(pl.col("split") == "train"), rows.filter(pl.col("split") == "tuning")
        _check_trainable(rows, train)
        both = group_by_code(pl.concat([train, tuning]), (events for _, events in history.shards()))
        train_table = both.between(0, train.height)
        features = fit_features(train_table, self.min_subjects)
        reason = _why_not_tuned(tuning)
        tuning_table = None if reason else both.between(train.height, both.n_rows)
        model, tried = self._fit_model(features, train_table, train, tuning_table, tuning)
        notes = (f"{_untuned(self.name)}: {reason}",) if reason else ()
        sizes = {
            "n_train": train.height,
            "n_codes": len(features.codes),
            "n_values": len(features.value_codes),
        }
        run.log(arm=self.name, **sizes, tuning_auroc=tried, **_chosen(model), notes=list(notes))
        return FittedArm(self.name, features, model, notes)

    def load(self, directory: Path) -> FittedArm:
        """Read what a fitted arm of this kind saved. Raises InputError for a folder of another."""
        fitted = load_arm(directory)
        if fitted.name != self.name:
            raise refuse(str(directory), f"it holds a fitted {fitted.name}, not {self.name}", "mend the path or `arm`")
        return fitted

    def _fit_model(
        self,
        features: CountFeatures,
        train_table: RowCodes,
        train: pl.DataFrame,
        tuning_table: RowCodes | None,
        tuning: pl.DataFrame,
    ) -> tuple[Model, dict[str, float]]:
        linear = self.name == "logistic_regression"
        matrix: Callable[[RowCodes], Any] = features.for_linear if linear else features.for_trees
        tuning_matrix = None if tuning_table is None else matrix(tuning_table)
        fit: Callable[..., tuple[Model, dict[str, float]]] = fit_logistic if linear else fit_trees
        return fit(matrix(train_table), _labels(train), tuning_matrix, _labels(tuning), self.seed)


class LogisticRegressionArm(TabularArm):
    """L2 logistic regression on max-abs scaled features; see `logistic`."""

    name = "logistic_regression"


class XGBoostArm(TabularArm):
    """Gradient-boosted trees; see `boosted_trees`."""

    name = "xgboost"


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
    return FittedArm(about["arm"], CountFeatures.load(folder), kinds[about["arm"]].load(folder), tuple(about["notes"]))


def _check_trainable(rows: pl.DataFrame, train: pl.DataFrame) -> None:
    if rows.schema.get("label") != pl.Boolean:
        what = f"the tabular arms know binary labels only, and these are {rows.schema.get('label')}"
        raise refuse("arm", what, "choose a binary task, or another arm for this one")
    if train["label"].n_unique() < 2:
        what = f"the {train.height} train rows are of one class only"
        raise refuse("data.labels_dir", what, "a model needs train rows of both classes")


def _why_not_tuned(tuning: pl.DataFrame) -> str | None:
    if tuning.height < MIN_TUNING_ROWS:
        return f"{tuning.height} tuning rows are fewer than {MIN_TUNING_ROWS}"
    return "the tuning rows are of one class only" if tuning["label"].n_unique() < 2 else None


def _untuned(name: ArmName) -> str:
    return "C fixed at 0.1" if name == "logistic_regression" else "100 trees, no early stopping"


def _chosen(model: Model) -> dict[str, Any]:
    return {"C": model.c} if isinstance(model, LogisticModel) else {"n_trees": getattr(model, "n_trees", None)}


def _labels(rows: pl.DataFrame) -> np.ndarray:
    return rows["label"].cast(pl.Int8).to_numpy()
