"""Cases on a Dask cluster: `--engine dask`, with the outcomes of `data.runner` on one machine.

Each case is given to a worker that has a free thread and the memory, and to no other, so as many cases are under way as
the cluster has threads, and the cases that a lost worker had are known. Dask's own way would be to start them again
somewhere at once, and thereby to take down one worker after the other with a case that needs too much memory.
"""

import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from prevox.config.data import WorkConfig
from prevox.console import warn
from prevox.data.dask_cluster import Attempt, Cluster, Member
from prevox.data.dask_connect import check_dask
from prevox.data.dask_probe import Shared
from prevox.data.dask_worker import NoAnswer, Work
from prevox.data.memory import OWN, warn_of_memory
from prevox.data.runner import died_again, timed_out
from prevox.data.worker import WorkerDiedError
from prevox.errors import DataError, RunError

_POLL = 0.5  # seconds after which it is looked for workers that have come or gone
_SAMPLE = 10  # paths that workers must see


@contextmanager
def open_engine(
    config: WorkConfig, reads: Iterable[Path], out: Path | None = None, tidy: Callable[[], None] | None = None
) -> Iterator["DaskEngine | None"]:
    """The engine that the settings name, for `run_cases`; None is this machine.

    Args:
        config: The settings.
        reads: Files or folders that are read; the workers must see them.
        out: Folder that the workers write to, if they do.
        tidy: What each worker does when cases have run, if anything; picklable.

    Raises:
        ConfigError: If Dask is not installed, or the scheduler's file is not there.
    """
    if config.engine == "local":
        yield None
        return
    check_dask(config.dask)
    shared = Shared(sample(reads), out, tidy)
    engine = DaskEngine(lambda: Cluster(config.dask, shared))
    try:
        yield engine
    finally:
        engine.close()


def sample(paths: Iterable[Path]) -> list[tuple[Path, str]]:
    """A few of many paths, of those that exist, for workers to look for; and what to call each.

    Of a series also some of its files, whose names may be those of patients and are not said.
    """
    from prevox.data.readers import SERIES, suffix_of
    from prevox.data.readers.dicom import series_files

    found: list[tuple[Path, str]] = []
    for path in _some(paths):
        found.append((path, str(path)))
        if suffix_of(path) == SERIES:
            with suppress(DataError):  # the reader says what is wrong with the list
                found += [(file, f"file that {path} lists") for file in _some(series_files(path))]
    return found


