"""Being asked to stop: SIGTERM, as SLURM and torchrun send it, or Ctrl-C once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torch import nn


class Interrupted(Exception):
    """The work in hand is dropped, to be done again by whoever goes on."""


class Stopped(SystemExit):
    """A run that was asked to stop, saved its state and ends well: exit code 0."""

    def __init__(self) -> None:
        super().__init__(0)


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: str | None = None

    @property
    def asked(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Listen to SIGTERM and SIGINT for the time of a `with` block; a second SIGINT interrupts at once.

    Outside of the main thread Python hears no signals; there nobody is ever asked.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if request.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(module: nn.Module, request: StopRequest) -> Iterator[None]:
    """Every forward of the module raises Interrupted once a stop was asked for.

    So neither a long accumulation nor an evaluation outlasts the grace time. Only for a run of one process:
    several must stop at the same place, or they wait for each other for ever.
    """

    def stop(*_: object) -> None:
        if request.asked:
            raise Interrupted

    handle = module.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()
