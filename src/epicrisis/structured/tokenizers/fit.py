"""Fitting: what gets a token, from the train rows alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl

from epicrisis.cohort import History
from epicrisis.corpus.word_pieces import train_word_pieces
from epicrisis.narrative import Lookups, load_lookups
from epicrisis.narrative.lookups import SHIPPED_PATTERNS
from epicrisis.narrative.patterns import Pattern, match_codes, read_patterns
from epicrisis.settings.problems import refuse
from epicrisis.settings.tokenizer_section import TokenizerSettings
from epicrisis.structured.tokenizers.codes import (
    canonical,
    climb,
    gathered_parents,
    names_of,
    parent_links,
    wholly_named,
)
from epicrisis.structured.tokenizers.counting import TrainCounts, count_train, latest_rows
from epicrisis.structured.tokenizers.description import tokens_of
from epicrisis.structured.tokenizers.gaps import TIME_TOKENS
from epicrisis.structured.tokenizers.kinds import KINDS
from epicrisis.structured.tokenizers.manner import Manner, decided
from epicrisis.structured.tokenizers.tables import BIN_TOKENS, IDS, PHRASES, TEXT_TOKENS, Fitted
from epicrisis.structured.tokenizers.tokenizer import AGES, VISIT_CLOSES, VISIT_OPENS, EventTokenizer
from epicrisis.structured.tokenizers.top import most_telling
from epicrisis.structured.tokenizers.values import fit_bins
from epicrisis.structured.vocabulary import SPECIALS, Vocabulary


def fit(
    settings: TokenizerSettings,
    rows: pl.DataFrame,
    history: History,
    codes: pl.DataFrame | None = None,
    lookups: Lookups | None = None,
) -> EventTokenizer:
    """See `fit_tokenizer`."""
    manner = decided(KINDS[settings.kind], settings)
    patterns = lookups.patterns if lookups else read_patterns(SHIPPED_PATTERNS)
    train = replace(history, rows=latest_rows(rows))
    counts = count_train(train, patterns, manner.code_levels, settings.min_subjects)
    if settings.visits == "codes" and not counts.has_visits:
        what = "no train event has a code that starts or ends a visit"
        raise refuse("structured.tokenizer.visits", what, "set it to auto or days")
    if manner.words:
        known = lookups or load_lookups(codes=codes)
        return EventTokenizer(_in_words(settings, manner, counts, patterns, known))
    fitted = _by_names(settings, manner, counts, patterns, codes)
    if settings.top_k is None:
        return EventTokenizer(fitted)
    return EventTokenizer(most_telling(fitted, train, settings.top_k, settings.rank_by))


def _by_names(
    settings: TokenizerSettings,
    manner: Manner,
    counts: TrainCounts,
    patterns: tuple[Pattern, ...],
    codes: pl.DataFrame | None,
) -> Fitted:
    """Where codes have tokens of their own."""
    names, parents = _names_and_parents(settings, manner, counts, patterns, codes)
    tokens = _Tokens([*SPECIALS, *_structural(manner, counts)])
    first = tokens.add(names.to_list())
    ids = pl.DataFrame({"name": names, "id": first}, schema=IDS)
    # A value belongs to a code that has a token itself: told by its parent, it would be the value of another.
    told = names_of(match_codes(counts.codes["code"], patterns), manner.code_levels)
    bins, texts = _value_tokens(settings, manner, counts, wholly_named(told, names), tokens)
    phrases = pl.DataFrame(schema=PHRASES)
    return Fitted(settings, patterns, Vocabulary(tuple(tokens.all)), ids, parents, bins, texts, phrases)


def _in_words(
    settings: TokenizerSettings, manner: Manner, counts: TrainCounts, patterns: tuple[Pattern, ...], lookups: Lookups
) -> Fitted:
    """Where codes are told by their descriptions: every code that has one, whether train has it or not."""
    codes = pl.concat([counts.codes["code"], lookups.codes["code"]]).unique(maintain_order=True)
    resolved = lookups.resolve(codes).select("code", "phrase").drop_nulls()
    trained_on = resolved.filter(pl.col("code").is_in(counts.codes["code"].implode()))["phrase"].unique()
    pieces = train_word_pieces(trained_on.to_list(), settings.vocabulary_size, SPECIALS)
    tokens = _Tokens([*tokens_of(pieces), *_structural(manner, counts)])
    bins, texts = _value_tokens(settings, manner, counts, resolved["code"], tokens)
    names, parents = pl.DataFrame(schema=IDS), pl.DataFrame(schema={"code": pl.String, "name": pl.String})
    vocabulary = Vocabulary(tuple(tokens.all))
    return Fitted(settings, patterns, vocabulary, names, parents, bins, texts, resolved, pieces)


class _Tokens:
    """Tokens in the order of their ids, each once: one whose name is taken gets another name."""

    def __init__(self, tokens: list[str]) -> None:
        self.all = tokens
        self._taken = set(tokens)

    def add(self, names: list[str]) -> np.ndarray:
        """int32 [n_names], the ids of new tokens."""
        first = len(self.all)
        for name in names:
            free, count = name, 1
            while free in self._taken:
                count += 1
                free = f"{name} ({count})"
            self._taken.add(free)
            self.all.append(free)
        return np.arange(first, len(self.all), dtype=np.int32)


def _structural(manner: Manner, counts: TrainCounts) -> list[str]:
    """Tokens that are no event's: of time, visits, age and year."""
    visit = [VISIT_OPENS, VISIT_CLOSES] if manner.visit_tokens else []
    ages = list(AGES) if "age" in manner.demographics else []
    years = [f"YEAR//{year}" for year in counts.years] if "year" in manner.demographics else []
    return [*visit, *TIME_TOKENS[manner.time_tokens], *ages, *years]


