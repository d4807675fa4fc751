"""The cohort and the lookups that a config names."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from epicrisis.cohort import Cohort, build_cohort
from epicrisis.events.tokenised import convert_tokenised
from epicrisis.narrative import Lookups, coverage, load_lookups, shipped_lookup
from epicrisis.settings import Settings, refuse
from epicrisis.tracking.stamps import mark_done, stage_done


def open_cohort(settings: Settings, *, training: bool = True) -> Cohort:
    """The checked cohort of `data`; without labels, every subject at its last event."""
    data = settings.data
    meds_dir, index_dates = data.meds_dir, data.index_dates_filepath
    if data.data_dir is not None:
        meds_dir, index_dates = _from_tokenised(settings)
    if meds_dir is None:
        raise refuse("data.meds_dir", "no data is named", "give data.meds_dir (MEDS) or data.data_dir")
    return build_cohort(
        meds_dir,
        labels_dir=data.labels_dir,
        index_dates_filepath=index_dates,
        cutoff_months=data.cutoff_months,
        control_index_dates=data.control_index_dates,
        seed=settings.training.seed,
        training=training,
    )


def open_lookups(settings: Settings, cohort: Cohort) -> Lookups:
    """The tables that `data` names, the shipped ones in place of those it does not, and the dataset's own."""
    data = settings.data
    return load_lookups(
        medical=data.medical_lookup_filepath or shipped_lookup("medical"),
        lab=data.lab_lookup_filepath or shipped_lookup("lab"),
        region=data.region_lookup_filepath or shipped_lookup("region"),
        time=data.time_lookup_filepath or shipped_lookup("time"),
        codes=cohort.dataset.codes(),
    )


def coverage_of(cohort: Cohort, rows: pl.DataFrame, lookups: Lookups) -> pl.DataFrame:
    """How the codes visible at these rows became words, per split and vocabulary."""
    splits = rows.select("subject_id", "split").unique()
    return coverage(cohort.history(rows).events(), lookups, splits)


def task_name(settings: Settings, cohort: Cohort) -> tuple[str, str]:
    """(dataset, task) as results name them."""
    return cohort.dataset.root.resolve().name, cohort.task.name


def _from_tokenised(settings: Settings) -> tuple[Path, Path | None]:
    """The text pipeline's pickles as a MEDS dataset inside the run directory, with its labels' index dates."""
    data = settings.data
    assert data.data_dir is not None
    assert data.vocab_filepath is not None  # settings have seen to it
    place = settings.training.output_dir
    target = place / "meds"
    inputs = {"records": data.data_dir, "vocabulary": data.vocab_filepath, "labels": data.labels_filepath}
    if not stage_done(place, "meds", inputs):
        convert_tokenised(data.data_dir, data.vocab_filepath, data.labels_filepath, target)
        mark_done(place, "meds", inputs, [target])
    index_dates = None if data.labels_dir else data.index_dates_filepath or data.labels_filepath
    return target, index_dates
