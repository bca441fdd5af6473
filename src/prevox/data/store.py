"""The prepared store: one OME-Zarr 0.5 group per volume, packs of slices, all read as `read(image, level, box)`.

    store/
      store.json      schema, settings of `prepare`, class names, hash
      index.parquet   one row per image
      failures.csv    images that could not be prepared, with the reason
      images/<image>.zarr/
        0, 1, ...                 (C, Z, Y, X) int16, one shard file per pyramid level
        labels/reference/0, ...   (Z, Y, X) smallest unsigned integer
        foreground.npy            (n, 4) int32: class value, z, y, x of sample voxels
      packs/<pack>.zarr/          images of one slice, see `prevox.data.pack`

Voxel = stored * slope + intercept, of each channel. OME-Zarr 0.5 knows scale and translation only, so the full affine
stands in the group's own attribute "prevox". Groups are written by `prevox.data.group`.
"""

import difflib
import functools
import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorstore as ts

from prevox.data.store_files import CONTEXT, StoreFiles
from prevox.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2  # 2: slope, intercept and largest error of every channel
CACHE_BYTES = 256 << 20  # decoded chunks and shard indices, shared by all images
_OPEN_ARRAYS = 4096  # handles kept; each is small, but a store may hold 100 000 images
_OPEN_PACKS = 512  # foreground tables kept; mapped, not loaded

Box = tuple[tuple[int, int], ...]


