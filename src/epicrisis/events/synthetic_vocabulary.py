"""What the synthetic cohort is made of: codes, how common they are, and the ranges of measurements.

Terms are not here: they live in lookups/. Only what no terminology knows (the dataset's own codes) is
described here, as a hospital would in its codes table.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

ICD, ATC, RXNORM, LOINC = "ICD10CM//", "ATC//", "RxNorm//", "LOINC//"

# Codes on which outcomes depend; they never occur as noise, so each one in a record was put there on purpose.
WEIGHT_LOSS, ANAEMIA, MELENA = ICD + "R63.4", ICD + "D50.9", ICD + "K92.1"
FAMILY_HISTORY, POLYP = ICD + "Z80.0", ICD + "K63.5"
HAEMOGLOBIN = LOINC + "718-7"
CURRENT_SMOKER, FORMER_SMOKER, NEVER_SMOKER = (f"LIFESTYLE//SMOKING_{x}" for x in ("CURRENT", "FORMER", "NEVER"))
HEAVY_DRINKER, MODERATE_DRINKER, NON_DRINKER = (f"LIFESTYLE//ALCOHOL_{x}" for x in ("HEAVY", "MODERATE", "NONE"))
LACTATE, ALBUMIN = LOINC + "2524-7", LOINC + "1751-7"
METASTASIS = ICD + "C78.7"

VISIT_KINDS = ("outpatient", "emergency", "inpatient")
ETHNICITIES = ("GROUP_A", "GROUP_B", "GROUP_C", "GROUP_D")
REGIONS = tuple(f"R{number:02d}" for number in range(1, 11))
URINE_PROTEIN = LOINC + "5804-0"
URINE_PROTEIN_RESULTS = ("negative", "trace", "1+", "2+")

# Weights of the diagnoses that befall anybody: common 4, usual 2, rare 1.
COMMON = "J06.9 M54.50 N39.0 R10.9 R05.9 R51.9 Z00.00 Z23 K59.00 R53.83"
USUAL = (
    "A09 B35.1 D64.9 D22.9 E55.9 H10.9 H61.20 J20.9 J30.9 J01.90 K29.70 K64.9 L30.9 M25.561 R07.9 R42 R50.9 R06.02 "
    "S93.401A Z12.11 F51.01 E66.9 G43.909"
)
RARE = (
    "A41.9 B02.9 D12.6 D17.9 D25.9 D69.6 D72.829 E86.0 E87.1 E87.6 G47.33 G56.01 G62.9 H04.129 H25.9 H40.9 H66.90 "
    "H81.10 H91.90 I26.99 I73.9 I83.90 J18.9 J96.01 K35.80 K40.90 K57.30 K76.0 K80.20 L03.90 L20.9 L40.0 L57.0 M06.9 "
    "M1A.00X0 M75.101 M79.7 N17.9 N20.0 N92.0 N95.1 O13.9 O24.410 O26.891 O80 Z3A.20 R31.9 S06.0X0A S52.501A S61.411A "
    "S72.001A T78.40XA W01.0XXA W19.XXXA Z79.01 Z87.891 Z96.651 G40.909 G20.A1 I63.9 F17.210"
)
SIGNALS = (WEIGHT_LOSS, ANAEMIA, MELENA, FAMILY_HISTORY, POLYP)
WOMEN_ONLY = ("D25.9", "N92.0", "N95.1", "O13.9", "O24.410", "O26.891", "O80", "Z3A.20")
MEN_ONLY = ("N40.1",)
UNDER_45_ONLY = ("N92.0", "O13.9", "O24.410", "O26.891", "O80", "Z3A.20")
OVER_60_ONLY = ("H25.9", "F03.90", "M81.0", "G20.A1")
# Site of a new cancer: weight for women, weight for men.
CANCER_SITES = {
    "C18.9": (4.0, 4.0),
    "C16.9": (1.0, 1.5),
    "C25.9": (1.0, 1.0),
    "C34.90": (2.5, 3.0),
    "C50.911": (4.0, 0.0),
    "C61": (0.0, 4.0),
    "C67.9": (0.7, 1.5),
    "C7A.00": (0.5, 0.5),
}
CANCER_DRUGS = {"C50.911": "L02BA01", "C18.9": "L01XA03", "C16.9": "L01XA03"}
OTHER_CANCER_DRUGS = ("L01BC02", "L01XA01")
# Reasons for the admission whose outcome is predicted: share of admissions.
ADMISSION_REASONS = {
    ICD + "J18.9": 0.20,
    ICD + "A41.9": 0.15,
    ICD + "I21.4": 0.15,
    ICD + "I50.9": 0.15,
    ICD + "S72.001A": 0.12,
    ICD + "K80.20": 0.13,
    ICD + "K35.80": 0.10,
}


@dataclass(frozen=True)
class Condition:
    """A chronic illness: who has it, and what it leaves in a record.

    prevalence: at age 60; odds: its odds ratio per ten years of age; shifts: mean shift of a measurement in its
    own standard deviations.
    """

    prevalence: float
    odds: float
    diagnoses: str
    drugs: str
    shifts: tuple[tuple[str, float], ...] = ()


CONDITIONS = (
    Condition(
        0.40,
        1.5,
        "I10 I11.9",
        "C09AA05 C09AA03 C09CA01 C08CA01 C03AA03 RxNorm//197361 RxNorm//314076",
        (("8480-6", 1.2), ("8462-4", 0.9)),
    ),
    Condition(
        0.18,
        1.3,
        "E11.9 E11.65 E11.22 E11.40",
        "A10BA02 A10BK03 A10AE04 A10BJ06 RxNorm//861007",
        (("4548-4", 2.5), ("2345-7", 2.0), ("39156-5", 0.7)),
    ),
    Condition(0.28, 1.3, "E78.5 E78.00", "C10AA05 C10AA01 RxNorm//617310", (("13457-7", 1.0), ("2571-8", 0.8))),
    Condition(0.10, 1.4, "J44.9 J44.1", "R03BB04 R03AC02 R03AK07 H02AB06", (("59408-5", -1.5),)),
    Condition(0.09, 0.9, "J45.909", "R03AC02 R03AK07"),
    Condition(0.10, 1.6, "N18.30 N18.9", "C03CA01 A11CC05", (("2160-0", 2.0), ("33914-3", -2.0), ("3094-0", 1.5))),
    Condition(0.06, 1.8, "I50.9 I50.22", "C03CA01 C07AB07 C03DA01"),
    Condition(0.12, 1.6, "I25.10 I21.4", "B01AC06 C07AB02 C10AA05 RxNorm//243670"),
    Condition(0.07, 1.9, "I48.91", "B01AF02 B01AA03 C07AB07", (("8867-4", 0.8), ("6301-6", 2.0))),
    Condition(0.15, 0.9, "F32.A F33.1 F41.1", "N06AB04 N06AB06 N06AX11 N05CF01"),
    Condition(0.08, 1.1, "E03.9", "H03AA01", (("3016-3", 1.0),)),
    Condition(0.20, 1.5, "M17.11 M19.90", "M01AB05 M01AE01 N02BE01 RxNorm//197806"),
    Condition(0.08, 1.8, "M81.0", "M05BA04 A11CC05"),
    Condition(0.05, 1.3, "M10.9", "M04AA01"),
    Condition(0.15, 1.1, "K21.9", "A02BC01 A02BC02"),
    Condition(0.04, 0.9, "F10.20", ""),
    Condition(0.03, 2.4, "F03.90", "N06DA02"),
    Condition(0.12, 1.6, "N40.1", "G04CA02", (("2857-1", 0.8),)),
)
# Drugs that anybody may get: weight 1 each.
ANYBODYS_DRUGS = (
    "N02BE01 M01AE01 J01CA04 J01CR02 J01MA02 J01XE01 A06AD65 R06AE07 A02BC01 D07AC13 N02AX02 N02AA05 A11CC05 B03BA01 "
    "B03AA07 H02AB06 S01ED01 N03AX14 N04BA02 L04AX03 RxNorm//313782 B01AB05 J01DD04 A04AA01"
)


@dataclass(frozen=True)
class Lab:
    """A measurement: mean and standard deviation (of the logarithm where `log`), decimals as reported, unit."""

    weight: float
    mean: float
    sd: float
    decimals: int
    unit: str | None
    log: bool = False


LABS = {
    "718-7": Lab(0, 13.0, 1.2, 1, "g/dL"),
    "4548-4": Lab(1.5, 5.6, 0.5, 1, "%"),
    "2345-7": Lab(2, 98, 15, 0, "mg/dL"),
    "2160-0": Lab(2, 0.9, 0.2, 2, "mg/dL"),
    "33914-3": Lab(1, 85, 15, 0, "mL/min/{1.73_m2}"),
    "2823-3": Lab(1.5, 4.2, 0.4, 1, "mmol/L"),
    "2951-2": Lab(1.5, 140, 2.5, 0, "mmol/L"),
    "6690-2": Lab(1.5, 7.2, 2.0, 1, "10*3/uL"),
    "777-3": Lab(1, 250, 60, 0, "10*3/uL"),
    "787-2": Lab(1, 90, 5, 0, "fL"),
    "2276-4": Lab(0.5, math.log(90), 0.7, 0, "ng/mL", log=True),
    "1988-5": Lab(1, math.log(3), 1.0, 1, "mg/L", log=True),
    "13457-7": Lab(1, 118, 30, 0, "mg/dL"),
    "2085-9": Lab(0.7, 53, 13, 0, "mg/dL"),
    "2571-8": Lab(0.7, math.log(125), 0.45, 0, "mg/dL", log=True),
    "1742-6": Lab(0.8, math.log(24), 0.45, 0, "U/L", log=True),
    "1920-8": Lab(0.6, math.log(23), 0.35, 0, "U/L", log=True),
    "1975-2": Lab(0.4, math.log(0.6), 0.4, 1, "mg/dL", log=True),
    "1751-7": Lab(0.5, 4.2, 0.4, 1, "g/dL"),
    "3016-3": Lab(0.7, math.log(1.9), 0.5, 2, "m[IU]/L", log=True),
    "2524-7": Lab(0, math.log(1.6), 0.4, 1, "mmol/L", log=True),
    "2857-1": Lab(0.4, math.log(1.3), 0.8, 2, "ng/mL", log=True),
    "6301-6": Lab(0.3, 1.05, 0.1, 1, "{INR}"),
    "3094-0": Lab(0.6, 15, 4, 0, "mg/dL"),
    "10839-9": Lab(0.2, math.log(0.02), 0.7, 2, "ng/mL", log=True),
    "39156-5": Lab(2, 27, 4.5, 1, "kg/m2"),
    "29463-7": Lab(2, 79, 14, 1, "kg"),
    "8480-6": Lab(3, 128, 14, 0, "mm[Hg]"),
    "8462-4": Lab(2, 78, 9, 0, "mm[Hg]"),
    "8867-4": Lab(1.5, 74, 11, 0, "/min"),
    "59408-5": Lab(0.8, 97, 1.2, 0, "%"),
    "5804-0": Lab(0.5, 0, 1, 0, None),
}

# The dataset's own codes: described in its codes table, unknown to every terminology.
LOCAL_PROCEDURES = {
    "PROCEDURE//ECG12": "12-lead electrocardiogram",
    "PROCEDURE//CXR": "chest X-ray",
    "PROCEDURE//CTABD": "CT scan of the abdomen",
    "PROCEDURE//ECHO": "echocardiogram",
    "PROCEDURE//COLO": "colonoscopy",
    "PROCEDURE//GASTRO": "gastroscopy",
    "PROCEDURE//SPIRO": "spirometry",
    "PROCEDURE//PHYSIO": "physiotherapy session",
}
LOCAL_TERMS = {
    "MEDS_BIRTH": "birth",
    "MEDS_DEATH": "death",
    "GENDER//F": "female",
    "GENDER//M": "male",
    CURRENT_SMOKER: "current smoker",
    FORMER_SMOKER: "former smoker",
    NEVER_SMOKER: "never smoked",
    HEAVY_DRINKER: "heavy alcohol use",
    MODERATE_DRINKER: "moderate alcohol use",
    NON_DRINKER: "no alcohol use",
    **{f"ETHNICITY//{name}": f"ethnic {name.lower().replace('_', ' ')}" for name in ETHNICITIES},
    **{f"VISIT_START//{kind}": f"{kind} visit starts" for kind in VISIT_KINDS},
    **{f"VISIT_END//{kind}": f"{kind} visit ends" for kind in VISIT_KINDS},
    **LOCAL_PROCEDURES,
}

# Real codes that no table here describes; those of a hierarchy have a parent that lookups/ does describe.
UNDESCRIBED_DIAGNOSES = (
    "E11.51 E78.2 F41.9 G47.00 H52.4 I49.9 I87.2 J02.9 J32.9 K44.9 K58.9 L70.0 M47.816 M54.2 N30.00 R11.0 R73.03 "
    "S80.01XA"
)
UNDESCRIBED_DRUGS = "C09AA02 C09CA06 C10AA07 N06AB10 A02BC05 M01AE02 B01AF01 J01MA12"

CHAPTERS = (
    ("A00", "B99", "Certain infectious and parasitic diseases", -2.3, 0.05),
    ("C00", "D49", "Neoplasms", -2.8, 0.15),
    ("D50", "D89", "Diseases of the blood and blood-forming organs", -2.8, 0.15),
    ("E00", "E89", "Endocrine, nutritional and metabolic diseases", -1.8, 0.15),
    ("F01", "F99", "Mental, behavioral and neurodevelopmental disorders", -2.2, -0.05),
    ("G00", "G99", "Diseases of the nervous system", -2.4, 0.1),
    ("H00", "H59", "Diseases of the eye and adnexa", -2.4, 0.25),
    ("H60", "H95", "Diseases of the ear and mastoid process", -2.6, 0.15),
    ("I00", "I99", "Diseases of the circulatory system", -2.2, 0.4),
    ("J00", "J99", "Diseases of the respiratory system", -1.7, 0.05),
    ("K00", "K95", "Diseases of the digestive system", -1.9, 0.1),
    ("L00", "L99", "Diseases of the skin and subcutaneous tissue", -2.4, 0.0),
    ("M00", "M99", "Diseases of the musculoskeletal system and connective tissue", -1.8, 0.2),
    ("N00", "N99", "Diseases of the genitourinary system", -2.3, 0.2),
    ("O00", "O9A", "Pregnancy, childbirth and the puerperium", -2.2, 0.0),
    ("R00", "R99", "Symptoms, signs and abnormal clinical and laboratory findings", -1.7, 0.05),
    ("S00", "T88", "Injury, poisoning and certain other consequences of external causes", -2.4, 0.05),
    ("V00", "Y99", "External causes of morbidity", -3.0, 0.3),
    ("Z00", "Z99", "Factors influencing health status and contact with health services", -1.6, 0.05),
)
"""First and last category, title (the class of the `diagnoses` task), log odds of a new diagnosis within a year at
age 60, and its rise per ten years of age."""
CHAPTER_TITLES = tuple(chapter[2] for chapter in CHAPTERS)

_WITH_VOCABULARY = re.compile(r"^[A-Za-z0-9]+//")


def chapter_of(category: str) -> int:
    """The index in CHAPTERS of a three-character ICD-10-CM category."""
    return next(index for index, chapter in enumerate(CHAPTERS) if chapter[0] <= category <= chapter[1])


def parents_of(code: str) -> list[str]:
    """The next broader code that terminologies describe: ICD-10-CM category, ATC chemical subgroup; else none."""
    vocabulary, _, bare = code.partition("//")
    if vocabulary == "ICD10CM" and len(bare) > 3:
        return [ICD + bare[:3]]
    if vocabulary == "ATC" and len(bare) > 5:
        return [ATC + bare[:5]]
    return []


def full_drug(code: str) -> str:
    """A drug code with its vocabulary: ATC where none is given."""
    return code if _WITH_VOCABULARY.match(code) else ATC + code


def count_undescribed(described: int, share: float) -> int:
    """How many undescribed codes to add to `described` ones so that they make up `share` of all."""
    return round(described * share / (1 - share))


@dataclass(frozen=True)
class Vocabulary:
    """The codes of one synthetic dataset and the weights with which they occur.

    undescribed: codes with no term anywhere. diagnoses, drugs, labs, procedures: the codes drawn as noise (full
    codes), each with a weight array of the same length where needed.
    """

    undescribed: tuple[str, ...]

    def _extra(self, prefix: str) -> list[str]:
        return [code for code in self.undescribed if code.startswith(prefix)]

    @cached_property
    def diagnoses(self) -> list[str]:
        chronic = [bare for condition in CONDITIONS for bare in condition.diagnoses.split()]
        bare = sorted({*COMMON.split(), *USUAL.split(), *RARE.split(), *chronic})
        return [ICD + code for code in bare] + self._extra(ICD)

    @cached_property
    def diagnosis_weights(self) -> np.ndarray:
        """Of the diagnoses that befall anybody; chronic ones have none of their own."""
        weights = {**dict.fromkeys(RARE.split(), 1.0), **dict.fromkeys(USUAL.split(), 2.0)}
        weights |= dict.fromkeys(COMMON.split(), 4.0)
        weights |= {code.removeprefix(ICD): 1.0 for code in self._extra(ICD)}
        return np.array([weights.get(code.removeprefix(ICD), 0.0) for code in self.diagnoses])

    @cached_property
    def categories(self) -> list[str]:
        """Three-character categories of the diagnoses drawn as noise, in order of first use."""
        return list(dict.fromkeys(code.removeprefix(ICD)[:3] for code in self.diagnoses))

    @cached_property
    def category_of_diagnosis(self) -> np.ndarray:
        position = {category: index for index, category in enumerate(self.categories)}
        return np.array([position[code.removeprefix(ICD)[:3]] for code in self.diagnoses])

    @cached_property
    def chapter_of_category(self) -> np.ndarray:
        return np.array([chapter_of(category) for category in self.categories])

    @cached_property
    def drugs(self) -> list[str]:
        chronic = [code for condition in CONDITIONS for code in condition.drugs.split()]
        codes = {full_drug(code) for code in [*ANYBODYS_DRUGS.split(), *chronic]}
        return sorted(codes) + self._extra(ATC)

    @cached_property
    def labs(self) -> list[str]:
        return [LOINC + code for code in LABS]

    @cached_property
    def procedures(self) -> list[str]:
        return [*LOCAL_PROCEDURES, *self._extra("PROCEDURE//")]

    def codes(self) -> list[str]:
        """Every code that may occur in the data, novel ones aside; sorted."""
        cancer = [ICD + code for code in CANCER_SITES] + [METASTASIS]
        treatment = [ATC + code for code in {*CANCER_DRUGS.values(), *OTHER_CANCER_DRUGS}]
        regions = [f"REGION//{region}" for region in REGIONS]
        noise = [*self.diagnoses, *self.drugs, *self.labs, *self.procedures]
        return sorted({*noise, *cancer, *treatment, *SIGNALS, *regions, *LOCAL_TERMS})


def build_vocabulary(undescribed_share: float) -> Vocabulary:
    """The vocabulary in which `undescribed_share` of all codes have no term anywhere.

    Undescribed codes are taken in turn from real ICD-10-CM and ATC codes and from the dataset's own procedure
    codes, which have no hierarchy; when the real ones are used up, procedure codes make up the rest.
    """
    wanted = count_undescribed(len(Vocabulary(()).codes()), undescribed_share)
    diagnoses, drugs = UNDESCRIBED_DIAGNOSES.split(), UNDESCRIBED_DRUGS.split()
    pool: list[str] = []
    for index in range(wanted):
        pool += [ICD + code for code in diagnoses[2 * index : 2 * index + 2]]
        pool += [ATC + code for code in drugs[index : index + 1]]
        pool.append(f"PROCEDURE//X{1001 + index}")
    return Vocabulary(tuple(pool[:wanted]))


def lookup_key(code: str) -> tuple[str, str] | None:
    """The lookup table (medical, lab, region) that knows a code, and the key in it; None for the dataset's own."""
    vocabulary, _, bare = code.partition("//")
    tables = {"ICD10CM": "medical", "ATC": "medical", "RxNorm": "medical", "LOINC": "lab", "REGION": "region"}
    return (tables[vocabulary], bare) if vocabulary in tables else None
