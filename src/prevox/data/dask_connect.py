"""The way to a Dask scheduler, and what can be seen before it is taken.

Dask is imported when a cluster is used and not before: it is an extra.
"""

import asyncio
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from prevox.config.data import DaskConfig
from prevox.console import console
from prevox.errors import ConfigError, RunError

if TYPE_CHECKING:
    from distributed import Client

CONNECT = 30.0  # seconds for a scheduler to answer


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


def connect(scheduler: str) -> "Client":
    """A connection to the scheduler that the settings name.

    Raises:
        ConfigError: If its file is none.
        RunError: If it does not answer.
    """
    from distributed import Client, Security

    address = scheduler if "://" in scheduler else _address_in(Path(scheduler))
    try:
        certified = Security().get_connection_args("client").get("ssl_context") is not None
        if address.startswith("tls:") and not certified:  # known here, because a client that fails takes a minute to go
            raise OSError("Dask's configuration names no certificates")
        with _said_when_long(f"waiting for the scheduler at {address}"):
            return Client(address, timeout=CONNECT, set_as_default=False)
    except Exception as error:  # of the network, of certificates, of an address that is none
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"--dask.scheduler {scheduler}: no Dask scheduler answers ({reason}). Start one with `dask scheduler`, or "
            "correct the address; one at tls:// needs the certificates of Dask's own configuration."
        ) from None


def loop_of(client: "Client") -> asyncio.AbstractEventLoop:
    """The loop that a client runs in a thread of its own; within it, its methods are to be awaited."""
    assert client.loop is not None
    return client.loop.asyncio_loop  # type: ignore[attr-defined]


@contextmanager
def _said_when_long(words: str) -> Iterator[None]:
    """Print what is waited for after a second."""
    timer = threading.Timer(1.0, lambda: console.print(words, markup=False, soft_wrap=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _address_in(path: Path) -> str:
    """The address that a scheduler has written into a file."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else "no file of a Dask scheduler"
        if re.fullmatch(r"[\w.-]+:\d+", str(path)):
            found += f" (is tcp://{path} meant?)"
        raise ConfigError(
            f"--dask.scheduler {path}: found {found}; expected tcp://HOST:PORT, tls://HOST:PORT, or the file that "
            "`dask scheduler --scheduler-file` has written."
        ) from None


@contextmanager
def quiet_logs() -> Iterator[None]:
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
