"""What the benchmarks measure with: medians of several runs, the memory of a process and its children."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import psutil


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The median time of some runs, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


@contextmanager
def peak_memory(every: float = 0.02) -> Iterator[list[float]]:
    """The most memory, in MB, of this process and its children together in the block: the list's only item, at its end.

    Resident memory: what processes share (libraries) counts once for each.
    """
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            peak[0] = max(peak[0], _memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _memory() -> float:
    process, total = psutil.Process(), 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            continue
    return total


def finish(name: str, ratio: float, target: float, figures: dict[str, float]) -> None:
    """The last line of a benchmark."""
    rounded = {key: float(f"{value:.4g}") for key, value in figures.items()}
    print(json.dumps({"name": name, "ratio": float(f"{ratio:.3g}"), "target": target, "figures": rounded}))
