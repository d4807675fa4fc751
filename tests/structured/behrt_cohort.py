"""A small cohort in MEDS: two to four visits each, some of them long, half of the subjects with a code that decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from epicrisis.cohort import Cohort, build_cohort
from epicrisis.narrative import Lookups, load_lookups
from epicrisis.settings import Settings, settings_from

NOW = datetime(2020, 1, 1)
RISK = "ICD10CM//E11.9"
N = 40
SPLITS = ["train"] * 24 + ["tuning"] * 8 + ["held_out"] * 8


@dataclass
class Log:
    """A run that remembers what it was told."""

    dir: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def log(self, **fields: Any) -> None:
        self.lines.append(fields)


def events_of(subject: int) -> list[tuple[int, datetime | None, str]]:
    """Sex for two of three subjects, region for three of four; every third has a stay of ten days."""
    told: list[tuple[datetime | None, str]] = []
    if subject % 3:
        told.append((None, "GENDER//F" if subject % 3 == 1 else "Gender/M"))
    if subject % 4:
        told.append((None, f"REGION//R{subject % 4:02d}"))
    told.append((datetime(1940 + subject % 8, 5, 4), "MEDS_BIRTH"))
    first = datetime(2018, 1, 1) + timedelta(days=3 * subject)
    told += [
        (first, "HOSPITAL_ADMISSION//EMERGENCY//HOME"),
        (first, "ICD10CM//I10" if subject % 5 else "ICD10CM//J44.9"),
        (first + timedelta(days=10 if subject % 3 == 0 else 2), "HOSPITAL_DISCHARGE//HOME"),
    ]
    for number in range(1 + subject % 3):
        day = first + timedelta(days=60 * (number + 1))
        told += [(day, "ATC//C09AA05"), (day, f"ICD10CM//{'E78.5' if number % 2 else 'M54.50'}")]
    if subject % 2:
        told.append((datetime(2019, 6, 1), RISK))
    told.append((NOW + timedelta(days=30), "ICD10CM//C18.9"))
    return [(subject, time, code) for time, code in told]


def write_cohort(root: Path, labels: list[Any] | None = None, extra: list[tuple] = ()) -> Path:
    """A MEDS folder with labels/, those of whoever has RISK where not given. extra: further events."""
    told = sorted([event for subject in range(N) for event in events_of(subject)] + list(extra), key=_order)
    table = pl.DataFrame(
        told, schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}, orient="row"
    ).with_columns(numeric_value=pl.lit(None, pl.Float32))
    (root / "data").mkdir(parents=True)
    (root / "metadata").mkdir()
    (root / "labels").mkdir()
    table.write_parquet(root / "data" / "0.parquet")
    pl.DataFrame({"subject_id": range(N), "split": SPLITS}).write_parquet(root / "metadata" / "subject_splits.parquet")
    given = [subject % 2 == 1 for subject in range(N)] if labels is None else labels
    column = "boolean_value" if isinstance(given[0], bool) else "categorical_value"
    label_table = pl.DataFrame({"subject_id": range(N), "prediction_time": [NOW] * N, column: given})
    label_table.write_parquet(root / "labels" / "0.parquet")
    return root


def _order(event: tuple) -> tuple:
    return event[0], event[1] is not None, event[1] or NOW


def open_cohort(root: Path) -> Cohort:
    return build_cohort(root, labels_dir=root / "labels")


def lookups() -> Lookups:
    return load_lookups()


def settings(arm: str, output_dir: Path, stage: str = "classify", **changes: Any) -> Settings:
    """Settings for a tiny model, with dotted changes: settings("behrt", place, **{"behrt.lora_rank": 2})."""
    section = {"behrt": "behrt", "exmed_bert": "exmed"}[arm]
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tree: dict[str, Any] = {
        "arm": arm,
        "stage": stage,
        section: {**tiny, "max_length": 16, "dropout": 0.0},
        "structured": {"tokenizer": {"min_subjects": 1}},
        "training": {
            "output_dir": str(output_dir),
            "batch_size": 8,
            "learning_rate": 1e-2,
            "epochs": 8,
            "bf16": False,
            "logging_steps": 1000,
            "seed": 3,
        },
    }
    if arm == "behrt":
        tree["behrt"]["embedding_size"] = 8
    for key, value in changes.items():
        part, _, name = key.partition(".")
        tree.setdefault(part, {})[name] = value
    return settings_from(tree, check_files=False)
