"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) through SimpleITK, whose LPS world is turned into RAS."""

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from prevox.data.readers.base import Header, Image, check_affine, check_dtype, check_shape, unreadable
from prevox.errors import DataError

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK prints to stderr what the errors below say better


def read_header(path: Path) -> Header:
    """Read shape, affine, origin, spacing and direction without the voxels."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from None
    return _header(path, reader)


def read_image(path: Path) -> Image:
    """Read voxels and header; components of a voxel, or a 4th axis, become channels."""
    header = read_header(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise unreadable(path, error) from None
    array = sitk.GetArrayFromImage(image).T  # (z, y, x[, c]) -> ([c,] x, y, z), and (t, z, y, x) -> (x, y, z, t)
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = np.moveaxis(array.reshape((*header.shape_ijk, header.channels), order="F"), -1, 0)
    return Image(array.reshape((header.channels, *header.shape_ijk), order="A"), header)


def write_image(path: Path, array: np.ndarray, like: Header) -> None:
    """Write (I, J, K) or (K, I, J, K) with origin, spacing and direction of `like`; in 2D where `like` is 2D."""
    codes = like.codes
    flat = codes["format"] == "sitk" and codes["ndim"] == 2  # a 2D NIfTI file has a place in space that 2D here has not
    image = sitk.GetImageFromArray((array[..., 0] if flat else array).T, isVector=array.ndim == 4)
    if codes["format"] == "sitk":
        n = 2 if flat else 3
        origin, spacing = codes["origin"][:n], codes["spacing"][:n]
        direction = np.reshape(codes["direction"], (3, 3))[:n, :n].ravel().tolist()
    else:
        affine = _LPS_TO_RAS @ like.affine
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        origin, spacing = affine[:3, 3].tolist(), lengths.tolist()
        direction = (affine[:3, :3] / lengths).ravel().tolist()
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path), useCompression=True)


def _header(path: Path, reader: Any) -> Header:
    components = reader.GetNumberOfComponents()
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in name:
        check_dtype(path, np.dtype(np.complex64))
    size = tuple(reader.GetSize())
    shape_ijk, channels = check_shape(path, size)
    if components > 1 and channels > 1:
        raise DataError(
            path,
            found=f"{components} components in each voxel and a 4th axis of {channels}",
            expected="channels in one of the two",
            remedy="Split the file by its 4th axis.",
        )
    dimensions = len(size)
    n = min(dimensions, 3)
    direction, spacing, origin = np.eye(3), np.ones(3), np.zeros(3)
    direction[:n, :n] = np.reshape(reader.GetDirection(), (dimensions, dimensions))[:n, :n]
    spacing[:n], origin[:n] = reader.GetSpacing()[:n], reader.GetOrigin()[:n]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    codes = {
        "format": "sitk",
        "ndim": n,
        "origin": origin.tolist(),
        "spacing": spacing.tolist(),
        "direction": direction.ravel().tolist(),
    }
    dtype = _dtype(reader.GetPixelID())
    return Header(path, shape_ijk, components * channels, check_affine(path, _LPS_TO_RAS @ affine), codes, dtype)


def _dtype(pixel_id: int) -> str:
    """Numpy name of a SimpleITK pixel type (vector types count as their component's)."""
    name = sitk.GetPixelIDValueAsString(pixel_id)
    bits = next(digits for digits in ("8", "16", "32", "64") if f"{digits}-bit" in name)
    if "float" in name:
        return f"float{bits}"
    return f"{'u' if 'unsigned' in name else ''}int{bits}"
