"""Patients in JSON in: `{"patients": [{"patient_id", "diagnoses", "prescriptions"}, ...]}`, as a MEDS dataset.

| key of a patient                          | becomes                                                             |
|-------------------------------------------|---------------------------------------------------------------------|
| `patient_id`                              | subject_id: whole numbers as they are, `P0001` as 1; see below      |
| `diagnoses`, each {code, date}            | an event `ICD10CM//<code>`                                          |
| `prescriptions`, each {code, date}        | an event `ATC//<code>`                                              |
| `procedures`, each {code, date} (may lack)| an event `CPT//<code>`                                              |
| `birth_date`, `sex`, `region` (may lack)  | `MEDS_BIRTH`, and the static `GENDER//<sex>` and `REGION//<region>` |
| `split` (may lack, then of all patients)  | the split; without it 80, 10 and 10 of 100 go to train, tuning, held_out |

A code that holds `//` already stays as it is. Patient ids that are one prefix with different numbers, as `P0001`,
are their numbers; others are numbered in alphabetical order. `metadata/subject_ids.parquet` says whose is whose.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from epicrisis.events.meds import BIRTH, EVENT_SCHEMA, SPLITS, TIME, MedsDataset, open_meds
from epicrisis.settings.problems import InputError, Problem, refuse

ETL_NAME = "epicrisis.events.patient_json"
KINDS = {"diagnoses": "ICD10CM", "prescriptions": "ATC", "procedures": "CPT"}
"""Lists of events, and the vocabulary that their codes are of."""
_STATIC = {"sex": "GENDER", "region": "REGION"}
_KEYS = {"patient_id", *KINDS, *_STATIC, "birth_date", "split"}
_OTHER_SPLIT_NAMES = {"val": "tuning", "validation": "tuning", "test": "held_out"}
_SHARES = (0.8, 0.9)
_FORMATS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S")
_SHAPE = 'write {"patients": [{"patient_id": ..., "diagnoses": [{"code": ..., "date": ...}], "prescriptions": [...]}]}'


def convert_patients(path: Path, output_dir: Path) -> MedsDataset:
    """Writes the patients as a MEDS dataset of one event file per split and opens it.

    An earlier conversion in `output_dir` is replaced; nothing is left behind unless all went well. Raises InputError
    for whatever is wrong with the file, with counts and never with what a patient's record says.
    """
    patients = read_patients(path)
    _refuse_foreign_folder(output_dir)
    partial = output_dir.with_name(f"{output_dir.name}.partial-{os.getpid()}")
    try:
        _write(partial, patients, path)
        if output_dir.exists():
            shutil.rmtree(output_dir)
        os.replace(partial, output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_meds(output_dir)


def read_patients(path: Path) -> list[dict[str, Any]]:
    """The patients of the file, all of the right shape; InputError counts those that are not."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise refuse(str(path), f"cannot be read ({type(error).__name__})", "mend data.patients_json") from error
    except ValueError:
        raise refuse(str(path), "is no JSON", _SHAPE) from None  # the decoder's error holds the document
    patients = data.get("patients") if isinstance(data, dict) else None
    if not isinstance(patients, list) or not patients:
        raise refuse(str(path), "holds no list of patients", _SHAPE)
    problems = _shape_problems(patients, str(path))
    if problems:
        raise InputError(problems)
    return patients


def events_of(patients: list[dict[str, Any]]) -> pl.DataFrame:
    """Events in EVENT_SCHEMA, sorted by subject and time (static first), and as in the file where times are equal."""
    ids = subject_ids([patient["patient_id"] for patient in patients])
    told = pl.DataFrame(
        [event for subject, patient in zip(ids, patients, strict=True) for event in _told(subject, patient)],
        schema={"subject_id": pl.Int64, "date": pl.String, "code": pl.String},
        orient="row",
    )
    nothing = {name: pl.lit(None, kind).alias(name) for name, kind in EVENT_SCHEMA.items()}
    events = told.with_columns(_time("date").alias("time")).select(
        "subject_id", "time", "code", *(nothing[name] for name in ("numeric_value", "text_value", "unit"))
    )
    return events.sort("subject_id", "time", nulls_last=False, maintain_order=True)


def subject_ids(patient_ids: list[str | int]) -> list[int]:
    """The MEDS subject of each patient: its number, where all have different ones after one prefix, else its rank."""
    texts = [str(patient_id) for patient_id in patient_ids]
    parts = [re.fullmatch(r"(\D*)(\d{1,18})", text) for text in texts]
    numbers = [int(part[2]) for part in parts if part]
    prefixes = {part[1] for part in parts if part}
    if len(prefixes) == 1 and len(set(numbers)) == len(texts):
        return numbers
    rank = {text: place for place, text in enumerate(sorted(texts), start=1)}
    return [rank[text] for text in texts]


def splits_of(patients: list[dict[str, Any]]) -> list[str]:
    """Each patient's split: its own, or, where no patient names one, by a hash of the id, 80:10:10 of all."""
    if "split" in patients[0]:
        return [_OTHER_SPLIT_NAMES.get(patient["split"], patient["split"]) for patient in patients]
    hashes = [hashlib.blake2b(str(patient["patient_id"]).encode()).digest() for patient in patients]
    rank = {place: number for number, place in enumerate(sorted(range(len(hashes)), key=hashes.__getitem__))}
    bounds = [round(share * len(patients)) for share in _SHARES]
    return [SPLITS[sum(rank[place] >= bound for bound in bounds)] for place in range(len(patients))]


