"""The Dask cluster of `--engine dask`, whose workers come and go.

Nothing here waits without a limit: a worker or a scheduler may be there and not answer.
"""

import asyncio
import pickle
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from prevox.config.data import DaskConfig
from prevox.console import console, warn
from prevox.data.dask_connect import CONNECT, connect, loop_of, quiet_logs
from prevox.data.dask_probe import Probes, Shared, problem_of
from prevox.data.dask_worker import START, Found, NoAnswer, run_case, stop
from prevox.data.memory import Budget
from prevox.errors import RunError

T = TypeVar("T")

_LOOK = 1.0  # seconds between looks at which workers there are
_PATIENCE = 60.0  # seconds without any worker after which a run ends
_STOP = 6.0  # seconds for workers to end what they do, and for a scheduler to see us off
_GRACE = START + 30.0  # seconds beyond its time-out after which a case is lost: its worker should have said something
_AGAIN = "What is finished stays: the same call goes on where it was."


@dataclass(frozen=True, eq=False)
class Member:
    """A worker of the cluster.

    Args:
        address: By which the scheduler knows it.
        identity: Of its process.
        host: Name of its machine.
        threads: Cases that it takes at once.
        budget: Of memory for them.
        shared: Bytes that all workers without a limit on its machine may take together; None where it has its own.
    """

    address: str
    identity: str
    host: str
    threads: int
    budget: Budget
    shared: int | None = None


@dataclass(frozen=True, eq=False)
class Attempt:
    """A case on a worker.

    Args:
        member: The worker.
        index: Position of the case.
        task: What Dask knows it as.
        answer: Pickled answer, or the exception that there is instead.
        end: When the worker should have answered, by the monotonic clock; None for never.
    """

    member: Member
    index: int
    task: Any
    answer: "Future[bytes | BaseException]"
    end: float | None

    @property
    def is_overdue(self) -> bool:
        """Whether there is nothing to hope for."""
        return self.end is not None and time.monotonic() > self.end


