"""Histories up to the prediction time: people, their visits, everyday findings, and the signs of what is to come.

All draws are arrays over subjects or visits. Times are int64 minutes since 1970-01-01 until they leave as tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from epicrisis.events import synthetic_vocabulary as words
from epicrisis.events.synthetic_outcomes import eligible, sigmoid

HOUR, DAY = 60, 24 * 60
FIRST_LANDMARK, LAST_LANDMARK = 15_340, 18_600
"""Days since 1970 between which prediction times fall: the years 2012 to 2020."""
RECENT_WINDOW = (10, 330)
OLD_AFTER = 400
"""Days before the prediction time: recent and old signs keep clear of the one-year line."""
# Mean diagnoses, drugs, measurements and procedures of an outpatient, emergency and inpatient visit.
CONTENT = {
    "diagnoses": (0.6, 0.9, 1.6),
    "drugs": (0.5, 0.6, 1.5),
    "labs": (0.7, 1.0, 2.2),
    "procedures": (0.08, 0.25, 0.3),
}
KIND_SHARES = (0.76, 0.14, 0.10)
DURATIONS = ((15, 50), (2 * HOUR, 12 * HOUR), (1 * DAY, 9 * DAY))


@dataclass(frozen=True)
class People:
    """Subjects of a block: arrays of equal length; landmark (the prediction time) and birth in minutes."""

    female: np.ndarray
    birth: np.ndarray
    landmark: np.ndarray
    has: np.ndarray
    """Subjects × CONDITIONS."""
    traits: np.ndarray
    """Subjects × labs: where a subject's usual value lies, in standard deviations."""

    def __len__(self) -> int:
        return len(self.female)

    @property
    def age(self) -> np.ndarray:
        """Years at the landmark."""
        return (self.landmark - self.birth) / DAY / 365.25


@dataclass(frozen=True)
class Visits:
    """Subjects × slots, in time order; slots that are not `valid` hold nothing. kind indexes VISIT_KINDS."""

    start: np.ndarray
    end: np.ndarray
    kind: np.ndarray
    valid: np.ndarray


class EventLog:
    """Collects events column-wise; `table` gives them sorted by subject and time, static first."""

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = []

    def add(
        self,
        subject: np.ndarray,
        time: np.ndarray | None,
        code: str | pl.Series,
        value: np.ndarray | None = None,
        unit: str | pl.Series | None = None,
        text: pl.Series | None = None,
    ) -> None:
        """Events of `subject` (local numbers) at `time` (minutes; None: static)."""
        columns = {
            "subject_id": pl.Series(subject, dtype=pl.Int64),
            "time": pl.lit(None, pl.Int64) if time is None else pl.Series(time, dtype=pl.Int64),
            "code": pl.lit(code) if isinstance(code, str) else code,
            "numeric_value": pl.lit(None, pl.Float32) if value is None else pl.Series(value, dtype=pl.Float32),
            "text_value": pl.lit(None, pl.String) if text is None else text,
            "unit": unit if isinstance(unit, pl.Series) else pl.lit(unit, pl.String),
        }
        self._parts.append(pl.DataFrame({"subject_id": columns["subject_id"]}).with_columns(**columns))

    def table(self) -> pl.DataFrame:
        events = pl.concat(self._parts).with_columns(timed("time"), pl.col("numeric_value").fill_nan(None))
        return events.sort("subject_id", "time", nulls_last=False, maintain_order=True)


def timed(column: str) -> pl.Expr:
    """A column of minutes as times."""
    return (pl.col(column) * 60_000_000).cast(pl.Datetime("us"))


def named(names: list[str] | tuple[str, ...], index: np.ndarray) -> pl.Series:
    """The names at these positions."""
    return pl.Series(names, dtype=pl.String)[index]


