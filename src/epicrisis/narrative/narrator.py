"""How histories are told: the style, and everything that decides an event's words before it is met."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import polars as pl

from epicrisis.narrative.book import Book, build_book
from epicrisis.narrative.lookups import Lookups
from epicrisis.narrative.styles import Style, get_style
from epicrisis.narrative.times import GapLabel
from epicrisis.narrative.values import ValueClasses, range_table
from epicrisis.settings.problems import refuse
from epicrisis.tracking.run_directory import replacing

Dates = Literal["relative", "gap", "calendar"]
"""`relative` as the style tells them (distances back from the prediction time, or gaps), gaps, or dates."""


@dataclass(frozen=True)
class Narrator:
    """Tells events. Two narrators with one fingerprint tell every history in the same words.

    classes: where given, numbers are told as these classes (`high`, `decile 9`) rather than as digits.
    ranges: as `range_table` returns them, for styles that say whether a value is normal.
    """

    style: Style
    book: Book
    dates: Dates = "relative"
    gaps: tuple[GapLabel, ...] = ()
    classes: ValueClasses | None = None
    ranges: pl.DataFrame | None = None

    @property
    def tells_gaps(self) -> bool:
        """Whether times are told from one event to the next."""
        return self.dates == "gap" or (self.dates == "relative" and self.style.times == "gap")

    def choice(self) -> dict[str, str]:
        """What a config's section `narrative` chooses: style (with its version), dates, values."""
        values = self.classes.kind if self.classes else "raw"
        return {"style": self.style.label, "dates": self.dates, "values": values}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides the words."""
        parts = [self.style, self.dates, self.gaps, self.book.fingerprint(), self.book.lookups.fingerprint()]
        parts.append(self.classes.fingerprint() if self.classes else "raw")
        parts.append(self.ranges.sort(self.ranges.columns).write_csv() if self.ranges is not None else "")
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def save(self, folder: Path) -> None:
        """Writes what was fitted or chosen: book.parquet, narrator.json and, where there are classes, classes.json."""
        folder.mkdir(parents=True, exist_ok=True)
        self.book.save(folder / "book.parquet")
        if self.classes is not None:
            self.classes.save(folder / "classes.json")
        with replacing(folder / "narrator.json") as part:
            part.write_text(json.dumps(self.choice(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, lookups: Lookups) -> Narrator:
        """What `save` wrote; the lookups tell codes that are not in its book, gaps and reference ranges.

        Raises InputError where files are missing or broken, or this program writes another version of the style.
        """
        path = folder / "narrator.json"
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            style, dates, values = get_style(told["style"]), told["dates"], told["values"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"not readable ({type(error).__name__})"
            raise refuse(str(path), what, "name the folder of a finished run of this version") from None
        book = Book.load(folder / "book.parquet", lookups, style)
        classes = ValueClasses.load(folder / "classes.json") if values != "raw" else None
        return cls(style, book, dates, lookups.gaps, classes, _ranges(book.terms["code"], lookups, style))


def make_narrator(
    codes: pl.Series,
    lookups: Lookups,
    style: Style,
    dates: Dates = "relative",
    classes: ValueClasses | None = None,
) -> Narrator:
    """A narrator for these codes (all that are known beforehand, the most frequent first); others are told too.

    Raises InputError for gaps in a style that tells the newest events first.
    """
    check_dates(style, dates)
    book, ranges = build_book(codes, lookups, style), _ranges(codes, lookups, style)
    return Narrator(style, book, dates, lookups.gaps, classes, ranges)


def check_dates(style: Style, dates: Dates) -> None:
    """Raise InputError for gaps in a style that tells the newest events first."""
    if dates == "gap" and any(section.newest_first for section in style.sections):
        what = f"{style.name} tells the latest events first, gaps between events need the oldest first"
        raise refuse("narrative.dates", what, "use relative or calendar, or the style timeline or flat")


def _ranges(codes: pl.Series, lookups: Lookups, style: Style) -> pl.DataFrame | None:
    return range_table(codes, lookups) if any(section.notes for section in style.sections) else None


def known_codes(*parts: pl.Series | Sequence[str]) -> pl.Series:
    """The distinct codes of several sources in their order: of codes with one term the first keeps it."""
    series = [part if isinstance(part, pl.Series) else pl.Series(part, dtype=pl.String) for part in parts]
    return pl.concat([part.cast(pl.String) for part in series]).drop_nulls().unique(maintain_order=True).rename("code")