class Cluster:
    """A connection to a Dask cluster, whose workers come and go.

    Args:
        config: Which cluster.
        shared: What its workers must see.

    Attributes:
        members: The workers that cases can be given to, by address.

    Raises:
        ConfigError: If the settings do not lead to a cluster.
        RunError: If no scheduler answers, or SLURM refuses the jobs.
    """

    def __init__(self, config: DaskConfig, shared: Shared) -> None:
        from distributed import Client

        self.members: dict[str, Member] = {}
        self._shared = shared
        self._unfit: set[str] = set()
        self._said_silent: set[str] = set()
        self._not_started: Counter[Member] = Counter()  # processes in a row
        self._has_met = self._is_lost = False
        self._looked = -_LOOK
        self._empty_since: float | None = None
        self._jobs = None
        with ExitStack() as stack:
            stack.enter_context(quiet_logs())
            if config.jobs:
                from prevox.data.dask_slurm import SlurmJobs

                self._jobs = stack.enter_context(SlurmJobs(config))
                self._name = f"of {config.jobs} SLURM jobs"
                self._client = Client(self._jobs.cluster, set_as_default=False)
            else:
                assert config.scheduler is not None
                self._name = config.scheduler
                self._client = connect(config.scheduler)
            stack.callback(self._client.close, timeout=_STOP)
            self._probes = Probes(self._client, shared)
            stack.callback(self._probes.close)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Leave the cluster; its SLURM jobs end."""
        with suppress(Exception):  # a scheduler that is lost cannot be told
            self._stack.close()

    def look(self) -> None:
        """Take notice of workers that have come or gone; at most once in a second.

        Raises:
            RunError: If the scheduler is lost, no worker is there for long, or one of the first is unfit.
        """
        if time.monotonic() - self._looked < _LOOK:
            return
        with self._lost_is_an_error():
            threads: dict[str, int] = self._ask(self._threads())
        for address in self.members.keys() - threads.keys():
            del self.members[address]
        self._unfit &= threads.keys()
        new = threads.keys() - self.members.keys() - self._unfit
        with self._lost_is_an_error():
            answers = self._probes.answers(new, has_time=not self.members)
        for address, answer in answers:
            self._welcome(address, answer, threads[address])
        self._share_memory()
        self._looked = time.monotonic()
        if self.members and not self._has_met:
            self._has_met = True
            number = sum(member.threads for member in self.members.values())
            console.print(f"Dask cluster {self._name}: {len(self.members)} workers, {number} threads", markup=False)
        self._wait_for_workers()

    def drop(self, member: Member) -> None:
        """Forget a worker, which is looked at anew if it is still there."""
        if self.members.get(member.address) is member:
            del self.members[member.address]

    def doubt(self, member: Member) -> None:
        """Forget a worker that does not answer, and look at it again later."""
        if self.members.get(member.address) is member:
            self._probes.doubt(member.address)
            self.drop(member)

    def has_started(self, member: Member) -> None:
        """Note that a worker can start processes."""
        del self._not_started[member]

    def has_not_started(self, member: Member, how: str) -> None:
        """Note that a process has not started on a worker, which is not used any more after the second in a row."""
        self._not_started[member] += 1
        if self._not_started[member] == 2 and self.members.get(member.address) is member:
            warn(
                f"Dask worker {member.address} is not used any more: a process for cases cannot start there ({how}). "
                "Look at its memory and its log."
            )
            self._unfit.add(member.address)
            self.drop(member)

    def is_there(self, address: str) -> bool:
        """Whether a worker is known to be there, used or not."""
        return address in self.members or address in self._unfit or address in self._probes.silent

    def submit(self, member: Member, index: int, work: bytes, run: str, case: Any, timeout: float | None) -> Attempt:
        """Give a worker a case.

        Args:
            member: The worker: this one and no other, so that it is known which case it dies on.
            index: Position of the case.
            work: Pickled `Work`.
            run: Its id.
            case: The case.
            timeout: Seconds that the worker gives it; None for any number.

        Raises:
            RunError: If the scheduler is lost.
        """
        key = f"prevox-{uuid4().hex}"  # is seen by whoever looks at the cluster, so it names nothing
        with self._lost_is_an_error():
            task = self._client.submit(
                run_case, member.identity, run, work, pickle.dumps(case), key=key, workers=[member.address], pure=False
            )
        end = None if timeout is None else time.monotonic() + timeout + _GRACE
        return Attempt(
            member, index, task, asyncio.run_coroutine_threadsafe(self._gather(task), loop_of(self._client)), end
        )

    def outcome(self, attempt: Attempt) -> Any:
        """The answer of an attempt that is done; `NoAnswer` also where Dask has given it up.

        Raises:
            RunError: If the scheduler is lost.
        """
        from distributed import KilledWorker
        from distributed.scheduler import NoValidWorkerError

        answer = attempt.answer.result()
        if isinstance(answer, bytes):
            return pickle.loads(answer)
        if isinstance(answer, KilledWorker | NoValidWorkerError):
            return NoAnswer("gone")
        raise self._lost(answer)

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        """Give up attempts; what runs already is ended by `stop`."""
        if attempts and not self._is_lost:
            with suppress(Exception):  # a scheduler that is lost just now has forgotten them
                self._ask(self._cancel([attempt.task for attempt in attempts]), _STOP)

    def stop(self, run: str) -> None:
        """End all processes of a run on all workers that answer, and let each tidy up."""
        if self._is_lost:  # its workers end with it, and what they have begun
            return
        addresses = [*self.members, *self._probes.silent]
        with suppress(Exception):  # workers that have gone have no processes
            self._ask(self._stop(pickle.dumps((run, self._shared.tidy)), addresses), 2 * _STOP)

    def _ask(self, question: Coroutine[Any, Any, T], limit: float | None = None) -> T:
        """What the client says, whose methods are to be awaited within its loop; TimeoutError if that takes long."""
        answer = asyncio.run_coroutine_threadsafe(question, loop_of(self._client))
        try:
            return answer.result(CONNECT if limit is None else limit)
        except TimeoutError:
            answer.cancel()
            raise TimeoutError("the scheduler does not answer") from None

    async def _threads(self) -> dict[str, int]:
        return dict(await self._client.nthreads())

    async def _cancel(self, tasks: list[Any]) -> None:
        await self._client.cancel(tasks)

    async def _stop(self, asked: bytes, addresses: list[str]) -> None:
        told = [self._client.run(stop, asked, workers=[address], on_error="ignore") for address in addresses]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*told, return_exceptions=True), _STOP)

    async def _gather(self, task: Any) -> bytes | BaseException:
        try:
            return await self._client.gather(task, asynchronous=True)
        except (Exception, asyncio.CancelledError) as error:
            return error

    def _welcome(self, address: str, answer: Found | Exception, threads: int) -> None:
        """Make a worker that is fit a member."""
        if isinstance(answer, OSError):
            if address not in self._said_silent:
                self._said_silent.add(address)
                reason = " ".join(str(answer).split())[:300]
                warn(f"Dask worker {address} is not used for now: it does not answer ({reason}).")
        elif problem := problem_of(answer):
            if not self._has_met:
                raise RunError(f"Dask worker {address}: {problem}")
            warn(f"Dask worker {address} is not used: {problem}")
            self._unfit.add(address)
        else:
            assert isinstance(answer, Found)
            limit = answer.limit
            budget = Budget(answer.memory if limit is None else min(answer.memory, limit))
            shared = answer.memory if limit is None else None
            self.members[address] = Member(address, answer.identity, answer.host, threads, budget, shared)

    def _share_memory(self) -> None:
        """Workers without a limit share the memory of their machine."""
        sharing = [member for member in self.members.values() if member.shared is not None]
        number = Counter(member.host for member in sharing)
        for member in sharing:
            assert member.shared is not None
            member.budget.free = member.shared // number[member.host]

    def _wait_for_workers(self) -> None:
        if self.members:
            self._empty_since = None
            return
        if self._empty_since is None:
            self._empty_since = time.monotonic()
        if self._jobs is not None:
            self._jobs.wait()
        elif time.monotonic() - self._empty_since > _PATIENCE:
            silent = f" {len(self._probes.silent)} do not answer." if self._probes.silent else ""
            raise RunError(
                f"The Dask cluster {self._name} has no worker that can be used since {_PATIENCE:g} s.{silent} Start "
                f"some with `dask worker`. {_AGAIN}"
            )

    @contextmanager
    def _lost_is_an_error(self) -> Iterator[None]:
        try:
            yield
        except RunError:
            raise
        except Exception as error:  # of the network, of a closed client, of a scheduler that has another environment
            raise self._lost(error) from error

    def _lost(self, error: BaseException) -> RunError:
        self._is_lost = True
        reason = " ".join(str(error).split())[:300]
        return RunError(
            f"The Dask cluster {self._name} cannot be used any more ({type(error).__name__}: {reason}). {_AGAIN}"
        )
