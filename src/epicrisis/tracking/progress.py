"""What a person sees while a run goes on: a bar on a terminal, one readable line per interval, and where time went."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_CONSOLE = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line for the person at the terminal; never a patient's content."""
    _CONSOLE.print(text, soft_wrap=True)


class Bar:
    """A progress bar on a terminal; silent elsewhere, where the log lines are enough."""

    def __init__(self, progress: Progress, task: int):
        self._progress = progress
        self._task = task

    def advance(self, by: int = 1) -> None:
        self._progress.advance(self._task, by)  # type: ignore[arg-type]


@contextmanager
def bar(title: str, total: int, *, shown: bool = True) -> Iterator[Bar]:
    """A bar over `total` steps, for the time of a `with` block."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disabled = not (shown and _CONSOLE.is_terminal)
    with Progress(*columns, console=_CONSOLE, transient=True, disable=disabled) as progress:
        yield Bar(progress, progress.add_task(title, total=total))


class Stopwatch:
    """Where time goes, by named parts that follow each other, and how long the rest will take.

    On a GPU the parts are timed by events in its stream, so that measuring makes nobody wait; they are
    added up when `seconds` is asked for.
    """

    def __init__(self, *, on_gpu: bool = False) -> None:
        self._begin = time.perf_counter()
        self._on_gpu = on_gpu
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time spent in a `with` block goes to this part."""
        if self._on_gpu:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((name, first, last))
        else:
            start = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Seconds per part so far, and under `other` what no part had."""
        if self._events:
            torch.cuda.synchronize()
            for name, first, last in self._events:
                self._seconds[name] += first.elapsed_time(last) / 1000
            self._events.clear()
        spent = sum(self._seconds.values())
        return {**self._seconds, "other": max(0.0, self.elapsed() - spent)}

    def elapsed(self) -> float:
        """Seconds since the stopwatch was made."""
        return time.perf_counter() - self._begin

    def left(self, done: int, to_do: int) -> float:
        """Seconds that `to_do` more steps will take, as fast as the `done` ones went, evaluations and all."""
        return self.elapsed() / max(done, 1) * to_do


def duration(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def say_where_time_went(title: str, seconds: Mapping[str, float]) -> None:
    """A table of the parts' times and shares."""
    total = sum(seconds.values())
    table = Table(title=f"{title}: where {duration(total)} went", title_justify="left")
    table.add_column("part")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, spent in seconds.items():
        table.add_row(name, f"{spent:,.1f}", f"{spent / max(total, 1e-9):.0%}")
    _CONSOLE.print(table)


def peak_memory_gb() -> float:
    """The most memory held so far, in GB: of the GPU where there is one, else of this process in RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_resident_bytes() / 1e9


def peak_resident_bytes() -> int:
    """The most RAM that this process has held since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
