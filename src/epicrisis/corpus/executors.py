"""The same function over many independent jobs: here, in several processes, or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from epicrisis.settings import refuse
from epicrisis.settings.schema import PrepareSettings
from epicrisis.tracking.cores import available_cores

Job = TypeVar("Job")
Result = TypeVar("Result")

MOST_THREADS = 4
"""Up to so many workers are threads of this process: they start at once and share what is loaded, and the work is
done by libraries that let each other run. More of them would wait for Python, so they are processes."""

_THREADS = ("POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Executor:
    """Where jobs run. workers: threads or processes on this machine, by default one per core that may be used.

    scheduler: the address of a Dask scheduler, `tcp://host:8786`; without one, `dask` starts a cluster of
    `workers` processes on this machine.
    """

    kind: Literal["local", "dask"] = "local"
    workers: int | None = None
    scheduler: str | None = None

    def run(self, function: Callable[[Any, Job], Result], shared: Any, jobs: Sequence[Job]) -> Iterator[Result]:
        """function(shared, job) of each job, as they finish. Functions and jobs must be importable and picklable.

        Raises InputError where Dask is not installed or its scheduler cannot be reached, and whatever the
        function raises; jobs that have not begun by then are dropped.
        """
        if self.kind == "dask":
            yield from _on_dask(function, shared, jobs, self)
            return
        workers = max(1, min(self.workers or len(available_cores()), len(jobs)))
        run = _here if workers == 1 else _in_threads if workers <= MOST_THREADS else _in_processes
        yield from run(function, shared, jobs, workers)


def _here(function: Callable[[Any, Job], Result], shared: Any, jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    yield from (function(shared, job) for job in jobs)


def _in_threads(
    function: Callable[[Any, Job], Result], shared: Any, jobs: Sequence[Job], workers: int
) -> Iterator[Result]:
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(function, shared, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def executor_for(settings: PrepareSettings) -> Executor | None:
    """The executor that is asked for; None where as many processes as the work is worth are."""
    if settings.executor == "local" and settings.workers is None:
        return None
    return Executor(settings.executor, settings.workers, settings.scheduler)


def _in_processes(
    function: Callable[[Any, Job], Result], shared: Any, jobs: Sequence[Job], workers: int
) -> Iterator[Result]:
    """This process works too: the others take seconds to start."""
    # Processes are spawned, since a fork takes over the locks of threads that it does not have.
    context, others = multiprocessing.get_context("spawn"), workers - 1
    waiting = deque(jobs)
    running: set[Future[Result]] = set()
    with (
        _few_threads(max(1, len(available_cores()) // workers)),
        ProcessPoolExecutor(others, context, initializer=_share, initargs=(function, shared)) as pool,
    ):
        try:
            while waiting or running:
                # One job in hand and one to go on with, so that no process waits for this one to finish its own.
                while waiting and len(running) < 2 * others:
                    running.add(pool.submit(_with_shared, waiting.popleft()))
                if waiting:
                    yield function(shared, waiting.popleft())
                finished = {future for future in running if future.done()}
                if not waiting and not finished:
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                running -= finished
                yield from (future.result() for future in finished)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_SHARED: list[Any] = []
"""In a worker process: the function and what all its jobs share, sent once and not with every job."""


def _share(function: Callable[[Any, Job], Result], shared: Any) -> None:
    _SHARED[:] = [function, shared]


def _with_shared(job: Any) -> Any:
    function, shared = _SHARED
    return function(shared, job)


@contextmanager
def _few_threads(threads: int) -> Iterator[None]:
    """Processes started meanwhile use so many threads each, so that together they use each core once."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _on_dask(
    function: Callable[[Any, Job], Result], shared: Any, jobs: Sequence[Job], executor: Executor
) -> Iterator[Result]:
    try:
        from dask import distributed
    except ImportError:
        raise refuse(
            "prepare.executor", "dask is not installed", "pip install 'epicrisis[dask]', or use executor: local"
        ) from None
    with _dask_client(distributed, executor) as client:
        shared = client.scatter(shared, broadcast=True)
        futures = [client.submit(function, shared, job, pure=False) for job in jobs]
        for future in distributed.as_completed(futures):
            yield future.result()
            future.release()


@contextmanager
def _dask_client(distributed: Any, executor: Executor) -> Iterator[Any]:
    if executor.scheduler is None:
        workers = executor.workers or len(available_cores())
        with (
            distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = distributed.Client(executor.scheduler)
    except (OSError, ValueError) as error:
        raise refuse(
            "prepare.scheduler",
            f"no Dask scheduler answers at {executor.scheduler} ({type(error).__name__})",
            "start one with `dask scheduler` and workers with `dask worker ADDRESS`, or correct the address",
        ) from None
    with client:
        yield client
