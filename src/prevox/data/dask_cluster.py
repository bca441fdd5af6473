"""The Dask cluster of `--engine dask`: reached or started, its workers looked at before they get a case.

Dask is imported when a cluster is used and not before: it is an extra.
"""

import asyncio
import json
import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prevox.config.data import DaskConfig
from prevox.console import console, warn
from prevox.data.dask_worker import Found, NoAnswer, probe, run_case, stop, versions
from prevox.data.memory import Budget
from prevox.data.temporary import temporary_path
from prevox.errors import ConfigError, RunError

if TYPE_CHECKING:
    from distributed import Client

_LOOK = 1.0  # seconds between looks at which workers there are
_CONNECT = 30.0  # seconds for a scheduler to answer
_PATIENCE = 60.0  # seconds without any worker after which a run ends
_AGAIN = "What is finished stays: the same call goes on where it was."


@dataclass(frozen=True)
class Shared:
    """What the workers must see as this machine does.

    Args:
        reads: Some of the files or folders that are read.
        out: Folder that the workers write to, if they do.
        tidy: What each worker does when the run ends, if anything; picklable.
    """

    reads: Sequence[Path]
    out: Path | None = None
    tidy: Callable[[], None] | None = None


@dataclass(frozen=True, eq=False)
class Member:
    """A worker of the cluster.

    Args:
        address: By which the scheduler knows it.
        identity: Of its process.
        host: Name of its machine.
        threads: Cases that it takes at once.
        budget: Of memory for them.
    """

    address: str
    identity: str
    host: str
    threads: int
    budget: Budget


@dataclass(frozen=True, eq=False)
class Attempt:
    """A case on a worker.

    Args:
        member: The worker.
        index: Position of the case.
        task: What Dask knows it as.
        answer: Pickled answer, or the exception that there is instead.
    """

    member: Member
    index: int
    task: Any
    answer: "Future[bytes | BaseException]"


