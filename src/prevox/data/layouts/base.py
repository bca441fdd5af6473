"""What every layout returns: one `Entry` per image, and the helpers that layouts share."""

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prevox.console import warn
from prevox.data.readers import SUFFIXES, Reading, foreign, is_picture, stem_of, suffix_of
from prevox.errors import DataError

_CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")
_MOST_CHANNELS = 16  # where more files share a name up to their number, they are numbered scans


@dataclass(frozen=True)
class Entry:
    """One image as a layout describes it; nothing is opened yet.

    Args:
        image: Id, unique within the collection.
        paths: Files, one per channel (or one that holds all channels); a folder of pictures that are slices.
        label: Label map, None where there is none.
        subject: Whose image it is, as far as the layout knows: the id itself.
        modality: Names of the channels joined by commas; None where the layout does not say.
        class_names: Label value to name, background left out; None where the layout does not say.
        layout: Name of the layout.
        root: Folder that holds everything.
        collection: `name` of dataset.json, else the folder's name.
        dataset: The folder's name.
        problem: Why this image cannot be used (a listed file is missing); None if nothing speaks against it.
        table: CSV file that describes the images of this layout; None where there is none.
        channels: Number of channels that dataset.json names; None where it names none.
        session: Which visit of the subject it is from; None where the layout does not know.
        details: Further columns of the catalogue.
        reading: How the files are read.
        volumes_are_channels: Whether a 4th axis that no dataset.json describes is one of channels.
        sequence: MR sequence by acquisition parameters; None where the layout knows none.
    """

    image: str
    paths: tuple[Path, ...]
    label: Path | None
    subject: str
    modality: str | None
    class_names: dict[int, str] | None
    layout: str
    root: Path
    collection: str
    dataset: str
    problem: DataError | None = None
    table: Path | None = None
    channels: int | None = None
    session: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    reading: Reading = Reading()  # noqa: RUF009  # immutable
    volumes_are_channels: bool = False
    sequence: str | None = None


