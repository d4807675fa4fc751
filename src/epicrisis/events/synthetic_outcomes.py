"""The hazards behind the synthetic cohort's labels, as functions of what is visible at the prediction time.

Every function takes `visible`: the events of each row (subject_id, prediction_time) up to its prediction time,
sorted by time within a row, static events first. So the true risk of a row can be recomputed from the dataset
itself, and no unseen quantity takes part in it. docs/synthetic_cohort.md gives the same formulas in words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from epicrisis.events import synthetic_vocabulary as words

ROW = ["subject_id", "prediction_time"]
YEAR_DAYS = 365
HORIZON = pl.duration(days=YEAR_DAYS)
FIRST_DAY = pl.duration(hours=24)

STAY_CLASSES = ("<3 days", "3-7 days", "1-2 weeks", ">2 weeks")
PROLONGED_FROM = 2
"""From this class on a stay is longer than seven days."""


@dataclass(frozen=True)
class CancerEffects:
    """Effects on the log of the yearly cancer hazard.

    decade: per ten years of age from 60; order: weight loss before iron deficiency anaemia; recent: melena within
    a year; falling: haemoglobin lower by at least `drop` g/dL than two measurements before.
    """

    base: float = -3.75
    decade: float = 0.6
    smoker: float = 1.1
    family: float = 1.0
    polyp: float = 1.0
    order: float = 1.8
    recent: float = 1.0
    falling: float = 0.8
    drop: float = 1.5


@dataclass(frozen=True)
class PresenceEffects:
    """Effects on the log odds of the control outcome: age, and whether something was ever recorded at all."""

    base: float = -1.8
    decade: float = 0.5
    diabetes: float = 1.1
    kidney: float = 1.2
    lung: float = 1.1
    polyp: float = 1.0
    family: float = 0.8


@dataclass(frozen=True)
class DeathEffects:
    """Effects on the log odds of death during the stay, of what is known a day after admission.

    rising: lactate higher by at least `rise` mmol/L than at admission; failing: a heart failure code within a year.
    """

    base: float = -4.2
    decade: float = 0.35
    sepsis: float = 1.2
    pneumonia: float = 0.6
    cancer: float = 1.1
    failing: float = 0.9
    low_albumin: float = 0.8
    rising: float = 2.0
    rise: float = 0.8


@dataclass(frozen=True)
class StayEffects:
    """Effects on the log odds of a longer stay; cuts: between the four classes of its length.

    rising and low_albumin as for death; fracture, sepsis, appendix, gallstones: reasons for the admission.
    """

    cuts: tuple[float, float, float] = (0.1, 1.9, 3.4)
    decade: float = 0.3
    fracture: float = 1.8
    sepsis: float = 1.2
    appendix: float = -1.2
    gallstones: float = -0.8
    low_albumin: float = 1.1
    rising: float = 1.0
    cancer: float = 0.6


# Effects on the log odds of a new diagnosis in a chapter (its first category): of a category or habit on record.
CHAPTER_DRIVERS: dict[str, dict[str, float]] = {
    "E11": {"H00": 1.2, "N00": 1.2, "I00": 0.8, "G00": 0.8},
    "I10": {"I00": 0.8, "N00": 0.5},
    "J44": {"J00": 1.2, "F01": 0.4},
    "N18": {"E00": 0.8, "D50": 0.9},
    "F32": {"F01": 1.2, "G00": 0.6},
    "M17": {"M00": 1.0},
    words.CURRENT_SMOKER: {"J00": 1.0, "I00": 0.6, "K00": 0.4},
    words.HEAVY_DRINKER: {"K00": 1.2, "F01": 0.9, "S00": 1.0, "V00": 1.0},
}
RECENT_CHAPTER = 0.9
"""Of a diagnosis in the same chapter within the last year; an older one counts for nothing."""

CANCER, PRESENCE, DEATH, STAY = CancerEffects(), PresenceEffects(), DeathEffects(), StayEffects()


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))


def _code(*codes: str) -> pl.Expr:
    return pl.col("code").is_in(codes)


def _category(category: str) -> pl.Expr:
    """Any diagnosis of this ICD-10 category."""
    return pl.col("code").str.starts_with(words.ICD + category)


def _age() -> pl.Expr:
    """Years from birth to the prediction time."""
    birth = pl.col("time").filter(_code("MEDS_BIRTH")).first()
    return (pl.col("prediction_time").first() - birth).dt.total_days() / 365.25


def _last_status(prefix: str) -> pl.Expr:
    return pl.col("code").filter(pl.col("code").str.starts_with(prefix)).last()


def _since(*codes: str) -> pl.Expr:
    """Time since the latest of these codes; null where there is none."""
    return pl.col("prediction_time").first() - pl.col("time").filter(_code(*codes)).max()


def _values(code: str) -> pl.Expr:
    """A measurement's values in order; in tenths, so that comparisons do not hang on binary fractions."""
    return (pl.col("numeric_value").filter(_code(code)) * 10).round().cast(pl.Int64)


