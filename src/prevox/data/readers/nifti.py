"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz) through nibabel."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from prevox.data.readers.base import Header, Image, check_affine, check_dtype, check_shape, unreadable
from prevox.errors import DataError

nib.imageglobals.logger.setLevel("ERROR")  # where it repairs a header it names no file; `_size_flags` does

_FAULTS = (ImageFileError, HeaderDataError, EOFError, OSError, zlib.error, gzip.BadGzipFile, ValueError)
# Raw header fields that hold the geometry. Copied as they are, they survive bit for bit; set through an affine, the
# quaternion would be recomputed and the codes replaced.
_GEOMETRY = (
    *("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # spatial bits of xyzt_units: metre and micrometre; 2 is mm, 0 not said


def read_header(path: Path) -> Header:
    """Read shape, affine and header codes without the voxels."""
    return _header(path, _load(path))


def read_image(path: Path) -> Image:
    """Read voxels and header; scl_slope and scl_inter are applied unless they are the identity."""
    source = _load(path)
    header = _header(path, source)
    try:
        raw = np.asarray(source.dataobj.get_unscaled())
    except (*_FAULTS, MemoryError) as error:
        raise unreadable(path, error) from None
    array_IJKC = raw.reshape((*header.shape_ijk, header.channels), order="F")
    slope, inter = source.dataobj.slope, source.dataobj.inter
    if (slope, inter) != (1, 0):
        scaled = np.empty(array_IJKC.shape, header.dtype, order="F")
        for k in range(array_IJKC.shape[2]):  # slice by slice: float64 arithmetic without a float64 volume
            scaled[:, :, k] = array_IJKC[:, :, k].astype(np.float64) * slope + inter
        array_IJKC = scaled
    return Image(np.moveaxis(array_IJKC.astype(header.dtype, copy=False), -1, 0), header)


def write_image(path: Path, array: np.ndarray, like: Header) -> None:
    """Write (I, J, K) or (K, I, J, K) on the grid of `like`; header codes are repeated where `like` is NIfTI."""
    codes = like.codes
    is_nifti = codes["format"] == "nifti"
    kind = nib.Nifti2Image if is_nifti and codes["version"] == 2 else nib.Nifti1Image
    data = array if array.ndim == 3 else np.moveaxis(array, 0, -1)
    if codes["ndim"] == 2 and data.ndim == 3:
        data = data[:, :, 0]
    if is_nifti:
        header = kind.header_class()
        header.set_data_dtype(data.dtype)
        header.set_data_shape(data.shape)
        for field in _GEOMETRY:
            header[field] = codes[field]
        header["pixdim"] = codes["pixdim"]
        if data.ndim == 4:
            header["pixdim"][4] = 1  # classes, not seconds
        image = kind(data, None, header)  # no affine here: nibabel would rewrite the codes
    else:
        image = kind(data, like.affine)
        image.set_sform(like.affine, 1)
        image.set_qform(like.affine, 1)
        image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _load(path: Path) -> Any:
    try:
        image = nib.load(path, mmap=False)  # a mapped file that shrinks on a network share kills the process
    except _FAULTS as error:
        raise unreadable(path, error) from None
    if not isinstance(image, nib.Nifti1Pair):
        raise DataError(path, found=f"a file of type {type(image).__name__}", expected="NIfTI")
    return image


def _header(path: Path, source: Any) -> Header:
    stored = np.dtype(source.dataobj.dtype)
    check_dtype(path, stored)
    shape_ijk, channels = check_shape(path, source.shape)
    scaled = (source.dataobj.slope, source.dataobj.inter) != (1, 0)
    if stored.kind == "f":
        dtype = np.dtype(np.float64 if stored.itemsize >= 8 else np.float32)
    else:
        dtype = _scaled_dtype(source, stored) if scaled else stored.newbyteorder("=")
    raw = source.header
    codes: dict[str, Any] = {"format": "nifti", "version": 2 if isinstance(source, nib.Nifti2Image) else 1}
    codes |= {"ndim": 2 if len(source.shape) == 2 else 3, "pixdim": raw["pixdim"].tolist()}
    codes |= {field: raw[field].tolist() for field in _GEOMETRY}
    silent = codes["qform_code"] == 0 and codes["sform_code"] == 0
    flags: tuple[str, ...] = ("no_geometry",) if silent else ()  # nibabel then assumes LAS from the voxel size alone
    if codes["sform_code"] == 0:  # the voxel size counts
        flags += _size_flags(path, source, codes["ndim"])
    affine = np.array(source.affine, dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT.get(int(raw["xyzt_units"]) & 7, 1.0)
    return Header(path, shape_ijk, channels, check_affine(path, affine), codes, dtype.name, flags)


def _size_flags(path: Path, source: Any, axes: int) -> tuple[str, ...]:
    """Look at the voxel size as the file has it: nibabel silently takes 1 for 0, and the magnitude of what is negative.

    Raises:
        DataError: If one is 0.
    """
    with nib.openers.ImageOpener(str(path)) as file:
        stored = type(source.header).from_fileobj(file, check=False)["pixdim"][1 : axes + 1]
    if (stored == 0).any():
        raise DataError(
            path,
            found=f"a voxel size of {' × '.join(f'{size:g}' for size in stored)} mm and no sform",
            expected="sizes above 0",
            remedy="Write the true voxel size into the header (pixdim), or export the scan again.",
        )
    return ("negative_size",) if (stored < 0).any() else ()


def _scaled_dtype(source: Any, stored: np.dtype) -> np.dtype:
    """float32, unless whole numbers after scaling may be too large for its 24 bits."""
    limits = np.iinfo(stored)
    slope, inter = source.dataobj.slope, source.dataobj.inter
    largest = max(abs(limits.min * slope + inter), abs(limits.max * slope + inter))
    return np.dtype(np.float32 if largest <= 2**24 else np.float64)
