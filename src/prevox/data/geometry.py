"""Grids in the patient's space: canonical axes, crop, resampling, and the way back to the source's grid.

A volume is (C, Z, Y, X): its axes increase towards Superior, Anterior and Right, as nearly as its grid allows; a source
array is (C, i, j, k) in its file's own order. An affine maps indices in the array's own order (voxel centres) to RAS+
world coordinates in mm. Oblique grids are permuted and flipped, never rotated or sheared, so every step here is exact
but the interpolation itself, and that is separable.

Shape suffixes: C channels, K classes, R regions, Z Y X canonical axes, I J K source axes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage, optimize, sparse

from prevox.errors import DataError

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (start, stop) along each axis

_LETTERS = ("LR", "PA", "IS")  # towards minus and plus of the world's x, y, z
_SLAB_VOXELS = 1 << 20  # voxels of the source grid that are interpolated at a time
_ON_GRID = 1e-4  # voxels; positions nearer than this to a voxel's centre are that voxel


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


def canonical_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Find how to turn an array to canonical axes (Superior, Anterior, Right).

    Oblique axes are matched to the world's axes so that the sum of absolute direction cosines is largest.

    Args:
        affine: (4, 4), from indices in the array's own order to world mm.

    Returns:
        permutation: Array axis that becomes canonical axis 0, 1, 2.
        flips: Whether each canonical axis is reversed after that.

    Raises:
        DataError: If the affine has no inverse.
    """
    world, signs = _world_axes(affine)
    order = [int(np.flatnonzero(world == axis)[0]) for axis in (2, 1, 0)]
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
    for start in range(0, flat.size, _SLAB_VOXELS):
        found[flat[start : start + _SLAB_VOXELS]] = True
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


def to_source(scores_KZYX: np.ndarray, prepared: Grid, source: Grid) -> np.ndarray:
    """Bring class scores back to the source's grid and take the best class of each voxel.

    Scores are interpolated linearly, class by class and slab by slab, so memory beyond the result depends neither on
    the number of classes nor on the size of the source. Where the grids differ by permutation, flips and crop only,
    nothing is interpolated and the result is exact.

    Args:
        scores_KZYX: Scores of K classes on the prepared grid; class 0 is the background.
        prepared: Grid of the scores, made from the source's by this module.
        source: Grid of the source, in its own axis order.

    Returns:
        (I, J, K) class indices in the smallest unsigned type; 0 outside the prepared field of view. Where two classes
        are level, the smaller index wins.

    Raises:
        DataError: If the grids do not belong together.
    """
    frame = _Frame.between(_checked_grid(scores_KZYX, prepared), source)
    labels_ZYX = np.zeros(frame.shape, np.min_scalar_type(max(1, len(scores_KZYX) - 1)))
    for rows, window in frame.slabs():
        best = frame.interpolate(scores_KZYX[0], rows)
        winner = np.zeros(best.shape, labels_ZYX.dtype)
        for index in range(1, len(scores_KZYX)):
            score = frame.interpolate(scores_KZYX[index], rows)
            np.copyto(winner, index, where=score > best)
            np.maximum(best, score, out=best)
        labels_ZYX[window] = winner
    return frame.turn_back(labels_ZYX)


def scores_to_source(scores_RZYX: np.ndarray, prepared: Grid, source: Grid, outside: float = 0.0) -> np.ndarray:
    """Bring scores of regions (or class probabilities) back to the source's grid.

    Args:
        scores_RZYX: Scores on the prepared grid.
        prepared: Grid of the scores, made from the source's by this module.
        source: Grid of the source, in its own axis order.
        outside: Value outside the prepared field of view.

    Returns:
        (R, I, J, K) float32.

    Raises:
        DataError: If the grids do not belong together.
    """
    frame = _Frame.between(_checked_grid(scores_RZYX, prepared), source)
    result_RZYX = np.full((len(scores_RZYX), *frame.shape), outside, np.float32)
    for rows, window in frame.slabs():
        for index, scores in enumerate(scores_RZYX):
            result_RZYX[(index, *window)] = frame.interpolate(scores, rows)
    return frame.turn_back(result_RZYX)


def _checked_grid(scores_KZYX: np.ndarray, prepared: Grid) -> Grid:
    assert scores_KZYX.shape[1:] == tuple(prepared.shape), (scores_KZYX.shape, prepared.shape)
    return prepared


