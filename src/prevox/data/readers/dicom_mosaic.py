"""Siemens mosaics: all slices of a volume as tiles of one picture, row by row from the top left.

DICOM's own elements describe such a file as one huge slice: Image Position is the corner of a picture of the mosaic's
size around the first slice's centre (https://nipy.org/nibabel/dicom/dicom_mosaic.html). How many slices there are, and
on which side of each the next one lies, only the private CSA header says; without it nothing is guessed.
"""

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import Dataset

with warnings.catch_warnings():  # that all of nibabel's DICOM is experimental, which its users need not read
    warnings.simplefilter("ignore", UserWarning)
    from nibabel.nicom import csareader

# private blocks may be moved by what else wrote private elements: creators, and CSA header or count in their blocks
_CSA, _COUNT = "SIEMENS CSA HEADER", "SIEMENS MR HEADER"
_BLOCKS = range(0x10, 0x18)
TAGS = [
    group << 16 | tag
    for group, element in ((0x0029, 0x10), (0x0019, 0x0A))
    for block in _BLOCKS
    for tag in (block, block << 8 | element)
]
_PARALLEL = 1e-3  # by which the cosine between two normals may differ from 1


class NoMosaic(ValueError):  # noqa: N818  # it is an answer
    """Why a mosaic cannot be split. Its words repeat no text of the file."""


@dataclass(frozen=True)
class Mosaic:
    """How a mosaic is laid out.

    Args:
        count: Slices.
        tiles: Tiles along each side of the picture; the last ones may be empty.
        step: From slice to slice, in LPS mm.
    """

    count: int
    tiles: int
    step: np.ndarray


def mosaic_of(
    dataset: Dataset, size: tuple[int, int], orientation: Sequence[float], distances: Sequence[float | None]
) -> Mosaic:
    """Read the layout of a mosaic.

    Args:
        dataset: With the elements `TAGS`.
        size: Rows and columns of the whole picture.
        orientation: Directions of a row and of a column, LPS.
        distances: Between slices, in mm: the first one above 0 counts.

    Raises:
        NoMosaic: If it is not said, says two things, or does not fit the picture.
    """
    header = _header(dataset)
    count = _count(dataset, header)
    tiles = math.isqrt(count - 1) + 1
    if size[0] % tiles or size[1] % tiles:
        raise NoMosaic(f"a Siemens mosaic of {count} slices in {size[1]}×{size[0]} pixels")
    if (_scalar(header, "ProtocolSliceNumber") or 0) > 1:  # of the first tile: the last slice comes first
        raise NoMosaic("a Siemens mosaic whose slices are numbered in reverse, which converters place differently")
    normal = np.cross(orientation[:3], orientation[3:])
    cosine = _normal(header) @ normal
    if not abs(abs(cosine) - 1) <= _PARALLEL:
        raise NoMosaic("a Siemens mosaic whose slices do not lie along the normal of its picture")
    distance = next((one for one in distances if one is not None and one > 0), None)
    if distance is None:
        raise NoMosaic("a Siemens mosaic without a distance between its slices")
    return Mosaic(count, tiles, np.sign(cosine) * distance * normal)


def _header(dataset: Dataset) -> dict[str, Any]:
    """The CSA header of the image."""
    try:
        header: dict[str, Any] | None = csareader.get_csa_header(dataset)
    except Exception:  # it unpacks bytes as they come: whatever it raises, they are no header
        header = None
    if header is None:
        raise NoMosaic("a Siemens mosaic without a CSA header that can be read")
    return header


def _count(dataset: Dataset, header: dict[str, Any]) -> int:
    """Number of slices, which two places may say."""
    said = [_scalar(header, "NumberOfImagesInMosaic")]
    with suppress(KeyError):  # of the block, or of the element
        said.append(dataset.private_block(0x0019, _COUNT)[0x0A].value)
    counts = sorted({int(one) for one in said if isinstance(one, int | float) and 1 <= one < math.inf})
    if not counts:
        raise NoMosaic("a Siemens mosaic that does not say how many slices it has")
    if len(counts) > 1:
        raise NoMosaic(f"a Siemens mosaic that says two numbers of slices, {counts[0]} and {counts[1]}")
    return counts[0]


def _normal(header: dict[str, Any]) -> np.ndarray:
    try:
        normal: np.ndarray | None = csareader.get_slice_normal(header)
    except ValueError:  # not three numbers
        normal = None
    if normal is None or normal.dtype.kind != "f":
        raise NoMosaic("a Siemens mosaic without the direction of its slices")
    return normal


def _scalar(header: dict[str, Any], name: str) -> float | None:
    value = csareader.get_scalar(header, name)
    return value if isinstance(value, int | float) else None
