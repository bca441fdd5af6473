"""One reader per file family behind one protocol: `read_image`, `read_header`, `write_mask`, `write_image`.

Each family is a module with `read_header(path, reading)`, `read_image(path, reading)` and, where its files can be
written, `write_image(path, array, like)`; module and library are imported when one of their files is met.
"""

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from prevox.data.readers.base import Header, Image, Reading
from prevox.errors import DataError

__all__ = [
    "FOREIGN",
    "SERIES",
    "SUFFIXES",
    "Header",
    "Image",
    "Reading",
    "files_of",
    "foreign",
    "is_picture",
    "read_header",
    "read_image",
    "stem_of",
    "stored_size",
    "suffix_of",
    "write_image",
    "write_mask",
]

_MODULES = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "sitk",
    ".nhdr": "sitk",
    ".mha": "sitk",
    ".mhd": "sitk",
    ".mgz": "mgh",
    ".mgh": "mgh",
    ".hdr": "analyze",
    ".png": "picture",
    ".jpg": "picture",
    ".jpeg": "picture",
    ".tif": "picture",
    ".tiff": "picture",
    ".series": "dicom",
}
SERIES = ".series"  # lists of DICOM files, which only a catalogue names
SUFFIXES = tuple(suffix for suffix in _MODULES if suffix != SERIES)
# one file each, so that a write can be atomic; JPEG changes values
_WRITABLE = (".nii", ".nii.gz", ".nrrd", ".mha", ".mgz", ".mgh", ".png")
FOREIGN = {  # formats of images that are not read: suffix to name and remedy
    ".head": ("an AFNI file", "Convert it with `3dAFNItoNIFTI`."),
    ".mif": ("an MRtrix file", "Convert it with `mrconvert IN OUT.nii.gz`."),
    ".mif.gz": ("an MRtrix file", "Convert it with `mrconvert IN OUT.nii.gz`."),
    ".mih": ("an MRtrix file", "Convert it with `mrconvert IN OUT.nii.gz`."),
    ".mnc": ("a MINC file", "Convert it with `mnc2nii`."),
}
_LONGEST_FIRST = sorted([*_MODULES, *FOREIGN], key=len, reverse=True)


def suffix_of(path: Path) -> str | None:
    """The known suffix of a file name (`.nii.gz` counts as one), or None."""
    ending = _ending(path)
    return ending if ending in _MODULES else None


def foreign(path: Path) -> DataError | None:
    """Why an image in a format that is not read cannot be used; None for every other file."""
    ending = _ending(path)
    if ending not in FOREIGN:
        return None
    kind, remedy = FOREIGN[ending]
    return DataError(path, found=kind, expected=f"one of {', '.join(SUFFIXES)}", remedy=remedy)


def is_picture(path: Path) -> bool:
    """Whether a file is a PNG, a JPEG or a TIFF by its name."""
    return _MODULES.get(suffix_of(path) or "") == "picture"


def stem_of(path: Path) -> str:
    """The file name without its known suffix."""
    return path.name[: len(path.name) - len(_ending(path))] or path.name


def _ending(path: Path) -> str:
    """The longest suffix that names a format, read or not; empty if there is none."""
    name = path.name.lower()
    return next((suffix for suffix in _LONGEST_FIRST if name.endswith(suffix)), "")


def files_of(path: Path) -> list[Path]:
    """The files of an image: itself; its slices, of a folder; header and voxels, of a pair of .hdr and .img."""
    if path.is_dir():
        slices: list[Path] = _module(".png").slices_of(path)
        return slices
    if suffix_of(path) == ".hdr":
        return [path, *(file for suffix in (".img", ".IMG") if (file := path.with_suffix(suffix)).is_file())]
    return [path]


