"""The workers of a Dask cluster are looked at before they get a case: each by itself, and none is waited for long."""

import asyncio
import pickle
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from prevox.data.dask_connect import loop_of
from prevox.data.dask_worker import Found, probe, versions
from prevox.data.temporary import temporary_path

if TYPE_CHECKING:
    from distributed import Client

_ANSWER = 15.0  # seconds for a worker to answer; it may have to load Prevox from a slow disk first
_AGAIN = 30.0  # seconds after which one that has not answered is looked at again
_FIRST = 3.0  # seconds for which answers are waited for while there is nothing else to do


@dataclass(frozen=True)
class Shared:
    """What the workers must see as this machine does.

    Args:
        reads: Some of the files or folders that are read, and what to call each where it is not seen.
        out: Folder that the workers write to, if they do.
        tidy: What each worker does when the run ends, if anything; picklable.
    """

    reads: Sequence[tuple[Path, str]]
    out: Path | None = None
    tidy: Callable[[], None] | None = None


class Probes:
    """Looks at workers.

    Args:
        client: Connection to the cluster.
        shared: What they must see.
    """

    def __init__(self, client: "Client", shared: Shared) -> None:
        self._client = client
        self._shared = shared
        self._under_way: dict[str, Future[Found | Exception]] = {}
        self.silent: dict[str, float] = {}  # addresses of those that do not answer, and when to look again

    def answers(self, addresses: Collection[str], has_time: bool) -> list[tuple[str, Found | Exception]]:
        """What workers have found by now, or what has come in between.

        Args:
            addresses: Workers that are there and are to be looked at; others are forgotten.
            has_time: Whether there is nothing else to do meanwhile.
        """
        for gone in self._under_way.keys() - addresses:
            self._under_way.pop(gone).cancel()
        self.silent = {address: when for address, when in self.silent.items() if address in addresses}
        for address in sorted(addresses):
            if address not in self._under_way and self.silent.get(address, 0.0) <= time.monotonic():
                looking = self._look_at(address)
                self._under_way[address] = asyncio.run_coroutine_threadsafe(looking, loop_of(self._client))
        done, _ = wait(self._under_way.values(), _FIRST if has_time else 0.0)
        answers = [(address, looking.result()) for address, looking in self._under_way.items() if looking in done]
        for address, answer in answers:
            del self._under_way[address]
            if isinstance(answer, OSError):
                self.doubt(address)
            else:
                self.silent.pop(address, None)
        return answers

    def doubt(self, address: str) -> None:
        """Look at a worker again, but not just now."""
        self.silent[address] = time.monotonic() + _AGAIN

    def close(self) -> None:
        """Wait for nothing any more."""
        for looking in self._under_way.values():
            looking.cancel()

    async def _look_at(self, address: str) -> Found | Exception:
        """What a worker answers; an OSError if it does not."""
        reads = [(str(path.absolute()), name) for path, name in self._shared.reads]
        try:
            with _token_file(self._shared.out) as (path, token):
                asked = self._client.run(
                    probe, pickle.dumps((reads, path, token)), workers=[address], on_error="return"
                )
                answer = (await asyncio.wait_for(asked, _ANSWER))[address]
                return pickle.loads(answer) if isinstance(answer, bytes) else answer
        except TimeoutError:
            return TimeoutError(f"no answer within {_ANSWER:g} s")
        except Exception as error:
            return error


def problem_of(answer: Found | Exception) -> str:
    """Why a worker cannot be used; empty if it can."""
    if isinstance(answer, Exception):
        return (
            f"cannot run this Prevox ({' '.join(str(answer).split())[:300]}). Start `dask worker` from the environment "
            "that this call runs in."
        )
    if answer.error:
        return f"cannot look around ({answer.error})."
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
    path = temporary_path(folder.absolute() / f"dask-{token}")
    try:
        path.write_text(token, encoding="utf-8")
        yield str(path), token
    finally:
        path.unlink(missing_ok=True)
