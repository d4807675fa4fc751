"""How a model of added embeddings reads rows: its tokenizer, and what it knows of persons."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from accelerate import Accelerator

from epicrisis.cohort import History
from epicrisis.narrative import Lookups
from epicrisis.settings import Settings
from epicrisis.structured.age_visit_model import BodyShape
from epicrisis.structured.age_visit_records import Records
from epicrisis.structured.coding import Coder, split_of
from epicrisis.structured.exmed_people import KnownPeople
from epicrisis.structured.tokenizers import fit_tokenizer, load_tokenizer


@dataclass(frozen=True)
class Reader:
    """people: None where a model knows nothing of persons."""

    coder: Coder
    people: KnownPeople | None

    @property
    def tokens(self) -> tuple[str, ...]:
        """The vocabulary."""
        return self.coder.tokenizer.vocabulary.tokens

    def read(
        self, rows: pl.DataFrame, history: History, shape: BodyShape, directory: Path, *, whole: bool = False
    ) -> Records:
        """The records of these rows, in their order; `whole` ones are cut when they are laid into batches.

        directory: where the sequences are kept, for all processes to find.
        """
        room = None if whole else shape.max_length - 1  # [CLS]
        sequences = self.coder.encode(rows, history, directory, room)
        persons = np.zeros((rows.height, 2), dtype=np.int64)
        if self.people is not None:
            persons = self.people.encode(rows, replace(history, rows=rows))
        return Records(sequences, persons, shape.age_unit, shape.max_length)


def fit_reader(
    settings: Settings,
    lookups: Lookups,
    rows: pl.DataFrame,
    history: History,
    place: Path,
    accelerator: Accelerator,
    *,
    persons: bool,
) -> Reader:
    """A tokenizer, and regions where `persons`, fitted on what the train rows see.

    place: the folder that the tokenizer is kept in, for the other processes to find.
    """
    train = split_of(rows, "train")
    own = replace(history, rows=train)
    if accelerator.is_main_process:
        codes = history.dataset.codes()
        fit_tokenizer(settings.structured, train, own, codes, lookups=lookups).save(place)
    accelerator.wait_for_everyone()
    people = KnownPeople.fit(train, own, lookups) if persons else None
    return Reader(Coder(load_tokenizer(place), accelerator), people)


def load_reader(directory: Path, regions: list[str] | None, lookups: Lookups, accelerator: Accelerator) -> Reader:
    """The reader of a saved model: its tokenizer's folder, and the regions that it knows, None without persons."""
    people = None if regions is None else KnownPeople(lookups, tuple(regions))
    return Reader(Coder(load_tokenizer(directory), accelerator), people)