def cancer_signs(visible: pl.DataFrame) -> pl.DataFrame:
    """What a row's cancer hazard depends on: age in years, and six yes/no signs.

    order: some weight loss is recorded before some iron deficiency anaemia. recent: melena in the last 365 days.
    falling: the last haemoglobin is lower than the third last by CANCER.drop or more.
    """
    first_loss = pl.col("time").filter(_code(words.WEIGHT_LOSS)).min()
    last_anaemia = pl.col("time").filter(_code(words.ANAEMIA)).max()
    last_three = _values(words.HAEMOGLOBIN).tail(3)
    return visible.group_by(ROW, maintain_order=True).agg(
        age=_age(),
        smoker=(_last_status("LIFESTYLE//SMOKING") == words.CURRENT_SMOKER).fill_null(False),
        family=_code(words.FAMILY_HISTORY).any(),
        polyp=_code(words.POLYP).any(),
        order=(first_loss < last_anaemia).fill_null(False),
        recent=(_since(words.MELENA) <= HORIZON).fill_null(False),
        falling=(
            (last_three.len() == 3) & (last_three.first() - last_three.last() >= round(CANCER.drop * 10))
        ).fill_null(False),
    )


def cancer_risk(signs: pl.DataFrame) -> pl.DataFrame:
    """Each row's yearly cancer hazard (constant from the prediction time on) and risk within a year.

    Proportional hazards: hazard = exp(base + effects), true_risk = 1 - exp(-hazard).
    """
    effects = CANCER.decade * (pl.col("age") - 60) / 10
    for sign in ("smoker", "family", "polyp", "order", "recent", "falling"):
        effects = effects + getattr(CANCER, sign) * pl.col(sign).cast(pl.Float64)
    hazard = (CANCER.base + effects).exp()
    return signs.select(*ROW, hazard=hazard, true_risk=1 - (-hazard).exp())


def presence_risk(visible: pl.DataFrame) -> pl.DataFrame:
    """subject_id · prediction_time · true_risk of the control outcome, which no order, time or value changes."""
    ever = {
        "diabetes": _category("E11"),
        "kidney": _category("N18"),
        "lung": _category("J44"),
        "polyp": _code(words.POLYP),
        "family": _code(words.FAMILY_HISTORY),
    }
    signs = visible.group_by(ROW, maintain_order=True).agg(
        age=_age(), **{name: seen.any().cast(pl.Float64) for name, seen in ever.items()}
    )
    effects = PRESENCE.decade * (pl.col("age") - 60) / 10
    for name in ever:
        effects = effects + getattr(PRESENCE, name) * pl.col(name)
    return signs.select(*ROW, true_risk=1 / (1 + (-(PRESENCE.base + effects)).exp()))


def admission_signs(visible: pl.DataFrame) -> pl.DataFrame:
    """What the outcome of a stay depends on, a day after admission (the prediction time is admission + 24 h).

    reason: the first diagnosis of the stay; rising: the last lactate of the stay against its first.
    """
    in_stay = pl.col("time") >= pl.col("prediction_time") - FIRST_DAY
    diagnosis = pl.col("code").str.starts_with(words.ICD)
    lactate = _values(words.LACTATE).filter(in_stay.filter(_code(words.LACTATE)))
    albumin = _values(words.ALBUMIN).filter(in_stay.filter(_code(words.ALBUMIN)))
    sites = [words.ICD + site for site in words.CANCER_SITES]
    return visible.group_by(ROW, maintain_order=True).agg(
        age=_age(),
        reason=pl.col("code").filter(diagnosis & in_stay).first(),
        rising=(lactate.last() - lactate.first() >= round(DEATH.rise * 10)).fill_null(False),
        low_albumin=(albumin.last() < 30).fill_null(False),
        cancer=_code(*sites).any(),
        failing=(_since(words.ICD + "I50.9", words.ICD + "I50.22") <= HORIZON).fill_null(False),
    )


def _admission_effects(signs: pl.DataFrame, effects: DeathEffects | StayEffects, reasons: dict[str, str]) -> np.ndarray:
    total = effects.decade * (signs["age"].to_numpy() - 60) / 10
    for sign in ("rising", "low_albumin", "cancer", "failing"):
        total = total + getattr(effects, sign, 0.0) * signs[sign].to_numpy()
    for name, code in reasons.items():
        total = total + getattr(effects, name) * (signs["reason"] == words.ICD + code).fill_null(False).to_numpy()
    return total


def death_risk(signs: pl.DataFrame) -> np.ndarray:
    """Probability of death before the end of the stay, per row of `admission_signs`: logistic."""
    return sigmoid(DEATH.base + _admission_effects(signs, DEATH, {"sepsis": "A41.9", "pneumonia": "J18.9"}))


def stay_probabilities(signs: pl.DataFrame) -> np.ndarray:
    """Probabilities of STAY_CLASSES, rows × 4, per row of `admission_signs`: proportional odds."""
    reasons = {"fracture": "S72.001A", "sepsis": "A41.9", "appendix": "K35.80", "gallstones": "K80.20"}
    effects = _admission_effects(signs, STAY, reasons)
    at_most = sigmoid(np.array(STAY.cuts)[None, :] - effects[:, None])
    edges = np.concatenate([np.zeros((len(effects), 1)), at_most, np.ones((len(effects), 1))], axis=1)
    return np.diff(edges, axis=1)


