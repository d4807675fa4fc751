"""How much of a dataset reads as words: per split and vocabulary, and the codes that do not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import jinja2
import numpy as np
import polars as pl

from epicrisis.narrative.coded import changes, coded
from epicrisis.narrative.lookups import Lookups
from epicrisis.narrative.resolve import WAYS
from epicrisis.tracking.run_directory import replacing

SOURCES = (*WAYS, "parent", "readable", "raw")
"""Where a phrase can come from, best first: lookup (a user's table), concept (an OMOP vocabulary download),
description (the dataset's own), icd10cm (the ICD-10-CM library), parent (any of these, for a parent of the
code), readable (words inside the code), raw (the code as it is)."""

EVERY = "*"
"""Stands for all vocabularies of a split together."""

FEWEST_SUBJECTS = 10
"""Counts of subjects below this are not shown."""

_TEMPLATE = "coverage_template.html"
_GROUP = ("split", "vocabulary")
_KIND = ("vocabulary", "source", "words")
_BY_SOURCE = tuple(f"subjects_{name}" for name in SOURCES)
_CODE_COUNTS = ("n_events", "n_subjects")
_SUBJECT_COUNTS = ("n_subjects", "n_subjects_unread", *_BY_SOURCE)


@dataclass(frozen=True)
class CoverageCounts:
    """What coverage needs to know of a shard. Counts of different shards add up, as each subject is in one."""

    codes: pl.DataFrame
    """split · code · n_events · n_subjects."""
    subjects: pl.DataFrame
    """split · vocabulary (`*`: all) · n_subjects · n_subjects_unread (with an event that does not read as
    words) · words (the sum over subjects of the share of their events that does) · subjects_<source> (with an
    event told from there)."""

    def typed(self) -> CoverageCounts:
        """The same with the columns in one order and counts in 64 bits, so that tables of shards fit together."""
        names, sums = pl.col(*_GROUP).cast(pl.String), pl.col("words").cast(pl.Float64)
        codes = self.codes.select(pl.col("split", "code").cast(pl.String), pl.col(_CODE_COUNTS).cast(pl.Int64))
        return CoverageCounts(codes, self.subjects.select(names, sums, pl.col(_SUBJECT_COUNTS).cast(pl.Int64)))


class CodeWords:
    """How codes became words, remembered: the codes of one shard are mostly those of the last one."""

    def __init__(self, lookups: Lookups):
        self._lookups = lookups
        self._known = self._look_up(pl.Series("code", [], dtype=pl.String))

    def look_up(self, codes: pl.Series) -> pl.DataFrame:
        """code · vocabulary · source · words, of these codes and perhaps of others."""
        unmet = codes.filter(~codes.is_in(self._known["code"].implode()))
        if len(unmet):
            self._known = pl.concat([self._known, self._look_up(unmet)])
        return self._known

    def _look_up(self, codes: pl.Series) -> pl.DataFrame:
        return self._lookups.resolve(codes).select("code", "vocabulary", "source", words=reads_as_words())


def coverage_counts(
    events: pl.DataFrame, words: CodeWords | Lookups, splits: pl.DataFrame | None = None
) -> CoverageCounts:
    """The counts of whole subjects' events.

    events: subject_id · code. words: how codes become words; CodeWords where several shards are counted.
    splits: subject_id · split; without it all subjects count as one split, `all`, and a subject that is not
    in it as `(none)`.
    """
    words = CodeWords(words) if isinstance(words, Lookups) else words
    counted = _count(events)
    homes = _splits_of(counted.subjects, splits)
    told = counted.codes.to_frame().join(words.look_up(counted.codes), on="code", how="left", maintain_order="left")
    each = _by_subject_and_kind(counted, told, homes)
    subjects = [_by_subject(each), _by_subject(each.with_columns(vocabulary=pl.lit(EVERY)))]
    return CoverageCounts(_by_split_and_code(counted, homes), pl.concat(subjects)).typed()


def merge_counts(parts: Iterable[CoverageCounts]) -> CoverageCounts:
    """The counts of all shards together. Takes an iterator too, and holds two parts at a time."""
    return reduce(_add, parts, _NOTHING)


def coverage(counts: CoverageCounts, lookups: Lookups) -> pl.DataFrame:
    """How codes became words, by event and by subject.

    lookups: those that the counts were made with. Returns, sorted: split · vocabulary (`*` is all of them) ·
    n_events · n_subjects · n_codes · share of events by source (`lookup` … `raw`) · `words`, the share of
    events that reads as words (see `reads_as_words`) · `words_by_subject`, the average over subjects of that
    share · n_subjects_unread, subjects with at least one event that does not read as words · share of subjects
    with at least one event told from a source (`subjects_lookup` … `subjects_raw`).
    """
    told = lookups.resolve(counts.codes["code"]).select("code", "vocabulary", "source", words=reads_as_words())
    known = counts.codes.join(told, on="code", how="left")
    table = pl.concat([_by_event(known), _by_event(known.with_columns(vocabulary=pl.lit(EVERY)))])
    table = table.join(counts.subjects.rename({"words": "words_by_subject"}), on=_GROUP, how="left")
    table = table.with_columns(pl.col("words_by_subject", *_BY_SOURCE) / pl.col("n_subjects"))
    columns = (*_GROUP, "n_events", "n_subjects", "n_codes", *SOURCES, "words", "words_by_subject")
    return table.select(*columns, "n_subjects_unread", *_BY_SOURCE).sort(_GROUP)


def reads_as_words() -> pl.Expr:
    """Whether a resolved code (phrase · source) is not raw and has a word of at least two letters."""
    return (pl.col("source") != "raw") & pl.col("phrase").str.contains(r"\p{L}{2}")


def unresolved(counts: CoverageCounts, lookups: Lookups, top: int = 50) -> pl.DataFrame:
    """The codes that do not read as words, most frequent first: code · vocabulary · n_events · n_subjects."""
    codes = counts.codes.group_by("code").agg(pl.col("n_events", "n_subjects").sum())
    told = lookups.resolve(codes["code"]).filter(~reads_as_words()).select("code", "vocabulary")
    found = codes.join(told, on="code", how="inner").select("code", "vocabulary", "n_events", "n_subjects")
    return found.sort(["n_events", "code"], descending=[True, False]).head(top)


def write_coverage(directory: Path, table: pl.DataFrame, unresolved: pl.DataFrame) -> Path:
    """Writes coverage.csv, unresolved.csv and the page coverage.html; returns the page's path.

    table: from `coverage`; unresolved: from `unresolved`. In the page and in unresolved.csv, counts that fewer
    than FEWEST_SUBJECTS subjects stand behind are shown as `<10`.
    """
    hidden = hide_few(unresolved)
    page = _page(table, hidden)
    write_csv(table, directory / "coverage.csv")
    write_csv(hidden, directory / "unresolved.csv")
    with replacing(directory / "coverage.html") as part:
        part.write_text(page, encoding="utf-8")
    return directory / "coverage.html"


def hide_few(table: pl.DataFrame) -> pl.DataFrame:
    """The table as it may be shown: counts as text, `<10` for those of fewer subjects, and for events as few of them.

    table: n_events · n_subjects, and perhaps n_subjects_unread; its other columns stay.
    """
    few, hidden = pl.col("n_subjects") < FEWEST_SUBJECTS, pl.lit(f"<{FEWEST_SUBJECTS}")
    hide = {"n_events": few & (pl.col("n_events") < FEWEST_SUBJECTS), "n_subjects": few}
    if "n_subjects_unread" in table.columns:  # none at all is told: it is of no subject
        hide["n_subjects_unread"] = pl.col("n_subjects_unread").is_between(1, FEWEST_SUBJECTS - 1)
    return table.with_columns(
        pl.when(condition).then(hidden).otherwise(pl.col(name).cast(pl.String)).alias(name)
        for name, condition in hide.items()
    )


def write_csv(table: pl.DataFrame, path: Path) -> None:
    """Writes the table whole or not at all."""
    with replacing(path) as part:
        table.write_csv(part, float_precision=4)


@dataclass(frozen=True)
class _Counted:
    """How often which subject has which code.

    subjects, codes: each once. subject, code, events: int64 [n_pairs], places in these, sorted, and the count.
    """

    subjects: pl.Series
    codes: pl.Series
    subject: np.ndarray
    code: np.ndarray
    events: np.ndarray


def _count(events: pl.DataFrame) -> _Counted:
    """Counted as pairs of small integers, which is several times faster than as texts."""
    begins = changes(events["subject_id"].to_numpy())
    subjects = events["subject_id"].filter(begins)
    if subjects.n_unique() < len(subjects):  # one that comes back would be counted as another
        return _count(events.sort("subject_id"))
    code, codes = coded(events["code"])
    n_codes, subject = len(codes), np.cumsum(begins) - 1
    few = len(subjects) * n_codes < 2**31  # half as wide is sorted twice as fast
    pairs = np.sort((subject * n_codes + code).astype(np.int32 if few else np.int64))
    first = np.flatnonzero(changes(pairs))
    subject_of, code_of = np.divmod(pairs[first].astype(np.int64), n_codes)
    return _Counted(subjects, codes, subject_of, code_of, np.diff(np.append(first, len(pairs))))


def _splits_of(subjects: pl.Series, splits: pl.DataFrame | None) -> pl.Series:
    """The split of each subject."""
    if splits is None:
        return pl.repeat("all", len(subjects), eager=True)
    ours = splits.select("subject_id", "split")
    placed = subjects.to_frame().join(ours, on="subject_id", how="left", maintain_order="left")
    return placed["split"].fill_null("(none)")


def _by_split_and_code(counted: _Counted, homes: pl.Series) -> pl.DataFrame:
    """split · code · n_events · n_subjects."""
    home, names = coded(homes)
    n_codes = len(counted.codes)
    pairs = home[counted.subject] * n_codes + counted.code
    n_subjects, n_events = np.bincount(pairs), np.bincount(pairs, weights=counted.events)
    found = np.flatnonzero(n_subjects)
    split, code = np.divmod(found, n_codes)
    return pl.DataFrame(
        {
            "split": names.gather(split),
            "code": counted.codes.gather(code),
            "n_events": n_events[found],
            "n_subjects": n_subjects[found],
        }
    )


def _by_subject_and_kind(counted: _Counted, told: pl.DataFrame, homes: pl.Series) -> pl.DataFrame:
    """subject_id · split · vocabulary · source · words · events, of codes that are told alike together.

    told: code · vocabulary · source · words, in the order of the codes.
    """
    kinds = told.select(_KIND).unique(maintain_order=True)
    numbered = kinds.with_row_index("kind")
    kind = told.join(numbered, on=_KIND, how="left", nulls_equal=True, maintain_order="left")["kind"].to_numpy()
    pairs = pl.DataFrame({"pair": counted.subject * kinds.height + kind[counted.code], "events": counted.events})
    each = pairs.group_by("pair", maintain_order=True).agg(pl.col("events").sum())
    subject, kind_of = np.divmod(each["pair"].to_numpy(), kinds.height)
    whose = {"subject_id": counted.subjects.gather(subject), "split": homes.gather(subject)}
    return kinds[kind_of].with_columns(**whose, events=each["events"])


def _by_subject(known: pl.DataFrame) -> pl.DataFrame:
    events = pl.col("events")
    each = known.group_by(*_GROUP, "subject_id", maintain_order=True).agg(
        *((pl.col("source") == name).any().alias(f"subjects_{name}") for name in SOURCES),
        words=events.filter("words").sum() / events.sum(),
        n_subjects_unread=(~pl.col("words")).any(),
    )
    sums = pl.col("words", "n_subjects_unread", *_BY_SOURCE).sum()
    return each.group_by(_GROUP, maintain_order=True).agg(sums, n_subjects=pl.len())


def _by_event(known: pl.DataFrame) -> pl.DataFrame:
    events = pl.col("n_events")
    return known.group_by(_GROUP).agg(
        *((events.filter(pl.col("source") == name).sum() / events.sum()).alias(name) for name in SOURCES),
        n_events=events.sum(),
        n_codes=pl.col("code").n_unique(),
        words=events.filter("words").sum() / events.sum(),
    )


def _add(one: CoverageCounts, other: CoverageCounts) -> CoverageCounts:
    codes = pl.concat([one.codes, other.codes]).group_by("split", "code").sum()
    return CoverageCounts(codes, pl.concat([one.subjects, other.subjects]).group_by(_GROUP).sum()).typed()


_NOTHING = CoverageCounts(
    pl.DataFrame(schema=["split", "code", *_CODE_COUNTS]), pl.DataFrame(schema=[*_GROUP, "words", *_SUBJECT_COUNTS])
).typed()


def _page(table: pl.DataFrame, unresolved: pl.DataFrame) -> str:
    loader = jinja2.PackageLoader("epicrisis.narrative", "")
    settings = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    order = pl.col("split").replace_strict({"train": 0, "tuning": 1, "held_out": 2}, default=3)
    parts = table.sort(order, maintain_order=True).partition_by("split", maintain_order=True)
    return settings.get_template(_TEMPLATE).render(
        splits={part["split"][0]: part.to_dicts() for part in parts},
        sources=SOURCES,
        unresolved=unresolved.to_dicts(),
        every=EVERY,
        fewest=FEWEST_SUBJECTS,
    )