def _some(paths: Iterable[Path]) -> list[Path]:
    every = list(dict.fromkeys(paths))
    return [path for path in every[:: max(1, len(every) // _SAMPLE)] if os.path.exists(path)]  # noqa: PTH110 - any name


class DaskEngine:
    """Runs cases on a cluster, which is reached or started when there is a case.

    Args:
        cluster: Reaches or starts it.
    """

    def __init__(self, cluster: Callable[[], Cluster]) -> None:
        self._open = cluster
        self._cluster: Cluster | None = None
        self._run: _Run | None = None

    def close(self) -> None:
        """End what still runs, and leave the cluster."""
        if self._run is not None:
            self._run.close()
        if self._cluster is not None:
            self._cluster.close()

    def run(
        self,
        function: Callable[[Any], Any],
        cases: Sequence[Any],
        workers: int,
        describe: Callable[[Any], str],
        timeout: float | None,
        memory: Callable[[Any], int] | None,
    ) -> Iterator[tuple[Any, Any]]:
        """As `run_cases`, of which these are the arguments.

        Raises:
            RunError: If the cluster cannot be reached or started, or is lost; what has been yielded is finished.
        """
        if not cases:
            return
        if self._cluster is None:
            self._cluster = self._open()
        work = Work(uuid4().hex, function, timeout, str(Path.cwd()))
        self._run = run = _Run(self._cluster, work, cases, workers, describe, memory)
        died: list[int] = []
        try:
            for index, outcome in run.outcomes(range(len(cases))):
                if isinstance(outcome, WorkerDiedError):
                    died.append(index)
                else:
                    yield cases[index], outcome
            for index, outcome in run.outcomes(died, alone=True):
                name = describe(cases[index])
                lost = isinstance(outcome, WorkerDiedError)
                yield cases[index], died_again(name, str(outcome)) if lost else outcome
        finally:
            run.close()


class _Run:
    """The cases of one call of `run_cases` on a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        work: Work,
        cases: Sequence[Any],
        workers: int,
        describe: Callable[[Any], str],
        memory: Callable[[Any], int] | None,
    ) -> None:
        self._cluster, self._run, self._timeout, self._work = cluster, work.run, work.timeout, pickle.dumps(work)
        self._cases, self._describe, self._memory = cases, describe, memory
        self._limit = workers or len(cases)
        self._under_way: list[Attempt] = []
        self._needs: dict[int, int] = {}  # memory of the cases that wait for it
        self._has_said = self._is_closed = self._has_succeeded = False

    def close(self) -> None:
        """End what still runs."""
        if not self._is_closed:
            self._is_closed = True
            self._cluster.cancel(self._under_way)
            self._cluster.stop(self._run)

    def outcomes(self, indices: Iterable[int], alone: bool = False) -> Iterator[tuple[int, Any]]:
        """Yield the position of each case with its result, its failure, or a `WorkerDiedError`.

        Args:
            indices: Positions of the cases.
            alone: Have one case at a time on each host.
        """
        waiting = deque(indices)
        while waiting or self._under_way:
            self._cluster.look()
            yield from self._lost()
            self._hand_out(waiting, alone)
            if not self._under_way:
                time.sleep(_POLL)
            wait([attempt.answer for attempt in self._under_way], _POLL, FIRST_COMPLETED)
            for attempt in [attempt for attempt in self._under_way if attempt.answer.done()]:
                self._release(attempt)
                answer = self._cluster.outcome(attempt)
                if isinstance(answer, NoAnswer) and answer.why == "no start":
                    self._not_started(attempt.member, answer.how)
                    waiting.append(attempt.index)  # not the case's doing
                else:
                    yield attempt.index, self._outcome(attempt, answer)

    def _not_started(self, member: Member, how: str) -> None:
        self._cluster.has_not_started(member, how)
        if not self._cluster.members and not self._has_succeeded:
            raise RunError(
                f"No Dask worker can start a process for cases ({how}). Look at their memory and their logs."
            )

    def _outcome(self, attempt: Attempt, answer: Any) -> Any:
        if not isinstance(answer, NoAnswer) or answer.why in ("died", "timeout"):
            self._has_succeeded = True
            self._cluster.has_started(attempt.member)
        if not isinstance(answer, NoAnswer):
            return answer
        if answer.why == "gone":
            self._cluster.drop(attempt.member)
            return _gone(attempt.member)
        if answer.why == "timeout":
            return timed_out(self._describe(self._cases[attempt.index]), self._timeout)
        return WorkerDiedError(answer.how)

    def _lost(self) -> list[tuple[int, WorkerDiedError]]:
        """Cases of workers that have gone without an answer, or do not give one."""
        open_ = [attempt for attempt in self._under_way if not attempt.answer.done()]
        for attempt in open_:
            if attempt.is_overdue:
                self._cluster.doubt(attempt.member)
        members = self._cluster.members
        lost = [attempt for attempt in open_ if members.get(attempt.member.address) is not attempt.member]
        self._cluster.cancel(lost)
        for attempt in lost:
            self._release(attempt)
        for address in dict.fromkeys(attempt.member.address for attempt in lost):
            names = [self._describe(self._cases[a.index]) for a in lost if a.member.address == address]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            what = "is given up" if self._cluster.is_there(address) else "has gone"
            warn(f"Dask worker {address} {what} while it had {', '.join(names[:3])}{more}")
        return [(attempt.index, _gone(attempt.member)) for attempt in lost]

    def _hand_out(self, waiting: deque[int], alone: bool) -> None:
        """Give every free thread a case, as long as there is memory for it."""
        while waiting and len(self._under_way) < self._limit:
            member = self._member_for(waiting[0], alone)
            if member is None:
                return
            index = waiting.popleft()
            self._needs.pop(index, None)
            case = self._cases[index]
            self._under_way.append(self._cluster.submit(member, index, self._work, self._run, case, self._timeout))

    def _member_for(self, index: int, alone: bool) -> Member | None:
        """A worker that takes a case now: of those with a free thread and the memory, the one with the fewest cases.

        A case that is too large for all of them goes to a worker with the most memory, when that has no other.
        """
        members = list(self._cluster.members.values())
        if alone:
            taken = {attempt.member.host for attempt in self._under_way}
            return max((m for m in members if m.host not in taken), key=lambda m: m.budget.free, default=None)
        load = Counter(attempt.member for attempt in self._under_way)
        free = sorted((member for member in members if load[member] < member.threads), key=lambda member: load[member])
        if self._memory is None or not free:
            return free[0] if free else None
        if index not in self._needs:  # which may have to read headers
            self._needs[index] = OWN + self._memory(self._cases[index])
        need = self._needs[index]
        most = max(member.budget.free for member in members)
        for member in free:
            if (need <= member.budget.free or member.budget.free == most) and member.budget.admits(index, need):
                return member
        if not self._has_said:
            self._has_said = True
            warn_of_memory(self._describe(self._cases[index]), need, most)
        return None

    def _release(self, attempt: Attempt) -> None:
        self._under_way.remove(attempt)
        attempt.member.budget.release(attempt.index)


def _gone(member: Member) -> WorkerDiedError:
    return WorkerDiedError(f"the Dask worker {member.address} went away")
