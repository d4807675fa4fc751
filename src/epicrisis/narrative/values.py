"""Numbers told coarsely: classes fitted on the train split, per code and unit, and a laboratory's reference ranges.

The class of a value is that of its mid-rank among the train values of its code and unit: the share of them
below it, plus half the share equal to it, all compared at four significant digits. So a value that many
patients share has one class, however many percentiles fall on it, and order is kept.

| class     | mid-rank            | class      | mid-rank                        |
|-----------|---------------------|------------|---------------------------------|
| very low  | below 5 %           | decile k   | from 10 (k - 1) % to below 10 k % |
| low       | 5 % to below 25 %   | decile 10  | 90 % and above                  |
| average   | 25 % up to 75 %     |            |                                 |
| high      | above 75 up to 95 % |            |                                 |
| very high | above 95 %          |            |                                 |

A value below all train values has rank 0 and one above them all rank 100 %. Values that have no class are
told as they are: those of a code and unit whose train values are too few, or all in one class.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl

from epicrisis.narrative.lookups import Lookups
from epicrisis.narrative.patterns import MISSING, match_codes
from epicrisis.narrative.resolve import one_line
from epicrisis.settings.problems import refuse

Kind = Literal["words", "deciles"]

CLASS_WORDS: dict[Kind, tuple[str, ...]] = {
    "words": ("very low", "low", "average", "high", "very high"),
    "deciles": tuple(f"decile {k}" for k in range(1, 11)),
}
"""What the classes are called, lowest first; a class is an index into these."""

FITTED_ON = "train"
MIN_VALUES = 20
"""Fewer train values of a code and unit than this have no percentiles worth telling."""

KEY = ("code", "unit")
COUNT_SCHEMA: dict[str, type[pl.DataType]] = {
    "code": pl.String,
    "unit": pl.String,
    "value": pl.Float32,
    "n": pl.Int64,
}
EDGES_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "code": pl.String,
    "unit": pl.String,
    "n": pl.Int64,
    "edges": pl.List(pl.Float32),
}

_DIGITS = 4
_LARGEST = 3.402e38
_SMALLEST = 1.176e-38
"""Float32 numbers of four digits that are neither infinite nor subnormal, which some libraries take for zero."""

_CHUNK = 1 << 17


@dataclass(frozen=True)
class _Cut:
    """Where one class ends and the next begins."""

    percent: int
    opens: bool = True
    """Whether a mid-rank of exactly this belongs to the class above."""


_CUTS: dict[Kind, tuple[_Cut, ...]] = {
    "words": (_Cut(5), _Cut(25), _Cut(75, opens=False), _Cut(95, opens=False)),
    "deciles": tuple(_Cut(percent) for percent in range(10, 100, 10)),
}


@dataclass(frozen=True)
class ValueClasses:
    """Where the classes of each code and unit begin, as fitted on the train split."""

    kind: Kind
    edges: pl.DataFrame
    """code · unit? · n (train values) · edges list[f32], ascending: a value, at four digits, has reached class k
    where it is at least edges[k - 1]. Sorted and unique by code and unit; only those that have classes."""
    split: str = FITTED_ON
    """The split it was fitted on."""

    @property
    def words(self) -> tuple[str, ...]:
        """What the classes are called, lowest first."""
        return CLASS_WORDS[self.kind]

    def classify(self, keys: pl.DataFrame, key_of_event: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The class of each value.

        keys: code · unit?, units as events have them. key_of_event: int32 [n], the row of `keys` that an event
        has, -1 for none. values: f32 [n], NaN for none.

        Returns: int16 [n], an index into `words`; -1 where there is none: no finite value, or a code and unit
        without classes. Raises ValueError for a key that `keys` does not have.
        """
        _check_keys(keys, key_of_event)
        edges = self._edges_of(keys)
        # the last column stands for "no key", which -1 selects
        lowest = np.where(np.isnan(edges[0]), -1, 0).astype(np.int16)
        classes = np.empty(len(values), dtype=np.int16)
        for start in range(0, len(values), _CHUNK):
            part = slice(start, start + _CHUNK)
            rounded, key = _rounded(values[part]), key_of_event[part]
            found = np.where(np.isnan(rounded), np.int16(-1), lowest[key])
            for edge in edges:
                found += rounded >= edge[key]
            classes[part] = found
        return classes

    def _edges_of(self, keys: pl.DataFrame) -> np.ndarray:
        """f32 [n_classes - 1, n_keys + 1]; NaN for keys without classes and in the last column."""
        n_edges = len(self.words) - 1
        units = keys.select(pl.col("code").cast(pl.String), told_unit())
        found = units.join(self.edges, on=KEY, how="left", nulls_equal=True, maintain_order="left")
        columns = found.select(pl.col("edges").list.get(k, null_on_oob=True).alias(str(k)) for k in range(n_edges))
        padded = np.full((n_edges, keys.height + 1), np.nan, dtype=np.float32)
        padded[:, :-1] = columns.to_numpy().T
        return padded

    def save(self, path: Path) -> None:
        """Written as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            unfinished.write_text(self._json(), encoding="utf-8")
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> ValueClasses:
        """What `save` wrote; InputError where it is missing, broken, or fitted on anything but train."""
        fix = "fit the classes again, by preparing the data anew"
        if not path.is_file():
            raise refuse(str(path), "there are no value classes here", fix)
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            kind, split = tree["kind"], tree["split"]
            edges = pl.DataFrame(tree["classes"], schema=EDGES_SCHEMA, orient="row")
        except (ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            raise refuse(str(path), f"holds no value classes ({type(error).__name__})", fix) from None
        if kind not in get_args(Kind) or not _are_sound(edges, len(CLASS_WORDS[kind]) - 1):
            raise refuse(str(path), "holds no value classes of a kind that is known", fix)
        if split != FITTED_ON:
            raise refuse(str(path), f"the value classes were fitted on {split!r}", "fit them on the train split")
        return cls(kind, edges, split)

    def fingerprint(self) -> str:
        """A hash of all that decides a value's class."""
        return hashlib.blake2b(self._json().encode(), digest_size=16).hexdigest()

    def _json(self) -> str:
        return json.dumps({"kind": self.kind, "split": self.split, "classes": self.edges.to_dicts()})


