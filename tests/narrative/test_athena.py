"""Names from an OMOP vocabulary download, in small files written as Athena writes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epicrisis.commands.inputs import open_cohort, open_lookups
from epicrisis.narrative import load_lookups
from epicrisis.settings import InputError, settings_from
from tests.cohort.small_meds import write_meds
from tests.narrative.histories import codes_table, tables

HEADER = (
    "concept_id\tconcept_name\tdomain_id\tvocabulary_id\tconcept_class_id\tstandard_concept\tconcept_code"
    "\tvalid_start_date\tvalid_end_date\tinvalid_reason"
)


def concept(number: int, name: str, vocabulary: str, code: str, standard: str = "S", invalid: str = "") -> str:
    return f"{number}\t{name}\tCondition\t{vocabulary}\tFinding\t{standard}\t{code}\t19700101\t20991231\t{invalid}"


CONCEPTS = (
    concept(0, "No matching concept", "None", "No matching concept"),
    concept(201826, "Type 2 diabetes mellitus", "SNOMED", "44054006"),
    concept(1567956, "Type 2 diabetes mellitus in the download", "ICD10CM", "E11", standard=""),
    concept(45591027, "Type 2 diabetes mellitus with hyperglycemia", "ICD10CM", "E11.65", standard=""),
    concept(2000, 'Insertion of "J" stent', "ICD9Proc", "59.8"),
    concept(3016723, "Creatinine [Mass/volume] in Serum or Plasma", "LOINC", "2160-0"),
    concept(1503297, "metformin", "RxNorm", "6809"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "CONCEPT.csv", HEADER, *CONCEPTS)
    return tmp_path


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def told(folder: Path, *codes: str, **given_too) -> list[tuple[str, str]]:
    """The codes with their source; the same with only these codes' concepts read and with all of them."""
    series = pl.Series(codes)
    some, every = (
        load_lookups(concepts=folder / "CONCEPT.csv", of_interest=wanted, **given_too).resolve(series)
        for wanted in (series, None)
    )
    assert some.equals(every)
    return list(some.select("phrase", "source").iter_rows())


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("SNOMED//44054006", "Type 2 diabetes mellitus"),
        ("SNOMED/44054006", "Type 2 diabetes mellitus"),
        ("SNOMEDCT//44054006", "Type 2 diabetes mellitus"),
        ("CONDITION//SNOMED//44054006", "Type 2 diabetes mellitus"),
        ("OMOP//201826", "Type 2 diabetes mellitus"),
        ("OMOP/201826", "Type 2 diabetes mellitus"),
        ("ICD10CM//E1165", "Type 2 diabetes mellitus with hyperglycemia"),
        ("ICD-10-CM//E11.65", "Type 2 diabetes mellitus with hyperglycemia"),
        ("DIAGNOSIS//ICD//10//E1165", "Type 2 diabetes mellitus with hyperglycemia"),
        ("PROCEDURE//ICD//9//598", 'Insertion of "J" stent'),
        ("MEASUREMENT//LOINC//2160-0", "Creatinine [Mass/volume] in Serum or Plasma"),
        ("DRUG//RXNORM//6809", "metformin"),
        ("PROVIDER//DRUG//RxNorm//6809", "metformin"),
    ],
)
def test_code_is_found_however_its_vocabulary_is_written(folder: Path, code: str, name: str):
    assert told(folder, code) == [(name, "concept")]


def test_nothing_is_guessed(folder: Path):
    codes = ["201826", "44054006", "OMOP//0", "OMOP//99", "LOINC//44054006", "SNOMED//4405400"]
    assert told(folder, *codes) == [(code, "raw") for code in codes]


def test_download_stands_between_the_users_tables_and_the_datasets_description(folder: Path):
    codes = codes_table(
        ("ICD10CM//E11.65", "The dataset's", None),
        ("SNOMED//44054006", "The dataset's", None),
        ("LOINC//1-1", "The dataset's", None),
    )
    own = tables(folder, codes, medical="code,term\nE11.65,The user's\n")
    lookups = replace(own, concepts=load_lookups(concepts=folder / "CONCEPT.csv").concepts, icd10cm=True)
    resolved = lookups.resolve(pl.Series(["ICD10CM//E11.65", "SNOMED//44054006", "LOINC//1-1"]))
    assert resolved.select("phrase", "source").rows() == [
        ("The user's", "lookup"),
        ("Type 2 diabetes mellitus", "concept"),
        ("The dataset's", "description"),
    ]


