"""Rows of the images that a catalogue lists: read once in worker processes, kept in a journal, reused while they hold.

`NAME.rows.jsonl` beside `NAME.parquet` gets a line as soon as an image has been read, so a run that is killed goes on
where it was, and a later run reads only what is new or changed. A row holds as long as the files' sizes and times of
change, what the layout says of them, the settings and the version of Prevox are the same; files that were only copied
or touched are hashed and not decoded.
"""

import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from prevox import __version__
from prevox.config.data import CatalogueConfig, WorkConfig
from prevox.console import console
from prevox.data.layouts import Entry
from prevox.data.memory import header_bytes, reading_bytes
from prevox.data.readers import SERIES, suffix_of
from prevox.data.runner import Failure, run_cases
from prevox.errors import RunError
from prevox.output import replacing

Row = dict[str, Any]
SCHEMA = 2  # of rows; another one, and no row of a journal or catalogue of before is taken
DETACHED = (".mhd", ".nhdr", ".hdr", ".img")  # their voxels, or their header, lie in another file

# settings that do not decide what a row says of its image
_ELSEWHERE = {*WorkConfig.model_fields, "paths", "out", "table", "group", "strict", "rules"}
# what is read in this process: so much, of formats whose readers are no compiled code that a broken file might crash
_FEW, _FEW_BYTES, _LITTLE_MEMORY = 200, 16 << 20, 1 << 30
_PLAIN = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Known:
    """A row from the journal.

    Args:
        stamp: Of the image's files when they were read; None if they may change without a trace.
        row: What was found in them.
    """

    stamp: str | None
    row: Row


@dataclass(frozen=True)
class Task:
    """One image to read.

    Args:
        position: Among all entries.
        entry: What the layout says of it.
        known: Its row from the journal, which holds if the contents are still the same; None where there is none.
    """

    position: int
    entry: Entry
    known: Row | None


def read_rows(
    entries: Sequence[Entry], config: CatalogueConfig, row_or_reason: Callable[[Entry], Row | Exception]
) -> tuple[dict[int, Row], list[tuple[str, str]]]:
    """Rows of all images, or of the part that `config.shard` names.

    Args:
        entries: Images in the order of the catalogue.
        config: Workers, time-out, shard, and what decides about rows.
        row_or_reason: Reads an image; defined at the top of a module. Rows are JSON-able.

    Returns:
        Rows by position of their entry, and image and reason of each that cannot be used; both in order of position.

    Raises:
        DataError: With `strict`, for the first image that cannot be used.
        RunError: With `strict`, for one whose worker died or took too long; if the journal cannot be written.
    """
    number, count = config.part or (0, 1)
    journal = Journal(config)
    keys = {position: journal.key(entries[position]) for position in range(number, len(entries), count)}
    stamps = {position: stamp_of(entries[position]) for position in keys}
    rows: dict[int, Row] = {}
    tasks: list[Task] = []
    for position, key in keys.items():
        known = journal.known.pop(key, None)
        if known is not None and known.stamp is not None and known.stamp == stamps[position]:
            rows[position] = known.row
        else:
            tasks.append(Task(position, entries[position], known.row if known else None))
    if rows:
        console.print(f"{len(rows)} of {len(keys)} images are as {journal.path.name} says", markup=False)
    failures: dict[int, tuple[str, str]] = {}
    with closing(journal):
        for task, result in _results(tasks, config, row_or_reason):
            position, image = task.position, task.entry.image
            if isinstance(result, dict):
                rows[position] = result
                journal.add(keys[position], stamps[position], result)
            elif config.strict:
                raise result if isinstance(result, Exception) else RunError(f"{image}: {result.reason}")
            else:
                failures[position] = image, str(result) if isinstance(result, Exception) else result.reason
    rows = dict(sorted(rows.items()))
    if config.part is None:
        journal.compact([(keys[position], stamps[position], row) for position, row in rows.items()])
    return rows, [failures[position] for position in sorted(failures)]


def _results(
    tasks: Sequence[Task], config: CatalogueConfig, row_or_reason: Callable[[Entry], Row | Exception]
) -> Iterator[tuple[Task, Row | Exception | Failure]]:
    here = config.workers == 0 and _is_little(tasks)
    return run_cases(
        partial(read_task, row_or_reason=row_or_reason),
        tasks,
        1 if here else config.workers,
        lambda task: task.entry.image,
        "reading",
        timeout=config.timeout,
        memory=lambda task: reading_bytes(_files(task.entry), task.entry.reading),
    )


