"""Sampled futures: narratives that a model wrote on, read back into codes and times, counted into risks.

The share of sampled futures in which something happens estimates its risk without any training for the task
(Renc et al. 2024, doi:10.1038/s41746-024-01235-0; McDermott et al. 2023, arXiv:2306.11547).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl

from epicrisis.llm.sampling import Stop
from epicrisis.narrative import Narrator
from epicrisis.narrative.book import UNNAMED
from epicrisis.narrative.parse import parse
from epicrisis.narrative.times import told_gaps
from epicrisis.settings import InputError, Problem, refuse
from epicrisis.settings.generation_section import VALUE, TargetSettings

RISK_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "target": pl.String,
    "n_samples": pl.UInt32,
    "n_hits": pl.UInt32,
    "n_unfinished": pl.UInt32,
    "n_contradicted": pl.UInt32,
    "n_hits_surely": pl.UInt32,
    "n_hits_possibly": pl.UInt32,
    "probability": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
}

_Z = 1.959963984540054
"""The normal quantile of a 95% interval."""

_NOW = timedelta(0)


@dataclass(frozen=True)
class Target:
    """What is looked for in a future: any of some codes, with a value where asked for, within the horizon.

    compare: `<`, `<=`, `>` or `>=`; None where any value will do, or none. unit: as it is told.
    """

    name: str
    codes: frozenset[str]
    horizon: timedelta
    compare: str | None = None
    threshold: float | None = None
    unit: str | None = None

    def is_met(self) -> pl.Expr:
        """Whether an event (code · numeric_value? · unit?) is one of these; the time is not looked at."""
        met = pl.col("code").is_in(self.codes)
        if self.compare is not None:
            value, threshold = pl.col("numeric_value"), pl.lit(self.threshold, dtype=pl.Float32)
            told = {"<": value < threshold, "<=": value <= threshold, ">": value > threshold, ">=": value >= threshold}
            met &= told[self.compare]
        if self.unit is not None:
            met &= pl.col("unit") == self.unit
        return met.fill_null(False)


@dataclass(frozen=True)
class Sampled:
    """Futures as text, n of each row, and why each ended.

    row: int [n_futures], the place of its row. texts: what was written after the narrative and `opening`.
    ran_out: bool [n_futures], it had as many tokens as it may have, and its last words may be broken off.
    """

    row: np.ndarray
    texts: Sequence[str]
    ran_out: np.ndarray


def check_runs_forward(narrator: Narrator) -> None:
    """Raise InputError where what follows the end of a narrative is not what comes next in time."""
    style = narrator.style
    if not style.invertible:
        raise refuse(
            "narrative.style",
            f"{style.name} tells several codes alike, so that a future told in it cannot be read back",
            "train a run with narrative.style: flat, or timeline with narrative.dates: gap",
        )
    if not narrator.tells_gaps:
        told = "calendar dates" if narrator.dates == "calendar" else "distances back from the prediction time"
        raise refuse(
            "narrative.dates",
            f"times are told as {told}, in which what lies ahead of it has no words",
            "train a run with narrative.dates: gap, or with narrative.style: flat",
        )


def opening(narrator: Narrator) -> str:
    """What stands between the last event of a narrative and what follows it."""
    return narrator.style.sections[-1].group_end


def read_targets(targets: Sequence[TargetSettings], narrator: Narrator) -> list[Target]:
    """The targets with their codes looked up; InputError for what no future told by this narrator could meet."""
    codes = narrator.book.terms["code"]
    read, problems = [], []
    for place, given in enumerate(targets):
        found = codes.filter(_matches(codes, given.codes))
        where = f"generation.targets[{place}]"
        if found.is_empty():
            what = f"`{given.name}` names no code that the run knows"
            problems.append(Problem(f"{where}.codes", what, "write codes as in the data, e.g. ICD10CM//I21*"))
        if given.value is not None and narrator.classes is not None:
            what = "the run tells values as classes, not as numbers"
            problems.append(Problem(f"{where}.value", what, "leave it out, or train a run with narrative.values: raw"))
        read.append(Target(given.name, frozenset(found), timedelta(days=given.horizon_days), **_value(given.value)))
    if problems:
        raise InputError(problems)
    return read


def _matches(codes: pl.Series, patterns: Sequence[str]) -> pl.Series:
    """Equal to one of the patterns, or begins as one that ends in `*`."""
    matched = codes.is_in([pattern for pattern in patterns if not pattern.endswith("*")])
    for pattern in patterns:
        if pattern.endswith("*"):
            matched |= codes.str.starts_with(pattern[:-1])
    return matched


def _value(text: str | None) -> dict[str, Any]:
    """`> 7.0 mmol/L` → compare, threshold, unit."""
    found = VALUE.fullmatch(text) if text is not None else None
    if found is None:
        return {}
    return {"compare": found["compare"], "threshold": float(found["number"]), "unit": found["unit"]}


def horizon_stop(narrator: Narrator, lags: np.ndarray, horizon: timedelta) -> Stop:
    """Stops a future whose gaps have led beyond the horizon, or at its first gap where that contradicts the record.

    lags: int64 [n_rows], microseconds from each row's last told event to its prediction time.
    """
    beyond = horizon // timedelta(microseconds=1)
    known: dict[str, tuple[int, int | None] | None] = {}

    def ended(rows: np.ndarray, texts: list[str]) -> np.ndarray:
        words = [_heads_in(text, narrator) for text in texts]
        new = {word for some in words for word in some} - known.keys()
        if new:
            known.update(_microseconds(pl.Series("words", sorted(new), dtype=pl.String), narrator))
        return np.array([over(some, int(lag)) for some, lag in zip(words, lags[rows], strict=True)], dtype=bool)

    def over(words: list[str], lag: int) -> bool:
        gaps = [gap for gap in (known[word] for word in words) if gap is not None]
        if gaps and gaps[0][1] is not None and gaps[0][1] <= lag:
            return True
        return sum(low for low, _ in gaps) - lag > beyond

    # A flat heading ends at its `;`, one that opens a line at its `:`.
    return Stop(";" if _is_flat(narrator) else ":", ended)


def _is_flat(narrator: Narrator) -> bool:
    """Whether headings stand among the events of one line, rather than at the beginning of lines."""
    return narrator.style.person == "facts"


def _heads_in(text: str, narrator: Narrator) -> list[str]:
    """What may be a heading in a text, if it is whole."""
    if _is_flat(narrator):
        return [part.strip() for part in text.split(";")[:-1]]
    return [line.partition(":")[0] for line in text.split("\n") if ":" in line]


def _microseconds(words: pl.Series, narrator: Narrator) -> dict[str, tuple[int, int | None] | None]:
    """Each word's gap, from at least to below; None where it is no gap."""
    table = told_gaps(words, narrator.gaps).with_columns(pl.col("at_least", "below").dt.total_microseconds())
    return {word: None if low is None else (low, high) for word, low, high in table.iter_rows()}


