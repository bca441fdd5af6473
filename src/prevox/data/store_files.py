"""The files of a store: in a folder, or behind a URL that tensorstore reads (s3://, gs://, http://, https://).

For reading only. `prepare` writes to folders, where a rename makes an image visible whole; a finished store is copied
to object storage as it is.
"""

import os
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import tensorstore as ts

from prevox.console import console
from prevox.errors import DataError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")


def _context(retries: int) -> dict[str, object]:
    """A tensorstore context whose requests are repeated so often, after 0.5, 1, 2, 4, 8, 8 ... seconds."""
    policy = {"max_retries": retries, "initial_delay": "500ms", "max_delay": "8s"}
    return {f"{kind}_request_retries": policy for kind in ("http", "s3", "gcs")}


CONTEXT = _context(6)  # half a minute; tensorstore's own is many. A training outlives a server that starts anew,
GREETING = _context(2)  # but a wrong address is told at once
PATIENCE = 1.0  # seconds without an answer before it is said who is waited for
WAIT = 40.0  # seconds after which nobody is waited for any longer; three attempts to connect take 32
# Of libcurl, which tensorstore configures by the environment, at its first request. Its own limits are five minutes for
# a host that drops packets, and none for one that goes silent.
_LIMITS = {"CONNECT_TIMEOUT_SECONDS": "10", "LOW_SPEED_TIME_SECONDS": "30", "LOW_SPEED_LIMIT_BYTES": "1"}


class StoreFiles:
    """Reads a store's files by their names relative to the store, with forward slashes.

    Args:
        place: Folder or URL.

    Attributes:
        place: The folder, or the URL without a slash at its end.

    Raises:
        DataError: If a URL is of a kind that tensorstore does not read, or does not answer.
    """

    def __init__(self, place: Path | str) -> None:
        self.place: Path | str = Path(place)
        self._remote: ts.KvStore | None = None
        if isinstance(place, str) and _URL.match(place):
            self.place = place.rstrip("/")
            for name, limit in _LIMITS.items():
                os.environ.setdefault(f"TENSORSTORE_CURL_{name}", limit)
            try:
                self._greet(self.place)
                self._remote = ts.KvStore.open(f"{self.place}/", context=ts.Context(CONTEXT)).result()
            except ValueError as error:
                raise self._unreachable(error) from None

    @staticmethod
    def _greet(url: str) -> None:
        """See whether anybody answers, whatever the answer; say so where that takes its time.

        Raises:
            ValueError: If nobody does (as tensorstore raises).
        """
        there = ts.KvStore.open(f"{url}/", context=ts.Context(GREETING)).result()
        answer = there.read("store.json", byte_range=slice(0, 1))
        try:
            answer.result(timeout=PATIENCE)
        except TimeoutError:
            console.print(f"waiting for an answer of {url}, {WAIT:.0f} s at most", markup=False, soft_wrap=True)
        try:
            answer.result(timeout=WAIT - PATIENCE)
        except TimeoutError:
            raise ValueError(f"none within {WAIT:.0f} s") from None

    @property
    def folder(self) -> Path | None:
        """The folder; None behind a URL, where names cannot be listed cheaply."""
        return None if self._remote is not None else Path(self.place)

    def name(self, name: str) -> Path | str:
        """A file or folder, for messages."""
        return f"{self.place}/{name}" if isinstance(self.place, str) else self.place / name

    def read(self, name: str) -> bytes | None:
        """Contents of a file; None if there is no such file.

        Raises:
            DataError: If the URL does not answer.
        """
        if self._remote is None:
            try:
                return (Path(self.place) / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        try:
            found = self._remote.read(name).result()
        except ValueError as error:
            raise self._unreachable(error) from None
        return None if found.state == "missing" else found.value

    def has(self, name: str) -> bool:
        """Whether there is such a file.

        Raises:
            DataError: If the URL does not answer.
        """
        if self._remote is None:
            return (Path(self.place) / name).is_file()
        try:  # one byte says it
            return self._remote.read(name, byte_range=slice(0, 1)).result().state != "missing"
        except ValueError as error:
            raise self._unreachable(error) from None

    def open_array(self, name: str, context: ts.Context) -> ts.TensorStore:
        """Open a Zarr array for reading.

        Raises:
            ValueError: If there is none, or it is damaged (what tensorstore raises).
        """
        if self._remote is None:
            where: object = {"driver": "file", "path": str(self.name(name))}
        else:
            where = (self._remote / f"{name}/").spec().to_json()
        # nobody writes to a group once it has its name, so what was read once need not be checked again
        spec = {"driver": "zarr3", "kvstore": where, "recheck_cached_metadata": False, "recheck_cached_data": False}
        return ts.open(spec, read=True, context=context).result()

    def load_rows(self, name: str, mapped: bool = False) -> np.ndarray | None:
        """An array of numbers (.npy), None if there is no such file; a pickle in its place is not executed.

        Args:
            name: Of the file.
            mapped: Read what is used of it only, where it lies in a folder.

        Raises:
            DataError: If the file is damaged.
        """
        if not self.has(name):
            return None
        file = self.name(name) if self._remote is None else BytesIO(self.read(name) or b"")
        try:
            rows: np.ndarray = np.load(file, mmap_mode="r" if mapped and not self._remote else None, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DataError(
                self.name(name),
                found=f"no array of numbers ({' '.join(str(error).split())[:200]})",
                expected="the file that `prevox prepare` wrote",
                remedy="Remove the folder it lies in and run `prevox prepare` again: it writes what is missing.",
            ) from None
        return rows

    def _unreachable(self, error: ValueError) -> DataError:
        return DataError(
            self.place,
            found=f"no answer ({' '.join(str(error).split())[:300]})",
            expected="a store behind s3://, gs://, http:// or https://",
            remedy="Check address and credentials; for S3 they are those of the AWS tools, for GCS the default ones.",
        )