def read_task(task: Task, row_or_reason: Callable[[Entry], Row | Exception]) -> Row | Exception:
    """The row that is known if its files hold the same bytes, else what is found in them; runs in a worker process."""
    if task.known is not None and _has_same_content(task.entry, task.known):
        return task.known
    return row_or_reason(task.entry)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(digests: Sequence[str]) -> str:
    """One hash for the files of an image."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def stamp_of(entry: Entry) -> str | None:
    """Sizes and times of change of an image's files; None where one is a folder, missing, or not all of the image."""
    stamps = []
    for path in _files(entry):
        try:
            found = path.stat()
        except (OSError, ValueError):  # the second: a name that no file can have
            return None
        if not path.is_file() or suffix_of(path) in (*DETACHED, SERIES):
            return None
        stamps.append((found.st_size, found.st_mtime_ns))
    return _hash(stamps)


class Journal:
    """The rows that earlier runs, and the tasks of a job array, have left beside a catalogue.

    Args:
        config: Of the catalogue: its `out` and `shard` name the file, other settings decide which rows hold.

    Attributes:
        path: The file.
        known: Rows by key.
    """

    def __init__(self, config: CatalogueConfig) -> None:
        whole = config.out.with_suffix(".rows.jsonl")
        self._parts = sorted(whole.parent.glob(f"{glob.escape(whole.stem)}.*-of-*.jsonl"))
        self._settings = {name: value for name, value in config.plain().items() if name not in _ELSEWHERE}
        self._lines = 0
        self._file: TextIO | None = None
        self.path = whole if config.shard is None else whole.with_suffix(f".{config.shard.replace('/', '-of-')}.jsonl")
        self.known: dict[str, Known] = {}
        for path in dict.fromkeys([whole, *self._parts]):
            self._read(path)

    def key(self, entry: Entry) -> str:
        """What decides about a row beside the contents of the files."""
        said = {field.name: getattr(entry, field.name) for field in fields(entry) if field.name != "problem"}
        return _hash([__version__, SCHEMA, self._settings, said])

    def add(self, key: str, stamp: str | None, row: Row) -> None:
        """Append a row; it is out of this process before the next image is read.

        Raises:
            RunError: If it cannot be written.
        """
        try:
            if self._file is None:
                self._file = self.path.open("a", encoding="utf-8", buffering=1)
                if self._file.tell() > 0:
                    self._file.write("\n")  # a kill may have left half a line
            self._file.write(_line(key, stamp, row))
        except OSError as error:
            self._file = None
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror or error}). Choose another --out, or free space; "
                "rows that are in this file need not be read again."
            ) from None
        self._lines += 1

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def compact(self, rows: Sequence[tuple[str, str | None, Row]]) -> None:
        """Leave these rows in one file and nothing else, unless that is so.

        Raises:
            RunError: If it cannot be written.
        """
        if self._lines == len(rows) and not self._parts:
            return
        with replacing(self.path) as partial_path, partial_path.open("w", encoding="utf-8") as file:
            file.writelines(_line(*row) for row in rows)
        for path in self._parts:
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        """Take what a file has; lines that a kill has torn are passed over."""
        try:
            file = path.open(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        with file:
            for line in file:
                self._lines += 1
                try:
                    found = json.loads(line)
                    self.known[found["key"]] = Known(found["stamp"], found["row"])
                except (ValueError, KeyError, TypeError):
                    continue


def _line(key: str, stamp: str | None, row: Row) -> str:
    return json.dumps({"key": key, "stamp": stamp, "row": row}, default=np.generic.item, separators=(",", ":")) + "\n"


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _files(entry: Entry) -> list[Path]:
    return [*entry.paths, *([entry.label] if entry.label else [])]


def _has_same_content(entry: Entry, row: Row) -> bool:
    """Whether an image's files hold what they held when the row was written."""
    try:
        if any(suffix_of(path) in (*DETACHED, SERIES) for path in _files(entry)):
            return False
        image = content_hash([file_digest(path) for path in entry.paths])
        label = file_digest(entry.label) if entry.label else ""
    except OSError:  # the reader says what is wrong
        return False
    return (image, label) == (row.get("image_hash"), row.get("label_hash"))


def _is_little(tasks: Sequence[Task]) -> bool:
    """Whether reading in this process is quicker than starting another, and as safe."""
    entries = [task.entry for task in tasks if task.entry.problem is None]
    paths = [path for entry in entries for path in _files(entry)]
    if len(paths) > _FEW or not all(suffix_of(path) in _PLAIN for path in paths):
        return False
    if sum(path.stat().st_size for path in paths if path.is_file()) > _FEW_BYTES:
        return False
    return sum(header_bytes(path, entry.reading) for entry in entries for path in _files(entry)) <= _LITTLE_MEMORY