@dataclass(frozen=True, eq=False)
class _Axis:
    """Where the voxels of one canonical source axis lie on the prepared axis: between `lower` and `upper`."""

    start: int  # source voxels start .. stop lie in the prepared field of view
    stop: int
    lower: np.ndarray
    upper: np.ndarray
    share: np.ndarray  # weight of upper
    exact: bool  # the source voxels are prepared voxels, lower[0] and on

    @classmethod
    def between(cls, size: int, prepared_size: int, scale: float, offset: float) -> "_Axis":
        position = scale * np.arange(size) + offset
        hit = np.flatnonzero((position > -0.5 - _ON_GRID) & (position < prepared_size - 0.5 + _ON_GRID))
        start, stop = (int(hit[0]), int(hit[-1]) + 1) if hit.size else (0, 0)
        position = np.clip(position[start:stop], 0, prepared_size - 1)
        nearest = np.rint(position)
        exact = bool((np.abs(position - nearest) < _ON_GRID).all() and (np.diff(nearest) == 1).all())
        lower = (nearest if exact else np.floor(position)).astype(int)
        upper = np.minimum(lower + 1, prepared_size - 1)
        return cls(start, stop, lower, upper, (position - lower).astype(np.float32), exact)

    def take(self, x_ZYX: np.ndarray, axis: int, rows: slice = slice(None)) -> np.ndarray:
        """Interpolate along one axis at these rows of the source."""
        lower, upper = self.lower[rows], self.upper[rows]
        if self.exact:
            window = [slice(None)] * 3
            window[axis] = slice(lower[0], lower[-1] + 1)
            return x_ZYX[tuple(window)]
        low = np.take(x_ZYX, lower, axis).astype(np.float32, copy=False)
        difference = np.take(x_ZYX, upper, axis) - low
        difference *= self.share[rows].reshape([-1 if other == axis else 1 for other in range(3)])
        return np.add(low, difference, out=low)


@dataclass(frozen=True, eq=False)
class _Frame:
    """The source's grid turned to canonical axes, with the prepared grid laid over it axis by axis."""

    shape: tuple[int, ...]  # of the source along its canonical axes
    axes: list[_Axis]
    permutation: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def between(cls, prepared: Grid, source: Grid) -> "_Frame":
        permutation, flips = canonical_axes(source.affine)
        canonical, affine = reorient(np.broadcast_to(np.uint8(0), source.shape), source.affine, permutation, flips)
        step = np.linalg.solve(prepared.affine, affine)
        scales = np.diag(step)[:3]
        sheared = np.abs(step[:3, :3] - np.diag(scales)) * canonical.shape  # voxels of drift over the whole volume
        if (sheared > 0.05).any() or (scales <= 0).any():
            raise DataError(
                "grids",
                found=f"axes {orientation_of(prepared.affine)} at {np.round(prepared.spacing, 4).tolist()} mm that are "
                "turned against the source's",
                expected="a prepared grid that was made from this source by flips, crop and resampling",
                remedy="Prepare the image anew.",
            )
        axes = [_Axis.between(canonical.shape[a], prepared.shape[a], scales[a], step[a, 3]) for a in range(3)]
        return cls(canonical.shape, axes, permutation, flips)

    def slabs(self) -> Iterator[tuple[slice, tuple[slice, slice, slice]]]:
        """Rows of the first axis's list and the window of the canonical source that they fill, slab by slab."""
        z, y, x = self.axes
        if min(len(axis.lower) for axis in self.axes) == 0:
            return
        count = max(1, _SLAB_VOXELS // (len(y.lower) * len(x.lower)))
        for first in range(0, len(z.lower), count):
            last = min(first + count, len(z.lower))
            window = (slice(z.start + first, z.start + last), slice(y.start, y.stop), slice(x.start, x.stop))
            yield slice(first, last), window

    def interpolate(self, x_ZYX: np.ndarray, rows: slice) -> np.ndarray:
        """One prepared volume at the source's voxels of a slab; always a fresh float32 array."""
        z, y, x = self.axes
        result = x.take(y.take(z.take(x_ZYX, 0, rows), 1), 2)
        return (
            np.array(result, np.float32) if z.exact and y.exact and x.exact else result.astype(np.float32, copy=False)
        )

    def turn_back(self, array_ZYX: np.ndarray) -> np.ndarray:
        """From canonical axes to the source's own order."""
        lead = array_ZYX.ndim - 3
        array = _flipped(array_ZYX, self.flips)
        inverse = [self.permutation.index(axis) for axis in range(3)]
        return np.ascontiguousarray(array.transpose(*range(lead), *(lead + axis for axis in inverse)))
