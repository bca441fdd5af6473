"""What every reader returns: an image in its file's own axis order and the header it came with.

Axis letters: C channels, I J K the file's own three axes. An affine maps array indices (i, j, k, 1) of voxel centres to
RAS+ world coordinates in mm.
"""

import gzip
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prevox.errors import DataError

_REAL = "one real number per voxel and channel"
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in JPEG


@dataclass(frozen=True)
class Reading:
    """Choices for files that are not one real number in each voxel of one volume; the defaults refuse them.

    Args:
        colour: What colour voxels become: one grey channel (BT.601), or a channel for red, green and blue.
        complex: What complex voxels become.
        volume: Which volume of a 4D file is meant, from 0; None all of them, as channels. A file of one volume has that
            one whichever is asked for: a label map may belong to a whole series.
        pages: The pages of a TIFF file are the slices of one volume.
    """

    colour: Literal["refuse", "grey", "channels"] = "refuse"
    complex: Literal["refuse", "magnitude"] = "refuse"
    volume: int | None = None
    pages: bool = False

    @classmethod
    def from_text(cls, text: object) -> "Reading":
        """What `text` wrote; the defaults where it is no text."""
        return cls(**json.loads(text)) if isinstance(text, str) and text else cls()

    def text(self) -> str | None:
        """The choices that differ from the defaults as JSON, for the catalogue; None if there are none."""
        chosen = {name: value for name, value in asdict(self).items() if value != getattr(Reading, name)}
        return json.dumps(chosen, sort_keys=True) if chosen else None

    def of_label(self) -> "Reading":
        """How the label map of an image that is read like this is read."""
        return Reading(volume=self.volume, pages=self.pages)


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
        colour: Whether the channels are red, green and blue.
    """

    path: Path
    shape_ijk: tuple[int, int, int]
    channels: int
    affine: np.ndarray
    codes: dict[str, Any]
    dtype: str = "float32"
    flags: tuple[str, ...] = ()
    colour: bool = False


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
    axes = [int(size) for size in shape]
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


def check_volume(path: Path, volumes: int, volume: int | None) -> int:
    """Number of channels that are left of a 4th axis when one of its volumes is asked for.

    Raises:
        DataError: If it has not that many.
    """
    if volume is None or volumes == 1:
        return volumes
    if not 0 <= volume < volumes:
        raise DataError(
            path,
            found=f"{volumes} volumes on a 4th axis",
            expected=f"volume {volume} (counted from 0) among them",
            remedy="The file has changed: run `prevox catalogue` again.",
        )
    return 1


def real_dtype(path: Path, dtype: np.dtype, reading: Reading) -> tuple[np.dtype, int]:
    """Voxel type after the choices of `reading`, and the number of channels that a colour becomes (else 1).

    Raises:
        DataError: For colour (structured) and complex voxels unless `reading` says what to do, and for other types.
    """
    if dtype.kind in "biuf":
        return dtype, 1
    if dtype.names:
        return colour_dtype(path, dtype[0], reading)
    if dtype.kind != "c":
        raise DataError(path, found=f"voxels of type {dtype}", expected=_REAL, remedy="Convert to integers or floats.")
    if reading.complex == "refuse":
        raise DataError(
            path,
            found="complex voxels",
            expected=_REAL,
            remedy="--complex magnitude of `prevox catalogue` takes their magnitude; to keep the phase, export real "
            "and imaginary part as two channels.",
        )
    return np.dtype(np.float32 if dtype.itemsize == 8 else np.float64), 1


def colour_dtype(path: Path, component: np.dtype, reading: Reading) -> tuple[np.dtype, int]:
    """Type and number of the channels that a colour becomes.

    Raises:
        DataError: If `reading` refuses colours.
    """
    if reading.colour == "refuse":
        raise DataError(
            path,
            found="colour voxels (RGB)",
            expected=_REAL,
            remedy="Colours of a volume are mostly a rendering: look for the scan that was rendered. If they are "
            "meant, --colour grey or --colour channels of `prevox catalogue` reads them.",
        )
    return (np.dtype(np.float32), 1) if reading.colour == "grey" else (component.newbyteorder("="), 3)


def real_channels(array: np.ndarray, reading: Reading) -> np.ndarray:
    """Voxels of any type, colours as structured or with red, green, blue (and more) on a first axis: as real channels.

    Args:
        array: Any shape; complex and structured voxels are converted as `reading` says, others come back as they are.
        reading: Refuses nothing here: `real_dtype` has.

    Returns:
        The array with a new first axis where voxels are colours (3, or 1 if grey), else as it was.
    """
    if array.dtype.names:
        array = np.stack([array[name] for name in array.dtype.names[:3]])  # a fourth value is transparency
        return grey(array)[None] if reading.colour == "grey" else array
    return np.abs(array) if array.dtype.kind == "c" else array


def grey(array: np.ndarray) -> np.ndarray:
    """Luminance (float32) of red, green and blue on the first axis."""
    return np.tensordot(_LUMA, array[:3], axes=(0, 0)).astype(np.float32)


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
