"""ICD-10-CM codes that no table knows are described by the library, and by it alone."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from epicrisis.narrative import icd10cm, load_lookups
from epicrisis.narrative.icd10cm import icd10cm_terms
from tests.narrative.histories import codes_table, tables

LOOKUPS = load_lookups(icd10cm=True)

NECK_OF_FEMUR = "Fracture of unspecified part of neck of right femur, initial encounter for closed fracture"


def told(lookups, *codes: str) -> list[tuple[str, str]]:
    return list(lookups.resolve(pl.Series(codes)).select("phrase", "source").iter_rows())


@pytest.mark.parametrize(
    ("code", "description"),
    [
        ("S72.001A", NECK_OF_FEMUR),
        ("C7A.00", "Malignant carcinoid tumor of unspecified site"),
        ("M1A.0", "Idiopathic chronic gout"),
        ("Z3A.20", "20 weeks gestation of pregnancy"),
    ],
)
def test_codes_that_simple_patterns_reject_are_described_with_and_without_their_dot(code: str, description: str):
    written = [f"{start}{form}" for form in (code, code.replace(".", "")) for start in ("ICD10CM//", "ICD10CM/")]
    written += [f"ICD-10-CM//{code}", f"DIAGNOSIS//ICD//10//{code.replace('.', '')}"]
    assert told(LOOKUPS, *written) == [(description, "icd10cm")] * 6


def test_parent_describes_a_leaf_that_is_not_in_the_classification():
    assert told(LOOKUPS, "ICD10CM//E11.657", "ICD10CM//E11.X", "ICD10CM//U99.9") == [
        ("Type 2 diabetes mellitus with hyperglycemia", "parent"),
        ("Type 2 diabetes mellitus", "parent"),
        ("ICD10CM//U99.9", "raw"),
    ]


def test_library_comes_after_tables_and_descriptions_and_before_their_parents(tmp_path):
    codes = codes_table(("ICD10CM//C61", "Described", None), ("ICD10CM//E11.9", None, ["ICD10CM//C61"]))
    lookups = tables(tmp_path, codes, medical="code,term\nI10,From the table\nE11,A parent\n")
    assert told(replace(lookups, icd10cm=True), "ICD10CM//I10", "ICD10CM//C61", "ICD10CM//E11.9") == [
        ("From the table", "lookup"),
        ("Described", "description"),
        ("Type 2 diabetes mellitus without complications", "icd10cm"),
    ]


def test_other_classifications_are_not_read_as_this_one():
    codes = ["ICD10//I10", "ICD10GM//I10", "ICD9CM//I10", "MEDICAL//I10", "ATC//C10", "I10"]
    assert {source for _, source in told(LOOKUPS, *codes)} == {"raw"}


def test_without_the_setting_nothing_is_looked_up():
    assert told(load_lookups(), "ICD10CM//I10") == [("ICD10CM//I10", "raw")]


def test_library_is_loaded_only_for_codes_that_nothing_else_knows():
    icd10cm._library.cache_clear()
    known = load_lookups(codes=codes_table(("ICD10CM//I10", "Hypertension", None)), icd10cm=True)
    assert told(known, "ICD10CM//I10", "LOINC//1-1") == [("Hypertension", "description"), ("LOINC//1-1", "raw")]
    assert icd10cm._library.cache_info().currsize == 0
    told(known, "ICD10CM//I11")
    assert icd10cm._library.cache_info().currsize == 1


def test_chapters_and_blocks_are_no_codes():
    assert icd10cm_terms(pl.Series(["19", "1", "A00-A09", "i10", "I10"])).rows() == [
        ("I10", "Essential (primary) hypertension")
    ]
