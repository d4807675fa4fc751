"""How an encoder's arm tells histories: narrator, tokenizer and the budget that the encoder has room for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
from accelerate import Accelerator

from epicrisis.cohort import History
from epicrisis.corpus.run_narratives import NARRATOR, check_choice, run_narrator
from epicrisis.corpus.telling import Telling
from epicrisis.encoders.text_encoder import check_encoder, encoder_source, load_tokenizer, reading_of
from epicrisis.encoders.windows import Reading
from epicrisis.narrative import Lookups, Narrator
from epicrisis.settings import Settings


@dataclass(frozen=True)
class Told:
    """source: the text encoder, a hub name or a folder; telling: how its narratives become ids; reading: windows."""

    source: str
    telling: Telling
    reading: Reading


def tell_for_fit(
    settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, directory: Path, acc: Accelerator
) -> Told:
    """For a run that learns; the encoder is checked before anything is fitted."""
    source = encoder_source(settings, acc)
    tokenizer = load_tokenizer(source)
    reading = reading_of(settings, tokenizer, check_encoder(source))
    with acc.main_process_first():
        narrator = run_narrator(settings, lookups, rows, history, directory)
    return Told(source, Telling(narrator, lookups, budget(settings, reading), tokenizer), reading)


def tell_as_saved(
    settings: Settings, lookups: Lookups, directory: Path, acc: Accelerator, source: str | None = None
) -> Told:
    """For a run that predicts; directory: where the fitted arm saved its narrator; source: the encoder's folder.

    Raises InputError where the settings ask for narratives told in another way.
    """
    narrator = Narrator.load(directory / NARRATOR, lookups)
    check_choice(narrator, settings)
    source = source or encoder_source(settings, acc)
    tokenizer = load_tokenizer(source)
    reading = reading_of(settings, tokenizer, check_encoder(source))
    return Told(source, Telling(narrator, lookups, budget(settings, reading), tokenizer), reading)


def budget(settings: Settings, reading: Reading) -> int:
    """Tokens of a narrative: what the encoder reads, or less where narrative.max_tokens says so."""
    return min(settings.narrative.max_tokens or reading.max_tokens, reading.max_tokens)


def telling_of_run(
    settings: Settings, lookups: Lookups, rows: pl.DataFrame, history: History, directory: Path, acc: Accelerator
) -> Telling:
    """How a run with these settings tells the histories of its rows."""
    return tell_for_fit(settings, lookups, rows, history, directory, acc).telling
