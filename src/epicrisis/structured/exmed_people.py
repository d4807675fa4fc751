"""Sex and region of a row as ids, from what is visible at it, and the kind of each code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from epicrisis.cohort import History
from epicrisis.narrative import Lookups
from epicrisis.narrative.patterns import match_codes
from epicrisis.structured.vocabulary import SPECIALS

UNKNOWN = 0
SEXES = {"female": 1, "male": 2}
N_SEXES = 1 + len(SEXES)
KEYS = ["subject_id", "prediction_time"]
_PERSONAL = r"(?i)^(gender|sex|region)//?"

ENTITIES = ("other", "special", "diagnosis", "drug", "procedure", "measurement", "visit", "person")
"""What kinds of codes there are, in the order of their ids."""
_ENTITY_OF = {
    "diagnosis": "ICD10CM ICD10GM ICD10 ICD9CM ICD9 ICD-10 ICD-10-CM ICD-9 ICD-9-CM DIAGNOSIS CONDITION PHECODE "
    "PheCode MEDICAL SNOMED SNOMEDCT",
    "drug": "ATC ATC5 RxNorm RXNORM NDC CVX MEDICATION DRUG INFUSION INFUSION_START INFUSION_END",
    "procedure": "CPT CPT4 HCPCS ICD9Proc ICD10PCS PROCEDURE OPS",
    "measurement": "LOINC LAB MEASUREMENT VITALS OBSERVATION SUBJECT_FLUID_OUTPUT",
    "visit": "VISIT ENCOUNTER HOSPITAL_ADMISSION HOSPITAL_DISCHARGE ICU_ADMISSION ICU_DISCHARGE ED_REGISTRATION ED_OUT "
    "TRANSFER_TO DRG",
    "person": "MEDS GENDER SEX ETHNICITY RACE REGION INSURANCE LANGUAGE MARITAL_STATUS AGE LIFESTYLE",
}
_BY_VOCABULARY = {vocabulary: entity for entity, names in _ENTITY_OF.items() for vocabulary in names.split()}


def entities_of(tokens: Sequence[str], lookups: Lookups) -> np.ndarray:
    """int64 [n_tokens]: the place in ENTITIES of the kind of code that each token stands for.

    A code's kind follows from its vocabulary, as the pattern table names it. What a tokenizer writes after the code
    (` || …`, `//Q3`) has no say.
    """
    codes = pl.Series("code", [token.split(" || ")[0] for token in tokens], dtype=pl.String)
    doubled = codes.str.replace(r"^([A-Za-z0-9_-]+)/([^/])", "${1}//${2}")
    distinct = match_codes(doubled.unique(maintain_order=True), lookups.patterns).select("code", "vocabulary")
    names = doubled.to_frame().join(distinct, on="code", how="left", maintain_order="left")["vocabulary"]
    first = names.str.split("//").list.first()
    kinds = first.replace_strict(_BY_VOCABULARY, default="other", return_dtype=pl.String).to_list()
    specials = set(SPECIALS)
    return np.array(
        [ENTITIES.index("special" if token in specials else kind) for token, kind in zip(tokens, kinds, strict=True)],
        dtype=np.int64,
    )


@dataclass(frozen=True)
class KnownPeople:
    """How sex and region become ids.

    regions: those of the train rows, in alphabetical order; any other is unknown.
    """

    patterns: Lookups
    regions: tuple[str, ...]

    @classmethod
    def fit(cls, rows: pl.DataFrame, history: History, lookups: Lookups) -> KnownPeople:
        """The regions that the train rows see. rows: of train alone."""
        told = _told(rows, history, lookups)
        return cls(lookups, tuple(told["region"].drop_nulls().unique().sort().to_list()))

    @property
    def n_regions(self) -> int:
        """Ids of regions, that of unknown ones included."""
        return 1 + len(self.regions)

    def encode(self, rows: pl.DataFrame, history: History) -> np.ndarray:
        """int64 [n_rows, 2]: ids of sex and region, UNKNOWN where nothing visible tells."""
        told = rows.select(KEYS).join(_told(rows, history, self.patterns), on=KEYS, how="left", maintain_order="left")
        regions = {region: place for place, region in enumerate(self.regions, start=1)}
        ids = told.select(
            pl.col("sex").replace_strict(SEXES, default=UNKNOWN, return_dtype=pl.Int64),
            pl.col("region").replace_strict(regions, default=UNKNOWN, return_dtype=pl.Int64),
        )
        return np.ascontiguousarray(ids.fill_null(UNKNOWN).to_numpy())


def _told(rows: pl.DataFrame, history: History, lookups: Lookups) -> pl.DataFrame:
    """subject_id · prediction_time · sex? · region?, the first of each that a row sees; rows that see neither lack."""
    keys = rows.select(KEYS)
    parts = []
    for _, events in history.shards():
        personal = events.filter(pl.col("code").str.contains(_PERSONAL)).select(*KEYS, "code").collect()
        parts.append(personal.join(keys, on=KEYS, how="semi", maintain_order="left"))
    found = pl.concat(parts) if parts else keys.with_columns(code=pl.lit(None, pl.String)).clear()
    found = found.with_columns(code=_as_patterns_write("code"))
    known = match_codes(found["code"].unique(maintain_order=True), lookups.patterns)
    found = found.join(known.select("code", "role", "vocabulary", "key"), on="code", how="left", maintain_order="left")
    is_sex = pl.col("role").is_in(list(SEXES))
    is_region = (pl.col("vocabulary") == "REGION") & pl.col("key").is_not_null()
    return found.group_by(KEYS, maintain_order=True).agg(
        sex=pl.col("role").filter(is_sex).drop_nulls().first(), region=pl.col("key").filter(is_region).first()
    )


def _as_patterns_write(code: str) -> pl.Expr:
    """`Gender/F` and `gender//F` as `GENDER//F`."""
    parts = pl.col(code).str.extract_groups(r"^([^/]+)//?(.*)$")
    return parts.struct.field("1").str.to_uppercase() + "//" + parts.struct.field("2")
