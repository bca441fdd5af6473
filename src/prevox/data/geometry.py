"""Grids in the patient's space: canonical axes, crop, resampling. The way back is `prevox.data.restore`.

A volume is (C, Z, Y, X): its axes increase towards Superior, Anterior and Right, as nearly as its grid allows; a source
array is (C, i, j, k) in its file's own order. An affine maps indices in the array's own order (voxel centres) to RAS+
world coordinates in mm. Oblique grids are permuted and flipped, never rotated or sheared, so every step here is exact
but the interpolation itself, and that is separable.

Shape suffixes: C channels, Z Y X canonical axes, I J K source axes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage, optimize, sparse

from prevox.errors import DataError

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (start, stop) along each axis

_LETTERS = ("LR", "PA", "IS")  # towards minus and plus of the world's x, y, z
_CHUNK = 1 << 20  # voxels of a label map whose values are looked up at a time


@dataclass(frozen=True, eq=False)
class Grid:
    """Where an array's voxels lie.

    Args:
        shape: Voxels along the array's three axes.
        affine: (4, 4) float64, from indices in the array's order to world mm.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the array's axes."""
        return spacing_of(self.affine)


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel size in mm along each array axis: the norms of the affine's columns."""
    z, y, x = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    return float(z), float(y), float(x)


def _world_axes(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each array axis, the world axis it runs along and the sign; every world axis is taken once."""
    matrix = np.asarray(affine, float)[:3, :3]
    norms = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(matrix).all() or (norms == 0).any() or abs(np.linalg.det(matrix / norms)) < 1e-6:
        raise DataError(
            "affine",
            found=f"{matrix.tolist()}",
            expected="three independent finite axes of non-zero length",
            remedy="Repair the header's orientation.",
        )
    cosines = (matrix / norms).T
    _, world = optimize.linear_sum_assignment(-np.abs(cosines))
    return world, np.sign(cosines[np.arange(3), world])


def orientation_of(affine: np.ndarray) -> str:
    """Three letters that name the direction in which each array axis increases, such as "RAS" or "LPS"."""
    world, signs = _world_axes(affine)
    return "".join(_LETTERS[axis][int(sign > 0)] for axis, sign in zip(world, signs, strict=True))


def canonical_axes(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Find how to turn an array to canonical axes (Superior, Anterior, Right).

    Oblique axes are matched to the world's axes so that the sum of absolute direction cosines is largest. In a single
    slice the axis across it comes first whatever its direction, so that y and x are the picture's axes in all planes.

    Args:
        affine: (4, 4), from indices in the array's own order to world mm.
        shape: Voxels along the array's three axes.

    Returns:
        permutation: Array axis that becomes canonical axis 0, 1, 2.
        flips: Whether each canonical axis is reversed after that.

    Raises:
        DataError: If the affine has no inverse.
    """
    world, signs = _world_axes(affine)
    order = [int(np.flatnonzero(world == axis)[0]) for axis in (2, 1, 0)]
    if list(shape).count(1) == 1:
        order.sort(key=lambda axis: shape[axis] > 1)  # stable: the other two keep their order
    flips = [bool(signs[axis] < 0) for axis in order]
    return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2])


