"""Rows as sequences of tokens, made once for all processes of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
from accelerate import Accelerator

from epicrisis.cohort import History
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings, refuse
from epicrisis.structured.sequences import Sequences
from epicrisis.structured.store import model_directory
from epicrisis.structured.tokenizers import CodeTokenizer, fit_tokenizer, load_tokenizer


@dataclass(frozen=True)
class Coder:
    """A tokenizer and the processes that share what it makes."""

    tokenizer: CodeTokenizer
    accelerator: Accelerator

    @property
    def vocabulary(self) -> int:
        """How many token ids the tokenizer has."""
        return len(self.tokenizer.vocabulary)

    def encode(self, rows: pl.DataFrame, history: History, directory: Path, max_tokens: int | None = None) -> Sequences:
        """The sequences of these rows, in their order: the main process writes them, all read the same files."""
        if self.accelerator.is_main_process:
            own = replace(history, rows=rows)
            self.tokenizer.encode(rows, own, max_tokens=max_tokens).save(directory)
        self.accelerator.wait_for_everyone()
        return Sequences.load(directory)


def split_of(rows: pl.DataFrame, split: str) -> pl.DataFrame:
    """The rows of one split. Raises InputError where there are none: training is watched on tuning."""
    found = rows.filter(pl.col("split") == split)
    if found.is_empty():
        raise refuse("data", f"the {split} split has no rows", f"give some subjects of the cohort the split {split}")
    return found


def make_coder(
    settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, place: Path, accelerator: Accelerator
) -> Coder:
    """The pretrained model's tokenizer where there is one, else one fitted on what the train rows see.

    place: the folder that the fitted one is kept in, for the other processes to find.
    """
    if settings.structured.pretrained is not None:
        tokenizer = load_tokenizer(model_directory(settings.structured.pretrained) / "tokenizer")
        return Coder(tokenizer, accelerator)
    train = split_of(rows, "train")
    if accelerator.is_main_process:
        own = replace(history, rows=train)
        codes = history.dataset.codes()
        fit_tokenizer(settings.structured, train, own, codes, lookups=lookups).save(place)
    accelerator.wait_for_everyone()
    return Coder(load_tokenizer(place), accelerator)
