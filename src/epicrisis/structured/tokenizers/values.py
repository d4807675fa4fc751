"""Numbers as quantiles of the train values of their code and unit.

The quantile of a value is that of its mid-rank: the share of train values below it plus half the share equal to
it, at four significant digits. Quantiles that no train value has do not exist: a value lies in the highest of the
quantiles that begin at or below it. So repeated values make no bin that nothing reaches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from epicrisis.narrative.coded import NONE
from epicrisis.narrative.values import told_unit

KEY = ("code", "unit")
COUNTS: dict[str, pl.DataType | type[pl.DataType]] = {
    "code": pl.String,
    "unit": pl.String,
    "value": pl.Float32,
    "n": pl.Int64,
}
BINS: dict[str, pl.DataType | type[pl.DataType]] = {
    "code": pl.String,
    "unit": pl.String,
    "starts": pl.List(pl.Float32),
    "quantiles": pl.List(pl.Int32),
}

_NUMBER = r"^[+-]?\d+(?:\.\d+)?$"
_DIGITS = 4
_LARGEST = 3.402e38
_CHUNK = 1 << 17


def told_value() -> pl.Expr:
    """The value at four significant digits, minus zero as zero; null where there is none that is finite.

    A text that is nothing but a number counts where there is no number: some data have results as text only.
    """
    written = pl.col("text_value").str.strip_chars()
    written = pl.when(written.str.contains(_NUMBER)).then(written).cast(pl.Float32, strict=False)
    return pl.coalesce(_four_digits(pl.col("numeric_value").cast(pl.Float32)), _four_digits(written))


def _four_digits(value: pl.Expr) -> pl.Expr:
    rounded = value.round_sig_figs(_DIGITS).clip(-_LARGEST, _LARGEST)
    return pl.when(value.is_finite()).then(pl.when(rounded == 0).then(0.0).otherwise(rounded)).cast(pl.Float32)


def count_values(events: pl.DataFrame) -> pl.DataFrame:
    """code · unit? · value · n of the events that have a finite value. Units as `told_unit` folds them."""
    numbers = events.select("code", "unit", value=told_value()).drop_nulls("value")
    counted = numbers.group_by("code", "unit", "value").agg(n=pl.len().cast(pl.Int64))
    units = counted.select("unit").unique().with_columns(told=told_unit())
    return (
        counted.join(units, on="unit", nulls_equal=True).select("code", "value", "n", unit="told").select(COUNTS.keys())
    )


def merge_counts(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Counts of several parts as counts of all."""
    whole = pl.concat([pl.DataFrame(schema=COUNTS), *parts])
    return whole.group_by(*KEY, "value").agg(pl.col("n").sum()).sort(*KEY, "value")


def fit_bins(counts: pl.DataFrame, n_bins: int, min_values: int) -> pl.DataFrame:
    """code · unit? · starts · quantiles, one row per code and unit with `min_values` train values.

    counts: as `merge_counts` returns them. starts: where each bin but the lowest begins, ascending. quantiles: of
    each bin, from 0 to n_bins - 1, ascending; one more than starts.
    """
    n, total = pl.col("n"), pl.col("n").sum().over(KEY)
    twice_rank = 2 * n.cum_sum().over(KEY) - n
    ranked = counts.sort(*KEY, "value").with_columns(total=total, quantile=twice_rank * n_bins // (2 * total))
    ranked = ranked.filter(pl.col("total") >= min_values)
    bins = ranked.group_by(*KEY, "quantile", maintain_order=True).agg(start=pl.col("value").min())
    whole = bins.group_by(KEY, maintain_order=True).agg(
        starts=pl.col("start").sort().slice(1), quantiles=pl.col("quantile").sort()
    )
    return whole.select(pl.col(name).cast(kind) for name, kind in BINS.items())


class Binner:
    """Finds values' bins. bins: as `fit_bins` returns them."""

    def __init__(self, bins: pl.DataFrame) -> None:
        self._keys = bins.select(*KEY).with_row_index("bins")
        most = max([1, *bins["quantiles"].list.len()])
        # What lies beyond a code's own starts is never reached.
        self._starts = _padded(bins["starts"], most - 1, np.nan, np.float32)

    def places(self, keys: pl.DataFrame) -> np.ndarray:
        """int64 [n_keys], the row of `bins` of each code · unit? (as events have it); NONE where there is none."""
        told = keys.select("code", told_unit())
        found = told.join(self._keys, on=KEY, how="left", nulls_equal=True, maintain_order="left")["bins"]
        return found.cast(pl.Int64).fill_null(NONE).to_numpy()

    def bins(self, places: np.ndarray, values: np.ndarray) -> np.ndarray:
        """int32 [n], which of its code's bins each value lies in.

        places: rows of `bins`, none of them NONE. values: float32, finite, as `told_value` has them.
        """
        found = np.zeros(len(values), dtype=np.int32)
        for begin in range(0, len(values), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            for start in self._starts:
                found[part] += values[part] >= start[places[part]]
        return found


def _padded(lists: pl.Series, width: int, filling: float, kind: type) -> np.ndarray:
    """[width, n_lists], each list a column."""
    columns = [lists.list.get(k, null_on_oob=True).fill_null(filling).to_numpy() for k in range(width)]
    return np.array(columns, dtype=kind).reshape(width, len(lists))