def draw_people(rng: np.random.Generator, n: int) -> People:
    """Adults of 30 to 88 years, seen at a landmark that depends on nothing else."""
    landmark = rng.integers(FIRST_LANDMARK, LAST_LANDMARK, n) * DAY
    age_days = ((30 + 58 * rng.beta(2.0, 1.6, n)) * 365.25).astype(np.int64)
    decades = (age_days / 365.25 - 60) / 10
    prevalence = np.array([condition.prevalence for condition in words.CONDITIONS])
    odds = np.array([condition.odds for condition in words.CONDITIONS])
    log_odds = np.log(prevalence / (1 - prevalence)) + decades[:, None] * np.log(odds)
    return People(
        female=rng.random(n) < 0.52,
        birth=landmark - age_days * DAY,
        landmark=landmark,
        has=rng.random((n, len(odds))) < sigmoid(log_odds),
        traits=rng.standard_normal((n, len(words.LABS))),
    )


def draw_visits(rng: np.random.Generator, people: People, mean_visits: float) -> Visits:
    """Visits before the landmark: one at enrolment (2.2 to 6 years before), one in RECENT_WINDOW, the rest between."""
    n = len(people)
    counts = 4 + rng.poisson(mean_visits - 4, n)
    first = rng.uniform(2.2, 6.0, n) * 365.25
    before = rng.uniform(RECENT_WINDOW[0], first[:, None], (n, counts.max()))
    before[:, 0] = first
    before[:, 1] = rng.uniform(*RECENT_WINDOW, n)
    start = in_office_hours(rng, people.landmark[:, None] - (before * DAY).astype(np.int64))
    valid = np.arange(counts.max())[None, :] < counts[:, None]
    return with_durations(rng, *in_order(start, valid), people.landmark)


def in_office_hours(rng: np.random.Generator, moment: np.ndarray) -> np.ndarray:
    """Another moment of the same day, between 8 and 17 o'clock."""
    return moment // DAY * DAY + rng.integers(8 * HOUR, 17 * HOUR, moment.shape)


