"""The visibility rule. It is written here and nowhere else."""

from __future__ import annotations

import polars as pl


def visible(events: pl.LazyFrame, rows: pl.DataFrame, strict: bool, *, keep_order: bool = True) -> pl.LazyFrame:
    """The events that may be seen at each row, one copy per row of the subject.

    An event is visible iff it is static (null time) or its time is at or before the row's prediction_time;
    before it, where `strict`. Columns: subject_id, prediction_time, then the events' others. The events keep
    their order, unless that is not asked for.
    """
    keys = rows.lazy().select("subject_id", "prediction_time")
    time, bound = pl.col("time"), pl.col("prediction_time")
    in_bound = time < bound if strict else time <= bound
    others = pl.exclude("subject_id", "prediction_time")
    joined = events.join(keys, on="subject_id", how="inner", maintain_order="left" if keep_order else "none")
    return joined.filter(time.is_null() | in_bound).select("subject_id", "prediction_time", others)
