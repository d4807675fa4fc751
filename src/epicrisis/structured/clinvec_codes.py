"""Which published vocabulary a code of the data belongs to, how it is written there, and what its parents are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

ClinvecVocabulary = Literal["icd10cm", "atc", "cpt", "rxnorm", "phecode"]

OTHER = "other"
"""Codes of no vocabulary that has vectors, and special tokens."""

_ICD10CM = r"[A-Z]\d[0-9A-Z](?:\.?[0-9A-Z]{1,4})?"
"""A category, whose third place may be a letter (C7A, M1A, Z3A), and up to four places more, letters among them."""
_ATC = r"[A-Z](?:\d\d(?:[A-Z](?:[A-Z](?:\d\d)?)?)?)?"
_CPT = r"\d{4}[0-9AFTUM]"
_RXNORM = r"\d{1,8}"
_PHECODE = r"\d{1,3}(?:\.\d{1,2})?"

_PREFIXES: dict[str, str] = {
    "icd10cm": r"(?:ICD10(?:CM)?|ICD-10(?:-CM)?)//?|DIAGNOSIS//ICD//10//",
    "atc": r"ATC//?",
    "cpt": r"(?:CPT4?|HCPCS)//?",
    "rxnorm": r"(?:[A-Z_]+//)?(?:RxNorm|RXNORM)//?",
    "phecode": r"(?:PheCode|PHECODE|Phecode|phecode)//?",
}
_BARE = {"icd10cm": _ICD10CM, "atc": _ATC, "cpt": _CPT, "rxnorm": _RXNORM, "phecode": _PHECODE}
_WITH_PREFIX = {name: re.compile(f"(?:{prefix})({_BARE[name]})") for name, prefix in _PREFIXES.items()}
_WITHOUT = {"atc": re.compile(r"([A-Z]\d\d[A-Z]{2}\d\d)"), "icd10cm": re.compile(f"({_ICD10CM})")}
"""Only these two are told apart without a prefix: a bare number could be anything."""


@dataclass(frozen=True)
class PlacedCode:
    """A code of the data in the words of a vocabulary; key is None where no vocabulary knows its shape."""

    vocabulary: str
    key: str | None


def place_code(code: str) -> PlacedCode:
    """`ICD10CM//S72.001A`, `DIAGNOSIS//ICD//10//S72001A` and `S72.001A` are icd10cm S72001A; case counts."""
    for patterns in (_WITH_PREFIX, _WITHOUT):
        for vocabulary, pattern in patterns.items():
            found = pattern.fullmatch(code)
            if found:
                return PlacedCode(vocabulary, normal_key(vocabulary, found[1]))
    return PlacedCode(OTHER, None)


def normal_key(vocabulary: str, code: str) -> str:
    """A code as keys are compared: ICD-10-CM without its dot, PheCodes without padding (`008.50` is `8.5`)."""
    if vocabulary == "icd10cm":
        return code.replace(".", "")
    if vocabulary == "phecode":
        whole, _, part = code.partition(".")
        part = part.rstrip("0")
        return f"{int(whole)}.{part}" if part else str(int(whole))
    return code


def parents_of(vocabulary: str, key: str) -> list[str]:
    """The keys above one, nearest first: E1165 → E116, E11; N02BE01 → N02BE, N02B, N02, N; none for CPT and RxNorm."""
    if vocabulary == "icd10cm":
        return [key[:length] for length in range(len(key) - 1, 2, -1)]
    if vocabulary == "atc":
        return [key[:length] for length in (5, 4, 3, 1) if length < len(key)]
    if vocabulary == "phecode":
        whole, _, part = key.partition(".")
        return [f"{whole}.{part[:length]}" if length else whole for length in range(len(part) - 1, -1, -1)]
    return []
