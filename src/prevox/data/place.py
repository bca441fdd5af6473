"""Bring one image to the grid that networks see: canonical axes, crop, resampling. Used by `prepare` and `predict`.

Shape suffixes: C channels, I J K source axes, Z Y X canonical axes.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from prevox.data.geometry import (
    Box,
    Grid,
    canonical_axes,
    crop,
    nonzero_box,
    reorient,
    resample,
    resample_label,
)
from prevox.data.group import finite_range
from prevox.errors import DataError


@dataclass(frozen=True)
class PrepareSettings:
    """What decides about the prepared voxels; images prepared alike can be mixed.

    Args:
        spacing: Target in mm along z y x; None keeps each image's own.
        crop: "nonzero" cuts away borders that are zero in every channel.
        order: Spline order of image resampling.
    """

    spacing: tuple[float, float, float] | None = None
    crop: Literal["nonzero", "none"] = "nonzero"
    order: Literal[1, 3] = 3

    @classmethod
    def from_info(cls, info: dict[str, Any]) -> "PrepareSettings":
        """The settings that a store's store.json records, so that `predict` can repeat them."""
        spacing = None if info["spacing"] is None else tuple(info["spacing"])
        return cls(spacing, info["prepare"]["crop"], info["prepare"]["order"])

    def plain(self) -> dict[str, Any]:
        """JSON-able values."""
        return {**asdict(self), "spacing": None if self.spacing is None else list(self.spacing)}


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image on its prepared grid, and what is needed to go back.

    Attributes:
        array_CZYX: float32 voxels in the image's own units.
        label_ZYX: Labels in the smallest unsigned type, or None.
        grid: Grid of the arrays.
        source: Grid of the source, in its own axis order.
        crop: (start, stop) along the source's canonical axes.
    """

    array_CZYX: np.ndarray
    label_ZYX: np.ndarray | None
    grid: Grid
    source: Grid
    crop: Box


def prepare_image(
    image_CIJK: np.ndarray,
    affine: np.ndarray,
    label_IJK: np.ndarray | None,
    settings: PrepareSettings,
    where: object = "image",
) -> Prepared:
    """Turn to canonical axes, crop, resample.

    The crop keeps every voxel that is not zero in some channel, and every labelled voxel.

    Args:
        image_CIJK: Voxels in the source's order.
        affine: (4, 4), source indices to world mm.
        label_IJK: Whole values from 0 upwards on the same grid, or None.
        settings: Spacing, crop, order.
        where: File or case, for messages.

    Raises:
        DataError: If voxels are not finite, the affine has no inverse, or labels are not whole values on the same grid.
    """
    placed = place(image_CIJK, affine, label_IJK, settings, where)
    array = np.ascontiguousarray(placed.array_CZYX, np.float32)
    return Prepared(array, placed.label_ZYX, placed.grid, placed.source, placed.crop)


def place(
    image_CIJK: np.ndarray,
    affine: np.ndarray,
    label_IJK: np.ndarray | None,
    settings: PrepareSettings,
    where: object = "image",
) -> Prepared:
    """`prepare_image`, but unless resampled the voxels keep their source's type: float32 cannot hold every int32."""
    finite_range(image_CIJK, where)
    i, j, k = image_CIJK.shape[1:]
    source = Grid((i, j, k), np.asarray(affine, np.float64))
    axes = canonical_axes(source.affine, source.shape)
    array, turned_affine = reorient(image_CIJK, source.affine, *axes)
    label = None
    if label_IJK is not None:
        label, _ = reorient(_checked_label(label_IJK, source, where), source.affine, *axes)
    z, y, x = array.shape[1:]
    box: Box = ((0, z), (0, y), (0, x))
    if settings.crop == "nonzero":
        box = _box_of(array, label)
    array, new_affine = crop(array, turned_affine, box)
    if label is not None:
        label, _ = crop(label, turned_affine, box)
    if settings.spacing is not None:
        if label is not None:
            label, _ = resample_label(label, new_affine, settings.spacing)
        array, new_affine = resample(array, new_affine, settings.spacing, settings.order)
    z, y, x = array.shape[1:]
    label = None if label is None else np.ascontiguousarray(label)
    return Prepared(np.ascontiguousarray(array), label, Grid((z, y, x), new_affine), source, box)


def _box_of(array_CZYX: np.ndarray, label_ZYX: np.ndarray | None) -> Box:
    """Box of what is not zero; widened to the labels unless the image is all zero (then nothing is cut)."""
    boxes = [nonzero_box(array_CZYX)]
    if label_ZYX is not None and label_ZYX.any():
        boxes.append(nonzero_box(label_ZYX[None]))
    z, y, x = ((min(b[axis][0] for b in boxes), max(b[axis][1] for b in boxes)) for axis in range(3))
    return z, y, x


def _checked_label(label_IJK: np.ndarray, source: Grid, where: object) -> np.ndarray:
    """The labels in the smallest unsigned type.

    Raises:
        DataError: If the shape differs, or values are fractional, negative or beyond uint32.
    """
    if label_IJK.shape != source.shape:
        raise DataError(
            where, found=f"a label map of {label_IJK.shape} voxels", expected=f"{source.shape}, as the image"
        )
    low, high = finite_range(label_IJK, where)
    if low < 0 or high >= 2**32 or (label_IJK.dtype.kind == "f" and (label_IJK != np.rint(label_IJK)).any()):
        raise DataError(
            where,
            found=f"label values from {low:g} to {high:g}, some fractional, negative or too large",
            expected="whole numbers from 0 upwards",
            remedy="Threshold soft labels, and map negative values to 0.",
        )
    return label_IJK.astype(np.min_scalar_type(int(high)))
