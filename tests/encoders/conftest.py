"""A small synthetic cohort, an untrained BERT of a few thousand weights, and settings for the arms that use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from accelerate import Accelerator

from epicrisis.cohort import Cohort, build_cohort
from epicrisis.commands.arms import make_arm
from epicrisis.encoders.tiny_bert import new_bert, train_wordpiece
from epicrisis.events.synthetic import synthesize
from epicrisis.narrative import Lookups, load_lookups, shipped_lookup
from epicrisis.settings import Settings, settings_from

TEXTS = [
    "63-year-old woman. 2 years before: Essential hypertension; Haemoglobin 13.1 g/dL",
    "41-year-old man. 3 months before: Weight loss; Creatinine 0.9 mg/dL; Asthma",
    "last hour: Emergency visit; Chest pain; Type 2 diabetes; Iron deficiency anaemia",
]
ARMS = ("encoder", "frozen_encoder", "event_encoder")
KINDS = ("binary", "multiclass", "multilabel")


@dataclass
class Log:
    """What an arm needs of a run directory."""

    dir: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def log(self, **fields: Any) -> None:
        self.lines.append(fields)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 synthetic subjects; never written to."""
    folder = tmp_path_factory.mktemp("cohort") / "synthetic"
    synthesize(folder, 60, seed=1, mean_visits=4, split_shares=(0.5, 0.25, 0.25))
    return folder


@pytest.fixture(scope="session")
def cohort(dataset: Path) -> Cohort:
    return build_cohort(dataset, labels_dir=dataset / "labels" / "cancer")


@pytest.fixture(scope="session")
def lookups(cohort: Cohort) -> Lookups:
    tables = map(shipped_lookup, ("medical", "lab", "region", "time"))
    return load_lookups(*tables, codes=cohort.dataset.codes())


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained BERT, as a hub model would be saved: with its pretraining head, without a pooler."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = train_wordpiece(TEXTS * 20, 300)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 160}
    new_bert(tokenizer, **shape, initializer_range=0.2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def settings(bert: Path) -> Callable[..., Settings]:
    """Settings of an arm, with dotted changes: settings("encoder", **{"encoder.pooling": "mean"})."""

    def make(arm: str = "encoder", **changes: Any) -> Settings:
        tree: dict[str, Any] = {
            "arm": arm,
            "stage": "classify",
            "model": {"model_name": str(bert), "max_length": 160},
            "lora": {"r": 2},
            "encoder": {"width": 16, "layers": 1, "heads": 2, "max_events": 24, "dropout": 0.0, "max_chunks": 3},
            "training": {"batch_size": 8, "learning_rate": 5e-3, "max_steps": 2, "bf16": False, "logging_steps": 100},
        }
        for key, value in changes.items():
            section, _, name = key.partition(".")
            if name:
                tree.setdefault(section, {})[name] = value
            else:
                tree[key] = value
        return settings_from(tree, check_files=False)

    return make


def of_kind(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The rows with labels of another kind, which hang on the subject's number; every class is in every split."""
    number = pl.col("subject_id")
    if kind == "binary":
        return rows.with_columns(label=number % 2 == 0)
    if kind == "multiclass":
        return rows.with_columns(label=pl.lit("class ") + (number % 3).cast(pl.String))
    two, three = pl.when(number % 2 == 0).then(pl.lit("even")), pl.when(number % 3 == 0).then(pl.lit("threes"))
    return rows.with_columns(label=pl.concat_list(two, three).list.drop_nulls())


def fitted(settings: Settings, lookups: Lookups, cohort: Cohort, run: Log, kind: str = "binary") -> Any:
    """The arm of the settings, fitted on the cohort's train and tuning rows."""
    rows = of_kind(cohort.rows.filter(pl.col("split") != "held_out"), kind)
    return make_arm(settings, lookups).fit(rows, cohort.history(rows), run)  # type: ignore[arg-type]
