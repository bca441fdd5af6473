"""What every reader returns: an image in its file's own axis order and the header it came with.

Axis letters: C channels, I J K the file's own three axes. An affine maps array indices (i, j, k, 1) of voxel centres to
RAS+ world coordinates in mm.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prevox.errors import DataError


@dataclass(frozen=True, eq=False)
class Header:
    """Geometry of a file and what is needed to write another file on the same grid.

    Args:
        path: The file.
        shape_ijk: Voxels along the file's axes; a 2D file has 1 along its third.
        channels: Number of channels (4th axis or components of a voxel).
        affine: (4, 4) float64, indices (i, j, k, 1) to RAS+ mm.
        codes: JSON-able header fields from which `write_image` repeats the geometry exactly; `format` names the family.
        dtype: Voxel type as `Image.array_CIJK` will have it.
        flags: Quality flags of the header itself: `no_geometry` where the file says nothing about orientation.
    """

    path: Path
    shape_ijk: tuple[int, int, int]
    channels: int
    affine: np.ndarray
    codes: dict[str, Any]
    dtype: str = "float32"
    flags: tuple[str, ...] = ()


@dataclass(eq=False)
class Image:
    """Voxels (C, I, J, K) in the file's own axis order, and the header."""

    array_CIJK: np.ndarray
    header: Header


def check_shape(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Read a file's shape as three spatial axes and channels.

    Returns:
        The spatial shape (2D files get a third axis of 1) and the number of channels (4th axis).

    Raises:
        DataError: If an axis is empty, or there are fewer than 2 or more than 4 axes longer than 1.
    """
    axes = list(shape)
    while len(axes) > 4 and axes[-1] == 1:
        axes.pop()
    if len(axes) > 4 or len(axes) < 2 or min(axes) < 1:
        raise DataError(
            path,
            found=f"an array of shape {'×'.join(map(str, shape))}",
            expected="2 or 3 spatial axes, and a 4th for channels where there are several",
            remedy="Split time series, vector and tensor images into files with one channel axis.",
        )
    i, j, k, channels = axes + [1] * (4 - len(axes))
    return (i, j, k), channels


def check_affine(path: Path, affine: np.ndarray) -> np.ndarray:
    """Return the affine as float64.

    Raises:
        DataError: If it holds NaN or infinity, or does not span three dimensions.
    """
    affine = np.array(affine, dtype=np.float64)
    fault = ""
    if not np.isfinite(affine).all():
        fault = "an affine with values that are not finite"
    else:
        volume = float(np.prod(np.linalg.norm(affine[:3, :3], axis=0)))
        if volume <= 0 or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * volume:
            fault = f"a singular affine {np.array2string(affine[:3], precision=4, separator=', ').replace(chr(10), '')}"
    if fault:
        raise DataError(
            path,
            found=fault,
            expected="three independent axes with a voxel size above 0 mm",
            remedy="Repair sform and qform (or the space directions) in the header, or export the scan again.",
        )
    return affine


def check_dtype(path: Path, dtype: np.dtype) -> None:
    """Accept real numbers only.

    Raises:
        DataError: For colour (structured) and complex voxels.
    """
    if dtype.kind in "biuf":
        return
    if dtype.names:
        found, remedy = "colour voxels (RGB)", "Convert to grey values, or to one channel per colour on a 4th axis."
    elif dtype.kind == "c":
        found, remedy = "complex voxels", "Export magnitude (or real and imaginary part as two channels)."
    else:
        found, remedy = f"voxels of type {dtype}", "Convert to integers or floats."
    raise DataError(path, found=found, expected="one real number per voxel and channel", remedy=remedy)


def unreadable(path: Path, error: BaseException) -> DataError:
    """The error for a file that its library cannot read: corrupt, truncated, or not what its name says."""
    words = " ".join(str(error).split()) or type(error).__name__
    kind, remedy = _really(path)
    return DataError(
        path,
        found=f"{kind or 'a file'} that cannot be read ({words[-300:]})",
        expected="a complete, uncorrupted file of the kind that its name says",
        remedy=remedy or "Copy or export it again.",
    )


def _really(path: Path) -> tuple[str, str]:
    """What a file is that is no image, as far as its first bytes tell, and what to do; empty where they do not."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as file:
                head = file.read(512)
    except (OSError, EOFError, zlib.error):  # cut short: the library has said so
        return "", ""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML)", "The download gave an error or log-in page: download the file again."
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer", "Fetch the file itself with `git lfs pull`."
    if head and head.isascii() and b"\0" not in head:
        return "a text file", "Copy or export the image again."
    return "", ""