def check_dask(config: DaskConfig) -> None:
    """See what can be seen before anything is done.

    Raises:
        ConfigError: If Dask is not installed, or the scheduler's file is not there.
    """
    for package in ("distributed", *(["dask_jobqueue", "cryptography"] if config.jobs else [])):
        if find_spec(package) is None:
            raise ConfigError(
                f"--engine dask: {package} is not installed. pip install 'prevox[dask]', here and on the workers."
            )
    if config.scheduler is not None and "://" not in config.scheduler:
        _address_in(Path(config.scheduler))


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

        check_dask(config)
        self.members: dict[str, Member] = {}
        self._shared = shared
        self._unfit: set[str] = set()
        self._has_met = self._is_lost = False
        self._looked = -_LOOK
        self._empty_since: float | None = None
        self._jobs = None
        with ExitStack() as stack:
            stack.enter_context(_quiet_logs())
            if config.jobs:
                from prevox.data.dask_slurm import SlurmJobs

                self._jobs = stack.enter_context(SlurmJobs(config))
                self._name = f"of {config.jobs} SLURM jobs"
                self._client = stack.enter_context(Client(self._jobs.cluster, set_as_default=False))
            else:
                assert config.scheduler is not None
                self._name = config.scheduler
                self._client = stack.enter_context(_connect(config.scheduler))
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
            threads: dict[str, int] = self._client.nthreads()
        for address in self.members.keys() - threads.keys():
            del self.members[address]
        if new := sorted(threads.keys() - self.members.keys() - self._unfit):
            self._welcome(new, threads)
        self._looked = time.monotonic()
        self._wait_for_workers()

    def drop(self, member: Member) -> None:
        """Forget a worker, which is looked at anew if it is still there."""
        if self.members.get(member.address) is member:
            del self.members[member.address]

    def submit(self, member: Member, index: int, work: bytes, run: str, case: Any) -> Attempt:
        """Give a worker a case.

        Args:
            member: The worker: this one and no other, so that it is known which case it dies on.
            index: Position of the case.
            work: Pickled `Work`.
            run: Its id.
            case: The case.

        Raises:
            RunError: If the scheduler is lost.
        """
        key = f"prevox-{uuid4().hex}"  # is seen by whoever looks at the cluster, so it names nothing
        with self._lost_is_an_error():
            task = self._client.submit(
                run_case, member.identity, run, work, pickle.dumps(case), key=key, workers=[member.address], pure=False
            )
        return Attempt(member, index, task, asyncio.run_coroutine_threadsafe(self._gather(task), self._loop))

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
                self._client.cancel([attempt.task for attempt in attempts])

    def stop(self, run: str) -> None:
        """End all processes of a run on all workers, and let each tidy up."""
        if self._is_lost:  # its workers end with it, and what they have begun
            return
        with suppress(Exception):  # workers that have gone have no processes
            self._client.run(stop, run, self._shared.tidy, on_error="ignore")

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._client.loop.asyncio_loop

    async def _gather(self, task: Any) -> bytes | BaseException:
        try:
            return await self._client.gather(task, asynchronous=True)
        except (Exception, asyncio.CancelledError) as error:
            return error

    def _welcome(self, addresses: list[str], threads: dict[str, int]) -> None:
        """Look at new workers; those that are fit become members."""
        with _token_file(self._shared.out) as (path, token), self._lost_is_an_error():
            reads = [str(read.absolute()) for read in self._shared.reads]
            found = self._client.run(probe, reads, path, token, workers=addresses, on_error="return")
        for address, answer in found.items():
            if isinstance(answer, OSError):  # it has gone just now
                continue
            if problem := _problem(answer):
                if not self._has_met:
                    raise RunError(f"Dask worker {address}: {problem}")
                warn(f"Dask worker {address} is not used: {problem}")
                self._unfit.add(address)
            else:
                budget = Budget(answer.memory)
                self.members[address] = Member(address, answer.identity, answer.host, threads[address], budget)
        if self.members and not self._has_met:
            self._has_met = True
            number = sum(member.threads for member in self.members.values())
            console.print(f"Dask cluster {self._name}: {len(self.members)} workers, {number} threads", markup=False)

    def _wait_for_workers(self) -> None:
        if self.members:
            self._empty_since = None
            return
        if self._empty_since is None:
            self._empty_since = time.monotonic()
        if self._jobs is not None:
            self._jobs.wait()
        elif time.monotonic() - self._empty_since > _PATIENCE:
            raise RunError(
                f"The Dask cluster {self._name} has no worker that can be used since {_PATIENCE:g} s. Start some with "
                f"`dask worker`. {_AGAIN}"
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


def _connect(scheduler: str) -> "Client":
    from distributed import Client, Security

    address = scheduler if "://" in scheduler else _address_in(Path(scheduler))
    try:
        certified = Security().get_connection_args("client").get("ssl_context") is not None
        if address.startswith("tls:") and not certified:  # known here, because a client that fails takes a minute to go
            raise OSError("Dask's configuration names no certificates")
        return Client(address, timeout=_CONNECT, set_as_default=False)
    except Exception as error:  # of the network, of certificates, of an address that is none
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"--dask.scheduler {scheduler}: no Dask scheduler answers ({reason}). Start one with `dask scheduler`, or "
            "correct the address; one at tls:// needs the certificates of Dask's own configuration."
        ) from None


def _address_in(path: Path) -> str:
    """The address that a scheduler has written into a file."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else "no file of a Dask scheduler"
        raise ConfigError(
            f"--dask.scheduler {path}: found {found}; expected tcp://HOST:PORT, tls://HOST:PORT, or the file that "
            "`dask scheduler --scheduler-file` has written."
        ) from None


def _problem(answer: Found | Exception) -> str:
    """Why a worker cannot be used; empty if it can."""
    if isinstance(answer, Exception):
        return (
            f"cannot run this Prevox ({' '.join(str(answer).split())[:300]}). Start `dask worker` from the environment "
            "that this call runs in."
        )
    for name, ours in versions().items():
        if answer.versions.get(name) != ours:
            theirs = answer.versions.get(name)
            return (
                f"found {name} {theirs or 'missing'}; expected {ours or 'none'}, as here. Start `dask worker` from the "
                "environment that this call runs in."
            )
    if answer.problems:
        return (
            f"it sees {'; '.join(answer.problems)}. Scans and store must be at the same path on all machines, on a "
            "shared disk."
        )
    return ""


@contextmanager
def _token_file(folder: Path | None) -> Iterator[tuple[str | None, str]]:
    """A file in a folder for as long as it takes to look for it from elsewhere, and what it holds."""
    token = uuid4().hex
    if folder is None:
        yield None, token
        return
    path = temporary_path(folder.absolute() / "dask")
    try:
        path.write_text(token, encoding="utf-8")
        yield str(path), token
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Dask's own messages about workers and schedulers that have gone are said here, in other words."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    before = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in before:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
