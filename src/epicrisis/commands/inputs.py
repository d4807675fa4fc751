"""The cohort and the lookups that a config names."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from epicrisis.cohort import Cohort, build_cohort
from epicrisis.events.patient_json import convert_patients
from epicrisis.events.tokenised import convert_tokenised
from epicrisis.narrative import Lookups, load_lookups, shipped_lookup
from epicrisis.narrative.coverage import CodeWords, CoverageCounts, coverage, coverage_counts, merge_counts
from epicrisis.settings import Settings, refuse
from epicrisis.tracking.stamps import mark_done, stage_done


def open_cohort(settings: Settings, *, training: bool = True) -> Cohort:
    """The checked cohort of `data`; without labels, every subject at its last event."""
    data = settings.data
    meds_dir, index_dates = data.meds_dir, data.index_dates_filepath
    if data.data_dir is not None:
        meds_dir, index_dates = _from_tokenised(settings)
    if data.patients_json is not None:
        meds_dir = _from_patients(settings, data.patients_json)
    if meds_dir is None:
        fix = "give data.meds_dir (MEDS), data.data_dir or data.patients_json"
        raise refuse("data.meds_dir", "no data is named", fix)
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
        concepts=data.concept_filepath,
        codes_filepath=data.codes_filepath,
        icd10cm=data.icd10cm,
        of_interest=_codes_in(cohort) if data.concept_filepath else None,
    )


def coverage_of(cohort: Cohort, rows: pl.DataFrame, lookups: Lookups) -> pl.DataFrame:
    """How the codes visible at these rows became words, per split and vocabulary, without the subjects by source."""
    table = coverage(coverage_counts_of(cohort, rows, lookups), lookups)
    return table.drop([name for name in table.columns if name.startswith("subjects_")])


def coverage_counts_of(cohort: Cohort, rows: pl.DataFrame, lookups: Lookups) -> CoverageCounts:
    """What `coverage` and `unresolved` need of the codes visible at these rows, counted shard by shard."""
    splits = rows.select("subject_id", "split").unique()
    shards = (events.select("subject_id", "code").collect() for _, events in cohort.history(rows).shards())
    words = CodeWords(lookups)
    return merge_counts(coverage_counts(events, words, splits) for events in shards)


def _codes_in(cohort: Cohort) -> pl.Series:
    """The distinct codes of the dataset, read file by file."""
    found = pl.Series("code", [], dtype=pl.String)
    for shard in cohort.dataset.shards():
        codes = cohort.dataset.events([shard]).select("code").unique().collect(engine="streaming")["code"]
        found = pl.concat([found, codes]).unique()
    return found


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


def _from_patients(settings: Settings, path: Path) -> Path:
    """Patients in JSON as a MEDS dataset inside the run directory."""
    place = settings.training.output_dir
    target, inputs = place / "meds", {"patients": path}
    if not stage_done(place, "meds", inputs):
        convert_patients(path, target)
        mark_done(place, "meds", inputs, [target])
    return target
