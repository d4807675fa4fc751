"""Only the most telling tokens of codes and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import polars as pl

from epicrisis.cohort import History
from epicrisis.narrative.coded import NONE
from epicrisis.structured.tokenizers.codes import wholly_named
from epicrisis.structured.tokenizers.counting import EVENTS_PER_PART
from epicrisis.structured.tokenizers.tables import Fitted
from epicrisis.structured.tokenizers.tokenizer import encode_events
from epicrisis.structured.vocabulary import Vocabulary


def most_telling(fitted: Fitted, train: History, top_k: int, rank_by: Literal["frequency", "entropy"]) -> Fitted:
    """Keeps the `top_k` tokens of codes and of values joined to them that rank highest on train.

    rank_by: `frequency`, how often a token occurs, or `entropy`, -p log p - (1 - p) log(1 - p) of the share p of
    subjects that have it. Tokens that codes share (quantiles, texts of their own) are not ranked and stay, as do
    those of time, visits and age. Of equals, the one with the lower id stays. train: one row per subject.
    """
    n_events, n_subjects = _counts(fitted, train)
    rank = n_events.astype(np.float64) if rank_by == "frequency" else _entropy(n_subjects / train.rows.height)
    own = np.zeros(len(fitted.vocabulary), dtype=bool)
    own[fitted.names["id"].to_numpy()] = True
    if fitted.manner.values == "joined":
        own[fitted.bins["tokens"].explode().drop_nulls().to_numpy()] = True
        own[fitted.texts["token"].to_numpy()] = True
    ranked = np.flatnonzero(own & (n_events > 0))
    kept = ~own
    kept[ranked[np.argsort(-rank[ranked], kind="stable")][:top_k]] = True
    return _only(fitted, kept)


def _counts(fitted: Fitted, train: History) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n_tokens] each: how often a token occurs, and in how many rows."""
    size = len(fitted.vocabulary)
    n_events, n_rows = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    for part in train.parts(EVENTS_PER_PART):
        found = encode_events(part.rows, part.events().collect(), fitted)
        n_events += np.bincount(found.tokens, minlength=size)
        row = np.repeat(np.arange(len(found)), found.lengths())
        distinct = np.unique(row * size + found.tokens) % size
        n_rows += np.bincount(distinct, minlength=size)
    return n_events, n_rows


def _entropy(share: np.ndarray) -> np.ndarray:
    """In nats; 0 where all or none have it."""
    other = 1 - share
    inside = (share > 0) & (other > 0)
    logs = np.where(inside, share, 1), np.where(inside, other, 1)
    return -(share * np.log(logs[0]) + other * np.log(logs[1]))


def _only(fitted: Fitted, kept: np.ndarray) -> Fitted:
    """With ids counted anew. A value whose token goes is told by its code, a code by its parent, or by [UNK]."""
    ids = np.where(kept, np.cumsum(kept) - 1, NONE).astype(np.int32)
    tokens = tuple(np.array(fitted.vocabulary.tokens, dtype=object)[kept])
    names = fitted.names.with_columns(id=pl.Series(ids[fitted.names["id"].to_numpy()])).filter(pl.col("id") != NONE)
    bins, texts = fitted.bins, fitted.texts
    sizes = bins["tokens"].list.len().to_list()
    flat = ids[bins["tokens"].explode().drop_nulls().to_numpy()]
    split = [part.tolist() for part in np.split(flat, np.cumsum(sizes)[:-1])] if sizes else []
    bins = bins.with_columns(tokens=pl.Series(split, dtype=pl.List(pl.Int32)))
    texts = texts.with_columns(token=pl.Series(ids[texts["token"].to_numpy()])).filter(pl.col("token") != NONE)
    parents = fitted.parents.filter(pl.col("name").is_in(names["name"].implode()))
    if fitted.manner.values == "separate":
        # A value of its own follows no stranger.
        codes = wholly_named(fitted.named(pl.concat([bins["code"], texts["code"]])), names["name"])
        bins, texts = (table.filter(pl.col("code").is_in(codes.implode())) for table in (bins, texts))
    vocabulary = Vocabulary(tokens)
    return replace(fitted, vocabulary=vocabulary, names=names, parents=parents, bins=bins, texts=texts)
