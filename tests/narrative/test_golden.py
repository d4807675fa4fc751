"""Narratives of three invented patients, as files that a person has read."""

from __future__ import annotations

from pathlib import Path

import pytest

from epicrisis.narrative import STYLES, get_style, load_lookups
from tests.narrative.histories import SHIPPED, codes_table, history, rows_of, told_in

GOLDEN = Path(__file__).parents[1] / "golden"

LOOKUPS = load_lookups(
    medical=SHIPPED / "medical_lookup.csv",
    lab=SHIPPED / "lab_lookup.csv",
    region=SHIPPED / "region_lookup.csv",
    time=SHIPPED / "time_lookup.csv",
    codes=codes_table(
        ("LAB//RESULT//50912//mg/dL", "Creatinine [Mass/volume] in Serum or Plasma", ["LOINC/2160-0"]),
        ("LAB//SPECIMEN_COLLECTED//50912//ROUTINE", "Creatinine [Mass/volume] in Serum or Plasma", None),
        ("LAB//RESULT//50802//mEq/L", "Base excess in Blood by calculation", None),
        ("INFUSION_START//225152", "Heparin Sodium", None),
        ("INFUSION_END//225152", "Heparin Sodium", None),
    ),
)

WOMAN_IN_HOSPITAL = [
    (None, "GENDER//F"),
    (None, "ETHNICITY//White British"),
    (None, "REGION//R03"),
    ("1957-02-03 00:00", "MEDS_BIRTH"),
    ("2017-11-20 09:00", "VISIT_START//outpatient"),
    ("2017-11-20 09:00", "ICD10CM//I10"),
    ("2017-11-20 09:10", "ATC//C09AA05"),
    ("2017-11-20 09:30", "VISIT_END//outpatient"),
    ("2020-03-02 10:00", "LIFESTYLE//SMOKING_CURRENT"),
    ("2020-03-02 10:00", "LOINC//718-7", 12.9, "g/dL"),
    ("2020-06-03 08:00", "LOINC//718-7", 11.2, "g/dL"),
    ("2020-06-03 08:00", "LOINC//1751-7", 0.0, "g/dL"),
    ("2020-06-14 22:30", "VISIT_START//inpatient"),
    ("2020-06-14 22:40", "ICD10CM//C50.911"),
    ("2020-06-14 22:40", "ICD10CM//E11.65"),
    ("2020-06-15 11:20", "ATC//N02BE01"),
]
INFANT = [
    (None, "GENDER//M"),
    ("2019-09-20 04:12", "MEDS_BIRTH"),
    ("2020-06-02 15:00", "VISIT_START//emergency"),
    ("2020-06-02 15:20", "ICD10CM//J20.99"),
    ("2020-06-02 15:20", "LOCAL//4711"),
    ("2020-06-02 16:00", "LOINC//5804-0", "negative"),
    ("2020-06-02 16:00", "LOINC//99999-9", -2.5, "mmol/L"),
    ("2020-06-02 16:00", "LOINC//99999-9", 1.5e-5, "mmol/L"),
    ("2020-06-02 18:45", "VISIT_END//emergency"),
]
MAN_OF_UNKNOWN_AGE = [
    (None, "GENDER//M"),
    ("2020-05-01 08:00", "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM"),
    ("2020-05-01 08:00", "RACE//BLACK/AFRICAN AMERICAN"),
    ("2020-05-01 08:00", "INSURANCE//Medicare"),
    ("2020-05-01 09:10", "LAB//SPECIMEN_COLLECTED//50912//ROUTINE"),
    ("2020-05-01 09:50", "LAB//RESULT//50912//mg/dL", 0.9),
    ("2020-05-01 09:50", "LAB//RESULT//50802//mEq/L", -3.0),
    ("2020-05-01 10:00", "MEDICATION//START//Heparin//63323026201"),
    ("2020-05-01 10:00", "INFUSION_START//225152", 1150.5, "units/hour"),
    ("2020-05-02 03:00", "INFUSION_END//225152", 19558.5, "units"),
    ("2020-05-03 12:00", "MEDICATION//Docusate Sodium//Not Given//UNK"),
    ("2020-05-04 12:00", "DRG//HCFA//176", "PULMONARY EMBOLISM W/O MCC"),
    ("2020-05-04 12:00", "HOSPITAL_DISCHARGE//HOME"),
    ("2020-05-28 12:00", "Blood Pressure", "110/70"),
    ("2020-05-28 12:00", "Weight (Lbs)", "165.34"),
]
PATIENTS = {
    "woman_in_hospital": WOMAN_IN_HOSPITAL,
    "infant": INFANT,
    "man_of_unknown_age": MAN_OF_UNKNOWN_AGE,
    "nobody": [],
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("patient", PATIENTS)
def test_narrative_reads_as_the_golden_file(patient, style):
    told = told_in(style, history(PATIENTS[patient]), rows_of(1), LOOKUPS)
    golden = (GOLDEN / f"{patient}.{style}.txt").read_text(encoding="utf-8")
    assert told["narrative"].item() + "\n" == golden
    label = get_style(style).label
    assert told.select("n_events", "n_events_dropped", "style").row(0) == (len(PATIENTS[patient]), 0, label)


@pytest.mark.parametrize("dates", ["gap", "calendar"])
def test_other_dates_read_as_the_golden_file(dates):
    told = told_in("timeline", history(WOMAN_IN_HOSPITAL), rows_of(1), LOOKUPS, dates=dates)
    golden = (GOLDEN / f"woman_in_hospital.timeline.{dates}.txt").read_text(encoding="utf-8")
    assert told["narrative"].item() + "\n" == golden


@pytest.mark.parametrize("style", STYLES)
def test_a_stay_that_has_not_ended_has_no_length(style):
    told = told_in(style, history(WOMAN_IN_HOSPITAL), rows_of(1), LOOKUPS)["narrative"].item()
    assert "inpatient visit starts" in told
    assert "inpatient visit ends" not in told
    assert "stay" not in told
