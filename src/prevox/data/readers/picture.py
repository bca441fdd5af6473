"""PNG and JPEG through Pillow: a picture is one slice, its rows from top to bottom, without geometry.

A picture says nothing about place and size: 1 mm is assumed (flag `no_geometry`), the first array axis runs along its
columns, left to right, the second along its rows. Its y axis is taken to run upwards, as it does in all that Prevox
shows of volumes, so prepared rows run from the picture's bottom to its top; masks come back on the picture's own rows.

Colours of equal value are one grey channel, exactly. Transparency is dropped, and flagged `alpha` unless it is the same
everywhere. Values stay as they are stored: 0 to 255, or to 65535 with 16 bits; of 1, 2 and 4 bits PNG means 0 to 255. A
JPEG is turned as its orientation tag says.
"""

from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from prevox.data.readers.base import Header, Image, unreadable
from prevox.errors import DataError

_AFFINE = np.diag([1.0, -1.0, 1.0, 1.0])  # columns to the right, rows downwards
_KEPT = ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L")  # modes whose arrays are the stored values
_BITS, _COLOUR = 24, 25  # bytes of a PNG file that say how deep a value is, and how many a pixel has (0: grey)


def read_header(path: Path) -> Header:
    """Read the whole picture: only its pixels say how many channels it has."""
    return read_image(path).header


def read_image(path: Path) -> Image:
    """Read the pixels as (C, columns, rows, 1): one channel if the picture is grey, else red, green and blue.

    Raises:
        DataError: If the file cannot be read whole, or is a PNG with several values of 16 bits in a pixel.
    """
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    try:
        if kind == "PNG":
            _check_depth(path)
        with Pillow.open(path, formats=(kind,)) as picture:
            array_YXC = _pixels(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise unreadable(path, error) from None
    flags = ["no_geometry"]
    if array_YXC.shape[-1] in (2, 4):
        alpha_YX = array_YXC[..., -1]
        flags += ["alpha"] if (alpha_YX != alpha_YX[0, 0]).any() else []
        array_YXC = array_YXC[..., :-1]
    if (array_YXC == array_YXC[..., :1]).all():
        array_YXC = array_YXC[..., :1]
    array_CIJK = np.ascontiguousarray(array_YXC.transpose(2, 1, 0))[..., None]
    channels, columns, rows, _ = array_CIJK.shape
    codes = {"format": "picture", "ndim": 2}
    header = Header(path, (columns, rows, 1), channels, _AFFINE.copy(), codes, array_CIJK.dtype.name, tuple(flags))
    return Image(array_CIJK, header)


def _pixels(picture: Pillow.Image) -> np.ndarray:
    """Stored values (rows, columns, components)."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in _KEPT:  # palettes, single bits, CMYK
        grey = picture.mode == "1"
        picture = picture.convert("L" if grey else "RGBA" if "transparency" in picture.info else "RGB")
    array = np.asarray(picture)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array if array.ndim == 3 else array[..., None]


def _check_depth(path: Path) -> None:
    """Refuse what Pillow would halve to 8 bits."""
    with path.open("rb") as file:
        start = file.read(_COLOUR + 1)
    if len(start) > _COLOUR and start[_BITS] == 16 and start[_COLOUR] != 0:
        raise DataError(
            path,
            found="a PNG with several values of 16 bits in a pixel",
            expected="grey with up to 16 bits, or colours with 8",
            remedy="Save it as 16-bit grey without transparency if it is grey, else with 8 bits.",
        )


def write_image(path: Path, array: np.ndarray, like: Header) -> None:
    """Write a label map (I, J, 1) as a grey PNG of 8 or 16 bits.

    Raises:
        DataError: If there are several slices or channels, or values beyond 16 bits.
    """
    if array.ndim != 3 or array.shape[-1] != 1 or array.dtype not in (np.uint8, np.uint16):
        raise DataError(
            path,
            found=f"an array of shape {array.shape} and type {array.dtype}, on the grid of {like.path}",
            expected="one slice of whole numbers from 0 to 65535, which is what a PNG can hold",
            remedy="Write .nii.gz instead.",
        )
    Pillow.fromarray(np.ascontiguousarray(array[..., 0].T)).save(path)
