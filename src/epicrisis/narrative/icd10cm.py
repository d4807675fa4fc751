"""Descriptions of ICD-10-CM codes from simple-icd-10-cm, which holds the whole classification of the CDC."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from types import ModuleType

import polars as pl

PACKAGE = "simple-icd-10-cm"

VOCABULARIES = ("ICD10CM", "ICD-10-CM")
"""Whose codes it may describe. Not `ICD10`, which is the WHO's: some codes mean something else there."""

_CODE = r"^[A-Z]\d[0-9A-Z](?:\.?[0-9A-Z]{1,4})?$"
"""A category and up to four characters more; the library also knows chapters (`19`) and blocks (`A00-A09`)."""


def icd10cm_terms(codes: pl.Series) -> pl.DataFrame:
    """code · term of those of the distinct codes that are in the classification.

    codes: bare, with or without their dot, case-exact: `S72.001A`, `S72001A`. The library is loaded at the
    first code of that shape (some two seconds, 180 MB), once per process.
    """
    shaped = codes.filter(codes.str.contains(_CODE)).to_list()
    known = [code for code in shaped if _library().is_valid_item(code)]
    terms = [_library().get_description(code) for code in known]
    return pl.DataFrame({"code": known, "term": terms}, schema={"code": pl.String, "term": pl.String})


def icd10cm_version() -> str:
    """The package's version, which decides the descriptions; does not load it."""
    return version(PACKAGE)


@cache
def _library() -> ModuleType:
    import simple_icd_10_cm

    return simple_icd_10_cm
