"""Many trackers as one: what one of them cannot do is kept and told, and never ends a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.markup import escape

from epicrisis.settings.keys import without_keys
from epicrisis.tracking.progress import say
from epicrisis.tracking.trackers.protocol import Tracker

_LONGEST_REASON = 300


@dataclass(frozen=True)
class Lost:
    """A tracker that failed: what it missed first, and why. Of what came later it was told nothing."""

    tracker: str
    missed: str
    reason: str

    def __str__(self) -> str:
        return f"tracker {self.tracker} missed {self.missed} and all that came after ({self.reason})"


class Trackers:
    """Tells every tracker the same; one that raises is dropped, and `lost` says what it missed."""

    def __init__(self, told_of_loss: Callable[[Lost], None] = lambda lost: None) -> None:
        self._kept: list[Tracker] = []
        self._step = 0
        self._told_of_loss = told_of_loss
        self.lost: list[Lost] = []

    def start(self, name: str, make: Callable[[], Tracker]) -> None:
        """Make a tracker and tell it everything from now on."""
        try:
            self._kept.append(make())
        except Exception as error:
            self._lose(name, "its start", error)

    def settings(self, resolved: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        self._each("the settings", lambda tracker: tracker.settings(resolved, environment))

    def log(self, numbers: Mapping[str, float], step: int | None) -> None:
        """step: that of the line before where None."""
        self._step = now = self._step if step is None else step
        if numbers:
            self._each(f"the history from step {now} on", lambda tracker: tracker.log(numbers, now))

    def results(self, table: pl.DataFrame) -> None:
        self._each("the table of results", lambda tracker: tracker.results(table))

    def plots(self, files: Mapping[str, Path]) -> None:
        self._each("the plots", lambda tracker: tracker.plots(files))

    def finish(self, ok: bool) -> None:
        """Close all, and say in a line for each that was lost what it missed."""
        self._each("its end", lambda tracker: tracker.finish(ok))
        self._kept.clear()
        for lost in self.lost:
            say(escape(str(lost)))

    def _each(self, what: str, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._kept):
            try:
                tell(tracker)
            except Exception as error:
                self._kept.remove(tracker)
                self._lose(tracker.name, what, error)
                with suppress(Exception):  # it has failed already; this only frees what it holds
                    tracker.finish(False)

    def _lose(self, name: str, missed: str, error: Exception) -> None:
        lines = str(error).strip().splitlines()
        told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        lost = Lost(name, missed, without_keys(told)[:_LONGEST_REASON])
        self.lost.append(lost)
        say(escape(f"tracker {name} failed at {missed}; the run goes on without it ({lost.reason})"))
        self._told_of_loss(lost)
