"""Standard output and error whose reader may leave (`| head`) or is not there at all (`>&-`).

What is still printed then goes nowhere, and the work goes on: results are files, and a training of days must not die
with the `tee` behind it.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

READER_LEFT = 141  # 128 + SIGPIPE: what a shell shows of a Unix tool that died of a closed pipe


class _Stream:
    """A text stream that turns to the null device when its pipe is closed; else the same."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.left = stream, False

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._turn_away()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._turn_away()

    def _turn_away(self) -> None:
        """Let what is buffered, and what other code writes to the same descriptor, meet no closed pipe either."""
        self.left = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def readers_may_leave() -> Iterator[None]:
    """Print to no one rather than fail; a block that leaves with exit code 0 then leaves with READER_LEFT."""
    before = sys.stdout, sys.stderr
    # Python has None where the shell has closed a descriptor, and the next file that is opened would take its number
    streams = [_Stream(stream or open(os.devnull, "w")) for stream in before]  # noqa: PTH123, SIM115 - no file of ours
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
    try:
        yield
    except SystemExit as end:
        for stream in streams:
            stream.flush()
        if not end.code and any(stream.left for stream in streams):
            raise SystemExit(READER_LEFT) from None
        raise
    finally:
        sys.stdout, sys.stderr = before