def _are_sound(edges: pl.DataFrame, n_edges: int) -> bool:
    of_length = (edges["edges"].list.len() == n_edges).all(ignore_nulls=False)
    finite = pl.element().is_finite().fill_null(False)
    ascending = edges["edges"].list.eval(finite & (pl.element().diff().fill_null(0.0) >= 0)).list.all().all()
    return bool(of_length and ascending and not edges.select(KEY).is_duplicated().any())


def count_values(events: pl.DataFrame) -> pl.DataFrame:
    """How often each value of each code and unit occurs.

    events: code · numeric_value? · unit?, of the train split; further columns are ignored. Returns, sorted and
    unique: code · unit? · value (four significant digits) · n. There are at most some 9,000 values per power
    of ten, so counts of shards stay small and can be added up (`merge_values`). Numbers that are not told (NaN,
    infinity) do not count. Raises InputError for a column `split` that holds anything but train.
    """
    _refuse_other_splits(events)
    names = pl.col(KEY).cast(pl.String)
    numbers = events.select(names, value=_four_digits(pl.col("numeric_value"))).drop_nulls(["code", "value"])
    # Units are few: each is folded once.
    units = numbers.select("unit").unique().with_columns(told_unit().alias("told"))
    told = numbers.join(units, on="unit", nulls_equal=True).select("code", "value", unit="told")
    counted = told.group_by(*KEY, "value").agg(n=pl.len().cast(pl.Int64))
    return counted.select(COUNT_SCHEMA.keys()).sort(*KEY, "value")


