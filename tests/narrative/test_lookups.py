"""How codes find their words, step by step down the chain, and which tables are refused."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from epicrisis.narrative import load_lookups
from epicrisis.settings.problems import InputError
from tests.narrative.histories import codes_table, tables


def told(lookups, *codes: str) -> list[tuple[str, str]]:
    resolved = lookups.resolve(pl.Series(codes))
    assert resolved["code"].to_list() == list(dict.fromkeys(codes))
    return list(resolved.select("phrase", "source").iter_rows())


def test_chain_goes_from_table_to_description_to_parent_to_words_to_code(tmp_path):
    codes = codes_table(
        ("ICD10CM//C61", "Description of C61", None),
        ("ICD10CM//E11.9", "Type 2 diabetes", None),
        ("LOCAL//77", None, ["SNOMED/73211009"]),
        ("SNOMED/73211009", "Diabetes mellitus", None),
    )
    lookups = tables(tmp_path, codes, medical="code,term\nC61,Prostate cancer\n")
    assert told(lookups, "ICD10CM//C61") == [("Prostate cancer", "lookup")]
    assert told(lookups, "ICD10CM//E11.9") == [("Type 2 diabetes", "description")]
    assert told(lookups, "LOCAL//77") == [("Diabetes mellitus", "parent")]
    assert told(lookups, "DIET_KIND//Low salt") == [("DIET KIND: Low salt", "readable")]
    assert told(lookups, "LOCAL//4711") == [("LOCAL//4711", "raw")]


def test_term_for_the_whole_code_is_the_phrase_word_for_word(tmp_path):
    lookups = tables(tmp_path, medical="code,term\nINFUSION_START//225152,heparin drip begun\n")
    assert told(lookups, "INFUSION_START//225152") == [("heparin drip begun", "lookup")]


def test_codes_are_case_exact(tmp_path):
    lookups = tables(tmp_path, medical="code,term\nC10E.,Type 1 diabetes\nc10e.,Beta blocker\n")
    assert told(lookups, "MEDICAL//C10E.", "MEDICAL//c10e.", "MEDICAL//C10e.") == [
        ("Type 1 diabetes", "lookup"),
        ("Beta blocker", "lookup"),
        ("MEDICAL//C10e.", "raw"),
    ]


@pytest.mark.parametrize(
    ("code", "table", "term"),
    [
        ("ICD10CM//E11.65", "E11.6,with complications\nE11,Type 2 diabetes", "with complications"),
        ("ICD10CM//E11.65", "E11,Type 2 diabetes", "Type 2 diabetes"),
        ("DIAGNOSIS//ICD//10//E1165", "E11,Type 2 diabetes", "Type 2 diabetes"),
        ("DIAGNOSIS//ICD//10//E1165", "E1165,undotted", "undotted"),
        ("DIAGNOSIS//ICD//9//4280", "428,Heart failure", "Heart failure"),
        ("ICD10CM//S72.001A", "S72.00,Neck of femur", "Neck of femur"),
        ("ICD10CM//C7A.00", "C7A,Neuroendocrine tumors", "Neuroendocrine tumors"),
        ("ICD10CM//M1A.0", "M1A,Chronic gout", "Chronic gout"),
        ("ICD10CM//Z3A.20", "Z3A,Weeks of gestation", "Weeks of gestation"),
        ("ATC//N02BE01", "N02BE,Anilides", "Anilides"),
        ("ATC//N02BE01", "N02B,Other analgesics", "Other analgesics"),
        ("ATC//N02BE01", "ATC//N02,Analgesics", "Analgesics"),
        ("ATC//N02BE01", "ATC//N,Nervous system", "Nervous system"),
    ],
)
def test_hierarchies_are_climbed(tmp_path, code, table, term):
    lookups = tables(tmp_path, medical=f"code,term\n{table}\n")
    source = "lookup" if term == "undotted" else "parent"
    assert told(lookups, code) == [(term, source)]


def test_short_atc_code_is_never_taken_for_the_icd_code_of_that_name(tmp_path):
    lookups = tables(tmp_path, medical="code,term\nC10,Malignant neoplasm of oropharynx\n")
    assert told(lookups, "ATC//C10AA05", "ATC//C10") == [("ATC//C10AA05", "raw"), ("ATC//C10", "raw")]
    assert told(lookups, "ICD10CM//C10.9") == [("Malignant neoplasm of oropharynx", "parent")]


def test_parents_are_followed_upwards_and_cycles_end(tmp_path):
    codes = codes_table(
        ("X//1", None, ["X//2"]), ("X//2", None, ["X//3"]), ("X//3", "Grandparent", None), ("Y//1", None, ["Y//1"])
    )
    assert told(load_lookups(codes=codes), "X//1", "Y//1") == [("Grandparent", "parent"), ("Y//1", "raw")]


def test_first_known_parent_wins():
    codes = codes_table(("X//1", None, ["X//9", "X//2", "X//3"]), ("X//2", "Second", None), ("X//3", "Third", None))
    assert told(load_lookups(codes=codes), "X//1") == [("Second", "parent")]


def test_composite_codes_read_as_words():
    expected = {
        "MEDICATION//START//Heparin//63323026201": "started Heparin",
        "MEDICATION//STOP//UNK//UNK": "stopped unnamed medication",
        "MEDICATION//Docusate Sodium//Not Given//UNK": "Docusate Sodium not given",
        "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM": "hospital admission (emergency) via emergency room",
        "HOSPITAL_DISCHARGE//UNK": "hospital discharge",
        "TRANSFER_TO//admit//Medical Intensive Care Unit (MICU)": "transfer to Medical Intensive Care Unit (MICU)",
        "TRANSFER_TO//discharge//UNK": "transfer out",
        "RACE//BLACK/AFRICAN AMERICAN": "race: Black/African American",
        "RACE//UNKNOWN": "race: not recorded",
        "LANGUAGE//?": "language: not recorded",
        "ETHNICITY//west_indian": "West Indian",
        "ETHNICITY//White British": "White British",
        "VISIT_START//inpatient": "inpatient visit starts",
        "VISIT_END//IP": "inpatient visit ends",
        "LIFESTYLE//SMOKING_CURRENT": "smoking current",
        "BMI (kg/m2)": "BMI",
        "Blood Pressure Standing (1 min)": "blood pressure standing",
        "AGE_decile_5": "age decile 5",
        "LAB//GLUCOSE_5": "GLUCOSE 5",
        "ED_OUT": "left emergency department",
    }
    assert told(load_lookups(), *expected) == [(phrase, "readable") for phrase in expected.values()]


def test_template_stands_around_the_datasets_description():
    codes = codes_table(
        ("LAB//SPECIMEN_COLLECTED//50912//ROUTINE", "Creatinine", None),
        ("LAB//RESULT//50912//mg/dL", "Creatinine", None),
        ("INFUSION_START//225152", "Heparin Sodium", None),
        ("INFUSION_END//225152", "Heparin Sodium", None),
    )
    assert [phrase for phrase, _ in told(load_lookups(codes=codes), *codes["code"])] == [
        "specimen collected: Creatinine",
        "Creatinine",
        "infusion started: Heparin Sodium",
        "infusion ended: Heparin Sodium",
    ]


def test_unit_inside_the_code_is_found_and_unknown_parts_are_not():
    codes = ["LAB//RESULT//50912//mg/dL", "LAB//RESULT//51237//UNK", "SUBJECT_FLUID_OUTPUT//226559//ml", "BMI (kg/m2)"]
    assert load_lookups().resolve(pl.Series(codes))["unit"].to_list() == ["mg/dL", None, "ml", "kg/m2"]
    assert told(load_lookups(), "LAB//RESULT//51237//UNK") == [("LAB//RESULT//51237", "raw")]


def test_each_vocabulary_has_its_table(tmp_path):
    lookups = tables(
        tmp_path,
        medical="code,term\nC10,Diseases of the circulatory system\n50912,a medical 50912\n",
        lab="code,term,unit,low,high\nGLUCOSE,Glucose,mmol/L,3.9,5.6\n50912,Creatinine,,,\n",
        region="regionid,Description\n3,North East\n",
    )
    assert [phrase for phrase, _ in told(lookups, "MEDICAL//C10", "LAB//GLUCOSE", "REGION//3", "REGION//4")] == [
        "Diseases of the circulatory system",
        "Glucose",
        "North East",
        "REGION//4",
    ]
    assert told(lookups, "LAB//RESULT//50912//mg/dL") == [("Creatinine", "lookup")]
    assert lookups.ranges is not None
    assert lookups.ranges.row(0) == ("GLUCOSE", "mmol/L", 3.9, 5.6)


def test_all_problems_of_all_tables_are_told_at_once_with_counts(tmp_path):
    with pytest.raises(InputError) as caught:
        tables(
            tmp_path,
            medical="code,term\nC61,Prostate cancer\nC61,Breast cancer\nC50,\n,Nothing\n",
            lab="code,name,unit\nGLUCOSE,Glucose,mmol/L\n",
            time="code,term\nsoon,soon\n",
        )
    message = str(caught.value)
    assert "medical.csv: 1 codes have more than one term (first: C61)" in message
    assert "medical.csv: 1 codes without a term" in message
    assert "medical.csv: 1 rows without a code" in message
    assert "lab.csv: 3 columns, but none called term" in message
    assert "time.csv: 'soon' is no time interval" in message


def test_identical_duplicates_are_noted(tmp_path):
    lookups = tables(tmp_path, medical="code,term\nC61,Prostate cancer\nC61,Prostate cancer\n")
    assert told(lookups, "ICD10CM//C61") == [("Prostate cancer", "lookup")]
    assert len(lookups.notes) == 1
    assert "1 codes are listed twice" in lookups.notes[0]


@pytest.mark.parametrize("header", ["ICD-10,meaning", "code,meaning", "whatever,term"])
def test_table_of_two_columns_needs_no_names_and_says_how_it_was_read(tmp_path, header):
    lookups = tables(tmp_path, medical=f"{header}\nC61,Prostate cancer\n", lab=f"{header}\nGLUCOSE,Glucose\n")
    assert told(lookups, "ICD10CM//C61", "LAB//GLUCOSE") == [("Prostate cancer", "lookup"), ("Glucose", "lookup")]
    code, term = header.split(",")
    assert f"medical.csv: column '{code}' was read as code, '{term}' as term" in lookups.notes[0]
    assert lookups.ranges is None


@pytest.mark.parametrize("header", ["term,code", "meaning,code", "term,ICD-10"])
def test_a_name_tells_which_of_two_columns_is_which(tmp_path, header):
    lookups = tables(tmp_path, medical=f"{header}\nProstate cancer,C61\n")
    assert told(lookups, "ICD10CM//C61") == [("Prostate cancer", "lookup")]


def test_table_with_the_right_names_is_read_by_them_without_a_note(tmp_path):
    lookups = tables(tmp_path, medical="kind,term,code\nneoplasm,Prostate cancer,C61\n")
    assert told(lookups, "ICD10CM//C61") == [("Prostate cancer", "lookup")]
    assert lookups.notes == ()


@pytest.mark.parametrize("text", ["id,meaning,kind\nC61,Prostate cancer,x\n", "C61\nC50\n"])
def test_wider_or_narrower_tables_without_the_names_are_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"columns?, but none called code or term"):
        tables(tmp_path, medical=text)


def test_file_of_codes_goes_before_the_datasets_own(tmp_path):
    own = codes_table(("X//1", "One", ["X//2"]), ("X//2", "Two", None), ("X//3", None, ["X//2"]))
    over = codes_table(("X//1", "Another one", None), ("X//3", None, ["X//4"]), ("X//4", "Four", None))
    over.write_parquet(tmp_path / "codes.parquet")
    lookups = load_lookups(codes=own, codes_filepath=tmp_path / "codes.parquet")
    assert told(lookups, "X//1", "X//2", "X//3") == [
        ("Another one", "description"),
        ("Two", "description"),
        ("Four", "parent"),
    ]
    assert lookups.codes.filter(pl.col("code") == "X//1")["parent_codes"].to_list() == [["X//2"]]


def test_file_of_codes_may_hold_one_parent_as_text_and_no_descriptions(tmp_path):
    pl.DataFrame({"code": ["X//1"], "parent_codes": ["X//2"]}).write_parquet(tmp_path / "codes.parquet")
    own = codes_table(("X//2", "Two", None))
    lookups = load_lookups(codes=own, codes_filepath=tmp_path / "codes.parquet")
    assert told(lookups, "X//1") == [("Two", "parent")]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"name": ["a"]}, "lacks the column code"),
        ({"code": [1], "description": ["a"]}, "a column has a wrong type"),
        ({"code": ["a"], "parent_codes": [3]}, "a column has a wrong type"),
        ({"code": ["a", "a"], "description": ["one", "two"]}, "1 codes have more than one description"),
    ],
)
def test_other_files_of_codes_are_refused(tmp_path, table, problem):
    path = tmp_path / "own.parquet"
    with pytest.raises(InputError, match=r"own\.parquet: the file does not exist"):
        load_lookups(codes_filepath=path)
    path.write_text("code,description\n")
    with pytest.raises(InputError, match=r"own\.parquet: cannot be read as Parquet"):
        load_lookups(codes_filepath=path)
    pl.DataFrame(table).write_parquet(path)
    with pytest.raises(InputError, match=rf"own\.parquet: {problem}"):
        load_lookups(codes_filepath=path)


def test_fingerprint_changes_with_whatever_decides_words(tmp_path):
    codes = codes_table(("A", "one", ["B"]))
    (tmp_path / "CONCEPT.csv").write_text(
        "concept_id\tconcept_name\tvocabulary_id\tconcept_code\tstandard_concept\tinvalid_reason\n1\tA\tB\tC\tS\t\n"
    )
    different = [
        load_lookups(codes=codes),
        load_lookups(codes=codes_table(("A", "two", ["B"]))),
        load_lookups(codes=codes_table(("A", "one", ["C"]))),
        load_lookups(codes=codes, icd10cm=True),
        load_lookups(codes=codes, concepts=tmp_path / "CONCEPT.csv"),
        tables(tmp_path, codes, medical="code,term\nC61,Prostate cancer\n"),
        tables(tmp_path, codes, time="code,term\n1d-3d,days later\n"),
    ]
    assert len({lookups.fingerprint() for lookups in different}) == len(different)
    assert load_lookups(codes=codes).fingerprint() == different[0].fingerprint()


def test_missing_file_and_clashing_descriptions_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_lookups(medical=tmp_path / "absent.csv")
    with pytest.raises(InputError, match="1 codes have more than one description"):
        load_lookups(codes=codes_table(("A", "one", None), ("A", "two", None)))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("A//(?P<x>.+,{term}", "no valid regular expression"),
        ("A//(?P<x>.+),{y}", r"names \['y'\]"),
        ("A//.+,{term", "stray bracket"),
    ],
)
def test_broken_pattern_tables_are_refused(tmp_path: Path, row: str, problem: str):
    path = tmp_path / "patterns.csv"
    path.write_text(f"pattern,template,readable,unit,key,table,hierarchy,vocabulary,role\n{row},,,,,,,\n")
    with pytest.raises(InputError, match=problem):
        load_lookups(patterns=path)


@pytest.mark.parametrize("time", ["1d-3d,a\n3d-9d,b", "6h-1h,a", "1d - 3d,a"])
def test_time_labels_that_overlap_or_are_no_interval_are_refused(tmp_path, time):
    with pytest.raises(InputError, match="interval"):
        tables(tmp_path, time=f"code,term\n{time}\n")
