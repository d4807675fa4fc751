"""What each event is told with: the tokens of its code and of its value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from epicrisis.narrative.coded import NONE, coded, renumbered
from epicrisis.narrative.patterns import match_codes
from epicrisis.structured.tokenizers.codes import names_of, tokens_of_names
from epicrisis.structured.tokenizers.counting import told_text
from epicrisis.structured.tokenizers.description import word_piece_ids
from epicrisis.structured.tokenizers.layout import Pieces
from epicrisis.structured.tokenizers.tables import Fitted
from epicrisis.structured.tokenizers.values import Binner, told_value
from epicrisis.structured.tokenizers.visits import roles_of
from epicrisis.structured.vocabulary import UNKNOWN


@dataclass(frozen=True)
class Coded:
    """Events' tokens; arrays are [n_events]."""

    code: np.ndarray
    """int32, the piece that tells the code, or code and value in one."""
    value: np.ndarray
    """int32, the value's own token; NONE where it has none."""
    role: np.ndarray
    """int8, see `roles_of`."""


def told_codes(codes: pl.Series, fitted: Fitted) -> pl.DataFrame:
    """code · vocabulary · role · tokens · source of distinct codes, in their order; source as `tokens_of_names`."""
    matched = match_codes(codes.rename("code"), fitted.patterns)
    named = names_of(matched, fitted.manner.code_levels).with_columns(role=roles_of(matched))
    told = _in_words(named, fitted) if fitted.manner.words else tokens_of_names(named, fitted.names, fitted.parents)
    whole = named.select("code", "vocabulary", "role").join(told, on="code", how="left")
    return codes.rename("code").to_frame().join(whole, on="code", how="left", maintain_order="left")


def _in_words(named: pl.DataFrame, fitted: Fitted) -> pl.DataFrame:
    assert fitted.word_pieces is not None, "fit() trains them for manners that tell words"
    phrases = named.select("code").join(fitted.phrases, on="code", how="left", maintain_order="left")["phrase"]
    most = fitted.settings.description_tokens
    ids = [piece or [UNKNOWN] for piece in word_piece_ids(fitted.word_pieces, phrases.fill_null("").to_list(), most)]
    unknown = [all(number == UNKNOWN for number in piece) for piece in ids]
    source = pl.select(pl.when(pl.Series(unknown, dtype=pl.Boolean)).then(pl.lit("unknown")).otherwise(pl.lit("known")))
    return named.select("code", tokens=pl.Series(ids, dtype=pl.List(pl.Int32)), source=source.to_series())


def code_events(events: pl.DataFrame, fitted: Fitted, pieces: Pieces) -> Coded:
    """events: code · numeric_value · text_value · unit, in any order."""
    code, codes = coded(events["code"])
    told = told_codes(codes, fitted)
    numbers = pieces.add(told["tokens"].to_list())
    whole, role = numbers[code], told["role"].to_numpy()[code]
    if fitted.manner.values == "none":
        return Coded(whole, np.full(len(code), NONE, dtype=np.int32), role)
    token = np.full(len(code), NONE, dtype=np.int32)
    _number_tokens(token, events, code, codes, fitted)
    _text_tokens(token, events, code, codes, fitted)
    if fitted.manner.values == "separate":
        return Coded(whole, token, role)
    return Coded(np.where(token != NONE, token, whole), np.full(len(code), NONE, dtype=np.int32), role)


def _number_tokens(token: np.ndarray, events: pl.DataFrame, code: np.ndarray, codes: pl.Series, fitted: Fitted) -> None:
    values = events.select(told_value()).to_series()
    which = np.flatnonzero(values.is_not_null().to_numpy())
    if not len(which) or fitted.bins.is_empty():
        return
    unit, units = coded(events["unit"].gather(which))
    n_units = len(units) + 1
    key, distinct = renumbered(code[which].astype(np.int64) * n_units + unit + 1, len(codes) * n_units)
    code_of, unit_of = np.divmod(distinct, n_units)
    names = pl.concat([units.cast(pl.String), pl.Series([None], dtype=pl.String)])
    keys = pl.DataFrame({"code": codes.gather(code_of), "unit": names.gather((unit_of - 1) % n_units)})
    binner = Binner(fitted.bins)
    place = binner.places(keys)[key]
    which, place = which[place != NONE], place[place != NONE]
    found = binner.bins(place, values.gather(which).to_numpy())
    sizes = fitted.bins["tokens"].list.len().to_numpy().astype(np.int64)
    flat = fitted.bins["tokens"].explode().to_numpy()
    token[which] = flat[(np.cumsum(sizes) - sizes)[place] + found]


def _text_tokens(token: np.ndarray, events: pl.DataFrame, code: np.ndarray, codes: pl.Series, fitted: Fitted) -> None:
    """Texts of events without a number."""
    without = events["text_value"].is_not_null() & events.select(told_value().is_null()).to_series()
    which = np.flatnonzero(without.to_numpy())
    if not len(which) or fitted.texts.is_empty():
        return
    text, texts = coded(events["text_value"].gather(which))
    pair, pairs = coded(pl.Series(code[which].astype(np.int64) * len(texts) + text))
    code_of, text_of = np.divmod(pairs.to_numpy(), len(texts))
    asked = pl.DataFrame({"code": codes.gather(code_of), "text_value": texts.gather(text_of)})
    told = asked.select("code", text=told_text())
    found = told.join(fitted.texts, on=["code", "text"], how="left", maintain_order="left")["token"]
    token[which] = found.fill_null(NONE).to_numpy()[pair]
