"""Events per second told as narratives, against a serialiser that walks them one by one in Python.

    python benchmarks/narrative.py

Both tell the style `timeline` with the same words, and the texts of a sample are compared. Two cores are used
where there are two, by as many threads with a part of the events each; the Python serialiser uses one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import cache
from itertools import groupby

import numpy as np
import polars as pl

from epicrisis.narrative import Narrator, render
from epicrisis.narrative.patterns import MISSING
from epicrisis.narrative.styles import STYLES
from epicrisis.tracking.cores import available_cores
from records import NOW, make_events, narrator_for, rows_of
from timing import finish, seconds

PER_SUBJECT = 300
PART = 500_000
PLAIN = 60_000
"""Events that the serialiser in Python tells."""
LONG = 100_200
"""Events of the long record."""
SIZES = (100_000, 1_000_000, 10_000_000)


class EventByEvent:
    """A straightforward serialiser of the style `timeline`: it applies the rules to one event after the other.

    remember: look each code up once and keep its term, as a more careful author would.
    """

    def __init__(self, narrator: Narrator, *, remember: bool = False):
        known = narrator.book.lookups
        self.tables = {(row["table"], row["code"]): row["term"] for row in known.terms.to_dicts()}
        self.descriptions = dict(zip(known.codes["code"], known.codes["description"], strict=True))
        self.patterns = [(re.compile(rule.pattern.replace(r"\p{L}", r"\w")), rule) for rule in known.patterns]
        self.shortenings = [(re.compile(p), r) for p, r in STYLES["timeline"].shortenings]
        terms = narrator.book.terms
        self.shared = set(terms.filter(pl.col("term").str.ends_with("[" + pl.col("code") + "]"))["code"])
        self.colons = set(terms.filter("colon")["code"])
        self.term = cache(self.look_up) if remember else self.look_up

    def tell(self, events: pl.DataFrame) -> Iterator[str]:
        for _, rows in groupby(events.iter_rows(named=True), key=lambda row: row["subject_id"]):
            yield self.narrative(list(rows))

    def narrative(self, rows: list[dict]) -> str:
        sex, birth, heading = "", NOW, None
        lines: list[list[str]] = []
        for row in rows:
            if row["code"].startswith("GENDER//"):
                sex = "woman" if row["code"].endswith("F") else "man"
            elif row["code"] == "MEDS_BIRTH":
                birth = row["time"]
            else:
                when = self.when(row["prediction_time"] - row["time"])
                if when != heading:
                    lines.append([])
                    heading = when
                    lines[-1].append(f"{when}: {self.phrase(row)}")
                else:
                    lines[-1].append(self.phrase(row))
        return f"Patient: {self.age(birth)}-year-old {sex}.\n" + "\n".join("; ".join(line) for line in lines)

    def look_up(self, code: str) -> str:
        """The term: the user's tables by the whole code or the bare one inside it, then the dataset's description."""
        term = self.tables.get(("medical", code)) or self.tables.get(("lab", code))
        for pattern, rule in self.patterns if term is None else ():
            if found := pattern.fullmatch(code):
                bare = re.sub(r"\{(\w+)[^}]*\}", lambda field: found[field[1]] or "", rule.key)
                if rule.hierarchy == "icd" and "." not in bare and len(bare) > 3:
                    bare = f"{bare[:3]}.{bare[3:]}"
                term = self.tables.get((rule.table, bare)) or self.descriptions.get(code)
                break
        term = " ".join((term or code).replace(";", ",").split())
        for expression, replacement in self.shortenings:
            term = expression.sub(replacement, term)
        return f"{term} [{code}]" if code in self.shared else term

    def phrase(self, row: dict) -> str:
        term, value, text, unit = self.term(row["code"]), row["numeric_value"], row["text_value"], row["unit"]
        colon = ":" if row["code"] in self.colons else ""
        if value is None and text in (None, *MISSING):
            return term
        told = str(np.float32(value)).removesuffix(".0") if value is not None else f": {text}"
        return f"{term}{colon} {told} {unit}" if unit and unit not in MISSING else f"{term}{colon} {told}"

    def when(self, distance: timedelta) -> str:
        days = distance.days
        if distance < timedelta(hours=1):
            return "last hour"
        if days < 1:
            return self.plural(distance.seconds // 3600, "hour")
        if days < 14:
            return self.plural(days, "day")
        if distance < timedelta(days=60.875):
            return self.plural(days // 7, "week")
        if distance < timedelta(days=730.5):
            return self.plural(int(distance / timedelta(days=30.4375)), "month")
        return self.plural(int(distance / timedelta(days=365.25)), "year")

    def plural(self, count: int, unit: str) -> str:
        return f"{count} {unit}{'s' if count != 1 else ''} before"

    def age(self, birth: datetime) -> int:
        return NOW.year - birth.year - ((NOW.month, NOW.day) < (birth.month, birth.day))


def tell_in_parts(events: pl.DataFrame, rows: pl.DataFrame, narrator: Narrator, cores: int) -> list[pl.DataFrame]:
    """Render on all cores, parts of whole subjects each."""
    size = PART // PER_SUBJECT * PER_SUBJECT
    starts = range(0, events.height, size)
    parts = [(events[at : at + size], rows[at // PER_SUBJECT : (at + size) // PER_SUBJECT]) for at in starts]
    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(lambda part: render(part[0], part[1], narrator), parts))


def python_speed(narrator: Narrator, *, remember: bool) -> float:
    """Events per second of the Python serialiser, whose texts are ours."""
    events = make_events(PLAIN, PER_SUBJECT)
    python = EventByEvent(narrator, remember=remember)
    theirs, ours = list(python.tell(events)), render(events, rows_of(events), narrator)["narrative"].to_list()
    if theirs != ours:
        differing = sum(a != b for a, b in zip(theirs, ours, strict=True))
        raise SystemExit(f"{differing} narratives of {len(ours)} differ")
    return events.height / seconds(lambda: list(python.tell(events)), 3)


def our_speed(size: int, narrator: Narrator, cores: int) -> float:
    """Events per second of `render`, from records in memory to texts in memory."""
    events = make_events(size // PER_SUBJECT * PER_SUBJECT, PER_SUBJECT)
    rows = rows_of(events)
    took = seconds(lambda: tell_in_parts(events, rows, narrator, cores), 3 if size > 1e6 else 7)
    print(f"{size:>10,} events in {took:6.2f} s: {events.height / took / 1e6:.2f} million a second")
    return events.height / took


def time_of_one_record(narrator: Narrator) -> float:
    """How much longer LONG events take in one record than in many."""
    many, one = make_events(LONG, PER_SUBJECT), make_events(LONG, LONG)
    rows_many, rows_one = rows_of(many), rows_of(one)
    took_many = seconds(lambda: render(many, rows_many, narrator), 7)
    return seconds(lambda: render(one, rows_one, narrator), 7) / took_many


def main() -> None:
    cores = min(2, len(available_cores()))
    narrator = narrator_for("timeline")
    figures: dict[str, float] = {
        "cores": cores,
        "python_events_per_second": python_speed(narrator, remember=False),
        "python_that_remembers_terms_events_per_second": python_speed(narrator, remember=True),
        **{f"events_per_second_{size:.0e}": our_speed(size, narrator, cores) for size in SIZES},
        "one_long_record_against_many_short": time_of_one_record(narrator),
    }
    ratio = figures[f"events_per_second_{SIZES[-1]:.0e}"] / figures["python_events_per_second"]
    finish("narrative", ratio, 50, figures)


if __name__ == "__main__":
    main()