def in_order(start: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slots of each subject sorted by time, those that are not valid behind."""
    order = np.argsort(np.where(valid, start, np.iinfo(np.int64).max), axis=1, kind="stable")
    return np.take_along_axis(start, order, axis=1), np.take_along_axis(valid, order, axis=1)


def with_durations(rng: np.random.Generator, start: np.ndarray, valid: np.ndarray, limit: np.ndarray) -> Visits:
    """Visits that begin at `start` (sorted within a subject), each over before the next begins and before `limit`."""
    kind = rng.choice(len(KIND_SHARES), start.shape, p=KIND_SHARES)
    shortest, longest = (np.array(DURATIONS)[kind, side] for side in (0, 1))
    wanted = start + shortest + (rng.random(start.shape) * (longest - shortest)).astype(np.int64)
    following = np.where(valid, start, limit[:, None])
    following = np.concatenate([following[:, 1:], limit[:, None]], axis=1)
    end = np.maximum(start, np.minimum(wanted, following - 1))
    return Visits(start, end, kind, valid)


def add_visits(log: EventLog, visits: Visits, side: str) -> None:
    """The `start` or `end` events of all visits."""
    subject, slot = np.nonzero(visits.valid)
    names = [f"VISIT_{side.upper()}//{kind}" for kind in words.VISIT_KINDS]
    log.add(subject, getattr(visits, side)[subject, slot], named(names, visits.kind[subject, slot]))


def pick(rng: np.random.Generator, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """One column per entry of `rows`, drawn with that row's weights; -1 where a row has none."""
    cumulative = np.cumsum(weights, axis=1)[rows]
    total = cumulative[:, -1]
    column = (cumulative <= (rng.random(len(rows)) * total)[:, None]).sum(axis=1)
    return np.where(total > 0, np.minimum(column, weights.shape[1] - 1), -1)


def choose_slot(rng: np.random.Generator, allowed: np.ndarray) -> np.ndarray:
    """One allowed slot per subject; every subject needs one."""
    return np.argmax(allowed * (rng.random(allowed.shape) + 1e-9), axis=1)


def moments(rng: np.random.Generator, visits: Visits, subject: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """A moment within each of these visits."""
    start, end = visits.start[subject, slot], visits.end[subject, slot]
    return np.minimum(start + 1 + (rng.random(len(start)) * (end - start - 2)).astype(np.int64), end)


def spread(rng: np.random.Generator, visits: Visits, what: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subject, slot and moment of each of the findings of one sort that the visits bring."""
    subject, slot = np.nonzero(visits.valid)
    counts = rng.poisson(np.array(CONTENT[what])[visits.kind[subject, slot]])
    subject, slot = np.repeat(subject, counts), np.repeat(slot, counts)
    return subject, slot, moments(rng, visits, subject, slot)


def diagnosis_weights(people: People, vocabulary: words.Vocabulary) -> np.ndarray:
    """Subjects × diagnoses: everyday ones, and those of a subject's own chronic conditions."""
    bare = [code.removeprefix(words.ICD) for code in vocabulary.diagnoses]
    chronic = _membership(bare, [condition.diagnoses.split() for condition in words.CONDITIONS])
    weights = vocabulary.diagnosis_weights[None, :] + 16 * people.has @ chronic
    return weights * eligible(vocabulary, people.age, people.female)


def drug_weights(people: People, vocabulary: words.Vocabulary) -> np.ndarray:
    """Subjects × drugs, as for diagnoses."""
    anybodys = {words.full_drug(code) for code in words.ANYBODYS_DRUGS.split()} | set(vocabulary.undescribed)
    own = [[words.full_drug(code) for code in condition.drugs.split()] for condition in words.CONDITIONS]
    base = np.array([code in anybodys for code in vocabulary.drugs], dtype=float)
    return base + 12 * people.has @ _membership(vocabulary.drugs, own)


def _membership(codes: list[str], groups: list[list[str]]) -> np.ndarray:
    """Groups × codes: each group's share on each of its codes."""
    return np.array([[(code in group) / max(len(group), 1) for code in codes] for group in groups])


def add_diagnoses(
    rng: np.random.Generator, log: EventLog, visits: Visits, weights: np.ndarray, names: list[str], novel: float
) -> None:
    """Everyday diagnoses; each turns with probability `novel` into a code with a digit more."""
    subject, _, time = spread(rng, visits, "diagnoses")
    index = pick(rng, weights, subject)
    keep = index >= 0
    log.add(subject[keep], time[keep], with_novel(rng, named(names, index[keep]), novel))


def with_novel(rng: np.random.Generator, codes: pl.Series, probability: float) -> pl.Series:
    """The codes, each with the given probability made novel by another digit: I10 → I10.7, E11.65 → E11.657."""
    digit = pl.Series(rng.integers(0, 10, len(codes))).cast(pl.String)
    chosen = pl.Series(rng.random(len(codes)) < probability)
    table = pl.DataFrame({"code": codes, "digit": digit, "chosen": chosen})
    dot = pl.when(pl.col("code").str.contains(".", literal=True)).then(pl.lit("")).otherwise(pl.lit("."))
    novel = pl.concat_str("code", dot, "digit")
    return table.select(code=pl.when("chosen").then(novel).otherwise("code"))["code"]


def add_drugs(rng: np.random.Generator, log: EventLog, visits: Visits, weights: np.ndarray, names: list[str]) -> None:
    subject, _, time = spread(rng, visits, "drugs")
    log.add(subject, time, named(names, pick(rng, weights, subject)))


def add_procedures(rng: np.random.Generator, log: EventLog, visits: Visits, names: list[str]) -> None:
    subject, _, time = spread(rng, visits, "procedures")
    log.add(subject, time, named(names, rng.integers(0, len(names), len(subject))))


def add_labs(rng: np.random.Generator, log: EventLog, visits: Visits, people: People) -> None:
    """Everyday measurements; haemoglobin and lactate, which outcomes read, are added elsewhere."""
    subject, _, time = spread(rng, visits, "labs")
    weights = np.array([lab.weight for lab in words.LABS.values()])
    weights = weights * np.where(np.array(list(words.LABS)) == "2857-1", ~people.female[:, None], True)
    add_measurements(rng, log, people, subject, time, pick(rng, weights, subject))


def add_measurements(
    rng: np.random.Generator, log: EventLog, people: People, subject: np.ndarray, time: np.ndarray, lab: np.ndarray
) -> None:
    """Measurements of the given kinds (positions in LABS): near a subject's usual value, shifted by its illnesses."""
    codes, labs = list(words.LABS), list(words.LABS.values())
    shifts = np.array([[dict(condition.shifts).get(code, 0.0) for code in codes] for condition in words.CONDITIONS])
    own = 0.8 * people.traits[subject, lab] + (people.has @ shifts)[subject, lab]
    raw = np.array([x.mean for x in labs])[lab]
    raw = raw + np.array([x.sd for x in labs])[lab] * (own + 0.6 * rng.standard_normal(len(lab)))
    value = np.where(np.array([x.log for x in labs])[lab], np.exp(np.minimum(raw, 20)), np.maximum(raw, 0))
    value = np.where(lab == codes.index("59408-5"), np.minimum(value, 100), value)
    tens = 10.0 ** np.array([x.decimals for x in labs])[lab]
    worded = lab == codes.index(words.URINE_PROTEIN.removeprefix(words.LOINC))
    level = np.searchsorted([0.8, 1.4, 2.0], own)
    text = named(words.URINE_PROTEIN_RESULTS, level).set(pl.Series(~worded), None)
    rounded = np.where(worded, np.nan, np.round(value * tens) / tens)
    units = pl.Series([x.unit for x in labs], dtype=pl.String)[lab]
    log.add(subject, time, named([words.LOINC + code for code in codes], lab), rounded, units, text)


def add_habits(rng: np.random.Generator, log: EventLog, visits: Visits) -> None:
    """Smoking and drinking, asked at the first visit; some stop smoking or change their drinking later."""
    subject = np.arange(len(visits.start))
    smoking = rng.choice(3, len(subject), p=(0.34, 0.26, 0.40))
    drinking = rng.choice(3, len(subject), p=(0.14, 0.50, 0.36))
    first = visits.start[:, 0] + 1
    smoking_names = (words.CURRENT_SMOKER, words.FORMER_SMOKER, words.NEVER_SMOKER)
    drinking_names = (words.HEAVY_DRINKER, words.MODERATE_DRINKER, words.NON_DRINKER)
    log.add(subject, first, named(smoking_names, smoking))
    log.add(subject, first, named(drinking_names, drinking))
    later = visits.valid.copy()
    later[:, 0] = False
    slot = choose_slot(rng, later)
    moment = visits.start[subject, slot] + 1
    stops = (smoking == 0) & (rng.random(len(subject)) < 0.25)
    log.add(subject[stops], moment[stops], words.FORMER_SMOKER)
    changes = rng.random(len(subject)) < 0.08
    log.add(subject[changes], moment[changes], named(drinking_names, (drinking[changes] + 1) % 3))


def add_signs(rng: np.random.Generator, log: EventLog, visits: Visits, people: People) -> None:
    """The diagnoses on which the cancer hazard depends: presence, order and timing, each drawn on its own."""
    subject = np.arange(len(people))
    for code, share in ((words.FAMILY_HISTORY, 0.25), (words.POLYP, 0.25)):
        who = rng.random(len(subject)) < share
        _add_at(rng, log, visits, subject[who], choose_slot(rng, visits.valid)[who], code)
    _add_ordered_pair(rng, log, visits, rng.choice(5, len(subject), p=(0.14, 0.34, 0.34, 0.09, 0.09)))
    days = (people.landmark[:, None] - visits.start) / DAY
    bleeding = rng.choice(3, len(subject), p=(0.26, 0.37, 0.37))
    for pattern, allowed in ((1, days <= RECENT_WINDOW[1]), (2, days >= OLD_AFTER)):
        slot, who = choose_slot(rng, visits.valid & allowed), bleeding == pattern
        _add_at(rng, log, visits, subject[who], slot[who], words.MELENA)


def _add_at(
    rng: np.random.Generator, log: EventLog, visits: Visits, subject: np.ndarray, slot: np.ndarray, code: str
) -> None:
    log.add(subject, moments(rng, visits, subject, slot), code)


def _add_ordered_pair(rng: np.random.Generator, log: EventLog, visits: Visits, pattern: np.ndarray) -> None:
    """Weight loss and iron deficiency anaemia: 1 in the dangerous order, 2 in the other, 3 and 4 only one of them."""
    subject = np.arange(len(pattern))
    one = choose_slot(rng, visits.valid)
    others = visits.valid.copy()
    others[subject, one] = False
    other = choose_slot(rng, others)
    early, late = np.minimum(one, other), np.maximum(one, other)
    loss, anaemia = np.isin(pattern, (1, 2, 3)), np.isin(pattern, (1, 2, 4))
    loss_slot, anaemia_slot = np.where(pattern == 1, early, late), np.where(pattern == 1, late, early)
    _add_at(rng, log, visits, subject[loss], loss_slot[loss], words.WEIGHT_LOSS)
    _add_at(rng, log, visits, subject[anaemia], anaemia_slot[anaemia], words.ANAEMIA)


def add_haemoglobin(rng: np.random.Generator, log: EventLog, visits: Visits) -> np.ndarray:
    """Three to five haemoglobin values before the landmark; returns each subject's last one in g/dL.

    Falling, rising and level courses end at values of the same distribution, so the last value tells nothing of
    the course.
    """
    n, slots = visits.start.shape
    wanted = rng.integers(3, 6, (n,))
    keys = np.where(visits.valid, rng.random((n, slots)), 2.0)
    measured = visits.valid & (keys.argsort(axis=1).argsort(axis=1) < wanted[:, None])
    from_end = np.cumsum(measured[:, ::-1], axis=1)[:, ::-1] - 1
    course = rng.choice(3, (n,), p=(0.38, 0.36, 0.26))
    fall = rng.uniform(2.0, 4.0, (n,)) * np.array([1.0, -1.0, 0.0])[course]
    last = 12.7 + rng.normal(0, 1.0, (n,))
    share = np.array([0.0, 0.5, 1.0])[np.clip(from_end, 0, 2)]
    noise = rng.uniform(-0.3, 0.3, (n, slots)) * (from_end > 0)
    values = last[:, None] + fall[:, None] * share + noise
    subject, slot = np.nonzero(measured)
    time = moments(rng, visits, subject, slot)
    log.add(subject, time, words.HAEMOGLOBIN, np.round(values[subject, slot], 1), "g/dL")
    return last


def add_statics(rng: np.random.Generator, log: EventLog, people: People) -> None:
    """Sex, ethnicity and region without a time; birth with one."""
    subject = np.arange(len(people))
    log.add(subject, None, named(("GENDER//M", "GENDER//F"), people.female.astype(int)))
    ethnicities = [f"ETHNICITY//{name}" for name in words.ETHNICITIES]
    log.add(subject, None, named(ethnicities, rng.choice(4, len(people), p=(0.6, 0.2, 0.12, 0.08))))
    regions = [f"REGION//{region}" for region in words.REGIONS]
    log.add(subject, None, named(regions, rng.integers(0, len(regions), len(people))))
    log.add(subject, people.birth, "MEDS_BIRTH")


def add_everyday(
    rng: np.random.Generator, log: EventLog, visits: Visits, people: People, vocabulary: words.Vocabulary, novel: float
) -> None:
    """What visits bring that no outcome needs to bring: diagnoses, measurements, procedures, drugs."""
    add_diagnoses(rng, log, visits, diagnosis_weights(people, vocabulary), vocabulary.diagnoses, novel)
    add_labs(rng, log, visits, people)
    add_procedures(rng, log, visits, vocabulary.procedures)
    add_drugs(rng, log, visits, drug_weights(people, vocabulary), vocabulary.drugs)


def history(
    rng: np.random.Generator, people: People, vocabulary: words.Vocabulary, mean_visits: float, novel: float
) -> tuple[pl.DataFrame, np.ndarray]:
    """All events before the landmark, sorted, and each subject's last haemoglobin in g/dL."""
    log = EventLog()
    visits = draw_visits(rng, people, mean_visits)
    add_statics(rng, log, people)
    add_visits(log, visits, "start")
    add_habits(rng, log, visits)
    add_signs(rng, log, visits, people)
    last = add_haemoglobin(rng, log, visits)
    add_everyday(rng, log, visits, people, vocabulary, novel)
    add_visits(log, visits, "end")
    return log.table(), last
