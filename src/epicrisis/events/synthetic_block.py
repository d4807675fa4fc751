"""One block of synthetic subjects, from first draw to labels: the story in the order in which it is told.

A block always has BLOCK_SUBJECTS subjects and its own seed, so a subject is the same however many others there
are and in whichever shard it lands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from epicrisis.events import synthetic_outcomes as outcomes
from epicrisis.events.synthetic_followup import (
    Admissions,
    Course,
    Stays,
    draw_admissions,
    draw_course,
    draw_stays,
    first_day,
    follow_up,
    rest_of_stay,
)
from epicrisis.events.synthetic_histories import DAY, People, draw_people, history, timed
from epicrisis.events.synthetic_vocabulary import CANCER_SITES, CHAPTER_TITLES, Vocabulary

BLOCK_SUBJECTS = 1_000
SPLIT_GROUP = 10
"""So many consecutive subjects are spread over the splits as evenly as the shares allow."""
NEOPLASMS = CHAPTER_TITLES.index("Neoplasms")


@dataclass(frozen=True)
class Block:
    """Tables of a block, each with subject_id: events; index_dates; splits (a number in [0, 1)); labels and true
    risks by task."""

    events: pl.DataFrame
    index_dates: pl.DataFrame
    splits: pl.DataFrame
    labels: dict[str, pl.DataFrame]
    oracle: dict[str, pl.DataFrame]

    def keep(self, first: int, last: int) -> Block:
        """Only the subjects whose ids lie in first..last."""
        wanted = pl.col("subject_id").is_between(first, last)
        return replace(
            self,
            events=self.events.filter(wanted),
            index_dates=self.index_dates.filter(wanted),
            splits=self.splits.filter(wanted),
            labels={task: table.filter(wanted) for task, table in self.labels.items()},
            oracle={task: table.filter(wanted) for task, table in self.oracle.items()},
        )


@dataclass(frozen=True)
class Risks:
    """True risks of a block: cancer (subject_id, prediction_time, hazard, true_risk); presence (without a hazard);
    chapters: subjects × CHAPTERS; death and stay: per admission."""

    cancer: pl.DataFrame
    presence: pl.DataFrame
    chapters: np.ndarray
    death: np.ndarray
    stay: np.ndarray


def simulate_block(seed: int, number: int, vocabulary: Vocabulary, mean_visits: float, novel: float) -> Block:
    """The block `number` of the cohort with this seed. Its first subject has the id number × BLOCK_SUBJECTS + 1."""
    streams = np.random.SeedSequence(seed, spawn_key=(number,)).spawn(8)
    rng = [np.random.default_rng(stream) for stream in streams]
    people = draw_people(rng[0], BLOCK_SUBJECTS)
    past, haemoglobin = history(rng[1], people, vocabulary, mean_visits, novel)
    visible = at(past, np.arange(len(people)), people.landmark)
    cancer = outcomes.cancer_risk(outcomes.cancer_signs(visible))
    presence = outcomes.presence_risk(visible)
    signs = outcomes.diagnosis_signs(visible, vocabulary)
    chapters = outcomes.chapter_risk(signs, vocabulary)
    course = draw_course(rng[2], people, cancer["hazard"].to_numpy(), chapters)
    after = follow_up(rng[3], people, course, signs, vocabulary, novel, haemoglobin)

    admissions = draw_admissions(rng[4], course)
    admitted = first_day(rng[4], people, admissions, vocabulary)
    known = merge(past, after, admitted)
    stay_signs = outcomes.admission_signs(at(known, admissions.subject, admissions.prediction_time))
    risks = Risks(cancer, presence, chapters, outcomes.death_risk(stay_signs), outcomes.stay_probabilities(stay_signs))
    stays = draw_stays(rng[5], risks.death, risks.stay)
    events = merge(known, rest_of_stay(rng[5], people, admissions, stays, vocabulary))

    block = Block(
        events=events,
        index_dates=_index_dates(course),
        splits=_splits(rng[6]),
        labels=_cohort_labels(people, course) | _control_labels(rng[7], presence) | _stay_labels(admissions, stays),
        oracle=_cohort_oracle(people, risks) | _stay_oracle(admissions, risks),
    )
    return _with_ids(block, number * BLOCK_SUBJECTS + 1)


def at(events: pl.DataFrame, subject: np.ndarray, prediction_time: np.ndarray) -> pl.DataFrame:
    """The events that are visible to these subjects at these times (minutes), in order."""
    rows = _rows(subject, prediction_time)
    joined = events.join(rows, on="subject_id", maintain_order="left")
    return joined.filter(pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time")))


def merge(*parts: pl.DataFrame) -> pl.DataFrame:
    """Events of several spells, sorted by subject and time, static first."""
    return pl.concat(parts).sort("subject_id", "time", nulls_last=False, maintain_order=True)


def _rows(subject: np.ndarray, minutes: np.ndarray, **columns: np.ndarray | pl.Series | list) -> pl.DataFrame:
    table = pl.DataFrame({"subject_id": subject.astype(np.int64), "prediction_time": minutes, **columns})
    return table.with_columns(timed("prediction_time"))


def _cohort_labels(people: People, course: Course) -> dict[str, pl.DataFrame]:
    """Labels at the landmark: cancer within a year, time to cancer or end of observation, new chapters in the year."""
    subject = np.arange(len(people))
    within_year = course.cancer <= people.landmark + outcomes.YEAR_DAYS * DAY
    days = (np.minimum(course.cancer, course.observed_until) - people.landmark) / DAY
    news = course.news.copy()
    news[:, NEOPLASMS] |= within_year
    return {
        "cancer": _rows(subject, people.landmark, boolean_value=within_year),
        "time_to_event": _rows(
            subject, people.landmark, float_value=days.astype(np.float32), event_observed=course.has_cancer
        ),
        "diagnoses": _one_line_per_chapter(people, news),
    }


def _control_labels(rng: np.random.Generator, presence: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """An outcome that is no event of the record: drawn from what is on record at the landmark, in whatever order."""
    happens = rng.random(presence.height) < presence["true_risk"].to_numpy()
    return {"order_free": presence.select("subject_id", "prediction_time", boolean_value=pl.Series(happens))}


def _one_line_per_chapter(people: People, news: np.ndarray) -> pl.DataFrame:
    """A line for each new chapter of a subject; a subject without any has one line with a null in it."""
    subject, chapter = np.nonzero(np.column_stack([news, ~news.any(axis=1)]))
    titles = pl.Series([*CHAPTER_TITLES, None], dtype=pl.String)[chapter]
    return _rows(subject, people.landmark[subject], categorical_value=titles)


def _cohort_oracle(people: People, risks: Risks) -> dict[str, pl.DataFrame]:
    cancer = risks.cancer.select("subject_id", "prediction_time", "true_risk")
    chapters = risks.chapters.copy()
    chapters[:, NEOPLASMS] = 1 - (1 - chapters[:, NEOPLASMS]) * (1 - cancer["true_risk"].to_numpy())
    subject = np.repeat(np.arange(len(people)), len(CHAPTER_TITLES))
    titles = pl.Series(CHAPTER_TITLES * len(people), dtype=pl.String)
    news = _rows(subject, people.landmark[subject], true_risk=chapters.ravel()).with_columns(titles.alias("class"))
    return {"cancer": cancer, "time_to_event": cancer, "diagnoses": news, "order_free": risks.presence}


def _stay_labels(admissions: Admissions, stays: Stays) -> dict[str, pl.DataFrame]:
    """Labels a day after admission: death before discharge, class of the stay's length, more than seven days."""
    subject, time = admissions.subject, admissions.prediction_time
    classes = pl.Series(outcomes.STAY_CLASSES, dtype=pl.String)[stays.stay_class]
    return {
        "in_hospital_mortality": _rows(subject, time, boolean_value=stays.died),
        "length_of_stay": _rows(subject, time, categorical_value=classes),
        "prolonged_stay": _rows(subject, time, boolean_value=stays.prolonged),
    }


