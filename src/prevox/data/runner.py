"""Run one function over many cases in worker processes; one bad case costs that case only.

A worker has one case at a time, so a case that kills it or hangs is known by name. Cases are handed out as workers
become free and as memory allows, so neither their number nor their size decides about how much memory is taken.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar

from prevox.data.memory import OWN, SHARE, Budget, available_memory, warn_of_memory
from prevox.data.progress import with_progress
from prevox.data.worker import Failure, Worker, WorkerDiedError, guarded
from prevox.errors import RunError

__all__ = ["Failure", "resolve_workers", "run_cases"]

Case = TypeVar("Case")
Result = TypeVar("Result")
Outcome = tuple[Case, Result | Failure]


class Engine(Protocol):
    """Where cases run if not on this machine."""

    def run(
        self,
        function: Callable[[Any], Any],
        cases: Sequence[Any],
        workers: int,
        describe: Callable[[Any], str],
        timeout: float | None,
        memory: Callable[[Any], int] | None,
    ) -> Iterator[tuple[Any, Any]]:
        """As `run_cases`, of which these are the arguments; 0 workers are as many as there are."""
        ...


def run_cases(
    function: Callable[[Case], Result],
    cases: Sequence[Case],
    workers: int,
    describe: Callable[[Case], str],
    title: str = "cases",
    *,
    timeout: float | None = None,
    memory: Callable[[Case], int] | None = None,
    engine: Engine | None = None,
) -> Iterator[tuple[Case, Result | Failure]]:
    """Apply a function to every case and yield each with its result or its failure, in order of completion.

    Args:
        function: Picklable (defined at the top of a module, or a `functools.partial` of one) if workers != 1.
        cases: Picklable arguments.
        workers: Processes; 0 takes the number of cores. 1 runs in this process: a case that kills it ends everything,
            and neither time-out nor memory estimate count.
        describe: Name of a case, for messages.
        title: What the progress line counts.
        timeout: Seconds after which the worker of a case is killed; None waits for ever.
        memory: Bytes that a case will need at most, about; None knows nothing. No more cases run at once than fit into
            the available memory, but one always does.
        engine: Where the cases run; None is this machine.

    Yields:
        The case with what the function returned, or with a `Failure`: its exceptions never escape. A case on which the
        worker process dies is run once more at the end, while no other runs; if it dies again, that is a failure. So
        is a case that exceeds the time-out, at once.

    Raises:
        RunError: If worker processes cannot start at all, or the engine is lost.
    """
    outcomes: Iterator[tuple[Case, Result | Failure]]
    if engine is not None:
        outcomes = engine.run(function, cases, workers, describe, timeout, memory)
    elif workers == 1:
        outcomes = ((case, guarded(function, case)) for case in cases)
    else:
        outcomes = _run_isolated(function, cases, min(resolve_workers(workers), len(cases)), describe, timeout, memory)
    yield from with_progress(outcomes, len(cases), title)


def resolve_workers(workers: int) -> int:
    """Number of processes that a setting means; 0 is the number of cores this process may use."""
    if workers > 0:
        return workers
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def timed_out(name: str, timeout: float | None) -> Failure:
    """The failure of a case that took too long."""
    return Failure(
        f"{name}: not finished after {timeout:g} s, stopped (a decoder that hangs, a disk that does not answer, or a "
        "very large image). Look at the file; --timeout takes more seconds.",
        kind="TimeoutError",
    )


def died_again(name: str, how: str) -> Failure:
    """The failure of a case that kills its worker."""
    return Failure(
        f"{name}: the worker process died twice on it ({how}: out of memory, or a crash in a decoder). Try it with "
        "--workers 1 on a machine with more memory, or leave it out.",
        kind="WorkerDiedError",
    )


def _run_isolated(
    function: Callable[[Case], Result],
    cases: Sequence[Case],
    workers: int,
    describe: Callable[[Case], str],
    timeout: float | None,
    memory: Callable[[Case], int] | None,
) -> Iterator[tuple[Case, Result | Failure]]:
    """Run the cases on worker processes; those whose worker has died once more, one after the other."""
    died: list[Case] = []
    with closing(_Crew(function, workers, describe, timeout, memory)) as crew:
        for case, outcome in crew.run(cases):
            if isinstance(outcome, WorkerDiedError):
                died.append(case)
            else:
                yield case, outcome
    for case in died:
        with closing(_Crew(function, 1, describe, timeout, None)) as alone:
            _, outcome = next(alone.run([case]))
        yield case, died_again(describe(case), str(outcome)) if isinstance(outcome, WorkerDiedError) else outcome


class _Crew:
    """Workers that handle cases until all are done; one that has died or hangs is replaced."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        workers: int,
        describe: Callable[[Any], str],
        timeout: float | None,
        memory: Callable[[Any], int] | None,
    ) -> None:
        self._function, self._describe, self._timeout, self._memory = function, describe, timeout, memory
        self._budget = Budget(int(SHARE * available_memory()))
        self._has_said = False
        self._workers = [Worker(function) for _ in range(workers)]
        self._busy: dict[Worker, tuple[int, float]] = {}  # position of the case, and when its time is over

    def run(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Any]]:
        """Yield each case with its result, its failure, or how its worker died.

        Raises:
            RunError: If a worker dies before it has come up.
        """
        waiting = deque(range(len(cases)))
        while waiting or self._busy:
            self._hand_out(waiting, cases)
            for worker in self._heard():
                try:
                    answer = worker.take()
                except WorkerDiedError as error:
                    if not worker.has_come_up:
                        raise _cannot_start(error) from None
                    answer = error
                    self._replace(worker, waiting)
                if worker in self._busy:
                    yield cases[self._release(worker)], answer
            for worker in [worker for worker, (_, end) in self._busy.items() if time.monotonic() > end]:
                self._replace(worker, waiting)
                case = cases[self._release(worker)]
                yield case, timed_out(self._describe(case), self._timeout)

    def close(self) -> None:
        """End all workers; those that are still at work, or coming up, are killed."""
        for worker in self._workers:
            if worker in self._busy or not worker.has_come_up:
                worker.kill()
            else:
                worker.close()

    def _hand_out(self, waiting: deque[int], cases: Sequence[Any]) -> None:
        """Give every free worker a case, as long as there is memory for it."""
        for worker in [worker for worker in self._workers if worker.has_come_up and worker not in self._busy]:
            if not waiting or not self._has_memory_for(waiting[0], cases[waiting[0]]):
                return
            self._busy[worker] = waiting.popleft(), time.monotonic() + (self._timeout or math.inf)
            worker.give(cases[self._busy[worker][0]])

    def _has_memory_for(self, index: int, case: Any) -> bool:
        if self._memory is None:
            return True
        need = OWN + self._memory(case)
        fits = self._budget.admits(index, need)
        if not fits and not self._has_said:
            self._has_said = True
            warn_of_memory(self._describe(case), need, self._budget.free)
        return fits

    def _heard(self) -> list[Worker]:
        """Workers that have something to say; waits for one, or until the first time-out."""
        by_connection = {worker.connection: worker for worker in self._workers}
        first = min((end for _, end in self._busy.values()), default=math.inf)
        patience = None if first == math.inf else max(0.0, first - time.monotonic())
        return [by_connection[connection] for connection in wait(list(by_connection), patience)]  # type: ignore[index]

    def _replace(self, worker: Worker, waiting: Sequence[int]) -> None:
        """End a worker; start another if there is a case for it."""
        worker.kill()
        self._workers.remove(worker)
        if len(waiting) > sum(other not in self._busy for other in self._workers):
            self._workers.append(Worker(self._function))

    def _release(self, worker: Worker) -> int:
        """Note that a worker has no case any more; the position of the one it had."""
        index, _ = self._busy.pop(worker)
        self._budget.release(index)
        return index


def _cannot_start(error: WorkerDiedError) -> RunError:
    return RunError(
        f"The worker processes cannot start ({error}). Each of them runs the calling script again, so its calls of "
        'Prevox must stand under `if __name__ == "__main__":`; or set workers to 1 (a script on standard input, say).'
    )
