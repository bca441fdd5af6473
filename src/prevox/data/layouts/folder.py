"""Plain folder: every file of a known kind, below it at any depth; `images/` and `labels/` side by side are paired.

So are `imagesTr` and `labelsTr`, and so on. Where the files in a folder of images are named as nnU-Net names channels
(CASE_0000, CASE_0001), those of a case are one image, with or without a dataset.json that says so.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from prevox.console import warn
from prevox.data.acquisition import sequence_of_sidecar
from prevox.data.layouts.base import (
    Entry,
    are_channels,
    cases_of,
    channel_problem,
    foreign_entries,
    image_files,
    read_sidecar,
    refuse_duplicates,
    without_previews,
)
from prevox.data.readers import stem_of
from prevox.errors import DataError


def recognise(root: Path) -> list[Entry] | None:
    """Read the folder (or the single file); None if there is no image in it."""
    if root.is_file():
        return [_entry(stem_of(root), (root,), None, root.parent)]
    files = without_previews(image_files(root, recursive=True), root)
    if _is_images(root):  # as nnU-Net's own prediction takes it: labels, if any, lie beside it
        beside = image_files(_labels_of(root), recursive=True)
        if are_channels(files, {stem_of(path) for path in beside}):
            root, files = root.parent, sorted([*files, *beside])
    folders = {parent for path in files for parent in path.parents if parent.is_relative_to(root) and parent != root}
    images = {folder for folder in folders if _is_images(folder)}
    pairs = {folder: _labels_of(folder) for folder in images if _labels_of(folder) in folders}
    labels = _label_maps(files, pairs.values())
    rest = [path for path in files if labels.get(path.with_name(stem_of(path))) != path]
    entries = []
    used: set[Path] = set()
    for folder, mine in _by_folder(rest, images).items():
        pair = pairs.get(folder) if folder else None
        for stem, paths, problem in _cases(folder, mine, labels, pair):
            label = labels.get(pair / stem.relative_to(folder)) if folder and pair else None
            used |= {label} if label else set()
            entries.append(_entry(stem.name, paths, label, root, problem))
    refuse_duplicates(entries, "Rename one, or give the folders as separate paths: ids then start with their names.")
    entries = sorted(entries, key=lambda entry: entry.paths[0])
    lonely = [_lonely(path, root) for path in labels.values() if path not in used]
    return [*entries, *lonely, *foreign_entries(root)] or None


def _is_images(folder: Path) -> bool:
    return folder.name.startswith("images")


def _labels_of(images: Path) -> Path:
    return images.with_name(f"labels{images.name.removeprefix('images')}")


def _label_maps(files: Iterable[Path], folders: Iterable[Path]) -> dict[Path, Path]:
    """Path without suffix to path, for the files below folders of labels."""
    labels: dict[Path, Path] = {}
    within = set(folders)
    for path in files:
        if not within.isdisjoint(path.parents):
            other = labels.setdefault(path.with_name(stem_of(path)), path)
            if other is not path:
                raise DataError(path.parent, found=f"two label maps of one name: {other} and {path}", expected="one")
    return labels


def _by_folder(files: Iterable[Path], images: set[Path]) -> dict[Path | None, list[Path]]:
    """Files by the innermost folder of images that holds them; None for those outside of any."""
    grouped: dict[Path | None, list[Path]] = {}
    for path in files:
        grouped.setdefault(next((folder for folder in path.parents if folder in images), None), []).append(path)
    return grouped


def _cases(
    folder: Path | None, files: list[Path], labels: dict[Path, Path], pair: Path | None
) -> list[tuple[Path, tuple[Path, ...], DataError | None]]:
    """The images among the files of one folder: path without suffix (and channel), files, problem."""
    names = {stem_of(path) for path in labels.values() if pair in path.parents}
    if folder is None or not are_channels(files, names):
        return [(path.with_name(stem_of(path)), (path,), None) for path in files]
    cases = {
        parent / case: channels
        for parent in {path.parent for path in files}
        for case, channels in cases_of(path for path in files if path.parent == parent).items()
    }
    channels = dict.fromkeys(sorted({number for found in cases.values() for number in found}), "")
    if len(channels) > 1 and names.isdisjoint(case.name for case in cases):
        warn(f"{folder}: names end in channel numbers; {len(files)} files are {len(cases)} images of {len(channels)}")
    return [
        (
            case,
            tuple(found[number] for number in sorted(found)),
            channel_problem(case.name, found, channels, f"other cases in {folder} have"),
        )
        for case, found in cases.items()
    ]


def _lonely(label: Path, root: Path) -> Entry:
    """A label map without image: named among the failures by its place, for no image may have its name."""
    place = label.relative_to(root).with_name(stem_of(label)).as_posix()
    problem = DataError(
        label,
        found="a label map without image",
        expected="an image of the same name in the folder of images beside it",
        remedy="Restore the image, rename one of the two, or take the label map out.",
    )
    return _entry(place, (label,), label, root, problem)


def _entry(
    image: str, paths: tuple[Path, ...], label: Path | None, root: Path, problem: DataError | None = None
) -> Entry:
    entry = Entry(image, paths, label, image, None, None, "folder", root, root.name, root.name, problem)
    sidecar = paths[0].with_name(f"{stem_of(paths[0])}.json")  # as dcm2niix writes it
    content = read_sidecar(sidecar) if len(paths) == 1 and sidecar.is_file() else None
    return entry if content is None else replace(entry, sequence=sequence_of_sidecar(content))