def _stay_oracle(admissions: Admissions, risks: Risks) -> dict[str, pl.DataFrame]:
    subject, time = admissions.subject, admissions.prediction_time
    prolonged = risks.stay[:, outcomes.PROLONGED_FROM :].sum(axis=1)
    return {
        "in_hospital_mortality": _rows(subject, time, true_risk=risks.death),
        "length_of_stay": _rows(subject, time, true_risk=risks.stay.tolist()),
        "prolonged_stay": _rows(subject, time, true_risk=prolonged),
    }


def _index_dates(course: Course) -> pl.DataFrame:
    """The text pipeline's columns; a control has neither site nor date."""
    is_case = pl.Series(course.has_cancer)
    columns = {"subject_id": np.arange(len(is_case)), "cancerdate": course.cancer, "is_case": is_case}
    site = pl.Series(list(CANCER_SITES), dtype=pl.String)[course.site]
    table = pl.DataFrame(columns).with_columns(site=site, cancerdate=timed("cancerdate").dt.date())
    controls_empty = [pl.when("is_case").then(name).alias(name) for name in ("site", "cancerdate")]
    return table.with_columns(controls_empty).select("subject_id", "site", "cancerdate", "is_case")


def _splits(rng: np.random.Generator) -> pl.DataFrame:
    """A number in [0, 1) per subject: even over each group of SPLIT_GROUP consecutive subjects."""
    places = rng.random((BLOCK_SUBJECTS // SPLIT_GROUP, SPLIT_GROUP)).argsort(axis=1).ravel()
    position = (places + rng.random(BLOCK_SUBJECTS)) / SPLIT_GROUP
    return pl.DataFrame({"subject_id": np.arange(BLOCK_SUBJECTS), "position": position})


def _with_ids(block: Block, first: int) -> Block:
    """Local subject numbers replaced by the cohort's subject ids."""
    shift = pl.col("subject_id").cast(pl.Int64) + first
    return replace(
        block,
        events=block.events.with_columns(shift),
        index_dates=block.index_dates.with_columns(shift),
        splits=block.splits.with_columns(shift),
        labels={task: table.with_columns(shift) for task, table in block.labels.items()},
        oracle={task: table.with_columns(shift) for task, table in block.oracle.items()},
    )