def _names_and_parents(
    settings: TokenizerSettings,
    manner: Manner,
    counts: TrainCounts,
    patterns: tuple[Pattern, ...],
    codes: pl.DataFrame | None,
) -> tuple[pl.Series, pl.DataFrame]:
    """The names that get a token, commonest first, and code · name for codes that a parent stands for."""
    common = counts.names.filter(pl.col("n_subjects") >= settings.min_subjects)
    names = common.sort(-pl.col("n_subjects"), "name")["name"]
    links = parent_links(codes, patterns)
    told = names_of(match_codes(counts.codes["code"], patterns), manner.code_levels)
    without = told.filter(~pl.col("names").list.first().is_in(names.implode())).select("code")
    pairs = counts.rare.join(without, on="code", how="semi")
    known = canonical(names, patterns).rename({"code": "name"}).unique("same", keep="first", maintain_order=True)
    made = gathered_parents(pairs, links, known.select("same"), settings.min_subjects).rename("name")
    names = pl.concat([names, made])
    known = pl.concat([known.select("same", "name"), made.to_frame().select(same="name", name="name")])
    orphans = pl.concat([without["code"], links["code"]]).unique(maintain_order=True)
    return names, climb(orphans, links, known)


def _value_tokens(
    settings: TokenizerSettings, manner: Manner, counts: TrainCounts, codes: pl.Series, tokens: _Tokens
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables `bins` and `texts` of `Fitted`, for these codes; their tokens are added."""
    if manner.values == "none":
        return pl.DataFrame(schema=BIN_TOKENS), pl.DataFrame(schema=TEXT_TOKENS)
    values = counts.values.filter(pl.col("code").is_in(codes.implode()))
    bins = fit_bins(values, settings.n_bins, settings.min_values)
    common = (pl.col("n_subjects") >= settings.min_subjects) & pl.col("code").is_in(codes.implode())
    texts = counts.texts.filter(common).sort("code", "text").select("code", "text")
    if manner.values == "joined":
        ids = tokens.add([name for row in bins.iter_rows(named=True) for name in _range_names(row)])
        sizes = bins["quantiles"].list.len().to_list()
        split = [part.tolist() for part in np.split(ids, np.cumsum(sizes)[:-1])] if sizes else []
        text_ids = tokens.add(texts.select(pl.format("{} || {}", "code", "text")).to_series().to_list())
    else:
        reached = bins["quantiles"].explode().drop_nulls().unique().sort().to_list()
        quantile_ids = dict(zip(reached, tokens.add([f"Q{k + 1}" for k in reached]).tolist(), strict=True))
        split = [[quantile_ids[k] for k in row] for row in bins["quantiles"].to_list()]
        distinct = texts["text"].unique().sort()
        named = dict(zip(distinct, tokens.add([f"= {text}" for text in distinct]).tolist(), strict=True))
        text_ids = np.array([named[text] for text in texts["text"]], dtype=np.int32)
    bins = bins.with_columns(tokens=pl.Series(split, dtype=pl.List(pl.Int32)))
    return bins, texts.with_columns(token=pl.Series(text_ids, dtype=pl.Int32))


def _range_names(row: dict) -> list[str]:
    """`LOINC//718-7 || g/dL || 9.1 - 12.3`: values from the first up to, not including, the second."""
    edges = ["-inf", *(f"{start:.4g}" for start in row["starts"]), "inf"]
    return [f"{row['code']} || {row['unit']} || {low} - {high}" for low, high in pairwise(edges)]
