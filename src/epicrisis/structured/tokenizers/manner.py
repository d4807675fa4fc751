"""What a kind of tokenizer does where the settings leave it the choice, and what it cannot do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from epicrisis.settings.problems import InputError, Problem
from epicrisis.settings.tokenizer_section import TokenizerSettings

Values = Literal["none", "joined", "separate"]
TimeTokens = Literal["none", "weeks", "days", "intervals"]
Demographic = Literal["age", "sex", "birth", "year", "static"]


@dataclass(frozen=True)
class Manner:
    """A kind's own way of doing what `TokenizerSettings` leaves open; the fields are named as its keys are."""

    name: str
    version: int
    """A change in the tokens that it makes is a new version of it."""
    values: Values
    time_tokens: TimeTokens = "none"
    visit_tokens: bool = False
    demographics: tuple[Demographic, ...] = ("sex", "static", "birth")
    code_levels: bool = False
    words: bool = False
    """Codes are told in the words of their descriptions."""
    one_token: bool = False
    """An event is one token, whatever the settings."""

    @property
    def label(self) -> str:
        """Name and version: `clmbr@1`."""
        return f"{self.name}@{self.version}"


OPEN = ("values", "time_tokens", "visit_tokens", "demographics", "code_levels")
"""What settings may decide otherwise."""


def decided(manner: Manner, settings: TokenizerSettings) -> Manner:
    """The manner with what the settings decide. Raises InputError with all that does not go together."""
    asked: dict[str, Any] = {
        key: value for key in OPEN if (value := getattr(settings, key)) is not None and value != "auto"
    }
    made = replace(manner, **asked)
    problems = [
        Problem(f"structured.tokenizer.{key}", what, fix) for key, what, fix in _contradictions(made, settings, asked)
    ]
    if problems:
        raise InputError(problems)
    return made


def _contradictions(made: Manner, settings: TokenizerSettings, asked: dict[str, Any]) -> list[tuple[str, str, str]]:
    found, kind, given = [], made.name, settings.model_fields_set
    if made.one_token:
        other = "choose the kind cookbook, cehr or ethos, or leave it out"
        wrong = {"values": made.values == "separate", "time_tokens": made.time_tokens != "none"}
        wrong |= {"visit_tokens": made.visit_tokens, "code_levels": made.code_levels}
        found += [(key, f"{kind} tells an event as one token", other) for key, is_so in wrong.items() if is_so]
    elif made.code_levels and made.values == "joined":
        found.append(("code_levels", "a value joined to a code of several tokens is no one's", "set values: separate"))
    if made.words:
        if made.values == "joined":
            found.append(("values", "words have no token to join a value to", "use separate or none"))
        if made.code_levels:
            found.append(("code_levels", "the words of a description have no levels", "leave it out"))
        if settings.top_k is not None:
            found.append(("top_k", "sub-words are limited by vocabulary_size", "set that instead"))
    elif words := sorted(given & {"vocabulary_size", "description_tokens"}):
        found += [(key, f"{kind} has no sub-words", "leave it out, or choose kind: description") for key in words]
    if made.values == "none":
        unused = sorted(given & {"n_bins", "min_values"})
        found += [(key, f"{kind} is set to leave values out", "set values: joined or separate") for key in unused]
    if settings.top_k is None and "rank_by" in given:
        found.append(("rank_by", "nothing is ranked without top_k", "set top_k, or leave it out"))
    if len(set(made.demographics)) < len(made.demographics):
        found.append(("demographics", "something is named twice", f"name each of {get_args(Demographic)} once at most"))
    return found
