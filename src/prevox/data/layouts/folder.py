"""Plain folder: every file of a known kind, below it at any depth; `images/` and `labels/` side by side are paired."""

from pathlib import Path

from prevox.data.layouts.base import Entry, image_files, refuse_duplicates
from prevox.data.readers import stem_of
from prevox.errors import DataError

_PAIRS = {"images": "labels", "imagesTr": "labelsTr", "imagesTs": "labelsTs"}


def recognise(root: Path) -> list[Entry] | None:
    """Read the folder (or the single file); None if there is no image in it."""
    if root.is_file():
        return [_entry(root, None, root.parent)]
    files = image_files(root, recursive=True)
    folders = {parent for path in files for parent in path.parents if parent.is_relative_to(root)}
    pairs = {folder: folder.with_name(_PAIRS[folder.name]) for folder in folders if folder.name in _PAIRS}
    pairs = {images: labels for images, labels in pairs.items() if labels in folders and images != root}
    labels: dict[Path, Path] = {}  # file without suffix -> file
    for path in files:
        if any(folder in path.parents for folder in pairs.values()):
            other = labels.setdefault(path.with_name(stem_of(path)), path)
            if other is not path:
                raise DataError(path.parent, found=f"two label maps of one name: {other} and {path}", expected="one")
    entries = []
    for path in files:
        if labels.get(path.with_name(stem_of(path))) != path:
            entries.append(_entry(path, _label_of(path, pairs, labels), root))
    refuse_duplicates(entries, "Rename one, or give the folders as separate paths: ids then start with their names.")
    return entries or None


def _label_of(path: Path, pairs: dict[Path, Path], labels: dict[Path, Path]) -> Path | None:
    """The label map of the same name (the suffix may differ) in the same place under the folder of labels."""
    images = next((folder for folder in path.parents if folder in pairs), None)
    if images is None:
        return None
    return labels.get(pairs[images] / path.relative_to(images).with_name(stem_of(path)))


def _entry(path: Path, label: Path | None, root: Path) -> Entry:
    image = stem_of(path)
    return Entry(image, (path,), label, image, None, None, "folder", root, root.name, root.name)
