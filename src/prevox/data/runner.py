"""Run one function over many cases in spawned processes; one bad case costs that case only.

Processes are spawned, not forked: tensorstore's threads do not survive a fork. Cases are handed out a few at a time, so
memory does not grow with their number.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from prevox.console import console
from prevox.errors import PrevoxError, RunError

Case = TypeVar("Case")
Result = TypeVar("Result")

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
_PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal


@dataclass(frozen=True)
class Failure:
    """Why a case has no result.

    Attributes:
        reason: One line for the user.
        traceback: The whole traceback as text; empty where the process died without one.
        kind: Name of the exception's class.
    """

    reason: str
    traceback: str = ""
    kind: str = ""


def run_cases(
    function: Callable[[Case], Result],
    cases: Sequence[Case],
    workers: int,
    describe: Callable[[Case], str],
    title: str = "cases",
) -> Iterator[tuple[Case, Result | Failure]]:
    """Apply a function to every case and yield each with its result or its failure, in order of completion.

    Args:
        function: Picklable (defined at the top of a module, or a `functools.partial` of one) if workers != 1.
        cases: Picklable arguments.
        workers: Processes; 0 takes the number of cores, 1 runs in this process.
        describe: Name of a case, for messages.
        title: What the progress line counts.

    Yields:
        The case with what the function returned, or with a `Failure`: its exceptions never escape. When a worker
        process dies, the cases that were in flight are run once more, each alone; one that dies again is a failure.

    Raises:
        RunError: If worker processes cannot start at all.
    """
    workers = min(resolve_workers(workers), max(1, len(cases)))
    if workers == 1:
        outcomes: Iterator[tuple[Case, Result | Failure]] = ((case, _guarded(function, case)) for case in cases)
    else:
        outcomes = _run_pool(function, cases, workers, describe)
    yield from _with_progress(outcomes, len(cases), title)


def resolve_workers(workers: int) -> int:
    """Number of processes that a setting means; 0 is the number of cores this process may use."""
    if workers > 0:
        return workers
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _guarded(function: Callable[[Case], Result], case: Case) -> Result | Failure:
    """Call the function; turn an exception into text, because not every exception can be sent between processes."""
    try:
        return function(case)
    except Exception as error:
        last_line = traceback.format_exception_only(error)[-1].strip()
        reason = str(error) if isinstance(error, PrevoxError) else last_line
        return Failure(reason, "".join(traceback.format_exception(error)), type(error).__name__)


def _run_pool(
    function: Callable[[Case], Result], cases: Sequence[Case], workers: int, describe: Callable[[Case], str]
) -> Iterator[tuple[Case, Result | Failure]]:
    waiting = list(reversed(range(len(cases))))
    can_start = False
    while waiting:
        suspects: list[int] = []
        in_flight: dict[Future[Result | Failure], int] = {}
        pool = _pool(workers)
        try:
            while (waiting or in_flight) and not suspects:
                # one spare case per worker keeps it busy; more would only widen the circle of suspects
                while waiting and len(in_flight) < 2 * workers:
                    index = waiting.pop()
                    try:
                        in_flight[_submit(pool, function, cases[index])] = index
                    except BrokenProcessPool:
                        suspects.append(index)
                        break
                done, _ = wait(in_flight, return_when=FIRST_COMPLETED)
                for future in done:
                    index = in_flight.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        suspects.append(index)
                    else:
                        can_start = True
                        yield cases[index], _outcome(future)
            # the pool is broken: what else was in flight has failed with it, or finished just before
            for future, index in in_flight.items():
                if suspects and isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(index)
                else:
                    yield cases[index], _outcome(future)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if suspects and not can_start:
            _check_workers_start()
            can_start = True
        for index in sorted(suspects):
            yield cases[index], _run_alone(function, cases[index], describe)


def _check_workers_start() -> None:
    """Tell a case that kills its worker from workers that never come up.

    Raises:
        RunError: If a worker cannot even do nothing.
    """
    with _pool(1) as pool:
        try:
            _outcome(_submit(pool, resolve_workers, 1))
        except BrokenProcessPool:
            raise RunError(
                "The worker processes cannot start. Each of them runs the calling script again, so its calls of Prevox "
                'must stand under `if __name__ == "__main__":`; or set workers to 1 (a script on standard input, say).'
            ) from None


def _run_alone(function: Callable[[Case], Result], case: Case, describe: Callable[[Case], str]) -> Result | Failure:
    with _pool(1) as pool:
        try:
            return _outcome(_submit(pool, function, case))
        except BrokenProcessPool:
            return Failure(
                f"{describe(case)}: the worker process died twice on it (out of memory, or a crash in a decoder). "
                "Try it with --workers 1 on a machine with more memory, or leave it out.",
                kind="BrokenProcessPool",
            )


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _submit(pool: ProcessPoolExecutor, function: Callable[[Case], Result], case: Case) -> "Future[Result | Failure]":
    with _single_threaded_children():
        return pool.submit(_guarded, function, case)


def _outcome(future: "Future[Result | Failure]") -> Result | Failure:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise error
    if error is not None:  # the result could not be sent back
        return Failure(f"{type(error).__name__}: {error}", kind=type(error).__name__)
    return future.result()


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Children inherit one thread per library, lest N processes start N threads each; a user's own value wins."""
    added = [name for name in _THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _with_progress(
    outcomes: Iterator[tuple[Case, Result | Failure]], total: int, title: str
) -> Iterator[tuple[Case, Result | Failure]]:
    """Pass outcomes on; show a bar on a terminal, and a line now and then elsewhere."""
    if console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=total)
            for outcome in outcomes:
                progress.advance(task)
                yield outcome
        return
    start = said = time.monotonic()
    for count, outcome in enumerate(outcomes, 1):
        now = time.monotonic()
        if count < total and now - said > _PLAIN_SECONDS:
            said = now
            left = (now - start) / count * (total - count)
            console.print(f"{title}: {count}/{total}, about {left:.0f} s left")
        yield outcome
    if total:
        console.print(f"{title}: {total}/{total} in {time.monotonic() - start:.1f} s")
