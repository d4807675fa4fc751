"""Visible events → sequences of token ids, each manner fitted on train rows only."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import polars as pl

from epicrisis.cohort import History
from epicrisis.narrative import Lookups
from epicrisis.settings.structured_section import StructuredSettings
from epicrisis.structured.sequences import Sequences
from epicrisis.structured.tokenizers.fit import fit
from epicrisis.structured.tokenizers.tokenizer import EventTokenizer
from epicrisis.structured.vocabulary import Vocabulary

__all__ = ["CodeTokenizer", "fit_tokenizer", "load_tokenizer"]


class CodeTokenizer(Protocol):
    """Tells events as tokens."""

    @property
    def label(self) -> str:
        """Name and version, as stored with whatever is trained on its tokens: `clmbr@1`."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """What its ids stand for."""
        ...

    @property
    def fitted_on(self) -> str:
        """The split it was fitted on: always `train`."""
        ...

    def encode(self, rows: pl.DataFrame, history: History, *, max_tokens: int | None = None) -> Sequences:
        """The rows' visible events as tokens, in the order of `rows`, without [BOS], [CLS] or any other frame.

        max_tokens: the front and the latest whole events that fit; age and year are those of the first event
        kept.
        """
        ...

    def coverage(self, rows: pl.DataFrame, history: History) -> pl.DataFrame:
        """vocabulary (`*`: all) · n_events · n_codes · known · parent · unknown, the last three in events."""
        ...

    def save(self, directory: Path) -> None:
        """JSON, for `load_tokenizer`."""
        ...


def fit_tokenizer(
    settings: StructuredSettings,
    rows: pl.DataFrame,
    history: History,
    codes: pl.DataFrame | None = None,
    *,
    lookups: Lookups | None = None,
) -> CodeTokenizer:
    """A tokenizer as `structured.tokenizer` asks for, fitted on what the train rows see.

    rows: of the train split only. codes: MEDS codes (code · description? · parent_codes?), for parents and
    descriptions. lookups: for the kind `description`, what knows more words than `codes` do.

    Raises InputError for rows of other splits, for train rows that see no event, and for settings that do not
    go together.
    """
    return fit(settings.tokenizer, rows, history, codes, lookups)


def load_tokenizer(directory: Path) -> CodeTokenizer:
    """What `save` wrote. Raises InputError where it is missing, broken, or of another version."""
    return EventTokenizer.load(directory)
