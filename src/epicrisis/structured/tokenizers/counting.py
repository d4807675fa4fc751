"""What tokenizers count on train rows: one pass over their events, in bounded memory per part."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from epicrisis.cohort import History
from epicrisis.narrative.patterns import MISSING, Pattern, match_codes
from epicrisis.settings.problems import refuse
from epicrisis.structured.tokenizers.codes import names_of
from epicrisis.structured.tokenizers.values import COUNTS, count_values, merge_counts, told_value
from epicrisis.structured.tokenizers.visits import END, START, roles_of

EVENTS_PER_PART = 2_000_000
LONGEST_TEXT = 100
"""Longer texts are notes, not categories."""

FITTED_ON = "train"
_NAMES = {"name": pl.String, "n_subjects": pl.Int64}
_CODES = {"code": pl.String, "n_events": pl.Int64, "n_subjects": pl.Int64}
_TEXTS = {"code": pl.String, "text": pl.String, "n_subjects": pl.Int64}
_PAIRS = {"subject_id": pl.Int64, "code": pl.String}


@dataclass(frozen=True)
class TrainCounts:
    """Over the train subjects, each at its latest row, so that no event counts twice."""

    codes: pl.DataFrame
    """code · n_events · n_subjects."""
    names: pl.DataFrame
    """name · n_subjects of what codes are told by, see `names_of`."""
    rare: pl.DataFrame
    """subject_id · code of the codes with fewer than min_subjects subjects."""
    values: pl.DataFrame
    """code · unit? · value · n."""
    texts: pl.DataFrame
    """code · text · n_subjects, of events without a number."""
    years: tuple[int, ...]
    """The calendar years of events."""
    has_visits: bool
    """Whether any code starts or ends a visit."""


def told_text() -> pl.Expr:
    """The text of an event as a category: white space folded; null where it says nothing or is a note."""
    text = pl.col("text_value").str.replace_all(r"\s+", " ").str.strip_chars()
    return pl.when(~text.is_in(["", *MISSING]) & (text.str.len_chars() <= LONGEST_TEXT)).then(text)


def latest_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per subject, its latest, which sees all that the others see. InputError for rows of other splits."""
    if "split" in rows.columns and (others := rows.filter(~pl.col("split").eq_missing(pl.lit(FITTED_ON))).height):
        what = f"{others} rows are not of the train split"
        raise refuse("structured.tokenizer", what, "fit it on the train rows only")
    return rows.group_by("subject_id", maintain_order=True).agg(pl.col("prediction_time").max())


def count_train(history: History, patterns: tuple[Pattern, ...], levels: bool, min_subjects: int) -> TrainCounts:
    """history: of `latest_rows`. Raises InputError where it holds no event."""
    total = _nothing()
    for part in history.parts(EVENTS_PER_PART):
        total = _added(total, _count_part(part.events().collect(), patterns, levels), min_subjects)
    if total.codes.is_empty():
        raise refuse("structured.tokenizer", "the train rows see no event", "use rows with a history to fit it on")
    return total


def _nothing() -> TrainCounts:
    codes, names, rare, values, texts = (
        pl.DataFrame(schema=schema) for schema in (_CODES, _NAMES, _PAIRS, COUNTS, _TEXTS)
    )
    return TrainCounts(codes, names, rare, values, texts, years=(), has_visits=False)


def _count_part(events: pl.DataFrame, patterns: tuple[Pattern, ...], levels: bool) -> TrainCounts:
    pairs = events.group_by("subject_id", "code").agg(n=pl.len().cast(pl.Int64))
    codes = pairs.group_by("code").agg(n_events=pl.col("n").sum(), n_subjects=pl.len().cast(pl.Int64))
    matched = match_codes(codes["code"], patterns)
    named = names_of(matched, levels).select("code", name="names").explode("name")
    told = pairs.select("subject_id", "code").join(named, on="code").select("subject_id", "name").unique()
    text = events.filter(pl.col("text_value").is_not_null()).filter(told_value().is_null())
    text = text.select("subject_id", "code", text=told_text()).drop_nulls("text").unique()
    roles = roles_of(matched)
    return TrainCounts(
        codes=codes,
        names=told.group_by("name").agg(n_subjects=pl.len().cast(pl.Int64)),
        rare=pairs.select("subject_id", "code"),
        values=count_values(events),
        texts=text.group_by("code", "text").agg(n_subjects=pl.len().cast(pl.Int64)),
        years=tuple(events["time"].drop_nulls().dt.year().unique().to_list()),
        has_visits=bool(((roles == START) | (roles == END)).any()),
    )


def _added(total: TrainCounts, part: TrainCounts, min_subjects: int) -> TrainCounts:
    """Subjects of different parts differ, so their counts add up."""
    codes = _summed(total.codes, part.codes, ["code"])
    rare = codes.filter(pl.col("n_subjects") < min_subjects).select("code")
    pairs = pl.concat([total.rare, part.rare.select(_PAIRS.keys())]).join(rare, on="code", how="semi")
    return TrainCounts(
        codes=codes,
        names=_summed(total.names, part.names, ["name"]),
        rare=pairs,
        values=merge_counts([total.values, part.values]),
        texts=_summed(total.texts, part.texts, ["code", "text"]),
        years=tuple(sorted({*total.years, *part.years})),
        has_visits=total.has_visits or part.has_visits,
    )


def _summed(one: pl.DataFrame, other: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    return pl.concat([one, other.select(one.columns)]).group_by(keys).agg(pl.exclude(keys).sum()).sort(keys)
