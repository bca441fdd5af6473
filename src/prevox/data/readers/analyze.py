"""Pairs of .hdr and .img through nibabel: Analyze 7.5, SPM's variants of it, and NIfTI in two files.

Analyze 7.5 has no orientation. nibabel, as SPM, takes the first axis to run to the left, the second to the front, the
third up, and the centre for the origin; the flag `no_geometry` says so unless SPM's .mat file lies beside. Voxels are
multiplied by SPM's scale factor where there is one.
"""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from prevox.data.readers import nifti
from prevox.data.readers.base import Header, Image, Reading, check_affine
from prevox.data.readers.nib import load, make_header, read_voxels
from prevox.errors import DataError


def read_header(path: Path, reading: Reading) -> Header:
    """Read shape, affine and header codes without the voxels."""
    return _header(path, _load(path), reading)


def read_image(path: Path, reading: Reading) -> Image:
    """Read voxels and header."""
    source = _load(path)
    return read_voxels(path, source, _header(path, source, reading), reading)


def _load(path: Path) -> Any:
    if not any(path.with_suffix(suffix).is_file() for suffix in (".img", ".IMG")):
        raise DataError(
            path,
            found=f"no file {path.with_suffix('.img').name} beside it",
            expected="the voxels in a file of the same name",
            remedy="Copy both files of the pair; a .hdr of another program (ENVI, Interfile) cannot be read.",
        )
    return load(path, nib.AnalyzeImage)


def _header(path: Path, source: Any, reading: Reading) -> Header:
    if isinstance(source, nib.Nifti1Pair):
        return nifti.header_of(path, source, reading)
    placed = any(path.with_suffix(suffix).is_file() for suffix in (".mat", ".MAT"))
    flags = (() if placed else ("no_geometry",)) + nifti.size_flags(path, source, min(3, len(source.shape)))
    affine = check_affine(path, np.array(source.affine, dtype=np.float64))
    codes = {"format": "analyze", "ndim": 2 if len(source.shape) == 2 else 3}
    return make_header(path, source, reading, affine, codes, flags)
