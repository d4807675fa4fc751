"""A run's narratives, for every arm that reads them: its narrator, what they were told with, prepared once for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import datasets
import polars as pl
from accelerate import Accelerator

from epicrisis.cohort import History
from epicrisis.corpus.executors import executor_for
from epicrisis.corpus.prepare import KEYS, Prepared, prepare
from epicrisis.corpus.telling import Telling, narrator_once
from epicrisis.narrative import Lookups, Narrator, get_style
from epicrisis.settings import Settings, refuse

NARRATOR = "narrator"
"""The folder, beside weights, of what their narratives are told with."""


class Run(Protocol):
    """What an arm needs of a run directory."""

    @property
    def dir(self) -> Path:
        """The run's folder."""
        ...

    def log(self, **fields: Any) -> None:
        """Append one line to the run's history."""
        ...


def run_narrator(
    settings: Settings,
    lookups: Lookups,
    rows: pl.DataFrame,
    history: History,
    directory: Path,
    earlier: Path | None = None,
) -> Narrator:
    """The narrator that an earlier stage saved, so that both stages read one language; else one fitted on train.

    rows: with a column split, of which train alone is looked at. directory: where it is kept once it is fitted.
    earlier: the folder of an earlier stage's narrator, None or absent where there is none. Raises InputError
    where that one tells histories in another way than the settings ask for.
    """
    if earlier is not None and earlier.is_dir():
        narrator = Narrator.load(earlier, lookups)
        check_choice(narrator, settings)
        return narrator
    told = settings.narrative
    train = replace(history, rows=rows.filter(pl.col("split") == "train"))
    values = None if told.values == "raw" else told.values
    return narrator_once(train, lookups, get_style(told.style), told.dates, values, directory)


def check_choice(narrator: Narrator, settings: Settings) -> None:
    """Raise InputError where a narrator tells histories in another way than the settings ask for."""
    told = settings.narrative
    asked = {"style": get_style(told.style).label, "dates": told.dates, "values": told.values}
    changed = [key for key, value in narrator.choice().items() if asked[key] != value]
    if changed:
        raise refuse(
            f"narrative ({', '.join(changed)})",
            "is not what this checkpoint was trained with",
            "use the narrative section of the config.yaml of its run",
        )


def check_telling(told: dict[str, Any], telling: Telling) -> None:
    """Raise InputError where a checkpoint's narratives were told in another way or by another tokenizer."""
    now = telling.inputs()
    changed = [key for key in ("style", "dates", "values", "tokenizer") if told.get(key) != now[key]]
    if changed:
        raise refuse(
            f"narrative ({', '.join(changed)})",
            "is not what this checkpoint was trained with",
            "use the narrative section and the base of the run's config.yaml",
        )


def prepare_once(
    settings: Settings,
    rows: pl.DataFrame,
    history: History,
    telling: Telling,
    directory: Path,
    accelerator: Accelerator,
) -> Prepared:
    """The main process prepares; the others find it done."""
    with accelerator.main_process_first():
        return prepare(rows, history, telling, directory, executor_for(settings.prepare))


def keys_of(tokens: datasets.Dataset) -> pl.DataFrame:
    """subject_id · prediction_time of prepared narratives, in their order."""
    return pl.from_arrow(tokens.select_columns(KEYS).with_format("arrow")[:])  # type: ignore[return-value]
