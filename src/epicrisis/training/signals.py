"""What a run does that is asked to stop: drop the work in hand, save its state, end well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from epicrisis.tracking.stop_request import StopRequest


class Interrupted(Exception):
    """The work in hand is dropped, to be done again by whoever goes on."""


class Stopped(SystemExit):
    """A run that was asked to stop, saved its state and ends well: exit code 0."""

    def __init__(self) -> None:
        super().__init__(0)


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