def read_description(root: Path) -> dict[str, Any] | None:
    """Read `dataset.json` of a folder; None if it has none.

    Raises:
        DataError: If the file is not a JSON object.
    """
    path = root / "dataset.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        json.dumps(content, ensure_ascii=False).encode()  # half a character (\\ud800) is no text that can be written
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(path, found=f"text that is not JSON ({error})", expected="a JSON object") from None
    if not isinstance(content, dict):
        raise DataError(path, found=f"a JSON {type(content).__name__}", expected="a JSON object")
    return content


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        json.dumps(content, ensure_ascii=False).encode()  # as `read_description` does
    except (ValueError, OSError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def class_names_of(labels: Any, where: Path) -> dict[int, str] | None:
    """Read the labels of dataset.json: value to name (MSD), or name to value or values (nnU-Net).

    Background is left out. Where regions overlap, a value is named after the smallest region that holds it.

    Raises:
        DataError: If a label has no whole-number value, or one is nnU-Net's `ignore`.
    """
    if not labels:
        return None
    try:
        if all(str(key).lstrip("-").isdigit() for key in labels):
            pairs = [(str(name), [int(value)]) for value, name in labels.items()]
        else:
            pairs = [(str(k), [int(x) for x in (v if isinstance(v, list) else [v])]) for k, v in labels.items()]
    except (TypeError, ValueError, AttributeError):
        raise DataError(
            where, found=f"labels {labels!r}", expected='{"1": "name"} (MSD) or {"name": 1} (nnU-Net)'
        ) from None
    ignored = [values for name, values in pairs if name == "ignore"]
    if ignored:
        raise DataError(
            where,
            found=f"the label 'ignore' (value {ignored[0][0]})",
            expected="classes only: voxels cannot be left out of training and scores yet",
            remedy="Take it out of `labels` and relabel its voxels, or leave out the cases that have them.",
        )
    names: dict[int, str] = {}
    for name, values in sorted(pairs, key=lambda pair: -len(pair[1])):
        names.update(dict.fromkeys(values, name))
    return {value: names[value] for value in sorted(names) if value != 0}


def channel_names_of(description: dict[str, Any], where: Path) -> dict[int, str]:
    """Channel number to name from `channel_names` (nnU-Net 2) or `modality` (MSD, nnU-Net 1).

    Raises:
        DataError: If a key is not a channel number.
    """
    names = description.get("channel_names") or description.get("modality") or {}
    if not isinstance(names, dict):
        names = {0: names}
    try:
        return {int(key): str(value) for key, value in names.items()}
    except ValueError:
        raise DataError(where, found=f"channels {names!r}", expected='{"0": "name", "1": "name"}') from None


def is_hidden(path: Path, root: Path) -> bool:
    """Whether the file or a folder between it and the root starts with a dot (or is macOS's `__MACOSX`)."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(root).parts)


def image_files(folder: Path, recursive: bool = False) -> list[Path]:
    """Files with a known suffix, sorted, hidden ones left out; links to folders are followed."""
    if not folder.is_dir():
        return []
    found = (path for inner in (folders(folder) if recursive else [folder]) for path in inner.glob("*"))
    return sorted(
        path for path in found if suffix_of(path) in SUFFIXES and path.is_file() and not is_hidden(path, folder)
    )


def only_pictures(folder: Path) -> list[Path]:
    """`image_files` at any depth; none if some are no pictures."""
    files = image_files(folder, recursive=True)
    return files if all(is_picture(path) for path in files) else []


def foreign_entries(root: Path) -> list[Entry]:
    """An entry for each image in a format that is not read: it is left out by name, not in silence."""
    if not root.is_dir():
        return []
    found = sorted(path for folder in folders(root) for path in folder.glob("*") if not is_hidden(path, root))
    problems = [(path, foreign(path)) for path in found]
    return [
        Entry(
            path.relative_to(root).as_posix(), (path,), None, stem_of(path), None, None, "folder", root, root.name,
            root.name, problem,
        )
        for path, problem in problems
        if problem is not None
    ]  # fmt: skip


def without_previews(files: list[Path], where: Path) -> list[Path]:
    """Leave out, with a warning, the pictures among volumes: they show scans, and are none."""
    volumes = [path for path in files if not is_picture(path)]
    if not volumes or len(volumes) == len(files):
        return files
    warn(f"{where}: {len(files) - len(volumes)} PNG, JPEG or TIFF files beside {len(volumes)} volumes are left out")
    return volumes


def folders(root: Path) -> Iterator[Path]:
    """The folder and all below it that are not hidden, each once: a link never leads round in a circle."""
    home = root.resolve()
    seen = {home}

    def is_new(folder: Path) -> bool:
        target = folder.resolve()
        met_anyway = folder.is_symlink() and target.is_relative_to(home) and not is_hidden(target, home)
        if is_hidden(folder, root) or met_anyway or target in seen:
            return False
        seen.add(target)
        return True

    def skipped(error: OSError) -> None:
        warn(f"{error.filename}: cannot be read ({error.strerror}); skipped")

    for name, inner, _ in os.walk(root, followlinks=True, onerror=skipped):
        yield Path(name)
        inner[:] = [child for child in sorted(inner) if is_new(Path(name, child))]


def cases_of(files: Iterable[Path]) -> dict[str, dict[int, Path]]:
    """Group nnU-Net's CASE_0000, CASE_0001, ...: case to channel number to file.

    Raises:
        DataError: If a file has no channel number, or a case one channel twice.
    """
    cases: dict[str, dict[int, Path]] = {}
    for path in files:
        match = _CHANNEL_FILE.match(stem_of(path))
        if match is None:
            raise DataError(
                path,
                found="a file name without channel number",
                expected="CASE_0000, CASE_0001, ... as nnU-Net names its images",
                remedy="Rename it, or catalogue the folder without its dataset.json.",
            )
        channels = cases.setdefault(match["case"], {})
        other = channels.setdefault(int(match["channel"]), path)
        if other is not path:
            raise DataError(path.parent, found=f"the same channel twice: {other} and {path}", expected="one file")
    return cases


def are_channels(files: Collection[Path], labels: Collection[str]) -> bool:
    """Whether files are channels as nnU-Net names them, not scans that happen to end in four digits.

    They are not if a label map has a file's full name, if most cases lack channel 0, or if a case had very many.

    Args:
        files: All images of one folder.
        labels: Names of its label maps without suffix.
    """
    if not files or not all(_CHANNEL_FILE.match(stem_of(path)) for path in files):
        return False
    if any(stem_of(path) in labels for path in files):
        return False
    cases = cases_of(files)
    first = sum(0 in channels for channels in cases.values())
    return 2 * first >= len(cases) and max(map(len, cases.values())) <= _MOST_CHANNELS


def channel_problem(case: str, files: Collection[int], channels: dict[int, str], source: str) -> DataError | None:
    """The problem of a case that has not the channels that `source` says; None if it has."""
    if set(files) == channels.keys():
        return None
    names = f" ({', '.join(filter(None, channels.values()))})" if any(channels.values()) else ""
    return DataError(
        case,
        found=f"channels {sorted(files) or 'none'}",
        expected=f"channels {sorted(channels)}{names}, as {source}",
        remedy="Restore the missing file or take the case out.",
    )


def refuse_duplicates(entries: Iterable[Entry], remedy: str) -> None:
    """Check that ids are unique.

    Raises:
        DataError: Naming both files of the first id that occurs twice.
    """
    seen: dict[str, Entry] = {}
    for entry in entries:
        other = seen.setdefault(entry.image, entry)
        if other is not entry:
            raise DataError(
                entry.root,
                found=f"two images with the id '{entry.image}': {other.paths[0]} and {entry.paths[0]}",
                expected="a name of its own for each image",
                remedy=remedy,
            )


def is_text(name: object) -> bool:
    """Whether a name can be written down: file names of old systems may hold bytes that are no UTF-8."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(name: object) -> str:
    """The name with such bytes as escapes, for messages: no file is called so."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def readable(entry: Entry) -> Entry:
    """The entry; where a name of it cannot be written into tables, one that is left out with a name that can."""
    odd = [name for name in (*entry.paths, entry.label, entry.image) if not is_text(name)]
    if not odd:
        return entry
    problem = DataError(
        as_text(odd[0]),
        found="a file name that is no UTF-8 text",
        expected="names in UTF-8, as catalogues and stores have them",
        remedy="Rename it; `convmv` does so for many files.",
    )
    label = None if entry.label is None else Path(as_text(entry.label))
    paths = tuple(Path(as_text(path)) for path in entry.paths)
    image, subject = as_text(entry.image), as_text(entry.subject)
    return replace(entry, image=image, subject=subject, paths=paths, label=label, problem=problem)


def is_there(path: Path) -> bool:
    """Whether a path that a text names is a file; a name that no file can have is none."""
    try:
        return path.is_file() and "\0" not in str(path)
    except (OSError, ValueError):
        return False


def missing_files(image: str, paths: Iterable[Path]) -> DataError | None:
    """The problem of an image whose files are not all there; None if they are."""
    absent = [str(path) for path in paths if not is_there(path)]
    if not absent:
        return None
    return DataError(
        image,
        found=f"no file {', '.join(absent)}",
        expected="every file that dataset.json names",
        remedy="Restore the file or take the case out of dataset.json.",
    )
