"""One image as the store keeps it: read, brought to its grid, quantised, described. Nothing is written here.

Shape suffixes: C channels, I J K source axes, Z Y X canonical axes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prevox.data.geometry import Grid, canonical_axes, reorient, resampled_grid, values_of
from prevox.data.group import quantise_channels
from prevox.data.place import PrepareSettings, place
from prevox.data.readers import Image, Reading, read_image, stored_size
from prevox.data.store import SCHEMA
from prevox.errors import DataError


@dataclass(frozen=True)
class Case:
    """One image to prepare.

    Args:
        row: What the store keeps of its catalogue row; JSON-able.
        hash: Of the contents of its files.
        slice_CYX: Channels, rows and columns where the prepared image is one voxel thick (a crop may leave fewer rows
            and columns); None for volumes.
        memory: Bytes that preparing it takes at most, about.
    """

    row: dict[str, Any]
    hash: str
    slice_CYX: tuple[int, int, int] | None = None
    memory: int = 0

    @property
    def image(self) -> str:
        """The image's id."""
        return str(self.row["image"])


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image ready to be written.

    Attributes:
        stored_CZYX: int16 voxels.
        label_ZYX: Labels in the smallest unsigned type, or None.
        affine: (4, 4) of the arrays.
        attributes: What the store says about the image; JSON-able.
        seed: For drawing foreground voxels.
    """

    stored_CZYX: np.ndarray
    label_ZYX: np.ndarray | None
    affine: np.ndarray
    attributes: dict[str, Any]
    seed: int

    @property
    def image(self) -> str:
        """The image's id."""
        return str(self.attributes["row"]["image"])


def slice_shape(row: dict[str, Any], settings: PrepareSettings) -> tuple[int, int, int] | None:
    """Channels, rows and columns (before any crop) of an image that will be one voxel thick; None for volumes."""
    shape = (int(row["shape_i"]), int(row["shape_j"]), int(row["shape_k"]))
    if shape.count(1) != 1:
        return None
    affine = np.reshape(row["affine"], (4, 4))
    turned, turned_affine = reorient(np.broadcast_to(np.uint8(0), shape), affine, *canonical_axes(affine, shape))
    grid = Grid((turned.shape[0], turned.shape[1], turned.shape[2]), turned_affine)
    if settings.spacing is not None:
        grid = resampled_grid(grid, settings.spacing)
    z, y, x = grid.shape
    return (int(row["channels"]), y, x) if z == 1 else None


def is_file_name(image: str) -> bool:
    """Whether an id can name a file in a folder, and cannot lead out of it."""
    return bool(image) and Path(image).name == image and not image.startswith(".")


def encode_case(case: Case, settings: PrepareSettings) -> Encoded:
    """Read, place, quantise and describe one image; runs in a worker process.

    Raises:
        DataError: If the image or its label cannot be used.
    """
    if not is_file_name(case.image):
        raise DataError(case.image, found="an id that is no file name", expected="an id without '/' or a leading dot")
    channels, label, source_bytes = _read(case.row)
    header = channels[0].header
    array = channels[0].array_CIJK if len(channels) == 1 else np.concatenate([c.array_CIJK for c in channels])
    label_array = None if label is None else label.array_CIJK[0]
    placed = place(array, header.affine, label_array, settings, header.path)
    stored, slope, intercept, max_error = quantise_channels(placed.array_CZYX)
    if case.slice_CYX is not None and stored.shape[:2] != (case.slice_CYX[0], 1):
        raise DataError(
            header.path,
            found=f"{stored.shape[0]} channels of {stored.shape[1]} slices",
            expected=f"{case.slice_CYX[0]} of one slice, as the catalogue says",
            remedy="The file has changed: run `prevox catalogue` again.",
        )
    values, vanished = _label_values(label_array, placed.label_ZYX)
    attributes = {
        "schema": SCHEMA,
        "hash": case.hash,
        "settings": settings.plain(),
        "row": case.row,
        "channels": len(stored),
        "shape": list(placed.grid.shape),
        "spacing": list(placed.grid.spacing),
        "source_shape": list(placed.source.shape),
        "source_affine": placed.source.affine.ravel().tolist(),
        "source_codes": header.codes,
        "crop": [list(edge) for edge in placed.crop],
        "label_values": values,
        "vanished": vanished,
        "slope": slope,
        "intercept": intercept,
        "max_error": max_error,
        "statistics": [channel_statistics(channel) for channel in placed.array_CZYX],
        "source_bytes": source_bytes,
    }
    return Encoded(stored, placed.label_ZYX, placed.grid.affine, attributes, int(case.hash[:16], 16))


def _label_values(source: np.ndarray | None, prepared: np.ndarray | None) -> tuple[list[int] | None, list[int]]:
    """Values of the prepared labels but 0 (None where there are no labels), and those that resampling has lost."""
    if source is None or prepared is None:
        return None, []
    before, after = (values_of(label).tolist() for label in (source.astype(prepared.dtype, copy=False), prepared))
    return [value for value in after if value != 0], [value for value in before if value not in (0, *after)]


def _read(row: dict[str, Any]) -> tuple[list[Image], Image | None, int]:
    """All channels and the label of a case, checked to lie on one grid, and the size of their files."""
    from prevox.data.quality import check_same_grid

    root = Path(row["root"])
    paths = [root / path for path in row["paths"]]
    reading = Reading.from_text(row.get("reading"))
    channels = [read_image(path, reading) for path in paths]
    first = channels[0].header
    for other in (channel.header for channel in channels[1:]):
        check_same_grid(first, other, "a channel")
    label = None
    if row["label_path"] is not None:
        paths.append(root / row["label_path"])
        label = read_image(paths[-1], reading.of_label())
        check_same_grid(first, label.header, "a label map")
        if len(label.array_CIJK) != 1:
            raise DataError(paths[-1], found=f"a label map of {len(label.array_CIJK)} channels", expected="one channel")
    return channels, label, sum(map(stored_size, paths))


def channel_statistics(channel_ZYX: np.ndarray) -> dict[str, float]:
    """Statistics that normalisation needs, in the image's units; without non-zero voxels their mean and std are 0."""
    nonzero = channel_ZYX[channel_ZYX != 0]
    low, high = np.percentile(channel_ZYX, [0.5, 99.5])
    return {
        "mean": float(channel_ZYX.mean(dtype=np.float64)),
        "std": float(channel_ZYX.std(dtype=np.float64)),
        "mean_nonzero": float(nonzero.mean(dtype=np.float64)) if nonzero.size else 0.0,
        "std_nonzero": float(nonzero.std(dtype=np.float64)) if nonzero.size else 0.0,
        "p005": float(low),
        "p995": float(high),
        "minimum": float(channel_ZYX.min()),
        "maximum": float(channel_ZYX.max()),
    }
