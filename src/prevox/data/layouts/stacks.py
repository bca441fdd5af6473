"""Stacks, by choice: the pictures of each folder are the slices of one volume; `images/` and `labels/` are paired.

A volume is called as its folder, `images/CASE/001.png` and on as CASE; its label map is a stack of as many slices in
`labels/CASE`. Where the folder that was given holds the slices itself, the volume has that folder's name.
"""

from pathlib import Path

from prevox.data.layouts.base import Entry, only_pictures, refuse_duplicates
from prevox.errors import DataError


def recognise(root: Path) -> list[Entry] | None:
    """Read the folder if it holds pictures only, else None."""
    files = only_pictures(root)
    if not files:
        return None
    counts: dict[Path, int] = {}
    for path in files:
        counts[path.parent] = counts.get(path.parent, 0) + 1
    pairs = {folder: label for folder in counts if (label := _label_of(folder, root)) in counts}
    entries = [
        _entry(folder, pairs.get(folder), root, _problem(folder, pairs.get(folder), counts))
        for folder in sorted(counts)
        if folder not in pairs.values()
    ]
    refuse_duplicates(entries, "Rename one of the two folders, or give them as separate paths.")
    return entries


def _label_of(folder: Path, root: Path) -> Path | None:
    """Where the label stack of a stack would be: its path with the last `images...` below the root as `labels...`."""
    parts = list(folder.relative_to(root).parts)
    for at in reversed(range(len(parts))):
        if parts[at].startswith("images"):
            return root.joinpath(*parts[:at], f"labels{parts[at].removeprefix('images')}", *parts[at + 1 :])
    return None


def _problem(folder: Path, label: Path | None, counts: dict[Path, int]) -> DataError | None:
    if label is None or counts[label] == counts[folder]:
        return None
    return DataError(
        label,
        found=f"{counts[label]} slices of a label map",
        expected=f"{counts[folder]}, as in {folder}",
        remedy="Give a slice for each of the image's, empty ones included.",
    )


def _entry(folder: Path, label: Path | None, root: Path, problem: DataError | None) -> Entry:
    name = root.name if folder == root or folder.name.startswith("images") else folder.name
    return Entry(name, (folder,), label, name, None, None, "stacks", root, root.name, root.name, problem)
