"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz, pairs of .hdr and .img) through nibabel."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from prevox.data.readers.base import Header, Image, Reading, check_affine, unreadable
from prevox.data.readers.nib import FAULTS, load, make_header, read_voxels
from prevox.errors import DataError

# Raw header fields that hold the geometry. Copied as they are, they survive bit for bit; set through an affine, the
# quaternion would be recomputed and the codes replaced.
_GEOMETRY = (
    *("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # spatial bits of xyzt_units: metre and micrometre; 2 is mm, 0 not said


def read_header(path: Path, reading: Reading) -> Header:
    """Read shape, affine and header codes without the voxels."""
    return header_of(path, load(path, nib.Nifti1Pair), reading)


def read_image(path: Path, reading: Reading) -> Image:
    """Read voxels and header."""
    source = load(path, nib.Nifti1Pair)
    return read_voxels(path, source, header_of(path, source, reading), reading)


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


def header_of(path: Path, source: Any, reading: Reading) -> Header:
    """The header of an open NIfTI image."""
    raw = source.header
    codes: dict[str, Any] = {"format": "nifti", "version": 2 if isinstance(raw, nib.Nifti2Header) else 1}
    codes |= {"ndim": 2 if len(source.shape) == 2 else 3, "pixdim": raw["pixdim"].tolist()}
    codes |= {field: raw[field].tolist() for field in _GEOMETRY}
    silent = codes["qform_code"] == 0 and codes["sform_code"] == 0
    flags: tuple[str, ...] = ("no_geometry",) if silent else ()  # nibabel then assumes LAS from the voxel size alone
    if codes["sform_code"] == 0:  # the voxel size counts
        flags += size_flags(path, source, codes["ndim"])
    affine = np.array(source.affine, dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT.get(int(raw["xyzt_units"]) & 7, 1.0)
    return make_header(path, source, reading, check_affine(path, affine), codes, flags)


def size_flags(path: Path, source: Any, axes: int) -> tuple[str, ...]:
    """Look at the voxel size as the file has it: nibabel silently takes 1 for 0, and the magnitude of what is negative.

    Raises:
        DataError: If one is 0.
    """
    try:
        with nib.openers.ImageOpener(str(path)) as file:
            stored = type(source.header).from_fileobj(file, check=False)["pixdim"][1 : axes + 1]
    except FAULTS as error:
        raise unreadable(path, error) from None
    if (stored == 0).any():
        raise DataError(
            path,
            found=f"a voxel size of {' × '.join(f'{size:g}' for size in stored)} mm and no sform",
            expected="sizes above 0",
            remedy="Write the true voxel size into the header (pixdim), or export the scan again.",
        )
    return ("negative_size",) if (stored < 0).any() else ()
