"""Rows of the images that a catalogue lists: read once in worker processes, kept in a journal, reused while they hold.

A run that is killed goes on where it was, and a later run reads only what is new or changed. A row holds as long as the
files' sizes and times of change, what the layout says of them, the settings and the version of Prevox are the same;
files that were only copied or touched are hashed and not decoded.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from prevox import __version__
from prevox.config.data import CatalogueConfig, WorkConfig
from prevox.console import console
from prevox.data.dask_engine import open_engine
from prevox.data.journal import Journal, Line, Row, Rows, read_line
from prevox.data.layouts import Entry
from prevox.data.memory import header_bytes, reading_bytes
from prevox.data.readers import SERIES, suffix_of
from prevox.data.readers.dicom import series_digest, series_stamp
from prevox.data.runner import Engine, Failure, run_cases
from prevox.errors import DataError, RunError

SCHEMA = 2  # of rows; another one, and no row of a journal or catalogue of before is taken
DETACHED = (".mhd", ".nhdr", ".hdr", ".img")  # their voxels, or their header, lie in another file

# settings that do not decide what a row says of its image
_ELSEWHERE = {*WorkConfig.model_fields, "paths", "out", "table", "group", "strict", "rules"}
# what is read in this process: so much, of formats whose readers are no compiled code that a broken file might crash
_FEW, _FEW_BYTES, _LITTLE_MEMORY = 200, 16 << 20, 1 << 30
_PLAIN = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Task:
    """One image to read.

    Args:
        position: Among all entries.
        entry: What the layout says of it.
        known: Hashes in its row of the journal, which holds if they are still the same; None where there is none.
    """

    position: int
    entry: Entry
    known: Row | None


def read_rows(
    entries: Sequence[Entry], config: CatalogueConfig, row_or_reason: Callable[[Entry], Row | Exception]
) -> tuple[Rows, list[tuple[str, str]]]:
    """Rows of all images, or of the part that `config.shard` names.

    Args:
        entries: Images in the order of the catalogue.
        config: Workers, time-out, shard, and what decides about rows.
        row_or_reason: Reads an image; defined at the top of a module. Rows are JSON-able.

    Returns:
        Rows, and image and reason of each that cannot be used; both in order of position.

    Raises:
        DataError: With `strict`, for the first image that cannot be used.
        RunError: With `strict`, for one whose worker died or took too long; if the journal cannot be written.
    """
    number, count = config.part or (0, 1)
    journal = Journal(config)
    decides = {name: value for name, value in config.plain().items() if name not in _ELSEWHERE}
    keys = {position: _key(entries[position], decides) for position in range(number, len(entries), count)}
    stamps = {position: stamp_of(entries[position]) for position in keys}
    lines: dict[int, Line] = {}
    doubtful: dict[int, Line] = {}  # of files that may have changed
    for position, key in keys.items():
        known = journal.known.get(key)
        if known is not None:
            holds = known.stamp is not None and known.stamp == stamps[position]
            (lines if holds else doubtful)[position] = known.line
    if lines:
        console.print(f"{len(lines)} of {len(keys)} images are as {journal.path.name} says", markup=False)
    hashes = _hashes(Rows(doubtful))
    tasks = [Task(position, entries[position], hashes.get(position)) for position in keys if position not in lines]
    failures: dict[int, tuple[str, str]] = {}
    sources = (path for task in tasks for path in _files(task.entry))
    with closing(journal), open_engine(config, sources) as engine:
        for task, result in _results(tasks, config, row_or_reason, engine):
            position, image = task.position, task.entry.image
            if result is None or isinstance(result, dict):
                row = read_line(doubtful[position]) if result is None else result
                lines[position] = journal.add(keys[position], stamps[position], row)
            elif config.strict:
                raise result if isinstance(result, Exception) else RunError(f"{image}: {result.reason}")
            else:
                failures[position] = image, str(result) if isinstance(result, Exception) else result.reason
    rows = Rows(journal.compact(lines) if config.part is None else lines)
    return rows, [failures[position] for position in sorted(failures)]


def _results(
    tasks: Sequence[Task],
    config: CatalogueConfig,
    row_or_reason: Callable[[Entry], Row | Exception],
    engine: Engine | None,
) -> Iterator[tuple[Task, Row | Exception | Failure | None]]:
    here = engine is None and config.workers == 0 and _is_little(tasks)
    return run_cases(
        partial(read_task, row_or_reason=row_or_reason),
        tasks,
        1 if here else config.workers,
        lambda task: task.entry.image,
        "reading",
        timeout=config.timeout,
        memory=lambda task: reading_bytes(_files(task.entry), task.entry.reading),
        engine=engine,
    )


def read_task(task: Task, row_or_reason: Callable[[Entry], Row | Exception]) -> Row | Exception | None:
    """What is found in an image's files; None if they hold the same bytes as before. Runs in a worker process."""
    if task.known is not None and _has_same_content(task.entry, task.known):
        return None
    return row_or_reason(task.entry)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; of a series, of those of all its files, by a key."""
    if suffix_of(path) == SERIES:
        return series_digest(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(digests: Sequence[str]) -> str:
    """One hash for the files of an image."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def stamp_of(entry: Entry) -> str | None:
    """Sizes and times of change of an image's files, of a series all that it lists.

    None where one is a folder, missing, or not all of the image.
    """
    stamps: list[Any] = []
    for path in _files(entry):
        try:
            found, is_series = path.stat(), suffix_of(path) == SERIES
            stamps.append(series_stamp(path) if is_series else (found.st_size, found.st_mtime_ns))
        except (OSError, ValueError):  # the second: a name that no file can have, a list that makes no sense
            return None
        if not path.is_file() or suffix_of(path) in DETACHED:
            return None
    return _hash(stamps)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _key(entry: Entry, decides: dict[str, Any]) -> str:
    """What decides about a row beside the contents of the files.

    Args:
        entry: What the layout says of the image.
        decides: Settings that say how it is read.
    """
    said = {field.name: getattr(entry, field.name) for field in fields(entry) if field.name != "problem"}
    return _hash([__version__, SCHEMA, decides, said])


def _hashes(rows: Rows) -> dict[int, Row]:
    """Of each row what tells whether it holds, by position."""
    wanted = ("image_hash", "label_hash")
    return {
        position: {name: row.get(name) for name in wanted} for position, row in zip(rows.positions, rows, strict=True)
    }


def _files(entry: Entry) -> list[Path]:
    return [*entry.paths, *([entry.label] if entry.label else [])]


def _has_same_content(entry: Entry, row: Row) -> bool:
    """Whether an image's files hold what they held when the row was written."""
    try:
        if any(suffix_of(path) in DETACHED for path in _files(entry)):
            return False
        image = content_hash([file_digest(path) for path in entry.paths])
        label = file_digest(entry.label) if entry.label else ""
    except (DataError, OSError):  # the reader says what is wrong
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
