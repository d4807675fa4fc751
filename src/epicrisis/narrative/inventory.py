"""What the events of a shard are told with: each distinct phrase and number once, and who uses which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from epicrisis.narrative.coded import NONE, coded, renumbered
from epicrisis.narrative.narrator import Narrator
from epicrisis.narrative.phrases import phrase_rows, value_text

_PLAIN, _NUMBER, _CLASS = 0, 1, 2
"""How a code and unit are told: without a value, with digits, or with the value class 0, 1, … in words."""


@dataclass(frozen=True)
class Inventory:
    """The distinct phrases and numbers, and for each event which of them tell it.

    phrases: before · after? · code · role · …, one row per distinct code × unit × value class or text;
    numbers: the digits, each once. phrase, number: int32 [n_events], rows of these; number is NONE where the
    phrase has none. keys: the distinct code · unit?; key: int32 [n_events].
    """

    phrases: pl.DataFrame
    numbers: pl.Series
    phrase: np.ndarray
    number: np.ndarray
    keys: pl.DataFrame
    key: np.ndarray


def take_inventory(events: pl.DataFrame, narrator: Narrator) -> Inventory:
    """events: code · numeric_value · text_value · unit, in any order."""
    keys, key = _keys(events)
    values = events["numeric_value"].cast(pl.Float32).to_numpy()
    how = _how_told(keys, key, values, narrator)
    words = narrator.classes.words if narrator.classes else ()
    n_forms = _CLASS + len(words)
    phrase, distinct = renumbered(key.astype(np.int64) * n_forms + how, keys.height * n_forms)
    table = _forms(keys, distinct, n_forms)
    texts = (how == _PLAIN) & events["text_value"].is_not_null().to_numpy()
    if texts.any():
        phrase, table = _with_texts(phrase, table, events["text_value"].filter(texts), texts)
    number, numbers = coded(pl.Series(np.where(how == _NUMBER, values + np.float32(0), np.nan)).fill_nan(None))
    return Inventory(phrase_rows(table, narrator.book, class_words=words), _digits(numbers), phrase, number, keys, key)


def _keys(events: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray]:
    """The distinct codes and units, and which of them each event has."""
    code, codes = coded(events["code"])
    unit, units = coded(events["unit"])
    n_units = len(units) + 1
    key, distinct = renumbered((code + 1).astype(np.int64) * n_units + unit + 1, (len(codes) + 1) * n_units)
    code_of, unit_of = np.divmod(distinct, n_units)
    keys = {"code": _gathered(codes, code_of - 1), "unit": _gathered(units, unit_of - 1)}
    return pl.DataFrame(keys, schema={"code": pl.String, "unit": pl.String}), key


def _gathered(values: pl.Series, places: np.ndarray) -> pl.Series:
    """values[places], null for NONE."""
    return pl.concat([values, values.clear(1)]).gather(np.where(places == NONE, len(values), places))


def _how_told(keys: pl.DataFrame, key: np.ndarray, values: np.ndarray, narrator: Narrator) -> np.ndarray:
    finite = np.isfinite(values)
    if narrator.classes is None:
        return np.where(finite, _NUMBER, _PLAIN)
    found = narrator.classes.classify(keys, key, values)
    return np.where(found >= 0, _CLASS + found, np.where(finite, _NUMBER, _PLAIN))


def _forms(keys: pl.DataFrame, distinct: np.ndarray, n_forms: int) -> pl.DataFrame:
    """code · has_number · value_class? · text_value (null) · unit? of the forms of keys that occur."""
    key, how = np.divmod(distinct, n_forms)
    classes = pl.Series(how - _CLASS, dtype=pl.Int16)
    return keys[key].select(
        "code",
        has_number=pl.Series(how == _NUMBER),
        value_class=classes.set(classes < 0, None),
        text_value=pl.lit(None, pl.String),
        unit="unit",
    )


def _with_texts(
    phrase: np.ndarray, table: pl.DataFrame, texts: pl.Series, which: np.ndarray
) -> tuple[np.ndarray, pl.DataFrame]:
    """The same with rows of their own for the texts that some events have in place of a number."""
    text, distinct_texts = coded(texts)
    pair, pairs = coded(pl.Series(phrase[which].astype(np.int64) * len(distinct_texts) + text))
    form, text_of = np.divmod(pairs.to_numpy(), len(distinct_texts))
    told = table[form].with_columns(text_value=distinct_texts.gather(text_of))
    phrase = phrase.copy()
    phrase[which] = table.height + pair
    return phrase, pl.concat([table, told])


def _digits(numbers: pl.Series) -> pl.Series:
    table = pl.DataFrame({"numeric_value": numbers}).with_columns(text_value=pl.lit(None, pl.String))
    return table.select(value_text()).to_series()
