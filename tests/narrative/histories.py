"""Small histories written by hand, and the lookup tables that they are told with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from epicrisis.narrative import Lookups, Narrator, get_style, load_lookups, make_narrator, tell
from epicrisis.narrative.narrator import Dates

SHIPPED = Path(__file__).parents[2] / "lookups"
"""The tables that come with the project."""

EVENT_SCHEMA = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
    "unit": pl.String,
}

NOW = datetime(2020, 6, 15, 12)
"""The prediction time of every row in these tests."""


def at(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def history(events: Sequence[tuple], subject: int = 1, now: datetime = NOW) -> pl.LazyFrame:
    """events: (time or None, code[, value[, unit]]); a value is a number or a text."""
    rows = []
    for time, code, *rest in events:
        value, unit = (*rest, None, None)[:2]
        number = value if isinstance(value, (int, float)) else None
        text = value if isinstance(value, str) else None
        rows.append((subject, now, at(time), code, number, text, unit))
    return pl.LazyFrame(rows, schema=EVENT_SCHEMA, orient="row")


def rows_of(*subjects: int, now: datetime = NOW) -> pl.DataFrame:
    data = {"subject_id": list(subjects), "prediction_time": [now] * len(subjects)}
    return pl.DataFrame(data, schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")})


def tables(folder: Path, codes: pl.DataFrame | None = None, **texts: str) -> Lookups:
    """Lookups from the text of CSV files, e.g. medical="code,term\\nC61,Prostate cancer"."""
    paths = {name: folder / f"{name}.csv" for name in texts}
    for name, text in texts.items():
        paths[name].write_text(text, encoding="utf-8")
    return load_lookups(codes=codes, **paths)


def codes_table(*rows: tuple) -> pl.DataFrame:
    """rows: (code, description or None, [parent codes] or None)."""
    schema = {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def narrator_of(
    events: pl.LazyFrame | pl.DataFrame,
    lookups: Lookups | None = None,
    style: str = "timeline",
    dates: Dates = "relative",
) -> Narrator:
    """A narrator that knows the codes of these events."""
    codes = events.lazy().select("code").collect()["code"]
    return make_narrator(codes, lookups or load_lookups(), get_style(style), dates)


def told_in(
    style: str,
    events: pl.LazyFrame | pl.DataFrame,
    rows: pl.DataFrame,
    lookups: Lookups | None = None,
    dates: Dates = "relative",
    max_tokens: int | None = None,
) -> pl.DataFrame:
    """The narratives of the rows, by a narrator that knows the codes of these events; words count as tokens."""
    narrator = narrator_of(events, lookups, style, dates)
    counter = count_words if max_tokens is not None else None
    return tell(events, rows, narrator, count_tokens=counter, max_tokens=max_tokens).narratives()


def count_words(texts: pa.LargeStringArray) -> np.ndarray:
    """A tokenizer that splits at spaces and counts each `;` and `:` on its own."""
    return np.array(
        [len(text.replace(";", " ; ").replace(":", " : ").split()) for text in texts.to_pylist()], dtype=int
    )
