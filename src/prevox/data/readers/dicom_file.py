"""Open and parse one DICOM file with pydicom, with or without the header that says what it is."""

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian
from pydicom.uid import ImplicitVRLittleEndian as Implicit

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings repeat the values of tags
warnings.filterwarnings("ignore", module="pydicom")

_PIXEL_DATA = 0x7FE00010
_HEAD = 132  # bytes up to and with "DICM"
_META_LENGTH = 140  # where the length of the header's elements stands, 4 bytes
_INFLATED = 1 << 31  # bytes that a deflated data set may have
_VRS = {b"CS", b"UI", b"DA", b"TM", b"UL", b"SH", b"LO", b"SQ", b"DT"}  # that a data set can begin with


@contextmanager
def open_dicom(path: Path) -> Iterator[BinaryIO | None]:
    """Open a DICOM file where pydicom can begin; None if it is none.

    Without header, a file must begin with an element that a data set can begin with. Of a header that was cut away, one
    byte may be left: values are padded to even lengths.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD + 8)
        file.seek(0)
        if head[128:_HEAD] == b"DICM":
            yield file
            return
        start = next((start for start in (0, 1) if _begins_data_set(head[start:])), None)
        if start is None:
            yield None
        else:
            yield BytesIO(file.read()[start:]) if start else file


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes."""
    with open_dicom(path) as file:
        return file is not None


def parse(file: BinaryIO, tags: Sequence[int] | None = None) -> tuple[Dataset, bool]:
    """Read a data set whole, or these tags of it, without the pixels.

    Returns:
        The data set with a transfer syntax (where the header names none, the one in which it could be read), and
        whether pixels were met.

    Raises:
        ValueError: If a deflated data set is too large, or nothing can be made of the bytes.
    """
    met = False

    def at_pixels(tag: int, _: str | None, length: int) -> bool:
        nonlocal met
        met |= tag == _PIXEL_DATA and length != 0
        return tags is not None and tag >= _PIXEL_DATA

    _check_deflated(file)
    chosen = None if tags is None else list(tags)
    dataset = read_partial(file, stop_when=at_pixels, force=True, specific_tags=chosen)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = Implicit if implicit else explicit
    return dataset, met


def _begins_data_set(head: bytes) -> bool:
    """Whether bytes are an element of group 0002 or 0008 as a data set begins with, in any of the plain encodings."""
    if len(head) < 8:
        return False
    little = head[1] == head[3] == 0
    group, element = (head[0], head[2]) if little else (head[1], head[3])
    if not (little or head[0] == head[2] == 0) or group not in (2, 8) or element > 0x60:
        return False
    return head[4:6] in _VRS or (little and 0 < int.from_bytes(head[4:8], "little") <= 128)


def _check_deflated(file: BinaryIO) -> None:
    """Refuse a deflated data set that would fill the memory; pydicom inflates without limit."""
    head = file.read(1024)
    if DeflatedExplicitVRLittleEndian.encode() in head:
        file.seek(_META_LENGTH + 4 + int.from_bytes(head[_META_LENGTH : _META_LENGTH + 4], "little"))
        inflater, data, size = zlib.decompressobj(-zlib.MAX_WBITS), file.read(), 0
        while data and size <= _INFLATED:
            size += len(inflater.decompress(data, 1 << 24))
            data = inflater.unconsumed_tail
        if size > _INFLATED:
            raise ValueError("deflated data set too large")
    file.seek(0)
