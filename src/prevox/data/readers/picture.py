"""PNG, JPEG and TIFF through Pillow: a picture is one slice, its rows from top to bottom, without geometry.

A picture says nothing about place and size: 1 mm is assumed (flag `no_geometry`), the first array axis runs along its
columns, left to right, the second along its rows. Its y axis is taken to run upwards, as it does in all that Prevox
shows of volumes, so prepared rows run from the picture's bottom to its top; masks come back on the picture's own rows.

Colours of equal value are one grey channel, exactly; others are three channels, or one if grey is chosen. Transparency
is dropped, and flagged `alpha` unless it is the same everywhere. Values stay as they are stored: 0 to 255, to 65535
with 16 bits, or floats (TIFF); of 1, 2 and 4 bits PNG means 0 to 255. A JPEG is turned as its orientation tag says.

The pages of a TIFF file are slices of one volume where that is chosen. So are all pictures of a folder that is read as
one image, in the order of their names, numbers by value. Such a volume's third axis is taken to run upwards.
"""

import re
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, ImageSequence, UnidentifiedImageError

from prevox.data.readers.base import Header, Image, Reading, colour_dtype, grey, unreadable
from prevox.data.readers.size import check_memory
from prevox.errors import DataError

_AFFINE = np.diag([1.0, -1.0, 1.0, 1.0])  # columns to the right, rows downwards
# modes whose arrays are the stored values
_KEPT = ("L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "I;16L")
_BITS, _COLOUR = 24, 25  # bytes of a PNG file that say how deep a value is, and how many a pixel has (0: grey)
_KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
_FAULTS = (
    *(UnidentifiedImageError, OSError, SyntaxError, ValueError, Pillow.DecompressionBombError, EOFError),
    *(MemoryError, OverflowError, TypeError, KeyError, IndexError, AttributeError, struct.error),
)
_DESCRIPTION, _PAGES_SAID = 270, re.compile(r"^images=(\d+)", re.M)  # where ImageJ says how many pages there are


def read_header(path: Path, reading: Reading) -> Header:
    """Read everything: only the pixels say how many channels there are."""
    return read_image(path, reading).header


def read_image(path: Path, reading: Reading) -> Image:
    """Read the pixels as (C, columns, rows, slices): one channel if all are grey, else red, green and blue.

    Args:
        path: A picture, or a folder of pictures, which are its slices.
        reading: Grey or channels; whether the pages of a TIFF are slices.

    Raises:
        DataError: If a file cannot be read whole, is a PNG with several values of 16 bits in a pixel or a TIFF of
            several pages that are not chosen to be slices, or if slices differ in size or type.
    """
    pages = [page for file in slices_of(path) for page in _pages(file, reading)]
    array_KYXC = _stacked(path, pages)
    flags = ["no_geometry"]
    if array_KYXC.shape[-1] in (2, 4):
        alpha_KYX = array_KYXC[..., -1]
        flags += ["alpha"] if (alpha_KYX != alpha_KYX[0, 0, 0]).any() else []
        array_KYXC = array_KYXC[..., :-1]
    if (array_KYXC == array_KYXC[..., :1]).all():
        array_KYXC = array_KYXC[..., :1]
    array_CIJK = np.ascontiguousarray(array_KYXC.transpose(3, 2, 1, 0))
    if len(array_CIJK) == 3 and (reading.colour == "grey" or len(pages) > 1):
        colour_dtype(path, array_CIJK.dtype, reading)
        array_CIJK = grey(array_CIJK)[None] if reading.colour == "grey" else array_CIJK
    channels, columns, rows, slices = array_CIJK.shape
    codes = {"format": "picture", "ndim": 2 if len(pages) == 1 else 3}
    shape = (columns, rows, slices)
    header = Header(
        path, shape, channels, _AFFINE.copy(), codes, array_CIJK.dtype.name, tuple(flags), colour=channels == 3
    )
    return Image(array_CIJK, header)


def slices_of(path: Path) -> list[Path]:
    """The file; of a folder its pictures in the order of their names, 2 before 10."""
    if not path.is_dir():
        return [path]
    files = (file for file in path.iterdir() if file.suffix.lower() in _KINDS and not file.name.startswith("."))
    return sorted(files, key=lambda file: (_by_number(file.name), file.name))


def _by_number(name: str) -> list[tuple[str, int]]:
    """A key by which 2 comes before 10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _stacked(path: Path, pages: list[np.ndarray]) -> np.ndarray:
    """Pages of one size and type as one array (K, Y, X, C)."""
    first = pages[0]
    for number, page in enumerate(pages, start=1):
        if page.shape != first.shape or page.dtype != first.dtype:
            raise DataError(
                path,
                found=f"slice {number} of {_words(page)}",
                expected=f"{_words(first)}, as the first slice",
                remedy="Take out what is no slice (a preview, an overview), or give the pictures one size and type.",
            )
    check_memory(path, 2 * first.nbytes * len(pages) if len(pages) > 1 else 0, f"{len(pages)} slices")
    return np.stack(pages)


def _words(page: np.ndarray) -> str:
    return f"{page.shape[1]}×{page.shape[0]} pixels with {page.shape[2]} values of type {page.dtype}"


def _pages(path: Path, reading: Reading) -> list[np.ndarray]:
    """The pages of one file: one unless it is a TIFF whose pages are slices."""
    kind = _KINDS[path.suffix.lower()]
    try:
        if kind == "PNG":
            _check_depth(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # of damaged tags that the pixels do not need
            with Pillow.open(path, formats=(kind,)) as picture:
                count = getattr(picture, "n_frames", 1) if kind == "TIFF" else 1
                _check_pages(path, picture, count, reading)
                width, height = picture.size
                check_memory(path, width * height * count, f"{width}×{height} pixels on {count} pages")
                if count == 1:
                    return [_pixels(picture)]
                return [_pixels(page.copy()) for page in ImageSequence.Iterator(picture)]
    except (*_FAULTS, Pillow.DecompressionBombWarning) as error:
        if isinstance(error, DataError):
            raise
        raise unreadable(path, error) from None


def _check_pages(path: Path, picture: Pillow.Image, count: int, reading: Reading) -> None:
    """Refuse what would be read in part.

    Raises:
        DataError: If there are several pages that are not chosen to be slices, or fewer than the file says.
    """
    if count > 1 and not reading.pages:
        raise DataError(
            path,
            found=f"{count} pages",
            expected="one picture",
            remedy="--stack pages of `prevox catalogue` makes them the slices of one volume.",
        )
    tags = getattr(picture, "tag_v2", {})
    said = _PAGES_SAID.search(str(tags.get(_DESCRIPTION, "")))
    if said and int(said[1]) > count:
        raise DataError(
            path,
            found=f"a description of {said[1]} images and {count} page(s)",
            expected="a page for each",
            remedy="ImageJ writes large stacks in this form of its own: save it as an image sequence or as NRRD.",
        )


def _pixels(picture: Pillow.Image) -> np.ndarray:
    """Stored values (rows, columns, components)."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in _KEPT:  # palettes, single bits, CMYK
        grey_only = picture.mode == "1"
        picture = picture.convert("L" if grey_only else "RGBA" if "transparency" in picture.info else "RGB")
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
