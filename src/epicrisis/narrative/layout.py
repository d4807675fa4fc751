"""Items become pieces of text: what opens, separates and ends them, cut where tokenizers cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from epicrisis.narrative.assembly import Assembly
from epicrisis.narrative.coded import NONE, changes
from epicrisis.narrative.inventory import Inventory
from epicrisis.narrative.items import Items, Words
from epicrisis.narrative.styles import Style

TITLE, HEADING, PHRASE, NUMBER, UNIT, NOTE = range(6)
"""The places of an item's pieces, in the order of the text."""

EVENT_SLOTS = (PHRASE, NUMBER, UNIT, NOTE)


@dataclass(frozen=True)
class Layout:
    """Items with the pieces that tell them.

    slots: int32 [n_items, 6], numbers of `texts`; NONE where nothing stands. row: int [n_items].
    silent: the pieces that stand alone for a row without items, where nothing is known, or all was cut.
    """

    texts: pa.LargeStringArray
    slots: np.ndarray
    row: np.ndarray
    silent: tuple[int, int]

    def sizes(self) -> np.ndarray:
        """int8 [n_items]: how many pieces tell each item."""
        return np.einsum("ij->i", (self.slots != NONE).astype(np.int8))  # sum(axis=1) takes three times as long

    def assembly(self, n_rows: int, cut: np.ndarray) -> Assembly:
        """The narratives of rows 0 … n_rows - 1. cut: bool [n_rows], rows of which the budget left nothing."""
        sizes = np.bincount(self.row, weights=self.sizes(), minlength=n_rows).astype(np.int64)
        pieces = self.slots[self.slots != NONE]
        empty = np.flatnonzero(sizes == 0)
        if len(empty):
            alone = np.where(cut[empty], self.silent[1], self.silent[0]).astype(np.int32)
            pieces = np.insert(pieces, np.cumsum(sizes)[empty], alone)
            sizes[empty] = 1
        return Assembly(self.texts, pieces, np.concatenate([[0], np.cumsum(sizes)]))


def lay_out(items: Items, inventory: Inventory, persons: pl.Series, words: Words, style: Style) -> Layout:
    """Give each item its pieces. persons: phrases that count on from those of the inventory."""
    pieces = _Pieces(_tail_texts(style))
    tail = _tails(items, style, pieces.tails)
    slots = np.full((len(items), 6), NONE, dtype=np.int32)
    # A piece after a line break, or at the beginning, begins without a space.
    flush = changes(items.row)
    flush[1:] |= np.array([text.endswith("\n") for text in pieces.tails])[tail[:-1]]
    _open_sections(slots, items, flush, style, pieces)
    _open_groups(slots, items, flush, words, style, pieces)
    _tell_events(slots, items, flush, tail, inventory, persons, words, pieces)
    silent = pieces.number(pl.Series([style.empty, style.cut]), np.arange(2), flush=True)
    texts, places = pieces.spell(slots, silent)
    return Layout(texts, places[slots], items.row, (int(places[silent[0]]), int(places[silent[1]])))


def _tail_texts(style: Style) -> list[str]:
    ends = {text for s in style.sections for text in (s.separator, s.group_end, s.end, s.close)}
    return sorted({"", *ends})


def _tails(items: Items, style: Style, tails: list[str]) -> np.ndarray:
    """What ends each item, as a place in `tails`."""

    def place(name: str) -> np.ndarray:
        return np.array([tails.index(getattr(section, name)) for section in style.sections])[items.section]

    def ends(*columns: np.ndarray) -> np.ndarray:
        return np.append(changes(*columns)[1:], True) if len(items) else np.zeros(0, dtype=bool)

    tail = np.where(ends(items.group), place("group_end"), place("separator"))
    tail = np.where(ends(items.row, items.section), place("end"), tail)
    return np.where(ends(items.row), place("close"), tail).astype(np.int32)


def _open_sections(slots: np.ndarray, items: Items, flush: np.ndarray, style: Style, pieces: _Pieces) -> None:
    titles = [section.title for section in style.sections]
    opens = np.array([title != "" for title in titles])[items.section] & changes(items.row, items.section)
    at = np.flatnonzero(opens)
    slots[at, TITLE] = pieces.number(pl.Series(titles), items.section[at], flush[at])
    flush[at] = np.array([title.endswith("\n") for title in titles])[items.section[at]]


