"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) through SimpleITK, whose LPS world is turned into RAS."""

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from prevox.data.readers.base import (
    Header,
    Image,
    Reading,
    check_affine,
    check_shape,
    check_volume,
    colour_dtype,
    grey,
    real_dtype,
    unreadable,
)
from prevox.data.readers.itk_text import check_text
from prevox.errors import DataError

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK prints to stderr what the errors below say better


def read_header(path: Path, reading: Reading) -> Header:
    """Read shape, affine, origin, spacing and direction without the voxels."""
    return _header(path, _open(path, voxels=False), reading)


def read_image(path: Path, reading: Reading) -> Image:
    """Read voxels and header; components of a voxel, or a 4th axis, become channels."""
    reader = _open(path, voxels=True)
    header = _header(path, reader, reading)
    size = list(reader.GetSize())
    if len(size) >= 4 and reading.volume is not None and size[3] > 1:  # the other volumes are not read
        reader.SetExtractIndex([0, 0, 0, reading.volume, *[0] * (len(size) - 4)])
        reader.SetExtractSize([*size[:3], 1, *[1] * (len(size) - 4)])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise unreadable(path, error) from None
    array = sitk.GetArrayFromImage(image).T  # (z, y, x[, c]) -> ([c,] x, y, z), and (t, z, y, x) -> (x, y, z, t)
    if array.dtype.kind == "c":
        array = np.abs(array).astype(header.dtype, copy=False)
    components = reader.GetNumberOfComponents()
    if components > 1:
        array = array.reshape((components, *header.shape_ijk), order="A")
        if _is_colour(reader):
            array = grey(array)[None] if reading.colour == "grey" else array[:3]
        elif reading.volume is not None:
            array = array[reading.volume : reading.volume + 1]
    else:
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


def _open(path: Path, *, voxels: bool) -> Any:
    """A reader that knows the file's header; `voxels` says that they will be read, so that they must be there."""
    check_text(path, voxels=voxels)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from None
    return reader


def _header(path: Path, reader: Any, reading: Reading) -> Header:
    components = reader.GetNumberOfComponents()
    dtype = np.dtype(_dtype(reader.GetPixelID()))
    size = tuple(reader.GetSize())
    shape_ijk, volumes = check_shape(path, size)
    colour = _is_colour(reader)
    if components > 1 and volumes > 1:
        raise DataError(
            path,
            found=f"{components} components in each voxel and a 4th axis of {volumes}",
            expected="channels in one of the two",
            remedy="Split the file by its 4th axis.",
        )
    if colour:
        dtype, channels = colour_dtype(path, dtype, reading)
    else:
        dtype, _ = real_dtype(path, dtype, reading)
        channels = check_volume(path, components * volumes, reading.volume)
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
    affine = check_affine(path, _LPS_TO_RAS @ affine)
    return Header(path, shape_ijk, channels, affine, codes, dtype.name, colour=colour and channels > 1)


def _is_colour(reader: Any) -> bool:
    """Whether voxels are colours: NRRD may say so; else 3 or 4 components of 8 bits are taken for one."""
    components, key = reader.GetNumberOfComponents(), "NRRD_kinds[pixel]"
    said = reader.HasMetaDataKey(key) and "color" in reader.GetMetaData(key).lower()
    return components in (3, 4) and (said or _dtype(reader.GetPixelID()) == "uint8")


def _dtype(pixel_id: int) -> str:
    """Numpy name of a SimpleITK pixel type (vector types count as their component's)."""
    name = sitk.GetPixelIDValueAsString(pixel_id)
    bits = next(digits for digits in ("8", "16", "32", "64") if f"{digits}-bit" in name)
    if "complex" in name:
        return f"complex{2 * int(bits)}"
    if "float" in name:
        return f"float{bits}"
    return f"{'u' if 'unsigned' in name else ''}int{bits}"
