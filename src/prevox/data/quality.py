"""Statistics of voxels, quality flags, and the checks that a label map must pass before it is believed."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from prevox.data.readers import Header, Image, suffix_of
from prevox.errors import DataError

_CHUNK = 1 << 20  # voxels that are turned into float64 at a time
_GRID_TOLERANCE = 0.1  # voxels by which a label's corners may lie off the image's


ADVICE = {  # flag to what it means and what to do; flags that need no action are not here
    "constant": "all voxels are equal, so nothing can be learnt from them (normalised, they are 0). Take them out.",
    "nan": "some voxels are NaN or infinite: `prepare` leaves these images out. Set them to the background's value.",
    "near_empty": "hardly a voxel differs from the background. Look at the page's pictures, and take empty images out.",
    "clipped": "many voxels have the largest value: the range was cut off. Export again if it was meant to be whole.",
    "few_values": "small whole numbers only, as label maps have them. If they are label maps, put them into "
    "labels/ beside images/.",
    "many_values": "a label map of many values without names, as images have them. Check that image and label "
    "are not exchanged.",
    "duplicate_image": "the same voxels under several ids. Keep one, or give them one subject (--table, --group), lest "
    "a split put the copies on both sides.",
    "near_duplicate": "the same scan but for noise, rounding or a linear change of intensity, under several ids. Give "
    "them one subject, or keep one.",
    "duplicate_label": "label maps that are copies of each other: at most one fits its image, unless the images are "
    "registered to each other. Compare them, and take the wrong one out.",
    "no_geometry": "neither qform nor sform: left and right are a guess. Restore the orientation from the source.",
    "orientation": "qform and sform turn the axes differently, or have no valid code: left and right may be exchanged. "
    "Repair the header.",
    "affine": "a position or size that no scanner writes. Check the units of the header (mm).",
    "label_off_image": "labels where the image has nothing but background: label and image do not belong together, or "
    "one is flipped.",
    "negative_size": "a negative voxel size: its magnitude is taken. Check left and right, and repair the header.",
    "sheared": "axes that are not at right angles (gantry tilt): they are kept as they are, but distances in mm are "
    "exact for right angles only. Resample to right angles if they matter.",
}


class Statistics(NamedTuple):
    """Over all finite voxels of all channels, in float64; `finite` is False if any voxel is NaN or infinite."""

    minimum: float
    maximum: float
    mean: float
    std: float
    finite: bool


def statistics_of(array: np.ndarray) -> Statistics:
    """Compute minimum, maximum, mean and (population) standard deviation in one pass without a float64 copy.

    Chunks are merged as in Chan, Golub and LeVeque (1983), so large offsets do not cost precision.
    """
    low, high, mean, squares, count = np.inf, -np.inf, 0.0, 0.0, 0
    flat = array.ravel(order="K")
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK].astype(np.float64)
        chunk = chunk[np.isfinite(chunk)]
        if chunk.size == 0:
            continue
        low, high = min(low, chunk.min()), max(high, chunk.max())
        chunk_mean = chunk.mean()
        delta, total = chunk_mean - mean, count + chunk.size
        squares += ((chunk - chunk_mean) ** 2).sum() + delta**2 * count * chunk.size / total
        mean, count = mean + delta * chunk.size / total, total
    if count == 0:
        return Statistics(np.nan, np.nan, np.nan, np.nan, False)
    return Statistics(float(low), float(high), float(mean), float(np.sqrt(squares / count)), count == flat.size)


def check_channels(path: Path, channels: int, said: int | None, chosen: bool) -> None:
    """Check that an image has the channels that its dataset says, or that were chosen to be channels.

    Args:
        path: First file of the image.
        channels: Number in the files.
        said: Number in dataset.json; None where there is none.
        chosen: Whether several channels need no dataset.json: colours, a file for each, or by the user's choice.

    Raises:
        DataError: If it has others, or nobody says what its 4th axis is.
    """
    if said is not None and channels != said:
        raise DataError(
            path,
            found=f"{channels} channel(s)",
            expected=f"{said}, as dataset.json names them",
            remedy="Correct `modality` or `channel_names` in dataset.json, or split a 4D file into one image for each "
            "of its volumes (--volumes split).",
        )
    if said is None and channels > 1 and not chosen:
        raise DataError(
            path,
            found=f"{channels} volumes on a 4th axis",
            expected="a 3D image, or a dataset.json that names the channels",
            remedy="Split a time series into one 3D image for each volume with --volumes split (or take its mean); if "
            "these are channels of one image, say --volumes channels.",
        )


def check_same_grid(header: Header, other: Header, what: str) -> None:
    """Check that two files of one image cover the same voxels.

    Raises:
        DataError: If shapes differ, or corners lie more than a tenth of a voxel apart; names both.
    """
    if header.shape_ijk != other.shape_ijk:
        raise DataError(
            other.path,
            found=f"{what} on another grid: {_times(other.shape_ijk)} voxels",
            expected=f"{_times(header.shape_ijk)} as in {header.path}",
            remedy="Resample it to the image's grid, or find the file that belongs to this image.",
        )
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(header.shape_ijk) - 1)
    corners = np.concatenate([corners, np.ones((8, 1))], axis=1).T
    apart = np.linalg.solve(header.affine, other.affine @ corners) - corners
    if np.abs(apart[:3]).max() > _GRID_TOLERANCE:
        raise DataError(
            other.path,
            found=f"{what} on another grid: affine {_rows(other.affine)}, off by {np.abs(apart[:3]).max():.3g} voxels",
            expected=f"{_rows(header.affine)} as in {header.path}",
            remedy="Repair its header if the voxels match, else resample it to the image's grid.",
        )


def label_values_of(label: Image, class_names: dict[int, str] | None) -> list[int]:
    """List the values of a label map, background (0) left out.

    Raises:
        DataError: If it is a JPEG or has several channels, values that are not whole or negative, or values that have
            no name although the dataset names its classes.
    """
    path, array = label.header.path, label.array_CIJK
    if suffix_of(path) in (".jpg", ".jpeg"):
        raise DataError(
            path,
            found="a label map in a JPEG, which does not keep values",
            expected="PNG or a volume format",
            remedy="Threshold it and save it as PNG; better, export it again.",
        )
    if array.shape[0] != 1:
        raise DataError(
            path,
            found=f"a label map of {array.shape[0]} channels",
            expected="one channel",
            remedy="Merge the channels into one map of label values (a number for each colour).",
        )
    values = _unique(array)
    whole = np.isfinite(values) & (values == np.round(values)) & (values >= 0)
    if not whole.all():
        raise DataError(
            path,
            found=f"label values {', '.join(f'{v:.4g}' for v in values[~whole][:5])}",
            expected="whole numbers from 0 upwards",
            remedy="Threshold soft or probabilistic labels first.",
        )
    found = [int(value) for value in values if value != 0]
    unknown = [value for value in found if class_names is not None and value not in class_names]
    if unknown:
        raise DataError(
            path,
            found=f"label values {unknown[:10]} without a name",
            expected=f"values out of {class_names} (0 is background)",
            remedy="Correct the label map, or name the values in dataset.json.",
        )
    return found


def _unique(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "bui" and array.size and array.min() >= 0 and array.max() < 1 << 16:
        return np.flatnonzero(np.bincount(array.ravel(order="K")))  # no sorting
    return np.unique(array)


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _rows(affine: np.ndarray) -> str:
    return "[" + "; ".join(" ".join(f"{value:.4g}" for value in row) for row in affine[:3]) + "]"