def test_name_is_laid_into_the_template_of_its_code(folder: Path):
    assert told(folder, "LAB//SPECIMEN_COLLECTED//LOINC//2160-0", "PROCEDURE//START//SNOMED//44054006") == [
        ("specimen collected: Creatinine [Mass/volume] in Serum or Plasma", "concept"),
        ("procedure started: Type 2 diabetes mellitus", "concept"),
    ]


def test_parents_are_found_in_the_download(folder: Path):
    codes = codes_table(("LOCAL//77", None, ["LOCAL//7"]), ("LOCAL//7", None, ["SNOMED/44054006"]))
    assert told(folder, "LOCAL//77", "ICD10CM//E11.9", "DIAGNOSIS//ICD//10//E11659", codes=codes) == [
        ("Type 2 diabetes mellitus", "parent"),
        ("Type 2 diabetes mellitus in the download", "parent"),
        ("Type 2 diabetes mellitus with hyperglycemia", "parent"),
    ]


def test_only_concepts_of_interest_are_kept(folder: Path):
    lookups = load_lookups(concepts=folder / "CONCEPT.csv", of_interest=pl.Series(["ICD10CM//E11.659", "OMOP//201826"]))
    assert sorted(lookups.concepts.names["concept"]) == ["icd10cm//E11", "icd10cm//E1165", "omop//201826"]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from(["SNOMED//44054006", "ICD10CM/E11.6", "OMOP//2000", "OMOP//5", "RxNorm//6809", "E11"])))
def test_what_is_read_decides_no_words(tmp_path_factory: pytest.TempPathFactory, codes: list[str]):
    folder = tmp_path_factory.mktemp("download")
    write(folder / "CONCEPT.csv", HEADER, *CONCEPTS)
    assert len(told(folder, *codes, "LOINC//2160-0")) == len({*codes, "LOINC//2160-0"})


def test_valid_standard_concept_of_a_code_counts(tmp_path: Path):
    write(
        tmp_path / "CONCEPT.csv",
        HEADER,
        concept(1, "upgraded", "NDC", "00012", standard="", invalid="U"),
        concept(2, "not standard", "NDC", "00012", standard=""),
        concept(3, "standard", "NDC", "00012"),
        concept(4, "deleted", "NDC", "00013", standard="", invalid="D"),
    )
    assert told(tmp_path, "NDC//00012", "NDC//00013", "OMOP//1") == [
        ("standard", "concept"),
        ("deleted", "concept"),
        ("upgraded", "concept"),
    ]


UNNAMED = (
    concept(10, "", "SNOMED", "10"),
    concept(11, "", "SNOMED", "11"),
    concept(12, "Disorder of kidney", "SNOMED", "12"),
    concept(13, "Clinical finding", "SNOMED", "13"),
)


def test_concept_without_a_name_is_told_by_its_nearest_ancestor_with_one(tmp_path: Path):
    write(tmp_path / "CONCEPT.csv", HEADER, *UNNAMED)
    assert told(tmp_path, "SNOMED//10") == [("SNOMED//10", "raw")]
    write(
        tmp_path / "CONCEPT_ANCESTOR.csv",
        "ancestor_concept_id\tdescendant_concept_id\tmin_levels_of_separation\tmax_levels_of_separation",
        "10\t10\t0\t0",
        "13\t10\t3\t3",
        "12\t10\t2\t2",
        "11\t10\t1\t1",
        "13\t99\t1\t1",
    )
    lookups = load_lookups(concepts=tmp_path / "CONCEPT.csv", of_interest=pl.Series(["SNOMED//10", "OMOP//99"]))
    assert lookups.resolve(pl.Series(["SNOMED//10", "OMOP//99"])).select("phrase", "source").rows() == [
        ("Disorder of kidney", "parent"),
        ("Clinical finding", "parent"),
    ]


