"""Patients in JSON become a MEDS dataset, and what is wrong is told without anything of a patient."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epicrisis.cohort import build_cohort
from epicrisis.commands.inputs import open_cohort
from epicrisis.events.meds import SPLITS
from epicrisis.events.patient_json import convert_patients, events_of, splits_of, subject_ids
from epicrisis.settings import InputError, settings_from

GUIDE = {
    "patients": [
        {
            "patient_id": "P0001",
            "diagnoses": [{"code": "E11.65", "date": "2020-01-15"}, {"code": "I10", "date": "2020-02-20"}],
            "prescriptions": [{"code": "N02BE01", "date": "2020-01-16"}],
        }
    ]
}
WHOLE = {
    "patient_id": "P0002",
    "birth_date": "1950-03-04",
    "sex": "F",
    "region": "R01",
    "diagnoses": [{"code": "ICD10GM//I10", "date": "2020-02-20T08:30:00"}],
    "procedures": [{"code": "99213", "date": "2020-02-20 08:30:00"}],
}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_guides_own_example(tmp_path: Path) -> None:
    dataset = convert_patients(write(tmp_path / "patients.json", GUIDE), tmp_path / "meds")
    events = dataset.events().select("subject_id", "time", "code").collect()
    assert events.rows() == [
        (1, datetime(2020, 1, 15), "ICD10CM//E11.65"),
        (1, datetime(2020, 1, 16), "ATC//N02BE01"),
        (1, datetime(2020, 2, 20), "ICD10CM//I10"),
    ]
    assert dataset.check().height == 1
    ids = pl.read_parquet(tmp_path / "meds" / "metadata" / "subject_ids.parquet")
    assert ids.rows() == [(1, "P0001")]


def test_everything_that_may_be_told_of_a_patient() -> None:
    events = events_of([WHOLE])
    assert events.select("subject_id", "time", "code").rows() == [
        (2, None, "GENDER//F"),
        (2, None, "REGION//R01"),
        (2, datetime(1950, 3, 4), "MEDS_BIRTH"),
        (2, datetime(2020, 2, 20, 8, 30), "ICD10GM//I10"),
        (2, datetime(2020, 2, 20, 8, 30), "CPT//99213"),
    ]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["P0007", "P0010"], [7, 10]),
        ([12, 5], [12, 5]),
        (["a7", "b7"], [1, 2]),
        (["zoe", "ann"], [2, 1]),
        (["P7", "P07"], [2, 1]),
    ],
)
def test_subjects_are_numbered(names: list[str | int], ids: list[int]) -> None:
    assert subject_ids(names) == ids


@given(st.sets(st.integers(0, 10**6), min_size=10, max_size=60))
def test_splits_are_80_10_10_whatever_the_order(numbers: set[int]) -> None:
    patients = [{"patient_id": f"P{number}"} for number in sorted(numbers)]
    found = splits_of(patients)
    assert splits_of(patients[::-1]) == found[::-1]
    n = len(patients)
    assert [found.count(split) for split in SPLITS] == [
        round(0.8 * n),
        round(0.9 * n) - round(0.8 * n),
        n - round(0.9 * n),
    ]


def test_splits_that_patients_name_are_theirs(tmp_path: Path) -> None:
    patients = [
        {**GUIDE["patients"][0], "patient_id": number, "split": split}
        for number, split in enumerate(("train", "val", "test", "held_out"))
    ]
    dataset = convert_patients(write(tmp_path / "p.json", {"patients": patients}), tmp_path / "meds")
    assert dataset.splits()["split"].to_list() == ["train", "tuning", "held_out", "held_out"]


def patient(**changes: Any) -> dict[str, Any]:
    return {"patients": [{**GUIDE["patients"][0], "patient_id": "SECRETID", **changes}]}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{SECRET", "is no JSON"),
        ({"people": []}, "holds no list of patients"),
        ({"patients": ["SECRET"]}, "1 of 1 patients are no objects"),
        (patient(patient_id=None), "1 of 1 patients have no patient_id"),
        (patient(diagnoses=[{"code": "SECRET"}]), "1 of 1 patients have events that are no"),
        (patient(diagnoses="SECRET"), "1 of 1 patients have events that are no"),
        (patient(prescriptions=[{"code": "SECRET", "date": "15th SECRET"}]), "1 dates cannot be read"),
        (patient(birth_date="SECRET"), "1 dates cannot be read"),
        (patient(sex=["SECRET"]), "a sex or region that is no text"),
        (patient(labs=["SECRET"]), "1 keys of patients are not known (labs)"),
        (patient(**{"SECRET 1950-01-01": 1}), "1 keys of patients are not known"),
        (patient(split="SECRET"), "1 of 1 patients name a split, 1 of them none of"),
        ({"patients": GUIDE["patients"] * 2}, "1 patient ids are used more than once"),
        (patient(diagnoses=[], prescriptions=[]), "no patient has any event"),
    ],
)
def test_what_is_wrong_is_told_without_what_a_record_says(content: Any, told: str, tmp_path: Path) -> None:
    path = write(tmp_path / "patients.json", content)
    with pytest.raises(InputError) as caught:
        convert_patients(path, tmp_path / "meds")
    assert told in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert not (tmp_path / "meds").exists()


def test_an_earlier_conversion_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "patients.json", GUIDE)
    convert_patients(path, tmp_path / "meds")
    convert_patients(path, tmp_path / "meds")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="is no earlier conversion"):
        convert_patients(path, tmp_path / "other")
    assert (tmp_path / "other" / "mine.txt").read_text() == "kept"


def test_a_config_names_the_file(tmp_path: Path) -> None:
    patients = [{**GUIDE["patients"][0], "patient_id": f"P{number:04d}"} for number in range(20)]
    path = write(tmp_path / "patients.json", {"patients": patients})
    tree = {"arm": "behrt", "stage": "pretrain", "data": {"patients_json": str(path)}}
    chosen = settings_from({**tree, "training": {"output_dir": str(tmp_path / "run")}})
    cohort = open_cohort(chosen)
    assert cohort.rows.height == 20
    assert build_cohort(tmp_path / "run" / "meds").rows.equals(cohort.rows)
    with pytest.raises(InputError, match=r"data\.patients_json: given together with data\.meds_dir"):
        settings_from({**tree, "data": {"patients_json": str(path), "meds_dir": str(tmp_path)}})
    with pytest.raises(InputError, match="does not exist"):
        settings_from({**tree, "data": {"patients_json": str(tmp_path / "none.json")}})
