"""What a person sees while a run goes on: a bar on a terminal, and one readable line per interval."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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


class StepTimer:
    """Tokens per second and time left, over the steps since it was made."""

    def __init__(self, done: int, total: int):
        self._first, self._total = done, total
        self._start = self._mark = time.perf_counter()
        self._tokens = 0

    def count(self, tokens: int) -> None:
        self._tokens += tokens

    def rate(self) -> float:
        """Tokens per second since the last call."""
        now = time.perf_counter()
        rate = self._tokens / max(now - self._mark, 1e-9)
        self._tokens, self._mark = 0, now
        return rate

    def remaining(self, done: int) -> str:
        """Time left as m:ss, as fast as it went so far."""
        spent = time.perf_counter() - self._start
        left = spent / max(done - self._first, 1) * (self._total - done)
        return f"{int(left // 60)}:{int(left % 60):02d}"


def peak_memory_gb() -> float:
    """Peak GPU memory where there is a GPU, else the resident memory of this process, in GB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return psutil.Process().memory_info().rss / 1e9
