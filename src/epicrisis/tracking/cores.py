"""The processor cores that a process may use."""

from __future__ import annotations

import os


def available_cores() -> list[int]:
    """The cores, by number, that this process may use: a cluster's scheduler can make them fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def keep_to(process: int, cores: list[int]) -> None:
    """Have a process, by its number, use these cores alone, where the system can (Linux).

    A number of threads in its environment would not do: what launches several processes sets that anew.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process, cores)
