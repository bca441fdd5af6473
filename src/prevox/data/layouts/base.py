"""What every layout returns: one `Entry` per image, and the helpers that layouts share."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prevox.data.readers import suffix_of
from prevox.errors import DataError


@dataclass(frozen=True)
class Entry:
    """One image as a layout describes it; nothing is opened yet.

    Args:
        image: Id, unique within the collection.
        paths: Files, one per channel (or one that holds all channels).
        label: Label map, None where there is none.
        subject: Whose image it is, as far as the layout knows: the id itself.
        modality: Names of the channels joined by commas; None where the layout does not say.
        class_names: Label value to name, background left out; None where the layout does not say.
        layout: Name of the layout.
        root: Folder that holds everything.
        collection: `name` of dataset.json, else the folder's name.
        dataset: The folder's name.
        problem: Why this image cannot be used (a listed file is missing); None if nothing speaks against it.
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
    except (ValueError, OSError) as error:
        raise DataError(path, found=f"text that is not JSON ({error})", expected="a JSON object") from None
    if not isinstance(content, dict):
        raise DataError(path, found=f"a JSON {type(content).__name__}", expected="a JSON object")
    return content


def class_names_of(labels: Any, where: Path) -> dict[int, str] | None:
    """Read the labels of dataset.json: value to name (MSD), or name to value or values (nnU-Net).

    Background is left out. Where regions overlap, a value is named after the smallest region that holds it.

    Raises:
        DataError: If a label has no whole-number value.
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
    names: dict[int, str] = {}
    for name, values in sorted(pairs, key=lambda pair: -len(pair[1])):
        names.update(dict.fromkeys(values, name))
    return {value: names[value] for value in sorted(names) if value != 0}


def channel_names_of(description: dict[str, Any]) -> dict[int, str]:
    """Channel number to name from `channel_names` (nnU-Net 2) or `modality` (MSD, nnU-Net 1)."""
    names = description.get("channel_names") or description.get("modality") or {}
    if not isinstance(names, dict):
        names = {0: names}
    return {int(key): str(value) for key, value in names.items()}


def is_hidden(path: Path, root: Path) -> bool:
    """Whether the file or a folder between it and the root starts with a dot (or is macOS's `__MACOSX`)."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(root).parts)


def image_files(folder: Path, recursive: bool = False) -> list[Path]:
    """Files with a known suffix, sorted, hidden ones left out."""
    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(path for path in found if suffix_of(path) and path.is_file() and not is_hidden(path, folder))


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


def missing_files(image: str, paths: Iterable[Path]) -> DataError | None:
    """The problem of an image whose files are not all there; None if they are."""
    absent = [str(path) for path in paths if not path.is_file()]
    if not absent:
        return None
    return DataError(
        image,
        found=f"no file {', '.join(absent)}",
        expected="every file that dataset.json names",
        remedy="Restore the file or take the case out of dataset.json.",
    )
