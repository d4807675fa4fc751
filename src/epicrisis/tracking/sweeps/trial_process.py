"""One trial as a process of its own: begun, watched, asked to stop, and found again when its search has died."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from epicrisis.tracking.cores import keep_to
from epicrisis.tracking.sweeps.command_line import TRIAL

LOG = "trial.log"
GRACE = 60.0
"""Seconds in which a trial that is asked to stop may save its state."""

_TOLD = 400
"""Characters of a failed trial's log that are shown."""


class TrialProcess:
    """A trial's command, in a session of its own, so that a Ctrl-C meant for the search does not reach it."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], cores: list[int] | None = None
    ):
        """cores: those that it may use; all where None."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._begin = time.monotonic()
        self._stop_by: float | None = None
        with open(folder / LOG, "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        if cores is not None:
            with suppress(ProcessLookupError):
                keep_to(self._process.pid, cores)

    @property
    def exit_code(self) -> int | None:
        """None while it runs. One that was asked to stop and does not is killed when its time is up."""
        if self._stop_by is not None and time.monotonic() > self._stop_by:
            self._signal(signal.SIGKILL)
        return self._process.poll()

    @property
    def seconds(self) -> float:
        """Since it was begun."""
        return time.monotonic() - self._begin

    def stop(self) -> None:
        """Ask it to save its state and end."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + GRACE
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        # The whole group: a launcher does not hand a signal on to the processes that it has launched.
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


def end_orphans(folder: Path) -> int:
    """End what is left of a trial whose search was killed, so that nobody else writes in its folder; their number.

    They are known by their environment, in which a trial's processes carry its folder.
    """
    left = [process for process in psutil.process_iter() if _belongs_to(process, folder)]
    for process in left:
        process.terminate()
    _, alive = psutil.wait_procs(left, timeout=GRACE)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=GRACE)
    return len(left)


def last_words(folder: Path) -> str:
    """The end of a failed trial's log, in one line."""
    file = folder / LOG
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    words = " ".join(text[-4 * _TOLD :].split())
    return words if len(words) <= _TOLD else f"… {words[-_TOLD:]}"


def _belongs_to(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get(TRIAL) == str(folder.resolve())
    except (psutil.Error, OSError):
        return False
