"""One worker process that handles one case at a time, so that whoever asks knows which case it died or hangs on.

Workers are spawned, not forked: tensorstore's threads do not survive a fork. They end with the process that started
them, however that ends.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from prevox.errors import PrevoxError

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
_READY = b"ready"
_environment = threading.Lock()  # workers of a Dask cluster start processes in several threads
_PATIENCE = 10.0  # seconds that a worker without work gets to end by itself


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


class WorkerDiedError(Exception):
    """The process ended while it should have worked; the message says how, as far as its exit code tells."""


def guarded(function: Callable[[Any], Any], case: Any) -> Any:
    """Call the function; turn an exception into text, because not every exception can be sent between processes."""
    try:
        return function(case)
    except Exception as error:
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    """An exception as text."""
    last_line = traceback.format_exception_only(error)[-1].strip()
    reason = str(error) if isinstance(error, PrevoxError) else last_line
    return Failure(reason, "".join(traceback.format_exception(error)), type(error).__name__)


class Worker:
    """A spawned process that applies one function; starts at once, and says when it is ready.

    Args:
        function: Picklable: defined at the top of a module, or a `functools.partial` of one.

    Attributes:
        connection: Readable when the worker has something to say, or has died.
        has_come_up: Whether it takes cases.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.has_come_up = False
        self._process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        with _single_threaded_children():
            self._process.start()
        theirs.close()  # so that its end is noticed here

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.is_alive()

    def give(self, case: Any) -> None:
        """Send a case. If the process has ended since its last one, `take` says so."""
        with suppress(OSError):
            self.connection.send_bytes(ForkingPickler.dumps(case))

    def take(self) -> Any:
        """Receive what the function returned, or a `Failure`; None when the worker reports that it is ready.

        Raises:
            WorkerDiedError: If the process has ended.
        """
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError):
            raise WorkerDiedError(self._end()) from None
        if not self.has_come_up:
            self.has_come_up = message == _READY
            return None
        try:
            return pickle.loads(message)
        except Exception as error:
            return failure_of(error)

    def close(self) -> None:
        """Let a worker without work end by itself."""
        self.connection.close()
        self._process.join(_PATIENCE)
        self.kill()

    def kill(self) -> None:
        """End the process now, whatever it does."""
        self.connection.close()
        self._process.kill()
        self._process.join()

    def interrupt(self) -> None:
        """End the process from another thread than that which waits for its answer, and which hears that it died."""
        self._process.kill()

    def _end(self) -> str:
        self._process.join(_PATIENCE)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """What a worker process does until its parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection.send_bytes(_READY)
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            case = pickle.loads(message)
        except Exception as error:
            answer: Any = failure_of(error)
        else:
            answer = guarded(function, case)
        connection.send_bytes(_pickled(answer))


def _pickled(answer: Any) -> Any:
    try:
        return ForkingPickler.dumps(answer)
    except Exception as error:
        return ForkingPickler.dumps(failure_of(error))


def _end_with_parent() -> None:
    """A parent that was killed waits for no result: end in the middle of a case that may take hours, or for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Children inherit one thread per library, lest N processes start N threads each; a user's own value wins."""
    with _environment:
        added = [name for name in _THREAD_VARIABLES if name not in os.environ]
        os.environ.update(dict.fromkeys(added, "1"))
        try:
            yield
        finally:
            for name in added:
                del os.environ[name]