def read_futures(sampled: Sampled, narrator: Narrator) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The events of futures, and how far each future led.

    Times count from the last event of the narrative: gaps between the events add up, their lower bounds to
    `at_least`, their upper bounds to `below`, which is null where one has no end. What ran out of tokens is read
    up to its last whole event.

    Returns events (future · code? · numeric_value? · unit? · at_least · below?) and, one row per future with any
    gap, ends (future · first_below? · at_least · below?), where first_below is the upper bound of its first gap.
    """
    whole = r"[^;\n]*$"
    text = pl.when("ran_out").then(pl.col("text").str.replace(whole, "")).otherwise("text")
    table = pl.DataFrame({"text": pl.Series(sampled.texts, dtype=pl.String), "ran_out": sampled.ran_out})
    # It begins with an event: the last of the narrative, from which the first gap counts.
    told = table.select(text=pl.lit(UNNAMED + opening(narrator)) + text)["text"]
    events = parse(
        told,
        narrator.book,
        narrator.style,
        dates=narrator.dates,
        gaps=narrator.gaps,
        class_words=narrator.classes.words if narrator.classes else (),
    )
    elapsed = _elapsed(told, narrator)
    events = events.select("narrative", "group", "position", "code", "numeric_value", "unit")
    events = events.filter(pl.col("position") > 0).join(elapsed, on=["narrative", "group"], how="left")
    at_last = pl.col("at_least").is_null()  # before any gap: at the time of the narrative's last event
    events = events.with_columns(
        below=pl.when(at_last).then(pl.lit(_NOW)).otherwise("below"), at_least=pl.col("at_least").fill_null(_NOW)
    )
    gaps = elapsed.filter("heads")
    ends = gaps.group_by("narrative", maintain_order=True).agg(
        first_below=pl.col("below").first(), at_least=pl.col("at_least").last(), below=pl.col("below").last()
    )
    columns = ("code", "numeric_value", "unit", "at_least", "below")
    return events.select("narrative", *columns).rename({"narrative": "future"}), ends.rename({"narrative": "future"})


def _elapsed(told: pl.Series, narrator: Narrator) -> pl.DataFrame:
    """narrative · group (as parse numbers them) · heads · at_least · below?: what the gaps so far add up to."""
    texts = told.rename("text").to_frame().with_row_index("narrative")
    flat = _is_flat(narrator)
    parts = texts.select("narrative", part=pl.col("text").str.split(";" if flat else "\n")).explode("part")
    parts = parts.filter(pl.col("part").str.strip_chars() != "")
    words = pl.col("part").str.strip_chars() if flat else (pl.col("part") + " ").str.splitn(": ", 2).struct[0]
    parts = parts.select("narrative", words=words)
    gaps = told_gaps(parts["words"].unique(), narrator.gaps).with_columns(heads=pl.col("at_least").is_not_null())
    parts = parts.join(gaps, on="words", how="left", maintain_order="left")
    if flat:
        parts = parts.filter("heads").with_columns(group=pl.int_range(1, pl.len() + 1).over("narrative"))
    else:
        parts = parts.with_columns(group=pl.int_range(pl.len()).over("narrative"))
    endless = (pl.col("heads") & pl.col("below").is_null()).cum_max().over("narrative")
    low, high = (pl.col(name).fill_null(_NOW).cum_sum().over("narrative") for name in ("at_least", "below"))
    return parts.select(
        "narrative", pl.col("group").cast(pl.UInt32), "heads", at_least=low, below=pl.when(~endless).then(high)
    )


def count_risks(
    sampled: Sampled, rows: pl.DataFrame, lags: np.ndarray, targets: Sequence[Target], narrator: Narrator
) -> pl.DataFrame:
    """RISK_SCHEMA: in how many of a row's futures each target comes, one line per row and target.

    rows: subject_id · prediction_time. lags: int64 [n_rows], see `horizon_stop`. Of an event that came between
    two times, the middle decides whether that is after the prediction time and within the horizon; where the
    interval has no end, its beginning. n_hits_surely counts futures in which the whole interval lies within,
    n_hits_possibly those in which any of it does.

    A future is contradicted, and left out, where its first events would all have come before the prediction
    time: the record says that nothing came. It is unfinished where it ran out of tokens before the horizon and
    without the target. Unfinished futures are no hits in `probability` and `lower`, and hits in `upper`;
    probability is null where all futures of a row are contradicted. The interval is Wilson's (1927), of the
    sampling alone: it says how well the model's risk is known, not how well the model knows the patient's.
    """
    events, ends = read_futures(sampled, narrator)
    futures = pl.DataFrame({"row": sampled.row.astype(np.uint32), "ran_out": sampled.ran_out}).with_row_index("future")
    futures = futures.with_columns(lag=pl.Series(lags[sampled.row]).cast(pl.Duration("us")))
    contradicted = (pl.col("first_below") <= pl.col("lag")).fill_null(False)
    futures = futures.join(ends, on="future", how="left", maintain_order="left").with_columns(contradicted=contradicted)
    events = events.join(futures.select("future", "lag"), on="future")
    reached = _middle().fill_null(_NOW)
    counted = []
    for number, target in enumerate(targets):
        hits = events.filter(target.is_met()).group_by("future").agg(**_within(target.horizon))
        told = futures.join(hits, on="future", how="left").with_columns(pl.col("hit", "sure", "maybe").fill_null(False))
        unfinished = pl.col("ran_out") & ~pl.col("hit") & (reached < target.horizon)
        kept = ~pl.col("contradicted")
        counts = told.group_by("row").agg(
            n_samples=pl.len(),
            n_hits=(pl.col("hit") & kept).sum(),
            n_unfinished=(unfinished & kept).sum(),
            n_contradicted=(~kept).sum(),
            n_hits_surely=(pl.col("sure") & kept).sum(),
            n_hits_possibly=(pl.col("maybe") & kept).sum(),
        )
        counted.append(counts.with_columns(number=pl.lit(number), target=pl.lit(target.name)))
    keyed = rows.select("subject_id", "prediction_time").with_row_index("row")
    risks = keyed.join(pl.concat(counted), on="row", how="inner").sort("row", "number").with_columns(**_intervals())
    return risks.select(pl.col(name).cast(kind) for name, kind in RISK_SCHEMA.items())


def _middle() -> pl.Expr:
    """The middle of when an event came, from the prediction time on."""
    low, high = pl.col("at_least"), pl.col("below")
    return pl.when(high.is_null()).then(low).otherwise(low + (high - low) / 2) - pl.col("lag")


def _within(horizon: timedelta) -> dict[str, pl.Expr]:
    """hit, sure, maybe: whether any of some events came after the prediction time and within the horizon."""
    low, high = pl.col("at_least") - pl.col("lag"), pl.col("below") - pl.col("lag")
    after = high.is_null() | (high > _NOW)
    return {
        "hit": ((_middle() > _NOW) & (_middle() <= horizon)).any(),
        "sure": (after & (low >= _NOW) & (high <= horizon).fill_null(False)).any(),
        "maybe": (after & (low <= horizon)).any(),
    }


def _intervals() -> dict[str, pl.Expr]:
    n = pl.col("n_samples") - pl.col("n_contradicted")
    hits, possible = pl.col("n_hits"), pl.col("n_hits") + pl.col("n_unfinished")
    return {
        "probability": pl.when(n > 0).then(hits / n),
        "lower": pl.when(n > 0).then(wilson(hits, n, -1)).otherwise(0.0).clip(0, 1),
        "upper": pl.when(n > 0).then(wilson(possible, n, 1)).otherwise(1.0).clip(0, 1),
    }


def wilson(hits: pl.Expr, n: pl.Expr, side: int) -> pl.Expr:
    """One end (side -1 or 1) of the 95% interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    share = hits / n
    spread = _Z * (share * (1 - share) / n + _Z**2 / (4 * n**2)).sqrt()
    return (share + _Z**2 / (2 * n) + side * spread) / (1 + _Z**2 / n)