def merge_values(counts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Counts of several shards as counts of all of them; see `count_values`."""
    whole = pl.concat([pl.DataFrame(schema=COUNT_SCHEMA), *(part.select(COUNT_SCHEMA.keys()) for part in counts)])
    return whole.group_by(*KEY, "value").agg(pl.col("n").sum()).sort(*KEY, "value")


def fit_classes(counts: pl.DataFrame, kind: Kind, min_values: int = MIN_VALUES) -> ValueClasses:
    """The classes of every code and unit of which the train split has enough values, in more than one class.

    counts: as `count_values` returns them. Raises InputError for a column `split` that holds anything but train.
    """
    _refuse_other_splits(counts)
    ranked = _ranked(merge_values([counts])).filter(pl.col("total") >= min_values)
    cuts = _CUTS[kind]
    at_values = ranked.with_columns(at=pl.sum_horizontal(_reached("rank", cut) for cut in cuts))
    several = at_values.group_by(KEY).agg(pl.col("at").n_unique()).filter(pl.col("at") > 1)
    steps = _steps(ranked.join(several, on=KEY, how="semi", nulls_equal=True))
    first = [pl.col("from").filter(_reached("rank", cut)).min() for cut in cuts]
    edges = steps.group_by(KEY).agg(pl.col("total").first().alias("n"), edges=pl.concat_list(first))
    return ValueClasses(kind, edges.select(pl.col(name).cast(to) for name, to in EDGES_SCHEMA.items()).sort(KEY))


def _ranked(counts: pl.DataFrame) -> pl.DataFrame:
    """With twice the mid-rank of each value, counted in train values (`rank`), and twice those up to it (`upto`)."""
    n = pl.col("n")
    upto = n.cum_sum().over(KEY)
    return counts.select(*KEY, "value", rank=2 * upto - n, upto=2 * upto, total=n.sum().over(KEY))


def _reached(twice_rank: str, cut: _Cut) -> pl.Expr:
    """Whether a rank is beyond the cut, in whole numbers: no rounding decides about a class."""
    rank, bar = 100 * pl.col(twice_rank), cut.percent * 2 * pl.col("total")
    return rank >= bar if cut.opens else rank > bar


def _steps(ranked: pl.DataFrame) -> pl.DataFrame:
    """The rank as a step function: code · unit · total · from · rank, two steps per value, on it and past it."""
    value = ranked["value"].to_numpy()
    past = np.where(value == 0, np.float32(_SMALLEST), np.nextafter(value, np.float32(np.inf)))
    on_it = ranked.select(*KEY, "total", "rank", pl.col("value").alias("from"))
    past_it = ranked.select(*KEY, "total", rank="upto", **{"from": pl.Series(past, dtype=pl.Float32)})
    return pl.concat([on_it, past_it])


def told_unit(column: str = "unit") -> pl.Expr:
    """The unit as a narrative tells it: white space folded, null where it says nothing (`UNK`, empty)."""
    unit = one_line(column)
    return pl.when(~unit.is_in(MISSING)).then(unit).alias(column)


def _four_digits(value: pl.Expr) -> pl.Expr:
    """The value at four significant digits as float32; minus zero is zero, NaN and infinity are null."""
    value = value.cast(pl.Float32)
    rounded = value.round_sig_figs(_DIGITS).clip(-_LARGEST, _LARGEST)
    told = pl.when(rounded.abs() < _SMALLEST).then(0.0).otherwise(rounded).cast(pl.Float32)
    return pl.when(value.is_finite()).then(told)


def _rounded(values: np.ndarray) -> np.ndarray:
    """`_four_digits` of an array; NaN for no value."""
    return pl.DataFrame({"value": values}).select(_four_digits(pl.col("value"))).to_series().to_numpy()


def _refuse_other_splits(table: pl.DataFrame) -> None:
    if "split" not in table.columns:
        return
    others = table.filter(~pl.col("split").eq_missing(pl.lit(FITTED_ON)))
    if others.height:
        what = f"{others.height} rows are not of the train split"
        raise refuse("value classes", what, "fit them on the train split only: keep its events")


def _check_keys(keys: pl.DataFrame, key_of_event: np.ndarray) -> None:
    if len(key_of_event) and not -1 <= key_of_event.min() <= key_of_event.max() < keys.height:
        raise ValueError(f"key_of_event names rows that the {keys.height} keys do not have")


def range_table(codes: pl.Series, lookups: Lookups) -> pl.DataFrame:
    """The reference ranges of the distinct codes that the laboratory table has one for.

    A table may name a code in full (`LOINC//2160-0`), or by the bare code inside it (`2160-0`) where the
    pattern table says that this is a laboratory's; the fuller name wins.

    Returns, sorted: code · unit? · low? · high? (f32; a side that is null is open) · own_unit? (which the code
    itself names), one row per code and unit. Raises InputError where low is above high.
    """
    distinct = codes.cast(pl.String).drop_nulls().unique(maintain_order=True)
    bare = pl.when(pl.col("table") == "lab").then("key")
    full = pl.col("vocabulary") + "//" + pl.col("key")
    matched = match_codes(distinct, lookups.patterns)
    names = matched.select("code", own_unit=told_unit(), name=pl.concat_list("code", full, bare)).explode("name")
    found = names.join(_known_ranges(lookups.ranges), on="name", how="inner", maintain_order="left")
    found = found.unique(["code", "unit"], keep="first", maintain_order=True)
    reversed_ = found.filter(pl.col("low") > pl.col("high"))
    if reversed_.height:
        shown = ", ".join(reversed_["code"].head(5))
        what = f"{reversed_.height} codes have a low above their high (first: {shown})"
        raise refuse("data.lab_lookup_filepath", what, "exchange the two")
    return found.select("code", "unit", "low", "high", "own_unit").sort("code", "unit")


def _known_ranges(ranges: pl.DataFrame | None) -> pl.DataFrame:
    schema = {"name": pl.String, "unit": pl.String, "low": pl.Float32, "high": pl.Float32}
    if ranges is None:
        return pl.DataFrame(schema=schema)
    # Bounds as float32, as values are: 0.1 as a float32 is more than 0.1 as a float64.
    sides = [pl.col(side).cast(pl.Float32).fill_nan(None) for side in ("low", "high")]
    known = ranges.select(pl.col("code").alias("name"), told_unit(), *sides)
    return known.filter(pl.any_horizontal(pl.col("low", "high").is_not_null()))


def flag_values(keys: pl.DataFrame, key_of_event: np.ndarray, values: np.ndarray, ranges: pl.DataFrame) -> np.ndarray:
    """Where each value lies in its reference range, whose two ends are normal.

    keys, key_of_event, values: as in `ValueClasses.classify`. ranges: as `range_table` returns them, for the
    codes of the keys. A range holds where its unit is the event's own, or, where the event has none, the one
    that the code names, compared but for white space. In any other unit nothing is known.

    Returns: int8 [n]: -1 unknown · 0 low · 1 normal · 2 high. Raises ValueError for a key that `keys` does not
    have.
    """
    _check_keys(keys, key_of_event)
    own = ranges.select("code", "own_unit").unique()
    units = keys.select(pl.col("code").cast(pl.String), told_unit())
    units = units.join(own, on="code", how="left", maintain_order="left")
    units = units.select("code", unit=pl.coalesce("unit", "own_unit"))
    known = ranges.select(*KEY, pl.col("low").fill_null(-np.inf), pl.col("high").fill_null(np.inf))
    bounds = units.join(known, on=KEY, how="left", nulls_equal=True, maintain_order="left")
    # the last entry stands for "no key", which -1 selects
    low, high = (np.append(bounds[side].to_numpy(), np.float32(np.nan))[key_of_event] for side in ("low", "high"))
    unknown = np.isnan(low) | ~np.isfinite(values)
    flags = 1 + (values > high).astype(np.int8) - (values < low).astype(np.int8)
    return np.where(unknown, np.int8(-1), flags)
