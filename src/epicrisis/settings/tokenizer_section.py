"""The keys of `structured.tokenizer`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from epicrisis.settings.section import Section


class TokenizerSettings(Section):
    """How events become tokens for models of codes. Where a key is `auto` or not given, the kind has its own way."""

    kind: Literal["clmbr", "cookbook", "cehr", "description", "ethos"] = "clmbr"
    """Whose manner: one token per event, deciles, visits and time tokens, words of descriptions, quantile tokens."""
    min_subjects: int = Field(5, ge=1)
    """Codes, levels and texts of fewer train subjects get no token; a code's parent, or [UNK], stands for them."""
    values: Literal["auto", "none", "joined", "separate"] = "auto"
    """Values left out, one token together with the code, or a token of their own (Q1 to Qn) after the code's."""
    n_bins: int = Field(10, ge=2, le=1000)
    """Quantiles of the values of each code and unit."""
    min_values: int = Field(20, ge=1)
    """A code and unit with fewer train values has no quantiles."""
    top_k: int | None = Field(None, ge=1)
    """Keep only this many tokens of codes and values, ranked by rank_by."""
    rank_by: Literal["frequency", "entropy"] = "frequency"
    """With top_k: by train events, or by the entropy of whether a train subject has the token."""
    time_tokens: Literal["auto", "none", "weeks", "days", "intervals"] = "auto"
    """Between visits W0-W3, M1-M12, LT (weeks) or D1-D1080, LT (days); between events 5m-15m to 6mt (intervals)."""
    visits: Literal["auto", "codes", "days"] = "auto"
    """What a visit is: what codes say and outside of that each day (auto), only what codes say, or each day."""
    visit_tokens: bool | None = None
    """[VS] before and [VE] after each visit."""
    demographics: tuple[Literal["age", "sex", "birth", "year", "static"], ...] | None = None
    """What stands at the front, in this order: age and year when the sequence begins, sex, other undated events."""
    code_levels: bool | None = None
    """ICD-10 codes as category and rest, ATC codes as three levels, with tokens that codes share."""
    vocabulary_size: int = Field(8192, ge=64)
    """description: sub-words trained on the train codes' descriptions."""
    description_tokens: int = Field(32, ge=1)
    """description: longer descriptions are cut to this many sub-words."""
