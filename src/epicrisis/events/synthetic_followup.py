"""What happens after the landmark: the outcomes drawn from their risks, and the events that go with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from epicrisis.events import synthetic_vocabulary as words
from epicrisis.events.synthetic_histories import (
    DAY,
    HOUR,
    EventLog,
    People,
    Visits,
    add_diagnoses,
    add_drugs,
    add_labs,
    add_measurements,
    add_procedures,
    add_visits,
    choose_slot,
    diagnosis_weights,
    drug_weights,
    in_office_hours,
    in_order,
    moments,
    named,
    pick,
    with_durations,
    with_novel,
)
from epicrisis.events.synthetic_outcomes import (
    PROLONGED_FROM,
    YEAR_DAYS,
    DiagnosisSigns,
    possible_news,
)

FOLLOW_UP_DAYS = (420, 1100)
"""Shortest and longest observation after the landmark, in days: at least the year that labels speak of."""
FOLLOW_UP_VISITS_PER_DAY = 1 / 200
CANCER_VISIT_DAYS = (21, 42, 63)
"""Days after a cancer diagnosis on which it is treated."""
ADMITTED_SHARE = 0.7
STAY_DAYS = ((1.1, 2.95), (3.05, 6.95), (7.05, 13.95), (14.05, 35.0))
"""Shortest and longest stay, in days, of each of STAY_CLASSES."""


@dataclass(frozen=True)
class Course:
    """What comes of a block's subjects, in minutes.

    observed_until: when observation for cancer ends; cancer: when it is diagnosed, whether observed or not;
    site: the position in CANCER_SITES; news: subjects × CHAPTERS, a new diagnosis in the first year, cancer aside.
    """

    observed_until: np.ndarray
    cancer: np.ndarray
    site: np.ndarray
    news: np.ndarray

    @property
    def has_cancer(self) -> np.ndarray:
        """Whether a cancer is diagnosed while under observation."""
        return self.cancer <= self.observed_until


@dataclass(frozen=True)
class Admissions:
    """One admission for a share of the subjects, after observation for cancer has ended; times in minutes.

    subject: local numbers; reason: its diagnosis (full code).
    """

    subject: np.ndarray
    start: np.ndarray
    reason: pl.Series

    @property
    def prediction_time(self) -> np.ndarray:
        return self.start + DAY


@dataclass(frozen=True)
class Stays:
    """How admissions went: the class and the length (minutes) of the stay, and whether it ended in death."""

    stay_class: np.ndarray
    length: np.ndarray
    died: np.ndarray

    @property
    def prolonged(self) -> np.ndarray:
        return self.stay_class >= PROLONGED_FROM


def draw_course(rng: np.random.Generator, people: People, hazard: np.ndarray, news_risk: np.ndarray) -> Course:
    """Cancer times from each subject's yearly hazard, new diagnoses from their risks.

    hazard: per subject; news_risk: subjects × CHAPTERS.
    """
    n = len(people)
    observed = people.landmark + rng.integers(FOLLOW_UP_DAYS[0] * DAY, FOLLOW_UP_DAYS[1] * DAY, n)
    days = np.minimum(rng.exponential(1.0, n) / hazard * YEAR_DAYS, 100_000)
    weights = np.array(list(words.CANCER_SITES.values()))
    return Course(
        observed_until=observed,
        cancer=people.landmark + 1 + (days * DAY).astype(np.int64),
        site=pick(rng, np.where(people.female[:, None], weights[:, 0], weights[:, 1]), np.arange(n)),
        news=rng.random(news_risk.shape) < news_risk,
    )


def draw_follow_up_visits(rng: np.random.Generator, people: People, course: Course) -> Visits:
    """Visits between landmark and end of observation; the first comes within 11 months.

    The last four slots are the cancer's diagnosis and its treatments.
    """
    n = len(people)
    observed = course.observed_until - people.landmark
    counts = 1 + rng.poisson(observed / DAY * FOLLOW_UP_VISITS_PER_DAY)
    after = (rng.random((n, counts.max())) * (observed - 2 * DAY)[:, None]).astype(np.int64)
    after[:, 0] = rng.integers(5 * DAY, 330 * DAY, n)
    start = in_office_hours(rng, people.landmark[:, None] + after)
    valid = np.arange(counts.max())[None, :] < counts[:, None]
    care = course.cancer[:, None] + np.array((0, *CANCER_VISIT_DAYS)) * DAY
    cared = course.has_cancer[:, None] & (care <= course.observed_until[:, None])
    start, valid = np.concatenate([start, care], axis=1), np.concatenate([valid, cared], axis=1)
    return with_durations(rng, *in_order(start, valid), course.observed_until + 1)


def follow_up(
    rng: np.random.Generator,
    people: People,
    course: Course,
    signs: DiagnosisSigns,
    vocabulary: words.Vocabulary,
    novel: float,
    haemoglobin: np.ndarray,
) -> pl.DataFrame:
    """All events between the landmark and the end of observation, sorted.

    In the first year the only diagnoses of categories new to a subject are those that `course` holds, so that the
    labels of the `diagnoses` task are what the record says.
    """
    log = EventLog()
    visits = draw_follow_up_visits(rng, people, course)
    first_year = visits.valid & (visits.start <= people.landmark[:, None] + YEAR_DAYS * DAY)
    add_visits(log, visits, "start")
    _add_cancer(rng, log, course)
    _add_news(rng, log, visits, first_year, course, signs, vocabulary, novel)
    known = np.maximum(diagnosis_weights(people, vocabulary), 1.0) * signs.seen[:, vocabulary.category_of_diagnosis]
    known_visits = Visits(visits.start, visits.end, visits.kind, first_year)
    add_diagnoses(rng, log, known_visits, known, vocabulary.diagnoses, novel)
    later = Visits(visits.start, visits.end, visits.kind, visits.valid & ~first_year)
    add_diagnoses(rng, log, later, diagnosis_weights(people, vocabulary), vocabulary.diagnoses, novel)
    _add_haemoglobin(rng, log, visits, haemoglobin)
    add_labs(rng, log, visits, people)
    add_procedures(rng, log, visits, vocabulary.procedures)
    add_drugs(rng, log, visits, drug_weights(people, vocabulary), vocabulary.drugs)
    add_visits(log, visits, "end")
    return log.table()


def _add_cancer(rng: np.random.Generator, log: EventLog, course: Course) -> None:
    """The diagnosis at its visit; at each treatment the diagnosis again and a drug; metastases in some."""
    sites = list(words.CANCER_SITES)
    subject = np.flatnonzero(course.has_cancer)
    names = named([words.ICD + site for site in sites], course.site[subject])
    log.add(subject, course.cancer[subject], names)
    spreads = rng.random(len(subject)) < 0.25
    log.add(subject[spreads], course.cancer[subject[spreads]], words.METASTASIS)
    options = np.array([[words.CANCER_DRUGS.get(site, drug) for drug in words.OTHER_CANCER_DRUGS] for site in sites])
    for day in CANCER_VISIT_DAYS:
        time = course.cancer[subject] + day * DAY
        seen = time <= course.observed_until[subject]
        drug = options[course.site[subject], rng.integers(0, 2, len(subject))]
        log.add(subject[seen], time[seen], names.filter(pl.Series(seen)))
        log.add(subject[seen], time[seen], pl.Series(drug[seen].tolist(), dtype=pl.String).str.replace("^", words.ATC))


def _add_news(
    rng: np.random.Generator,
    log: EventLog,
    visits: Visits,
    first_year: np.ndarray,
    course: Course,
    signs: DiagnosisSigns,
    vocabulary: words.Vocabulary,
    novel: float,
) -> None:
    """One diagnosis of a category new to the subject for each chapter of `course.news`."""
    possible = possible_news(signs, vocabulary)
    chapter_of_diagnosis = vocabulary.chapter_of_category[vocabulary.category_of_diagnosis]
    subject, chapter = np.nonzero(course.news)
    weights = possible[subject] & (chapter_of_diagnosis[None, :] == chapter[:, None])
    index = pick(rng, weights.astype(float), np.arange(len(subject)))
    slots = np.stack([choose_slot(rng, first_year) for _ in range(3)], axis=1)
    slot = slots[subject, rng.integers(0, 3, len(subject))]
    time = np.minimum(moments(rng, visits, subject, slot), _end_of_year(signs)[subject])
    log.add(subject, time, with_novel(rng, named(vocabulary.diagnoses, index), novel))


def _end_of_year(signs: DiagnosisSigns) -> np.ndarray:
    """The end of the year after each row's prediction time, in minutes."""
    minutes = signs.rows["prediction_time"].cast(pl.Int64).to_numpy() // 60_000_000
    return minutes + YEAR_DAYS * DAY


