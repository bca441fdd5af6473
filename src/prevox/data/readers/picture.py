"""PNG and JPEG through SimpleITK: a picture is one slice, its rows from top to bottom, without geometry.

A picture says nothing about place and size: 1 mm is assumed (flag `no_geometry`), the first array axis runs along its
columns, left to right, the second along its rows. Its y axis is taken to run upwards, as it does in all that Prevox
shows of volumes, so prepared rows run from the picture's bottom to its top; masks come back on the picture's own rows.

Colours of equal value are one grey channel, exactly. Transparency is dropped, and flagged `alpha` unless it is the same
everywhere. Values stay as they are stored: 0 to 255, or to 65535 with 16 bits; of 1, 2 and 4 bits PNG means 0 to 255.
"""

import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from prevox.data.readers.base import Header, Image, unreadable
from prevox.errors import DataError

_AFFINE = np.diag([1.0, -1.0, 1.0, 1.0])  # columns to the right, rows downwards
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _GREY_ALPHA, _RGBA = 0, 4, 6  # PNG colour types
_END_OF_IMAGE, _START_OF_SCAN = b"\xff\xd9", b"\xff\xda"  # JPEG markers

sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read_header(path: Path) -> Header:
    """Read the whole picture: only its pixels say how many channels it has."""
    return read_image(path).header


def read_image(path: Path) -> Image:
    """Read the pixels as (C, columns, rows, 1): one channel if the picture is grey, else red, green and blue."""
    try:
        if path.suffix.lower() == ".png":
            array_YXC = _read_png(path)
        else:
            _check_jpeg(path)
            array_YXC = _decode(path, "JPEGImageIO")
    except (RuntimeError, struct.error, OSError) as error:
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
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(array[..., 0].T)), str(path))


def _decode(path: Path, io: str) -> np.ndarray:
    """Pixels (rows, columns, components)."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO=io))
    return array if array.ndim == 3 else array[..., None]


def _check_jpeg(path: Path) -> None:
    """Tell a truncated file, whose missing part the decoder would fill with grey: its last scan has no end."""
    data = path.read_bytes()
    if data.rfind(_END_OF_IMAGE) <= data.rfind(_START_OF_SCAN):
        raise RuntimeError("it ends within the image")


def _read_png(path: Path) -> np.ndarray:
    """Pixels of a PNG (rows, columns, components).

    SimpleITK refuses grey with transparency, so such a file is decoded from a copy that is called by another name. The
    bytes of 8-bit grey and alpha are those of 16-bit grey, those of 16-bit grey and alpha are those of 8-bit RGBA, and
    the filters, which work on bytes, are the same.
    """
    data = path.read_bytes()
    chunks = list(_chunks(data))
    if not chunks or chunks[0][0] != b"IHDR":
        raise RuntimeError("no PNG")
    size, bits, colour, rest = struct.unpack(">8sBB3s", chunks[0][1])
    transparent = any(name == b"tRNS" for name, _ in chunks)
    if colour != _GREY_ALPHA and not (colour == _GREY and transparent):
        return _decode(path, "PNGImageIO")
    called = {(_GREY_ALPHA, 8): (16, _GREY), (_GREY_ALPHA, 16): (8, _RGBA)}.get((colour, bits), (bits, colour))
    header = struct.pack(">8sBB3s", size, *called, rest)
    kept = [(b"IHDR", header), *((name, body) for name, body in chunks[1:] if name in (b"IDAT", b"IEND"))]
    with tempfile.TemporaryDirectory(prefix="prevox-") as folder:
        copy = Path(folder, "copy.png")
        copy.write_bytes(_SIGNATURE + b"".join(_chunk(name, body) for name, body in kept))
        array_YXC = _decode(copy, "PNGImageIO")
    if colour == _GREY:
        return array_YXC  # one value was transparent: nothing is lost
    if bits == 8:
        return np.concatenate([array_YXC >> 8, array_YXC & 255], axis=-1).astype(np.uint8)
    high, low = array_YXC[..., 0::2].astype(np.uint16), array_YXC[..., 1::2]
    return high << 8 | low


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and body of each chunk of a PNG file; nothing for a file that is none."""
    place = len(_SIGNATURE)
    while data.startswith(_SIGNATURE) and place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        yield name, data[place + 8 : place + 8 + length]
        place += 12 + length


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), name) + body + struct.pack(">I", zlib.crc32(name + body))