def _told(subject: int, patient: dict[str, Any]) -> Iterator[tuple[int, str | None, str]]:
    """subject, date or None for static, code."""
    for key, vocabulary in _STATIC.items():
        if patient.get(key) is not None:
            yield subject, None, f"{vocabulary}//{patient[key]}"
    if patient.get("birth_date") is not None:
        yield subject, patient["birth_date"], BIRTH
    for key, vocabulary in KINDS.items():
        for event in patient.get(key) or ():
            code = event["code"].strip()
            yield subject, event["date"], code if "//" in code else f"{vocabulary}//{code}"


def _time(column: str) -> pl.Expr:
    return pl.coalesce(pl.col(column).str.to_datetime(form, time_unit="us", strict=False) for form in _FORMATS).cast(
        TIME
    )


def _shape_problems(patients: list[Any], where: str) -> list[Problem]:
    n = len(patients)
    if not all(isinstance(patient, dict) for patient in patients):
        misshapen = sum(not isinstance(patient, dict) for patient in patients)
        return [Problem(where, f"{misshapen} of {n} patients are no objects", _SHAPE)]
    problems = _key_problems(patients, where)
    nameless = sum(not _is_name(patient.get("patient_id")) for patient in patients)
    if nameless:
        problems.append(Problem(where, f"{nameless} of {n} patients have no patient_id", "give each a text or number"))
    twice = n - len({str(patient.get("patient_id")) for patient in patients})
    if twice and not nameless:
        problems.append(Problem(where, f"{twice} patient ids are used more than once", "write each patient once"))
    misshapen = sum(not _is_told_well(patient) for patient in patients)
    if misshapen:
        what = f"{misshapen} of {n} patients have events that are no {{code, date}}, or a sex or region that is no text"
        problems.append(Problem(where, what, _SHAPE))
    return problems or _date_problems(patients, where)


def _key_problems(patients: list[dict[str, Any]], where: str) -> list[Problem]:
    problems = []
    unknown = {str(key) for patient in patients for key in patient} - _KEYS
    if unknown:
        # only what looks like the name of a field is repeated: a key could hold anything
        named = sorted(key for key in unknown if re.fullmatch(r"[a-z_]{1,40}", key))
        told = f" ({', '.join(named)})" if named else ""
        what = f"{len(unknown)} keys of patients are not known{told}"
        problems.append(Problem(where, what, f"leave them out; known are {', '.join(sorted(_KEYS))}"))
    with_split = sum("split" in patient for patient in patients)
    known = {*SPLITS, *_OTHER_SPLIT_NAMES}
    strange = sum("split" in patient and patient["split"] not in known for patient in patients)
    if with_split not in (0, len(patients)) or strange:
        what = f"{with_split} of {len(patients)} patients name a split, {strange} of them none of {', '.join(SPLITS)}"
        problems.append(Problem(where, what, "name one for each patient, or for none"))
    return problems


def _date_problems(patients: list[dict[str, Any]], where: str) -> list[Problem]:
    events = events_of(patients)
    static = tuple(f"{vocabulary}//" for vocabulary in _STATIC.values())
    is_static = pl.any_horizontal(pl.col("code").str.starts_with(prefix) for prefix in static)
    undated = events.filter(pl.col("time").is_null() & ~is_static).height
    fix = "write dates as 2020-01-15 or 2020-01-15T08:30:00"
    problems = [Problem(where, f"{undated} dates cannot be read", fix)] if undated else []
    if events.is_empty():
        problems.append(Problem(where, "no patient has any event", _SHAPE))
    return problems


def _is_name(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or (isinstance(value, int) and not isinstance(value, bool))


def _is_told_well(patient: dict[str, Any]) -> bool:
    lists = [patient.get(key) or [] for key in KINDS]
    texts = [patient[key] for key in _STATIC if patient.get(key) is not None]
    birth = patient.get("birth_date")
    return (
        all(isinstance(events, list) and all(map(_is_event, events)) for events in lists)
        and all(map(_is_name, texts))
        and (birth is None or isinstance(birth, str))
    )


def _is_event(event: Any) -> bool:
    if not isinstance(event, dict):
        return False
    code, date = event.get("code"), event.get("date")
    return isinstance(code, str) and bool(code.strip()) and isinstance(date, str)


def _refuse_foreign_folder(output_dir: Path) -> None:
    """Only an earlier conversion may be replaced."""
    if not output_dir.exists():
        return
    earlier = output_dir.is_dir() and MedsDataset(output_dir).metadata().get("etl_name") == ETL_NAME
    if not earlier and (output_dir.is_file() or any(output_dir.iterdir())):
        raise refuse(str(output_dir), "is there and is no earlier conversion", "choose another folder")


def _write(folder: Path, patients: list[dict[str, Any]], source: Path) -> None:
    events = events_of(patients)
    subjects = pl.DataFrame(
        {
            "subject_id": subject_ids([patient["patient_id"] for patient in patients]),
            "patient_id": [str(patient["patient_id"]) for patient in patients],
            "split": splits_of(patients),
        },
        schema={"subject_id": pl.Int64, "patient_id": pl.String, "split": pl.String},
    ).sort("subject_id")
    for split in SPLITS:
        mine = subjects.filter(split=split).select("subject_id")
        own = events.join(mine, on="subject_id", how="semi", maintain_order="left")
        if own.height:
            (folder / "data" / split).mkdir(parents=True)
            own.write_parquet(folder / "data" / split / "0.parquet", compression="zstd")
    (folder / "metadata").mkdir(parents=True)
    present = subjects.join(events.select("subject_id").unique(), on="subject_id", how="semi", maintain_order="left")
    present.select("subject_id", "split").write_parquet(folder / "metadata" / "subject_splits.parquet")
    subjects.select("subject_id", "patient_id").write_parquet(folder / "metadata" / "subject_ids.parquet")
    about = {"dataset_name": source.stem, "meds_version": "0.4.1", "etl_name": ETL_NAME}
    (folder / "metadata" / "dataset.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
