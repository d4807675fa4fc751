"""Every label folder that `synthesize` writes is read as the task it is."""

from pathlib import Path

import polars as pl
import pytest

from epicrisis.cohort import build_cohort
from epicrisis.events.synthetic import synthesize

ROW = ["subject_id", "prediction_time"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    synthesize(folder, 120, seed=3)
    return folder


@pytest.mark.parametrize(
    ("task", "kind", "n_classes"),
    [
        ("cancer", "binary", 2),
        ("in_hospital_mortality", "binary", 2),
        ("prolonged_stay", "binary", 2),
        ("length_of_stay", "multiclass", 4),
    ],
)
def test_a_task_is_read_as_what_it_is(dataset: Path, task: str, kind: str, n_classes: int) -> None:
    cohort = build_cohort(dataset, labels_dir=dataset / "labels" / task)
    assert (cohort.task.name, cohort.task.kind, len(cohort.task.classes)) == (task, kind, n_classes)
    written = pl.read_parquet(dataset / "labels" / task / "*.parquet")
    assert cohort.rows.height == written.height


def test_subjects_without_a_new_diagnosis_have_an_empty_set_of_labels(dataset: Path) -> None:
    cohort = build_cohort(dataset, labels_dir=dataset / "labels" / "diagnoses")
    written = pl.read_parquet(dataset / "labels" / "diagnoses" / "*.parquet")
    assert cohort.task.kind == "multilabel"
    assert cohort.task.classes == tuple(sorted(written["categorical_value"].drop_nulls().unique()))
    assert cohort.rows.height == written.n_unique(ROW)
    without = cohort.rows.filter(pl.col("label").list.len() == 0)
    assert without.height == written["categorical_value"].null_count() > 0
    assert cohort.rows["label"].list.len().sum() == written["categorical_value"].count()


def test_a_time_to_event_is_a_survival_task(dataset: Path) -> None:
    cohort = build_cohort(dataset, labels_dir=dataset / "labels" / "time_to_event")
    written = pl.read_parquet(dataset / "labels" / "time_to_event" / "*.parquet")
    assert (cohort.task.kind, cohort.task.classes) == ("survival", ())
    assert cohort.rows["label"].struct.field("observed").sum() == written["event_observed"].sum() > 0
    assert cohort.rows["label"].struct.field("days").sum() == pytest.approx(
        written["float_value"].cast(pl.Float64).sum()
    )


def test_index_dates_are_read_with_a_cutoff(dataset: Path) -> None:
    path = dataset / "labels" / "cancer_index_dates.csv"
    cohort = build_cohort(dataset, index_dates_filepath=path, cutoff_months=3)
    assert (cohort.task.kind, cohort.strict) == ("binary", True)