def read_header(path: Path, reading: Reading | None = None) -> Header:
    """Read geometry only; no voxel is loaded (but of pictures, whose pixels say how many channels they have).

    Raises:
        DataError: If the file is missing, empty, unreadable, of an unknown kind, or has a geometry or voxel type that
            no volume of real numbers has and that `reading` does not say how to convert.
    """
    header: Header = _reader(path).read_header(path, reading or Reading())
    return header


def read_image(path: Path, reading: Reading | None = None) -> Image:
    """Read voxels (C, I, J, K), in the file's own axis order, and the header; of a folder, its pictures as slices.

    Integers stay integers where the file scales them by the identity; otherwise voxels are float32, or float64 where
    the file holds float64.

    Raises:
        DataError: As `read_header`, for truncated or corrupt voxel data, and where memory is too small.
    """
    image: Image = _reader(path).read_image(path, reading or Reading())
    return image


def stored_size(path: Path) -> int:
    """Bytes that an image takes on disk, all its files together."""
    if suffix_of(path) == SERIES:
        size: int = _module(SERIES).stored_size(path)
        return size
    return sum(file.stat().st_size for file in files_of(path))


def write_mask(path: Path, array_IJK: np.ndarray, like: Header) -> None:
    """Write a label map on the grid of `like` in the smallest unsigned integer type, whole or not at all.

    Args:
        path: File to write: .nii.gz, .nii, .nrrd, .mha, .mgz or .mgh; .png where the source is one slice.
        array_IJK: Label values in the file's own axis order, not negative.
        like: Header of the source; shape, affine and header codes of the new file equal its.

    Raises:
        DataError: If the shape differs from the source's, or values are not whole and non-negative.
    """
    top = array_IJK.max(initial=0)
    if array_IJK.dtype.kind not in "bui" or array_IJK.min(initial=0) < 0 or array_IJK.ndim != 3:
        raise DataError(
            path, found=f"{array_IJK.ndim}D {array_IJK.dtype} values", expected="3D whole label values from 0 upwards"
        )
    write_image(path, array_IJK.astype(np.min_scalar_type(int(top))), like)


def write_image(path: Path, array: np.ndarray, like: Header) -> None:
    """Write (I, J, K), or (K, I, J, K) for K class probabilities, on the grid of `like`; atomically.

    Raises:
        DataError: If the spatial shape differs from the source's, or the suffix of `path` cannot be written.
    """
    suffix = suffix_of(path)
    if suffix not in _WRITABLE:
        raise DataError(path, found="this file name", expected=f"one that ends in {', '.join(_WRITABLE)}")
    if array.shape[-3:] != like.shape_ijk:
        raise DataError(
            path, found=f"an array of shape {array.shape[-3:]}", expected=f"the shape of {like.path}, {like.shape_ijk}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{stem_of(path)}.{os.getpid()}.tmp{suffix}")
    try:
        _module(suffix).write_image(temporary, array, like)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _module(suffix: str) -> ModuleType:
    return import_module(f"prevox.data.readers.{_MODULES[suffix]}")


def _reader(path: Path) -> ModuleType:
    suffix = suffix_of(path)
    if path.is_dir() and files_of(path):
        return _module(".png")
    if suffix is None:
        raise foreign(path) or DataError(path, found="a file of unknown kind", expected=f"one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise _absent(path)
    if path.stat().st_size == 0:
        raise DataError(path, found="an empty file (0 bytes)", expected="an image", remedy="Copy or export it again.")
    return _module(suffix)


def _absent(path: Path) -> DataError:
    """The error for a file that is not there; where its folder is gone as well, the dataset has probably moved."""
    gone = [folder for folder in path.parents if not folder.exists()]
    if not gone:
        return DataError(path, found="no such file", expected="an image", remedy="Check the path.")
    return DataError(
        path,
        found=f"no such file; the folder {gone[-1]} does not exist",
        expected="the dataset where it was when it was catalogued",
        remedy="Check the path. If the dataset has moved, run `prevox catalogue` on its new place, then `prevox "
        "prepare` again: only rows change, no image is prepared anew.",
    )
