"""The journal of a catalogue: a line for each image as soon as it has been read, so that a killed run goes on.

A line of `NAME.rows.jsonl` is `[{"key": ..., "stamp": ..., "row": {...}}, thumbnail]`: the row can be parsed without
the thumbnail, which is most of the line. Of each line its key, its stamp and its place are in memory, and no more: rows
are read when their turn comes, so memory hardly grows with the number of images.
"""

import errno
import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prevox.config.data import CatalogueConfig
from prevox.console import warn
from prevox.errors import RunError
from prevox.output import replacing

Row = dict[str, Any]
_DECODER = json.JSONDecoder()
_PICTURE = "thumbnail"  # the part of a row that stands behind it
_END = re.compile(r',"[^"]*"\]\n')  # what follows the row


class Line(NamedTuple):
    """Where a line is: a file, its first byte there, and its number of bytes; and what it begins with."""

    path: Path
    start: int
    size: int
    key: str


class Known(NamedTuple):
    """What is remembered of a line.

    Args:
        stamp: Of the image's files when they were read; None if they may change without a trace.
        line: Where its row is.
    """

    stamp: str | None
    line: Line


class Rows:
    """The rows of a catalogue's images, in order; each is read from a journal when its turn comes.

    Args:
        lines: Where they are, by position of the image among all entries; of one file or of several.

    Attributes:
        positions: Of the images, ascending.
        lines: Of the images, in this order.
    """

    def __init__(self, lines: Mapping[int, Line]) -> None:
        self.positions = sorted(lines)
        self.lines = [lines[position] for position in self.positions]

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[Row]:
        """The rows, without their thumbnails."""
        for text in _texts(self.lines):
            yield _DECODER.raw_decode(text, 1)[0]["row"]


class Thumbnails(Mapping[str, str]):
    """Small pictures of images, PNG in base64, by the images' ids; each is read when it is asked for."""

    def __init__(self, lines: Mapping[str, Line]) -> None:
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __getitem__(self, image: str) -> str:
        picture: str = read_line(self._lines[image])[_PICTURE]
        return picture


class Journal:
    """The rows that earlier runs, and the tasks of a job array, have left beside a catalogue.

    Args:
        config: Of the catalogue: its `out` and `shard` name the file.

    Attributes:
        path: The file.
        known: What is known of the images' rows, by key.
    """

    def __init__(self, config: CatalogueConfig) -> None:
        whole = config.out.with_suffix(".rows.jsonl")
        self._parts = sorted(whole.parent.glob(f"{glob.escape(whole.stem)}.*-of-*.jsonl"))
        self._lines = 0
        self._file: FileIO | None = None
        self.path = whole if config.shard is None else whole.with_suffix(f".{config.shard.replace('/', '-of-')}.jsonl")
        self.known: dict[str, Known] = {}
        for path in dict.fromkeys([whole, *self._parts]):
            self._take(path)

    def add(self, key: str, stamp: str | None, row: Row) -> Line:
        """Append a row; it is out of this process before the next image is read.

        Raises:
            RunError: If it cannot be written.
        """
        text = _text(key, stamp, row)
        try:
            if self._file is None:
                self._file = FileIO(self.path, "a")
                if self._file.tell() > 0:
                    _write(self._file, b"\n")  # a kill may have left half a line
            end = _write(self._file, text)
        except OSError as error:
            self.close()
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror or error}). Choose another --out, or free space; "
                "rows that are in this file need not be read again."
            ) from None
        self._lines += 1
        return Line(self.path, end - len(text), len(text), key)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def compact(self, lines: Mapping[int, Line]) -> Mapping[int, Line]:
        """Leave these lines in one file and nothing else, unless that is so; where they are then.

        Where there is no room for it, all stays as it is, and a later run does it.
        """
        if self._lines == len(lines) and not self._parts:
            return lines
        try:
            return self._gather(lines)
        except RunError as error:
            warn(f"{error} Its rows are used from where they are.")
            return lines

    def _gather(self, lines: Mapping[int, Line]) -> Mapping[int, Line]:
        places: dict[int, Line] = {}
        rows = Rows(lines)
        with replacing(self.path) as partial, partial.open("wb") as file:
            for position, line, text in zip(rows.positions, rows.lines, _texts(rows.lines), strict=True):
                places[position] = line._replace(path=self.path, start=file.tell())
                file.write(text.encode())
        for path in self._parts:
            path.unlink(missing_ok=True)
        return places

    def _take(self, path: Path) -> None:
        """Note what a file has; lines that a kill has torn are passed over."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        start = unusable = 0
        with file:
            for text in file:
                self._lines += 1
                unusable += 1
                try:
                    said = text.decode("ascii")
                    found, end = _DECODER.raw_decode(said, 1)
                    if _END.fullmatch(said, end):
                        unusable -= 1
                        self.known[found["key"]] = Known(found["stamp"], Line(path, start, len(text), found["key"]))
                except (ValueError, KeyError, TypeError):
                    pass
                start += len(text)
        if unusable > 1:  # one is what a kill leaves
            warn(f"{path}: {unusable} of its lines are torn or of another version of Prevox: read again.")


def read_line(line: Line) -> Row:
    """A row with its thumbnail.

    Raises:
        RunError: If it is not there any more.
    """
    (text,) = _texts([line])
    found, thumbnail = json.loads(text)
    row: Row = found["row"]
    return row | {_PICTURE: thumbnail}


def _text(key: str, stamp: str | None, row: Row) -> bytes:
    found = {"key": key, "stamp": stamp, "row": {name: row[name] for name in row if name != _PICTURE}}
    text = json.dumps([found, row.get(_PICTURE, "")], default=np.generic.item, separators=(",", ":"))
    return text.encode("ascii") + b"\n"


def _write(file: FileIO, text: bytes) -> int:
    """Append; where it ends. Without a buffer in between: what is written is the system's, whatever comes next."""
    if file.write(text) != len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return file.tell()


def _texts(lines: Sequence[Line]) -> Iterator[str]:
    """The lines, one after the other; each file is opened once.

    Raises:
        RunError: If one is not there any more.
    """
    try:
        with ExitStack() as stack:
            files = {path: stack.enter_context(path.open("rb")) for path in dict.fromkeys(line.path for line in lines)}
            for line in lines:
                files[line.path].seek(line.start)
                text = files[line.path].read(line.size)
                if not (len(text) == line.size and text.startswith(_head(line.key)) and text.endswith(b'"]\n')):
                    raise _changed(line.path)
                yield text.decode("ascii")
    except OSError as error:
        raise _changed(Path(error.filename or lines[0].path)) from None


def _head(key: str) -> bytes:
    return f'[{{"key":"{key}"'.encode("ascii")


def _changed(path: Path) -> RunError:
    return RunError(f"{path}: was changed or removed by another run while this one needed it. Repeat the call.")
