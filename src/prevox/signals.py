"""SIGTERM and SIGUSR1, which clusters send before they kill: a run notes them, saves and leaves.

The command line listens from its first moment, so that a signal during the seconds of start-up is not lost either.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # no SIGUSR1 on Windows


@dataclass
class Stop:
    """Whether one of the signals has come."""

    asked: bool = False


_listening: list[Stop] = []  # signal handlers belong to the process, and so does this


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note the signals instead of dying of them; a block within another one shares its note."""
    if _listening:
        yield _listening[0]
        return
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True

    try:
        before = {number: signal.signal(number, ask) for number in _NUMBERS}
    except ValueError:  # not in the main thread: signals are somebody else's business
        yield stop
        return
    _listening.append(stop)
    try:
        yield stop
    finally:
        _listening.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
