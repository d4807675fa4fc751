"""What a tracker is told of a run: figures and pictures of all patients together, never anything of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import polars as pl


class Tracker(Protocol):
    """Shows one run. Any method may raise; `Trackers` sees to it that no run ends by that."""

    @property
    def name(self) -> str:
        """The section of the config that asks for it."""
        ...

    def settings(self, resolved: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """The resolved config, and what environment.json holds; told once, first of all."""
        ...

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """One line of the history. Steps may come again, or go back, where a run trains more than once."""
        ...

    def results(self, table: pl.DataFrame) -> None:
        """The final table, as in results.csv."""
        ...

    def plots(self, files: Mapping[str, Path]) -> None:
        """PNG files by name."""
        ...

    def finish(self, ok: bool) -> None:
        """The last call, after which nothing is open. ok: the run ended well."""
        ...