def _add_haemoglobin(rng: np.random.Generator, log: EventLog, visits: Visits, level: np.ndarray) -> None:
    subject, slot = np.nonzero(visits.valid & (rng.random(visits.valid.shape) < 0.4))
    values = np.round(level[subject] + rng.normal(0, 0.3, len(subject)), 1)
    log.add(subject, moments(rng, visits, subject, slot), words.HAEMOGLOBIN, values, "g/dL")


def draw_admissions(rng: np.random.Generator, course: Course) -> Admissions:
    """An emergency admission the day after observation for cancer has ended."""
    subject = np.flatnonzero(rng.random(len(course.cancer)) < ADMITTED_SHARE)
    reasons = list(words.ADMISSION_REASONS)
    reason = named(reasons, rng.choice(len(reasons), len(subject), p=list(words.ADMISSION_REASONS.values())))
    return Admissions(subject, in_office_hours(rng, course.observed_until[subject] + DAY), reason)


def first_day(
    rng: np.random.Generator, people: People, admissions: Admissions, vocabulary: words.Vocabulary
) -> pl.DataFrame:
    """The events of an admission's first 24 hours: reason, lactate twice, albumin, other measurements, drugs."""
    log, subject, start = EventLog(), admissions.subject, admissions.start
    log.add(subject, start, "VISIT_START//inpatient")
    log.add(subject, start + 30, admissions.reason)
    last = np.round(np.clip(np.exp(rng.normal(np.log(1.9), 0.3, len(subject))), 0.6, 6.0), 1)
    change = rng.choice(3, len(subject), p=(0.3, 0.3, 0.4))
    earlier = last - np.array([1.0, -1.0, 0.0])[change] * rng.uniform(0.8, 1.5, len(subject))
    log.add(subject, start + HOUR, words.LACTATE, np.round(np.maximum(earlier, 0.2), 1), "mmol/L")
    albumin = np.round(np.clip(rng.normal(3.4, 0.6, len(subject)), 1.5, 5.0), 1)
    log.add(subject, start + HOUR, words.ALBUMIN, albumin, "g/dL")
    _add_ward_day(rng, log, people, subject, start + HOUR, start + 12 * HOUR, vocabulary)
    log.add(subject, start + 13 * HOUR, words.LACTATE, last, "mmol/L")
    return log.table()


