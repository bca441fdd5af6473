"""What the workers of a Dask cluster do for `--engine dask`: each case in a child process, as on one machine.

Dask cannot stop a running task, and a decoder that crashes in one takes the worker with it and all its other cases. So
a task only waits for a child process, which can be killed and can die alone. Nothing here raises: Dask would write its
arguments, names of files among them, into the worker's log.
"""

import multiprocessing
import os
import pickle
import platform
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from prevox import __version__
from prevox.data.memory import SHARE, available_memory
from prevox.data.worker import Worker, WorkerDiedError, failure_of

_IDENTITY = uuid4().hex  # of this process: a worker that was killed may come again at the same address
_IDLE = 60.0  # seconds after which a child process without work is ended: its run may have been killed
_PATIENCE = 3.0  # seconds that killed child processes get to be gone
START = 120.0  # seconds for a child process to come up; it may have to load Prevox from a slow disk
# what reads and writes images, and what Dask sends: other versions could give another store, or none
_PACKAGES = (
    "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg",
    "pylibjpeg-rle", "pillow", "tensorstore", "distributed",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What is to be done with each case of a run.

    Args:
        run: Id of the run.
        function: Picklable, of one case.
        timeout: Seconds for a case; None waits for ever.
        folder: Where the caller stands, for relative paths.
    """

    run: str
    function: Callable[[Any], Any]
    timeout: float | None
    folder: str

    def __call__(self, case: Any) -> Any:
        """Apply the function; runs in a child process."""
        with suppress(OSError):  # not there: then only absolute paths can be meant
            os.chdir(self.folder)
        return self.function(case)


@dataclass(frozen=True)
class NoAnswer:
    """Why a case has neither result nor failure.

    Args:
        why: Its process died, took too long, could not start; or its run, or this worker, is another by now.
        how: It died, in words.
    """

    why: Literal["died", "timeout", "no start", "gone"]
    how: str = ""


@dataclass(frozen=True)
class Found:
    """What a worker is and sees.

    Args:
        identity: Of its process.
        host: Name of the machine.
        memory: Bytes that cases may take together on this machine.
        limit: Bytes that the worker may take; None has no limit.
        versions: Of Prevox, Python and packages; None for those that are not installed.
        problems: What it does not see, one text each.
        error: Why it could not look, if so.
    """

    identity: str
    host: str
    memory: int
    limit: int | None
    versions: dict[str, str | None]
    problems: list[str]
    error: str = ""


def probe(asked: bytes, dask_worker: Any) -> bytes:
    """Look at a worker from within it.

    Args:
        asked: Pickled: files or folders that are there for the caller, and what to call each; a file that the caller
            has just made in the folder to be written to, or None; what that file holds.
        dask_worker: The worker, given by Dask.

    Returns:
        Pickled `Found`.
    """
    try:
        problems = _not_seen(*pickle.loads(asked))
        limit = dask_worker.memory_manager.memory_limit or None
        memory = int(SHARE * available_memory())
        return pickle.dumps(Found(_IDENTITY, platform.node(), memory, limit, versions(), problems))
    except Exception as error:
        name = type(error).__name__  # no more: its message may hold names of files
        return pickle.dumps(Found(_IDENTITY, platform.node(), 0, None, versions(), [], name))


def _not_seen(reads: Sequence[tuple[str, str]], out: str | None, token: str) -> list[str]:
    # not Path.exists, which would raise EACCES
    problems = [f"no {name}" for path, name in reads if not os.path.exists(path)]  # noqa: PTH110
    if out is not None:
        folder = Path(out).parent
        try:
            same = Path(out).read_text(encoding="utf-8") == token
        except OSError:
            same = False
        if not same:
            problems.append(f"{'another' if folder.is_dir() else 'no'} folder {folder}")
        elif not os.access(folder, os.W_OK):
            problems.append(f"the folder {folder}, but may not write there")
    return problems


def versions() -> dict[str, str | None]:
    """Versions that must be the same everywhere, by name."""
    found: dict[str, str | None] = {"prevox": __version__, "Python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def run_case(identity: str, run: str, work: bytes, case: bytes) -> bytes:
    """Run one case of a run; a task of Dask.

    Args:
        identity: Of the worker that is meant.
        run: Id of the run.
        work: Pickled `Work`.
        case: Pickled case.

    Returns:
        What the function returned, a `Failure`, or `NoAnswer`; pickled.
    """
    try:
        return pickle.dumps(_answer(identity, run, work, case))
    except Exception as error:
        return pickle.dumps(failure_of(error))


def stop(asked: bytes) -> None:
    """End all processes of a run on this worker; then tidy up.

    Args:
        asked: Pickled: id of the run; what to call then, or None.
    """
    with suppress(Exception):
        run, tidy = pickle.loads(asked)
        with _lock:
            _ended.add(run)
            children = _children.pop(run, None)
        if children is not None:
            children.stop()
        if tidy is not None:
            tidy()


_lock = threading.Lock()
_children: dict[str, "Children"] = {}  # by run
_ended: set[str] = set()


def _answer(identity: str, run: str, work: bytes, case: bytes) -> Any:
    with _lock:
        if identity != _IDENTITY or run in _ended:
            return NoAnswer("gone")
        if run not in _children:
            _children[run] = Children(pickle.loads(work))
        children = _children[run]
    return children.answer(pickle.loads(case))


class Children:
    """Child processes for the cases of one run: as many as there are cases at once, kept for the next ones.

    Args:
        work: What they do.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._idle: dict[Worker, float] = {}  # and since when
        self._busy: set[Worker] = set()
        self._stopped = threading.Event()
        threading.Thread(target=self._end_idle, daemon=True).start()

    def answer(self, case: Any) -> Any:
        """What the function returned, a `Failure`, or `NoAnswer`; may be called by several threads."""
        with self._lock:
            if self._stopped.is_set():
                return NoAnswer("gone")
            child = self._living() or _child(self._work)
            self._busy.add(child)
        answer: Any = NoAnswer("died")
        try:
            answer = self._ask(child, case)
        finally:
            is_lost = isinstance(answer, NoAnswer)
            if is_lost:
                child.kill()
            with self._lock:
                self._busy.remove(child)
                if not is_lost:
                    self._idle[child] = time.monotonic()
        return answer

    def stop(self) -> None:
        """End all processes, those at work too."""
        with self._lock:
            self._stopped.set()
            for child in self._busy:
                child.interrupt()
        end = time.monotonic() + _PATIENCE
        while self._has_busy() and time.monotonic() < end:
            time.sleep(0.01)
        with self._lock:
            self._end(list(self._idle))

    def _has_busy(self) -> bool:
        with self._lock:
            return bool(self._busy)

    def _living(self) -> Worker | None:
        """An idle child; those that somebody has killed meanwhile are none, lest the next case be blamed for it."""
        while self._idle:
            child = self._idle.popitem()[0]
            if child.is_alive:
                return child
            child.kill()
        return None

    def _ask(self, child: Worker, case: Any) -> Any:
        try:
            if not child.has_come_up:
                if not child.connection.poll(START):
                    return NoAnswer("no start", f"not up after {START:g} s")
                child.take()
            child.give(case)
            return child.take() if child.connection.poll(self._work.timeout) else NoAnswer("timeout")
        except WorkerDiedError as error:
            return NoAnswer("died" if child.has_come_up else "no start", str(error))

    def _end_idle(self) -> None:
        while not self._stopped.wait(_IDLE / 4):
            with self._lock:
                old = [child for child, since in self._idle.items() if time.monotonic() - since > _IDLE]
                self._end(old)

    def _end(self, children: Sequence[Worker]) -> None:
        for child in children:
            del self._idle[child]
            child.kill()


def _child(work: Work) -> Worker:
    process = multiprocessing.current_process()
    if process.daemon:  # so are workers below a nanny, and may have no children; ours end with their parent anyhow
        process.daemon = False
    return Worker(work)