def test_is_a_links_are_climbed_where_there_are_no_ancestors_and_cycles_end(tmp_path: Path):
    write(tmp_path / "CONCEPT.csv", HEADER, *UNNAMED, concept(20, "", "SNOMED", "20"))
    write(
        tmp_path / "CONCEPT_RELATIONSHIP.csv",
        "concept_id_1\tconcept_id_2\trelationship_id\tvalid_start_date\tvalid_end_date\tinvalid_reason",
        "10\t13\tMaps to\t19700101\t20991231\t",
        "10\t13\tIs a\t19700101\t20091231\tD",
        "10\t11\tIs a\t19700101\t20991231\t",
        "11\t10\tIs a\t19700101\t20991231\t",
        "11\t12\tIs a\t19700101\t20991231\t",
        "12\t13\tIs a\t19700101\t20991231\t",
        "20\t20\tIs a\t19700101\t20991231\t",
    )
    assert told(tmp_path, "SNOMED//10", "SNOMED//20") == [("Disorder of kidney", "parent"), ("SNOMED//20", "raw")]


def test_other_files_are_refused_with_one_message(tmp_path: Path):
    path = tmp_path / "CONCEPT.csv"
    with pytest.raises(InputError, match="does not exist"):
        load_lookups(concepts=path)
    write(path, HEADER.replace("\t", ","), "1,Diabetes,Condition,SNOMED,Finding,S,1,19700101,20991231,")
    with pytest.raises(InputError, match="lacks the columns concept_id, concept_name") as caught:
        load_lookups(concepts=path)
    assert len(caught.value.problems) == 1
    write(path, HEADER.replace("concept_code", "code"))
    with pytest.raises(InputError, match="lacks the column concept_code"):
        load_lookups(concepts=path)
    path.write_text("")
    with pytest.raises(InputError, match="not readable as tab-separated text"):
        load_lookups(concepts=path)


def test_file_in_another_encoding_is_refused_without_its_content(tmp_path: Path):
    (tmp_path / "CONCEPT.csv").write_bytes(HEADER.encode() + b"\n1\tcaf\xe9\tC\tSNOMED\tF\tS\t1\t\t\t\n")
    with pytest.raises(InputError, match="not readable as tab-separated text") as caught:
        load_lookups(concepts=tmp_path / "CONCEPT.csv")
    assert "caf" not in str(caught.value)


def test_hierarchy_with_other_columns_is_refused_even_where_it_is_not_needed(folder: Path):
    write(folder / "CONCEPT_ANCESTOR.csv", "ancestor\tdescendant", "1\t2")
    with pytest.raises(InputError, match=r"CONCEPT_ANCESTOR.csv: lacks the columns ancestor_concept_id"):
        load_lookups(concepts=folder / "CONCEPT.csv")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("concept_filepath", [("Type 2 diabetes mellitus", "concept"), ("LOCAL//1", "raw"), ("ICD10CM//I10", "raw")]),
        ("codes_filepath", [("SNOMED//44054006", "raw"), ("Local", "description"), ("ICD10CM//I10", "raw")]),
        (
            "icd10cm",
            [("SNOMED//44054006", "raw"), ("LOCAL//1", "raw"), ("Essential (primary) hypertension", "icd10cm")],
        ),
    ],
)
def test_each_setting_gives_its_codes_their_words(folder: Path, key: str, expected: list[tuple[str, str]]):
    codes = ["SNOMED//44054006", "LOCAL//1", "ICD10CM//I10"]
    meds = write_meds(folder / "meds", [(number, "2020-01-01", code) for number, code in enumerate(codes)], {})
    nothing = folder / "none.csv"
    nothing.write_text("code,term\n")
    codes_table(("LOCAL//1", "Local", None)).write_parquet(folder / "codes.parquet")
    values = {"concept_filepath": folder / "CONCEPT.csv", "codes_filepath": folder / "codes.parquet", "icd10cm": True}
    data = {"meds_dir": meds, "medical_lookup_filepath": nothing, "icd10cm": False, key: values[key]}
    config = settings_from({"data": {name: str(value) for name, value in data.items()}})
    lookups = open_lookups(config, open_cohort(config))
    assert lookups.resolve(pl.Series(codes)).select("phrase", "source").rows() == expected
