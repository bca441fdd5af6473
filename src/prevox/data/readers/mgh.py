"""FreeSurfer's MGH and MGZ through nibabel."""

import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from prevox.data.readers.base import Header, Image, Reading, check_affine, unreadable
from prevox.data.readers.nib import FAULTS, load, make_header, read_voxels
from prevox.data.readers.size import check_size
from prevox.errors import DataError

_START = ">7i"  # version, the four axes, voxel type, degrees of freedom
_BYTES = {0: 1, 1: 4, 3: 4, 4: 2}  # of a voxel, by type


def read_header(path: Path, reading: Reading) -> Header:
    """Read shape, affine and header codes without the voxels."""
    return _header(path, _load(path), reading)


def read_image(path: Path, reading: Reading) -> Image:
    """Read voxels and header."""
    source = _load(path)
    return read_voxels(path, source, _header(path, source, reading), reading)


def write_image(path: Path, array: np.ndarray, like: Header) -> None:
    """Write (I, J, K) or (K, I, J, K) on the grid of `like`; whole numbers above 255 become int32.

    Raises:
        DataError: If there are values beyond int32.
    """
    data = array if array.ndim == 3 else np.moveaxis(array, 0, -1)
    if data.dtype.kind in "bui" and data.dtype != np.uint8:
        if data.max(initial=0) > np.iinfo(np.int32).max:
            raise DataError(path, found=f"the value {data.max()}", expected="values that fit int32, as MGH has them")
        data = data.astype(np.int32)
    nib.save(nib.MGHImage(data, like.affine), path)


def _load(path: Path) -> Any:
    """Open a file. nibabel reads what follows the voxels at once, so the declared size is looked at before."""
    try:
        with ImageOpener(str(path)) as file:
            start = file.read(struct.calcsize(_START))
        _, *shape, kind, _ = struct.unpack(_START, start)
    except (*FAULTS, struct.error) as error:
        raise unreadable(path, error) from None
    if kind in _BYTES and min(shape) > 0:
        check_size(path, shape, _BYTES[kind], packed=path.suffix.lower() == ".mgz")
    return load(path, nib.MGHImage)


def _header(path: Path, source: Any, reading: Reading) -> Header:
    silent = int(source.header["goodRASFlag"]) <= 0  # then FreeSurfer takes a coronal volume of 1 mm
    affine = check_affine(path, np.array(source.affine, dtype=np.float64))
    codes = {"format": "mgh", "ndim": 3}
    return make_header(path, source, reading, affine, codes, ("no_geometry",) if silent else ())