def reorient(
    array_CIJK: np.ndarray, affine: np.ndarray, permutation: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip the last three axes; every voxel keeps its place in the world.

    Args:
        array_CIJK: Any array with three spatial axes last, leading axes are kept.
        affine: (4, 4) of the array.
        permutation: Array axis that becomes axis 0, 1, 2.
        flips: Whether each new axis is reversed.

    Returns:
        A view of the array, and its affine.
    """
    lead = array_CIJK.ndim - 3
    array = array_CIJK.transpose(*range(lead), *(lead + axis for axis in permutation))
    array = _flipped(array, flips)
    step = np.eye(4)
    step[:3] = 0
    for new, (old, flip) in enumerate(zip(permutation, flips, strict=True)):
        step[old, new] = -1 if flip else 1
        step[old, 3] = array.shape[lead + new] - 1 if flip else 0
    return array, np.asarray(affine, float) @ step


def _flipped(array: np.ndarray, flips: tuple[bool, bool, bool]) -> np.ndarray:
    return np.flip(array, tuple(axis - 3 for axis in range(3) if flips[axis]))


def nonzero_box(array_CZYX: np.ndarray) -> Box:
    """Smallest box that holds every voxel which is not zero in some channel; the whole array if all are zero."""
    mask_ZYX = (array_CZYX != 0).any(axis=0)
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask_ZYX.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append((int(hit[0]), int(hit[-1]) + 1) if hit.size else (0, mask_ZYX.shape[axis]))
    return box[0], box[1], box[2]


def crop(array_CZYX: np.ndarray, affine: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Cut a box out of the last three axes.

    Returns:
        A view of the array, and its affine.
    """
    z, y, x = (slice(start, stop) for start, stop in box)
    cropped = array_CZYX[..., z, y, x]
    step = np.eye(4)
    step[:3, 3] = [start for start, _ in box]
    return cropped, np.asarray(affine, float) @ step


def resampled_grid(grid: Grid, spacing: tuple[float, ...]) -> Grid:
    """The grid with the same field of view whose voxel size is as near to `spacing` (mm) as whole voxels allow."""
    extents = np.array(grid.shape) * grid.spacing
    shape = [max(1, round(float(extent / target))) for extent, target in zip(extents, spacing, strict=True)]
    factors = np.array(grid.shape) / shape
    step = np.diag([*factors, 1.0])
    step[:3, 3] = (factors - 1) / 2  # edges coincide, so centres move by half the difference of the voxel sizes
    return Grid((shape[0], shape[1], shape[2]), grid.affine @ step)


def resample(
    array_CZYX: np.ndarray, affine: np.ndarray, spacing: tuple[float, ...], order: Literal[1, 3]
) -> tuple[np.ndarray, np.ndarray]:
    """Resample images to a voxel size; the field of view stays, edge on edge.

    The new shape is max(1, round(extent / spacing)). Axes whose number of voxels stays are left alone; axes that shrink
    are smoothed first with a Gaussian of (factor - 1) / 2 voxels. Beyond the border the outermost voxel is repeated.
    Values never leave the channel's own range.

    Args:
        array_CZYX: Images of any real type.
        affine: (4, 4) of the array.
        spacing: Target in mm along z y x.
        order: Of the spline, 1 or 3.

    Returns:
        The float32 images (the array itself if no axis changes), and their affine.
    """
    old = Grid(_shape3(array_CZYX), np.asarray(affine, float))
    new = resampled_grid(old, spacing)
    if new.shape == old.shape:
        return array_CZYX, old.affine
    x_CZYX = array_CZYX.astype(np.float32)
    low, high = (edge(x_CZYX, axis=(1, 2, 3), keepdims=True) for edge in (np.min, np.max))
    for axis in sorted(range(3), key=lambda axis: new.shape[axis] / old.shape[axis]):  # shrink first: less to do after
        if new.shape[axis] != old.shape[axis]:
            matrix = _axis_matrix(old.shape[axis], new.shape[axis], order)
            x_CZYX = _apply_along(matrix, x_CZYX, 1 + axis)
    return np.clip(x_CZYX, low, high, out=x_CZYX), new.affine


def resample_label(
    label_ZYX: np.ndarray, affine: np.ndarray, spacing: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Resample a label map to the same grid as `resample`: linear on each class's indicator, then the largest wins.

    Where two classes are level, the smaller value wins. Each class is interpolated within its own bounding box only.

    Args:
        label_ZYX: Integer values.
        affine: (4, 4) of the array.
        spacing: Target in mm along z y x.

    Returns:
        The labels in their own type, and their affine.
    """
    old = Grid(_shape3(label_ZYX), np.asarray(affine, float))
    new = resampled_grid(old, spacing)
    if new.shape == old.shape:
        return label_ZYX, old.affine
    matrices = {a: _axis_matrix(old.shape[a], new.shape[a], 1) for a in range(3) if new.shape[a] != old.shape[a]}
    result = np.zeros(new.shape, label_ZYX.dtype)
    best = np.zeros(new.shape, np.float32)
    for value in values_of(label_ZYX):
        is_value = label_ZYX == value
        box = nonzero_box(is_value[None])
        score = is_value[tuple(slice(*edge) for edge in box)].astype(np.float32)
        window = [slice(*edge) for edge in box]
        for axis in sorted(matrices, key=lambda axis: new.shape[axis] / old.shape[axis]):
            taps = matrices[axis][:, window[axis]]
            rows = np.flatnonzero(taps.any(axis=1))
            # a thin class between the samples of a shrinking axis reaches no row
            window[axis] = slice(rows[0], rows[-1] + 1) if rows.size else slice(0, 0)
            score = _apply_along(sparse.csr_array(taps[window[axis]]), score, axis)
        so_far = best[tuple(window)]
        np.copyto(result[tuple(window)], value, where=score > so_far)
        np.maximum(so_far, score, out=so_far)
    return result, new.affine


def values_of(label: np.ndarray) -> np.ndarray:
    """Values that occur in a label map, ascending, in its own type; small types are counted, not sorted."""
    if label.dtype not in (np.uint8, np.uint16):
        return np.unique(label)
    found = np.zeros(np.iinfo(label.dtype).max + 1, bool)
    flat = label.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        found[flat[start : start + _CHUNK]] = True
    return np.flatnonzero(found).astype(label.dtype)


def _axis_matrix(size: int, new_size: int, order: Literal[1, 3]) -> np.ndarray:
    """(new_size, size) float32: what smoothing and edge-aligned spline interpolation do along one axis.

    Both are linear, so their effect on the unit vectors is all there is to know; one matrix product per axis then does
    the work of 4³ weighted taps per voxel, many times faster.
    """
    units = np.eye(size)
    if new_size < size:
        units = ndimage.gaussian_filter1d(units, (size / new_size - 1) / 2, axis=0, mode="nearest")
    zoom = (new_size / size, 1.0)
    matrix: np.ndarray = ndimage.zoom(units, zoom, order=order, mode="nearest", grid_mode=True)
    return matrix.astype(np.float32)


def _apply_along(matrix: np.ndarray | sparse.csr_array, x: np.ndarray, axis: int) -> np.ndarray:
    """Multiply one axis of an array by a (new, old) matrix; worth being sparse for a few taps (order 1)."""
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    if sparse.issparse(matrix):
        first = np.moveaxis(x, axis, 0)
        return np.moveaxis((matrix @ first.reshape(len(first), -1)).reshape(matrix.shape[0], *first.shape[1:]), 0, axis)
    if after == 1:
        result = x.reshape(before, -1) @ matrix.T
    else:
        result = np.matmul(matrix, x.reshape(before, x.shape[axis], after))
    return result.reshape(*x.shape[:axis], len(matrix), *x.shape[axis + 1 :])


def _shape3(array: np.ndarray) -> tuple[int, int, int]:
    z, y, x = array.shape[-3:]
    return z, y, x