@dataclass(frozen=True)
class DiagnosisSigns:
    """What new diagnoses depend on, one line per row.

    seen: rows × the vocabulary's categories; recent: rows × chapters, a diagnosis there within a year; drivers:
    rows × CHAPTER_DRIVERS.
    """

    rows: pl.DataFrame
    seen: np.ndarray
    recent: np.ndarray
    drivers: np.ndarray


def diagnosis_signs(visible: pl.DataFrame, vocabulary: words.Vocabulary) -> DiagnosisSigns:
    """The signs of every row for the `diagnoses` task; `rows` has age and female beside the row's identity."""
    rows = visible.group_by(ROW, maintain_order=True).agg(
        age=_age(),
        female=_code("GENDER//F").any(),
        smoker=_last_status("LIFESTYLE//SMOKING"),
        drinker=_last_status("LIFESTYLE//ALCOHOL"),
    )
    rows = rows.with_row_index("line")
    coded = visible.filter(pl.col("code").str.starts_with(words.ICD)).join(rows.select(*ROW, "line"), on=ROW)
    coded = coded.select(
        "line",
        category=pl.col("code").str.slice(len(words.ICD), 3),
        recent=pl.col("prediction_time") - pl.col("time") <= HORIZON,
    )
    everything = sorted({*vocabulary.categories, *coded["category"].unique()})
    held = np.zeros((rows.height, len(everything)), dtype=bool)
    held[coded["line"].to_numpy(), np.searchsorted(everything, coded["category"].to_numpy())] = True
    newest = coded.filter("recent")
    chapters = np.array([words.chapter_of(category) for category in everything])
    recent = np.zeros((rows.height, len(words.CHAPTERS)), dtype=bool)
    positions = np.searchsorted(everything, newest["category"].to_numpy())
    recent[newest["line"].to_numpy(), chapters[positions]] = True
    column = {category: held[:, index] for index, category in enumerate(everything)}
    habits = {
        words.CURRENT_SMOKER: (rows["smoker"] == words.CURRENT_SMOKER).fill_null(False).to_numpy(),
        words.HEAVY_DRINKER: (rows["drinker"] == words.HEAVY_DRINKER).fill_null(False).to_numpy(),
    }
    known = column | habits
    drivers = np.stack([known[driver] for driver in CHAPTER_DRIVERS], axis=1)
    seen = np.stack([column[category] for category in vocabulary.categories], axis=1)
    return DiagnosisSigns(rows, seen, recent, drivers)


def eligible(vocabulary: words.Vocabulary, age: np.ndarray, female: np.ndarray) -> np.ndarray:
    """Subjects × the vocabulary's diagnoses: whom a diagnosis can befall at that age (years) and sex."""
    bare = np.array([code.removeprefix(words.ICD) for code in vocabulary.diagnoses])
    allowed = np.ones((len(age), len(bare)), dtype=bool)
    allowed &= ~np.isin(bare, words.WOMEN_ONLY)[None, :] | female[:, None]
    allowed &= ~np.isin(bare, words.MEN_ONLY)[None, :] | ~female[:, None]
    allowed &= ~np.isin(bare, words.UNDER_45_ONLY)[None, :] | (age < 45)[:, None]
    allowed &= ~np.isin(bare, words.OVER_60_ONLY)[None, :] | (age >= 60)[:, None]
    return allowed


def possible_news(signs: DiagnosisSigns, vocabulary: words.Vocabulary) -> np.ndarray:
    """Rows × the vocabulary's diagnoses: those of a category that the row's record does not hold yet."""
    allowed = eligible(vocabulary, signs.rows["age"].to_numpy(), signs.rows["female"].to_numpy())
    return allowed & ~signs.seen[:, vocabulary.category_of_diagnosis]


def chapter_risk(signs: DiagnosisSigns, vocabulary: words.Vocabulary) -> np.ndarray:
    """Rows × CHAPTERS: probability of a diagnosis of a new category within a year, cancer left aside; logistic.

    Zero where no category of the chapter is left that could befall the subject.
    """
    starts = [chapter[0] for chapter in words.CHAPTERS]
    base = np.array([chapter[3] for chapter in words.CHAPTERS])
    decade = np.array([chapter[4] for chapter in words.CHAPTERS])
    effects = np.array([[drive.get(start, 0.0) for start in starts] for drive in CHAPTER_DRIVERS.values()])
    age = (signs.rows["age"].to_numpy()[:, None] - 60) / 10
    log_odds = base + decade * age + signs.drivers @ effects + RECENT_CHAPTER * signs.recent
    chapter_of_diagnosis = vocabulary.chapter_of_category[vocabulary.category_of_diagnosis]
    membership = chapter_of_diagnosis[:, None] == np.arange(len(words.CHAPTERS))[None, :]
    left = possible_news(signs, vocabulary) @ membership
    return sigmoid(log_odds) * left
