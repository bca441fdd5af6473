"""Packs: many images of one slice in one Zarr group, for a hundred thousand X-rays must not become a million files.

    packs/<pack>.zarr/
      zarr.json                 a plain Zarr group: OME-Zarr has no axis for images that have no place in common
      images.json               a list: what an image group keeps in its attribute, for each image of the pack
      0, 1, ...                 (N, C, Y, X) int16, one shard file per pyramid level
      labels/reference/0, ...   (N, Y, X), where an image has labels
      foreground.npy            (n, 5) int32: position in the pack, class value, z, y, x

Images of different sizes share a pack: each lies in the corner of its layer, and what is beyond it is zero and takes no
room. A pack is never changed, except for the catalogue's rows: a changed image goes into a new pack, and an old one is
removed when newer packs have all of its images. So a training that reads a store is not disturbed by images that are
added to it.

Shape suffixes: N images of a pack, C channels, Z Y X canonical axes.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prevox.data.encode import Case, Encoded
from prevox.data.geometry import spacing_of
from prevox.data.group import foreground_voxels, image_levels, label_levels, pyramid_factors, write_array, write_group
from prevox.data.store import image_folder, pack_folder
from prevox.data.temporary import temporary_path

if TYPE_CHECKING:
    import pandas as pd

_BYTES = 64 << 20  # of int16 voxels in a pack's finest level, padding included
_COUNT = 1000
_INNER = (128, 128)  # voxels of an inner chunk: what a read decodes at least, 32 KB


class Packed(NamedTuple):
    """Where an image is, and what the store says about it."""

    pack: str
    position: int
    attributes: dict[str, Any]


def plan_packs(cases: Sequence[Case]) -> list[list[Case]]:
    """Divide slices into packs; those of like size come together, so that little is padded.

    A pack holds up to 64 MB and 1000 images, all with the same channels; an image that is larger has its own.
    """
    packs: list[list[Case]] = []
    channels = rows = columns = 0
    for case in sorted(cases, key=lambda case: (_shape(case), case.image)):
        c, y, x = _shape(case)
        taller, wider = max(rows, y), max(columns, x)
        room = packs and c == channels and len(packs[-1]) < _COUNT
        if room and 2 * (len(packs[-1]) + 1) * c * taller * wider <= _BYTES:
            packs[-1].append(case)
            rows, columns = taller, wider
        else:
            packs.append([case])
            channels, rows, columns = c, y, x
    return packs


def _shape(case: Case) -> tuple[int, int, int]:
    assert case.slice_CYX is not None
    return case.slice_CYX


class Packer:
    """Collects encoded slices, and writes each pack when the last of its images is there or has failed.

    Args:
        store: Store folder.
        cases: Slices to prepare.

    Attributes:
        cases: The same, pack by pack: handled in this order, few packs are open at a time.
    """

    def __init__(self, store: Path, cases: Sequence[Case]) -> None:
        packs = plan_packs(cases)
        self.cases = [case for pack in packs for case in pack]
        self._store = store
        self._number = {case.image: number for number, pack in enumerate(packs) for case in pack}
        self._missing = [len(pack) for pack in packs]
        self._encoded: dict[int, list[Encoded]] = {}

    def add(self, case: Case, encoded: Encoded | None) -> None:
        """Take an image, or note that it has failed."""
        number = self._number[case.image]
        self._missing[number] -= 1
        collected = self._encoded.setdefault(number, [])
        collected += [] if encoded is None else [encoded]
        if self._missing[number] == 0 and self._encoded.pop(number):
            write_pack(self._store, sorted(collected, key=lambda encoded: encoded.image))


def write_pack(store: Path, images: Sequence[Encoded]) -> None:
    """Write a pack under a temporary name and rename it. Its name follows from what is in it.

    Args:
        store: Store folder.
        images: Of one slice each, with the same channels.
    """
    content = [[image.image, image.attributes["hash"], image.attributes["settings"]] for image in images]
    folder = pack_folder(store, hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16])
    temporary = temporary_path(folder)
    try:
        _write(temporary, images)
        if read_pack(folder) is None:  # else another run on this store was faster
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for image in images:  # an older version that was no slice
        shutil.rmtree(image_folder(store, image.image), ignore_errors=True)


def _write(path: Path, images: Sequence[Encoded]) -> None:
    factors = [pyramid_factors(image.stored_CZYX.shape[1:], spacing_of(image.affine)) for image in images]
    path.mkdir(parents=True)
    levels = [list(image_levels(image.stored_CZYX, f)) for image, f in zip(images, factors, strict=True)]
    for level, array_NCYX in enumerate(_stacked([[x[:, 0] for x in image] for image in levels])):
        write_array(path / str(level), array_NCYX, ["n", "c", "y", "x"], chunk=_INNER)
    if any(image.label_ZYX is not None for image in images):
        _write_labels(path, images, factors)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    voxels = sum(image.stored_CZYX.size for image in images)
    members = [
        {
            **image.attributes,
            "affine": image.affine.ravel().tolist(),
            "levels": [{"factors": list(factor)} for factor in f],
            "bytes": round(size * image.stored_CZYX.size / voxels),
        }
        for image, f in zip(images, factors, strict=True)
    ]
    (path / "images.json").write_text(json.dumps(members, allow_nan=False))
    write_group(path, {"prevox": {"images": "images.json"}})


def _write_labels(path: Path, images: Sequence[Encoded], factors: Sequence[list[tuple[int, int, int]]]) -> None:
    """Labels and foreground voxels; images without labels leave their layer empty."""
    levels = [
        [] if image.label_ZYX is None else [label[0] for label in label_levels(image.label_ZYX, f)]
        for image, f in zip(images, factors, strict=True)
    ]
    for level, label_NYX in enumerate(_stacked(levels)):
        name = path / "labels" / "reference" / str(level)
        write_array(name, label_NYX, ["n", "y", "x"], chunk=_INNER)
    write_group(path / "labels", {})
    write_group(path / "labels" / "reference", {})
    rows = [np.zeros((0, 5), np.int32)]
    for position, image in enumerate(images):
        if image.label_ZYX is not None:
            voxels = foreground_voxels(image.label_ZYX, image.seed)
            rows.append(np.insert(voxels, 0, position, axis=1))
    np.save(path / "foreground.npy", np.concatenate(rows))


def _stacked(images: Sequence[Sequence[np.ndarray]]) -> Iterator[np.ndarray]:
    """For each level one array of all images, (N, ..., Y, X); zero where an image is smaller or lacks the level."""
    for level in range(max(map(len, images))):
        layers = {position: levels[level] for position, levels in enumerate(images) if level < len(levels)}
        shapes = np.array([layer.shape for layer in layers.values()]).max(axis=0)
        stack = np.zeros((len(images), *shapes), np.result_type(*layers.values()))
        for position, layer in layers.items():
            stack[position, ..., : layer.shape[-2], : layer.shape[-1]] = layer
        yield stack


def read_pack(folder: Path) -> list[dict[str, Any]] | None:
    """What the store says about each image of a pack; None if the folder is no pack."""
    try:
        members = json.loads((folder / "images.json").read_text())
    except (OSError, ValueError):
        return None
    return members if isinstance(members, list) else None


def pack_folders(store: Path) -> list[Path]:
    """Folders of the store's packs; the names of those being written start with a dot."""
    return sorted((store / "packs").glob("[!.]*.zarr"))


def packed_images(store: Path) -> Iterator[Packed]:
    """Every version of an image in the store's packs, pack by pack."""
    for folder in pack_folders(store):
        for position, attributes in enumerate(read_pack(folder) or []):
            yield Packed(folder.stem, position, attributes)


def update_rows(store: Path, changes: Mapping[str, Mapping[int, dict[str, Any]]]) -> None:
    """Replace the catalogue's rows of some images, by pack and position; each pack atomically."""
    for pack, rows in changes.items():
        path = pack_folder(store, pack) / "images.json"
        members = json.loads(path.read_text())
        for position, row in rows.items():
            members[position]["row"] = row
        temporary = temporary_path(path)
        temporary.write_text(json.dumps(members, allow_nan=False))
        temporary.replace(path)


def remove_replaced_packs(store: Path, index: "pd.DataFrame") -> None:
    """Remove packs of which the index names no image, and another version of each."""
    if index.empty:
        return
    images, used = set(index["image"]), set(index["pack"])
    for folder in pack_folders(store):
        members = read_pack(folder) if folder.stem not in used else None
        if members and all(member["row"]["image"] in images for member in members):
            shutil.rmtree(folder, ignore_errors=True)