class Store:
    """A prepared store, opened for reading. Reads are asynchronous: many may be in flight, none needs a process.

    Args:
        path: Folder written by `prevox prepare`, or the URL of a copy of it on object storage (`data.store_files`).

    Attributes:
        index: One row per image, indexed by image id.
        info: Contents of store.json.

    Raises:
        DataError: If the folder is not a store, was written by another Prevox, or lacks images that its index names.
    """

    def __init__(self, path: Path | str):
        import pandas as pd

        self._files = StoreFiles(path)
        self.path = self._files.place
        self.info: dict[str, Any] = read_info(self._files)
        index = self._files.read("index.parquet")
        if index is None:
            raise DataError(
                self.path,
                found="a store without index.parquet",
                expected="a finished store",
                remedy="`prevox prepare` was killed, ran with --shard only, or could prepare no image (failures.csv): "
                "run it again, without --shard.",
            )
        try:
            self.index: pd.DataFrame = pd.read_parquet(BytesIO(index)).set_index("image")
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                self._files.name("index.parquet"),
                found=f"no index of a store ({' '.join(str(error).split())[:200]})",
                expected="the Parquet file that `prevox prepare` wrote",
                remedy="Run `prevox prepare` again: it writes the index anew and keeps the images.",
            ) from None
        self._check_images()
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}, **CONTEXT})
        self._array = functools.lru_cache(_OPEN_ARRAYS)(self._open)
        self._pack_array = functools.lru_cache(_OPEN_ARRAYS)(self._open_array)
        self._pack_foreground = functools.lru_cache(_OPEN_PACKS)(self._open_foreground)
        self._levels: dict[str, list[tuple[int, int, int]]] = {}

    def __reduce__(
        self,
    ) -> tuple[type["Store"], tuple[Path | str]]:  # handles stay behind; the other process opens its own
        return Store, (self.path,)

    def read(self, image: str, level: int, box: Box) -> "ts.Future[np.ndarray]":
        """Start reading a box.

        Args:
            image: Image id.
            level: Pyramid level, 0 is the finest.
            box: (start, stop) along z, y, x in the level's own voxels; must lie inside the level.

        Returns:
            A future; `.result()` is the int16 (C, z, y, x) array.

        Raises:
            DataError: If there is no such image or level.
        """
        z, y, x = (slice(start, stop) for start, stop in box)
        return self._array(image, str(level))[:, z, y, x].read()

    def read_label(self, image: str, level: int, box: Box) -> "ts.Future[np.ndarray]":
        """Start reading a box of the reference labels, as `read`; the array is unsigned (z, y, x).

        Raises:
            DataError: If there is no such image or level, or the image has no labels.
        """
        z, y, x = (slice(start, stop) for start, stop in box)
        return self._array(image, f"labels/reference/{level}")[z, y, x].read()

    def shape(self, image: str, level: int = 0) -> tuple[int, int, int]:
        """Voxels of a level along z, y, x."""
        _, z, y, x = self._array(image, str(level)).shape
        return z, y, x

    def foreground(self, image: str) -> np.ndarray:
        """Sample voxels of each class for foreground oversampling.

        Returns:
            (n, 4) int32 rows (class value, z, y, x) on the finest level; no rows where there is no label.

        Raises:
            DataError: If there is no such image, or its file is damaged.
        """
        place = self._place(image)
        if place is not None:
            rows, starts = self._pack_foreground(place[0])
            return np.array(rows[starts[place[1]] : starts[place[1] + 1], 1:])
        found = self._files.load_rows(f"{self._group(image)}/foreground.npy")
        return np.zeros((0, 4), np.int32) if found is None else found

    def row(self, image: str) -> "pd.Series[Any]":
        """The image's row of the index.

        Raises:
            DataError: If there is no such image; the nearest name is given.
        """
        if image not in self.index.index:
            near = difflib.get_close_matches(str(image), list(self.index.index), n=1, cutoff=0.0)
            raise DataError(
                self.path,
                found=f"no image '{image}'",
                expected=f"one of the store's {len(self.index)} images",
                remedy=f"The nearest name is '{near[0]}'." if near else "The store is empty.",
            )
        row: pd.Series[Any] = self.index.loc[image]  # type: ignore[assignment]  # ids are unique
        return row

    def has_label(self, image: str) -> bool:
        """Whether the image has a reference label map.

        Raises:
            DataError: If there is no such image.
        """
        return self.row(image)["label_values"] is not None

    def slope_intercept(self, image: str) -> np.ndarray:
        """Slope and intercept of each channel, (C, 2) float64: voxel = stored * slope + intercept.

        Raises:
            DataError: If there is no such image.
        """
        row = self.row(image)
        return np.stack([row["slope"], row["intercept"]], axis=1, dtype=np.float64)

    def statistics(self, image: str) -> list[dict[str, float]]:
        """Intensity statistics of each channel over the finest level, in the image's units."""
        statistics: list[dict[str, float]] = json.loads(self.row(image)["statistics"])
        return statistics

    def levels(self, image: str) -> list[tuple[int, int, int]]:
        """Cumulative downsampling factors (z, y, x) of each level, (1, 1, 1) first."""
        if image not in self._levels:
            found = [tuple(level["factors"]) for level in json.loads(self.row(image)["levels"])]
            self._levels[image] = [(int(z), int(y), int(x)) for z, y, x in found]
        return self._levels[image]

    def level_for(self, image: str, source_size: tuple[int, ...], target_size: tuple[int, ...]) -> int:
        """The coarsest level from which a view can be cut without losing samples.

        Args:
            image: Image id.
            source_size: Voxels of the finest level that the view covers, along z, y, x.
            target_size: Samples that the view will have.

        Returns:
            The last level that, on every axis it halves, still has target_size samples or more within the view. An axis
            that it leaves alone loses nothing, however few samples the view has there.
        """
        best = 0
        for level, factors in enumerate(self.levels(image)):
            per_axis = zip(source_size, target_size, factors, strict=True)
            if all(factor == 1 or size >= target * factor for size, target, factor in per_axis):
                best = level
        return best

    def _place(self, image: str) -> tuple[str, int] | None:
        """Pack of an image and its position there; None for an image with a group of its own."""
        row = self.row(image)
        pack = row.get("pack")  # stores of earlier versions have no such column
        return (pack, int(row["pack_position"])) if isinstance(pack, str) else None

    def folder(self, image: str) -> Path | str:
        """Folder (or URL) of the image's group, or of the pack that holds it."""
        return self._files.name(self._group(image))

    def _group(self, image: str) -> str:
        place = self._place(image)
        return f"images/{image}.zarr" if place is None else f"packs/{place[0]}.zarr"

    def _open(self, image: str, array: str) -> "ts.TensorStore":
        """(C, z, y, x), or (z, y, x) for labels."""
        place, group = self._place(image), self._group(image)
        level, is_label = int(array.rpartition("/")[2]), array.startswith("labels/")
        no_label = is_label and not self.has_label(image)
        if no_label or level >= len(self.levels(image)) or not self._files.has(f"{group}/{array}/zarr.json"):
            raise DataError(
                self._files.name(group),
                found=f"no array '{array}' of {image}",
                expected=f"{'labels' if is_label else 'voxels'} with {len(self.levels(image))} levels",
                remedy="The image was prepared without a label."
                if no_label
                else "If the level should be there, remove the folder and run `prevox prepare`.",
            )
        if array == "0" and not self._files.has(f"{group}/0/c/0/0/0/0") and self._has_contrast(image):
            raise unreadable_voxels(self._files.name(group), "the file of voxels is missing")  # would be read as zeros
        if place is None:
            return self._open_array(f"{group}/{array}")
        stack = self._pack_array(f"{group}/{array}")
        _, y, x = (-(-size // f) for size, f in zip(self.row(image)["shape"], self.levels(image)[level], strict=True))
        return stack[place[1], ts.newaxis, :y, :x] if is_label else stack[place[1], :, ts.newaxis, :y, :x]

    def _open_array(self, name: str) -> "ts.TensorStore":
        try:
            return self._files.open_array(name, self._context)
        except ValueError as error:
            raise unreadable_voxels(self._files.name(name), error) from None

    def _has_contrast(self, image: str) -> bool:
        """Whether some stored voxel is not 0; an array of zeros has no file."""
        return any(channel["minimum"] < channel["maximum"] for channel in self.statistics(image))

    def _open_foreground(self, pack: str) -> tuple[np.ndarray, np.ndarray]:
        """A pack's foreground rows, mapped, and where those of each image start."""
        found = self._files.load_rows(f"packs/{pack}.zarr/foreground.npy", mapped=True)
        count = int(self.index.loc[self.index["pack"] == pack, "pack_position"].max()) + 1
        rows = np.zeros((0, 5), np.int32) if found is None else found
        return rows, np.searchsorted(rows[:, 0], np.arange(count + 1))

    def _check_images(self) -> None:
        """Check that the folder of every image is there, by two listings for all of them."""
        root = self._files.folder
        if root is None:
            return
        parts = [root / part for part in ("images", "packs")]
        present = {entry for part in parts if part.is_dir() for entry in part.iterdir()}
        packs = self.index.get("pack", [None] * len(self.index))
        folders = {
            image: pack_folder(root, pack) if isinstance(pack, str) else image_folder(root, image)
            for image, pack in zip(self.index.index, packs, strict=True)
        }
        missing = [image for image, folder in folders.items() if folder not in present]
        if missing:
            raise DataError(
                self.path,
                found=f"no folder for {len(missing)} of {len(self.index)} images ({', '.join(missing[:3])} ...)",
                expected="every image that index.parquet names",
                remedy="Run `prevox prepare` again: it writes what is missing.",
            )


def unreadable_voxels(folder: Path | str, reason: object) -> DataError:
    """The error for a damaged image or pack: a copy that was cut short, a disk that fails, a lost file."""
    return DataError(
        folder,
        found=f"voxels that cannot be read ({' '.join(str(reason).split())[:300]})",
        expected="the folder as `prevox prepare` wrote it",
        remedy="Remove this folder and run `prevox prepare` again: it writes what is missing.",
    )


def image_folder(store: Path, image: str) -> Path:
    """Folder of an image's group."""
    return store / "images" / f"{image}.zarr"


def pack_folder(store: Path, pack: str) -> Path:
    """Folder of a pack."""
    return store / "packs" / f"{pack}.zarr"


def read_info(files: StoreFiles) -> dict[str, Any]:
    """Read store.json.

    Raises:
        DataError: If the place is not a store, or was written by an older or a newer Prevox.
    """
    path, folder = files.place, files.folder
    remedy = "Give the folder that `prevox prepare --out` wrote."
    if folder is not None and not folder.is_dir():
        found = "a file" if folder.is_file() else "no such folder"
        raise DataError(path, found=found, expected="a store", remedy=remedy)
    content = files.read("store.json")
    if content is None:
        raise DataError(path, found="a folder without store.json", expected="a store", remedy=remedy)
    try:
        info = json.loads(content)
        schema = int(info["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            files.name("store.json"), found=f"{error}", expected="the JSON of a store", remedy=remedy
        ) from None
    if schema != SCHEMA:
        raise DataError(
            path,
            found=f"a store of schema {schema}",
            expected=f"schema {SCHEMA}",
            remedy="It was written by a newer Prevox: update this one, or prepare the images again."
            if schema > SCHEMA
            else "It was written by an older Prevox: run `prevox prepare` with another --out, and use that store.",
        )
    return dict(info)