def _add_ward_day(
    rng: np.random.Generator,
    log: EventLog,
    people: People,
    subject: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    vocabulary: words.Vocabulary,
) -> None:
    """Some measurements and drugs of patients on a ward, between two moments."""
    many = np.repeat(np.arange(len(subject)), rng.poisson(2.0, len(subject)))
    time = begin[many] + (rng.random(len(many)) * (end - begin)[many]).astype(np.int64)
    routine = [position for position, code in enumerate(words.LABS) if words.LABS[code].weight >= 1.5]
    add_measurements(rng, log, people, subject[many], time, rng.choice(routine, len(many)))
    many = np.repeat(np.arange(len(subject)), rng.poisson(1.5, len(subject)))
    time = begin[many] + (rng.random(len(many)) * (end - begin)[many]).astype(np.int64)
    drug = pick(rng, drug_weights(people, vocabulary), subject[many])
    log.add(subject[many], time, named(vocabulary.drugs, drug))


def draw_stays(rng: np.random.Generator, death_risk: np.ndarray, class_risk: np.ndarray) -> Stays:
    """How admissions go: death and length, each from its own risk. class_risk: rows × STAY_CLASSES."""
    stay_class = pick(rng, class_risk, np.arange(len(class_risk)))
    shortest, longest = (np.array(STAY_DAYS)[stay_class, side] for side in (0, 1))
    days = shortest + rng.random(len(stay_class)) * (longest - shortest)
    return Stays(stay_class, (days * DAY).astype(np.int64), rng.random(len(death_risk)) < death_risk)


def rest_of_stay(
    rng: np.random.Generator, people: People, admissions: Admissions, stays: Stays, vocabulary: words.Vocabulary
) -> pl.DataFrame:
    """The events of an admission after its first 24 hours, up to discharge or death."""
    log, subject = EventLog(), admissions.subject
    end = admissions.start + stays.length
    _add_ward_day(rng, log, people, subject, admissions.prediction_time + 1, end, vocabulary)
    log.add(subject, end, "VISIT_END//inpatient")
    log.add(subject[stays.died], end[stays.died], "MEDS_DEATH")
    return log.table()
