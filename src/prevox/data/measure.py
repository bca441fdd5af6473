"""What the quality rules, the page and the search for copies need of an image, taken while its voxels are in memory.

Nothing here knows a threshold: `prevox.data.rules` judges afterwards, so another threshold needs no second reading.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from prevox.data.geometry import orientation_of
from prevox.data.layouts import Entry
from prevox.data.near_duplicates import signature_of
from prevox.data.readers import SERIES, Image, is_picture, stored_size, suffix_of
from prevox.data.sequence import sequence_of
from prevox.data.thumbnail import thumbnail_of

_SAMPLES = 64  # along each axis, to find the value of the background
_BESIDE = (".mhd", ".nhdr", ".hdr", ".img")  # voxels, or header, lie in another file of the same name
_CODES = range(6)  # of NIfTI's qform and sform
_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by their size, which is their first field


def measure(entry: Entry, images: Sequence[Image], array_CIJK: np.ndarray, label: Image | None) -> dict[str, Any]:
    """Measure an image; all values can be written as JSON.

    Args:
        entry: What its layout says.
        images: Its files.
        array_CIJK: All its channels.
        label: Its label map on the same grid, if any.

    Returns:
        sequence: MR sequence where that is certain, else None.
        file_bytes: Size of its files together.
        foreground: Share of voxels that differ from the background, in the channel where it is smallest.
        at_maximum: Share of voxels that have the channel's largest value, in the channel where it is largest.
        label_off_image: Share of labelled voxels where all channels are background; None without labelled voxels.
        voxel_hash: Of shape, type and voxels.
        signature, thumbnail: Of the first channel.
        header_flags: Flags that need the header's own fields.
    """
    path = images[0].header.path
    header = _nifti_header(path)
    description = "" if header is None else bytes(header["descrip"]).decode("latin-1")
    counted = _counts(array_CIJK, None if label is None else label.array_CIJK[0])
    return {
        "sequence": sequence_of(entry.modality, entry.paths, description, entry.sequence),
        "file_bytes": sum(_size(path) for path in entry.paths),
        **counted,
        "signature": signature_of(array_CIJK[0]),
        "thumbnail": thumbnail_of(array_CIJK, images[0].header.affine, is_picture(path)),
        "header_flags": [] if header is None or _agrees(header) else ["orientation"],
    }


def _counts(array_CIJK: np.ndarray, label_IJK: np.ndarray | None) -> dict[str, Any]:
    """Shares and hash, plane by plane, so that no second volume is made."""
    backgrounds = np.array([_background(channel) for channel in array_CIJK], array_CIJK.dtype)
    maxima = np.array([np.fmax.reduce(channel, axis=None) for channel in array_CIJK], array_CIJK.dtype)
    foreground, at_maximum = np.zeros(len(array_CIJK), int), np.zeros(len(array_CIJK), int)
    labelled = off_image = 0
    digest = hashlib.sha256(f"{array_CIJK.shape} {array_CIJK.dtype.str}".encode())
    for k in range(array_CIJK.shape[-1]):
        plane_CIJ = array_CIJK[..., k]
        differs_CIJ = plane_CIJ != backgrounds[:, None, None]
        foreground += np.count_nonzero(differs_CIJ, axis=(1, 2))
        at_maximum += np.count_nonzero(plane_CIJ == maxima[:, None, None], axis=(1, 2))
        digest.update(np.ascontiguousarray(plane_CIJ.transpose(0, 2, 1)).data)
        if label_IJK is not None:
            inside = label_IJK[..., k] > 0
            labelled += int(np.count_nonzero(inside))
            off_image += int(np.count_nonzero(inside & ~differs_CIJ.any(axis=0)))
    size = array_CIJK[0].size
    return {
        "foreground": float(foreground.min() / size),
        "at_maximum": float(at_maximum.max() / size),
        "label_off_image": off_image / labelled if labelled else None,
        "voxel_hash": digest.hexdigest(),
    }


def _background(channel_IJK: np.ndarray) -> Any:
    """The value that most voxels have, if most have one: then it is the median of a sample."""
    sample = channel_IJK[tuple(slice(None, None, -(-size // _SAMPLES)) for size in channel_IJK.shape)].ravel()
    finite = sample[np.isfinite(sample)]
    return np.partition(finite, finite.size // 2)[finite.size // 2] if finite.size else 0


def _size(path: Path) -> int:
    """Bytes of a file or folder; with what lies beside it under the same name where a header stands apart."""
    if suffix_of(path) == SERIES:
        return stored_size(path)
    if path.is_dir():
        files = [inner for inner in path.rglob("*") if inner.is_file()]
    elif suffix_of(path) in _BESIDE:
        files = [other for other in path.parent.iterdir() if other.name.startswith(f"{path.stem}.")]
    else:
        files = [path]
    return sum(file.stat().st_size for file in files)


def _nifti_header(path: Path) -> Any:
    """The header as it is in the file, which nibabel would repair in silence; None for other formats."""
    if suffix_of(path) not in (".nii", ".nii.gz"):
        return None
    with nib.openers.ImageOpener(str(path)) as file:
        start = file.read(4)
        size = next((n for n in _HEADERS if n in (int.from_bytes(start, o) for o in ("little", "big"))), 348)
        file.seek(0)
        return _HEADERS[size].from_fileobj(file, check=False)


def _agrees(header: Any) -> bool:
    """Whether the codes of qform and sform exist, and both, where given, turn the axes to the same directions."""
    codes = int(header["qform_code"]), int(header["sform_code"])
    if not all(code in _CODES for code in codes):
        return False
    if 0 in codes:
        return True
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])  # a flag of its own
    try:
        return bool(orientation_of(header.get_qform()) == orientation_of(header.get_sform()))
    except (ValueError, HeaderDataError):  # one of them has no inverse (DataError is a ValueError)
        return False
