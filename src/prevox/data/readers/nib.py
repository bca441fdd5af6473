"""What the readers of NIfTI, MGH and Analyze files share: nibabel opens them, and voxels are decoded here."""

import gzip
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.spatialimages import HeaderDataError

from prevox.data.readers.base import (
    Header,
    Image,
    Reading,
    check_shape,
    check_volume,
    real_channels,
    real_dtype,
    unreadable,
)
from prevox.data.readers.size import check_size
from prevox.errors import DataError

nib.imageglobals.logger.setLevel("CRITICAL")  # where it repairs a header it names no file; flags do

# what nibabel raises over damaged files; the last four come out of arithmetic with absurd header fields
FAULTS = (
    *(ImageFileError, HeaderDataError, EOFError, OSError, zlib.error, gzip.BadGzipFile, ValueError),
    *(MGHError, OverflowError, TypeError, KeyError, IndexError),
)


def load(path: Path, kind: type) -> Any:
    """Open a file without its voxels.

    Raises:
        DataError: If nibabel cannot read it, or it is not of this kind.
    """
    try:
        with np.errstate(all="ignore"):
            image = nib.load(path, mmap=False)  # a mapped file that shrinks on a network share kills the process
    except (*FAULTS, MemoryError) as error:
        raise unreadable(path, error) from None
    if not isinstance(image, kind):
        raise DataError(path, found=f"a file of type {type(image).__name__}", expected=kind.__name__)
    return image


def make_header(
    path: Path, source: Any, reading: Reading, affine: np.ndarray, codes: dict[str, Any], flags: tuple[str, ...]
) -> Header:
    """The header of an open image, whatever its format.

    Raises:
        DataError: If shape or voxel type cannot be used, or need a choice that `reading` does not make.
    """
    stored = np.dtype(source.dataobj.dtype)
    dtype, colours = real_dtype(path, stored, reading)
    shape_ijk, volumes = check_shape(path, source.shape)
    channels = check_volume(path, volumes, reading.volume)
    if stored.names and channels > 1:
        raise DataError(
            path,
            found=f"colour voxels in {volumes} volumes",
            expected="channels in one of the two",
            remedy="--volumes split of `prevox catalogue` takes each volume by itself.",
        )
    if dtype.kind == "f":
        dtype = np.dtype(np.float64 if dtype.itemsize >= 8 else np.float32)
    elif _scaling(source) != (1, 0):
        dtype = _scaled_dtype(source, dtype)
    name = dtype.newbyteorder("=").name
    return Header(path, shape_ijk, channels * colours, affine, codes, name, flags, colour=colours > 1)


def read_voxels(path: Path, source: Any, header: Header, reading: Reading) -> Image:
    """Decode voxels as `header` describes them; slope and intercept are applied unless they are the identity.

    Raises:
        DataError: If the file cannot hold what its header declares, is cut short or corrupt, or memory is too small.
    """
    stored = np.dtype(source.dataobj.dtype)
    files = [Path(holder.filename) for holder in source.file_map.values() if holder.filename is not None]
    packed = path.name.lower().endswith((".gz", ".mgz"))
    there = [file for file in files if file.is_file()]
    whole = reading.volume is None or len(source.shape) < 4
    shape = source.shape if whole else (*source.shape[:3], 1)
    check_size(path, source.shape if whole else shape, stored.itemsize, packed=packed, files=there)
    try:
        raw = _unscaled(source, None if whole else reading.volume)
    except (*FAULTS, MemoryError) as error:
        raise unreadable(path, error) from None
    if stored.names:
        return Image(real_channels(raw.reshape(header.shape_ijk, order="F"), reading), header)
    array_IJKC = raw.reshape((*header.shape_ijk, header.channels), order="F")
    slope, inter = _scaling(source)
    if (slope, inter) != (1, 0) or array_IJKC.dtype.kind == "c":
        wide = np.complex128 if array_IJKC.dtype.kind == "c" else np.float64
        scaled = np.empty(array_IJKC.shape, header.dtype, order="F")
        for k in range(array_IJKC.shape[2]):  # slice by slice: float64 arithmetic without a float64 volume
            with np.errstate(over="ignore", invalid="ignore"):  # infinite values are found and flagged later
                scaled[:, :, k] = real_channels(array_IJKC[:, :, k].astype(wide) * slope + inter, reading)
        array_IJKC = scaled
    return Image(np.moveaxis(array_IJKC.astype(header.dtype, copy=False), -1, 0), header)


def _unscaled(source: Any, volume: int | None) -> np.ndarray:
    """Voxels as they are stored; of a 4D file only one volume where that is asked for."""
    proxy = source.dataobj
    if volume is None:
        return np.asarray(proxy.get_unscaled())
    at = min(volume, source.shape[3] - 1)  # a label map of one volume belongs to all of a series
    found = Path(proxy.file_like).stat()
    series = _series(proxy.file_like, (found.st_size, found.st_mtime_ns), source.shape, proxy.dtype.str, proxy.offset)
    try:
        return np.asarray(series[(slice(None),) * 3 + (at,) + (0,) * (len(source.shape) - 4)])
    except Exception:
        _series.cache_clear()  # where the stream stands now, nobody knows
        raise


@lru_cache(maxsize=1)
def _series(file: str, stamp: tuple[int, int], shape: tuple[int, ...], dtype: str, offset: int) -> ArrayProxy:
    """The voxels of a 4D file, kept open: its volumes are asked for one by one, and each lies behind those before it.

    Opened anew for each of them, a compressed file of N volumes would be unpacked N / 2 times.
    """
    del stamp  # a part of the key: a file that was replaced is another one
    return ArrayProxy(file, (shape, np.dtype(dtype), offset, 1.0, 0.0), mmap=False, keep_file_open=True)


def _scaling(source: Any) -> tuple[float, float]:
    return source.dataobj.slope, source.dataobj.inter


def _scaled_dtype(source: Any, stored: np.dtype) -> np.dtype:
    """float32, unless whole numbers after scaling may be too large for its 24 bits."""
    limits = np.iinfo(stored)
    slope, inter = _scaling(source)
    largest = max(abs(limits.min * slope + inter), abs(limits.max * slope + inter))
    return np.dtype(np.float32 if largest <= 2**24 else np.float64)