def _open_groups(
    slots: np.ndarray, items: Items, flush: np.ndarray, words: Words, style: Style, pieces: _Pieces
) -> None:
    at = np.flatnonzero((items.heading != NONE) & changes(items.row, items.section, items.group))
    section = items.section[at]
    for number, form in enumerate(section.heading for section in style.sections):
        ours = at[section == number]
        before, after = form.split("{}") if len(ours) else ("", "")
        slots[ours, HEADING] = pieces.number(before + words.headings + after, items.heading[ours], flush[ours])
        flush[ours] = after.endswith("\n")


def _tell_events(
    slots: np.ndarray,
    items: Items,
    flush: np.ndarray,
    tail: np.ndarray,
    inventory: Inventory,
    persons: pl.Series,
    words: Words,
    pieces: _Pieces,
) -> None:
    before = pl.concat([inventory.phrases["before"], persons])
    units = inventory.phrases["after"].drop_nulls().unique(maintain_order=True)
    unit = _places(pl.concat([inventory.phrases["after"], persons.clear(len(persons))]), units)[items.phrase]
    has_number, has_note = items.number != NONE, items.note != NONE
    unit = np.where(has_number, unit, NONE)
    last = np.where(has_note, NOTE, np.where(unit != NONE, UNIT, np.where(has_number, NUMBER, PHRASE)))
    # The empty tail is the first.
    ended = [np.where(last == slot, tail, 0) for slot in EVENT_SLOTS]
    slots[:, PHRASE] = pieces.number(before, items.phrase, flush, ended[0])
    for slot, texts, entry, end in (
        (NUMBER, inventory.numbers, items.number, ended[1]),
        (UNIT, units, unit, ended[2]),
        (NOTE, "(" + words.notes + ")", items.note, ended[3]),
    ):
        at = np.flatnonzero(entry != NONE)
        slots[at, slot] = pieces.number(texts, entry[at], False, end[at])


def _places(texts: pl.Series, distinct: pl.Series) -> np.ndarray:
    """Where each text stands in `distinct`, NONE for null."""
    table = distinct.rename("text").to_frame().with_row_index("place")
    placed = texts.rename("text").to_frame().join(table, on="text", how="left", maintain_order="left")
    return placed["place"].cast(pl.Int32).fill_null(NONE).to_numpy()


class _Pieces:
    """Numbers pieces by what they are made of (text, space before it, tail) and spells out those that occur."""

    def __init__(self, tails: list[str]) -> None:
        self.tails = tails
        self._blocks: list[tuple[int, pl.Series]] = []
        self._size = 0

    def number(
        self, texts: pl.Series, entry: np.ndarray, flush: np.ndarray | bool, tail: np.ndarray | int = 0
    ) -> np.ndarray:
        """The pieces that are made of these texts: texts[entry], flush (no space before) or not, and a tail."""
        first = self._size
        self._blocks.append((first, texts))
        self._size += len(texts) * 2 * len(self.tails)
        return (first + (entry.astype(np.int32) * 2 + flush) * len(self.tails) + tail).astype(np.int32)

    def spell(self, *used: np.ndarray) -> tuple[pa.LargeStringArray, np.ndarray]:
        """The texts of the pieces that are used, and the place of each piece in them; NONE stays NONE."""
        occurs = np.zeros(self._size + 1, dtype=bool)
        for numbers in used:
            occurs[numbers] = True
        occurs[NONE] = False
        places = np.cumsum(occurs, dtype=np.int32) - 1
        places[NONE] = NONE
        texts = [self._spelt(first, texts, occurs) for first, texts in self._blocks]
        return pl.concat(texts).to_arrow().cast(pa.large_string()), places

    def _spelt(self, first: int, texts: pl.Series, occurs: np.ndarray) -> pl.Series:
        size = len(texts) * 2 * len(self.tails)
        code, tail = np.divmod(np.flatnonzero(occurs[first : first + size]), len(self.tails))
        entry, flush = np.divmod(code, 2)
        table = pl.DataFrame(
            {
                "text": texts.gather(entry),
                "tail": pl.Series(self.tails).gather(tail),
                "space": pl.Series([" ", ""]).gather(flush),
            }
        )
        return table.select(pl.concat_str("space", "text", "tail")).to_series()
