"""The way back: from scores on the prepared grid to the source's own grid.

Scores are interpolated linearly along each axis, class by class and slab by slab. Where the grids differ only by
permutation, flips and crop, nothing is interpolated and the result is exact.

Shape suffixes: K classes, R regions, Z Y X canonical axes, I J K source axes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prevox.data.geometry import Grid, canonical_axes, orientation_of, reorient
from prevox.errors import DataError

_SLAB_VOXELS = 1 << 20  # voxels of the source grid that are interpolated at a time
_ON_GRID = 1e-4  # voxels; positions nearer than this to a voxel's centre are that voxel


def to_source(scores_KZYX: np.ndarray, prepared: Grid, source: Grid) -> np.ndarray:
    """Bring class scores back to the source's grid and take the best class of each voxel.

    Scores are interpolated linearly, class by class and slab by slab, so memory beyond the result depends neither on
    the number of classes nor on the size of the source. Where the grids differ by permutation, flips and crop only,
    nothing is interpolated and the result is exact.

    Args:
        scores_KZYX: Scores of K classes on the prepared grid; class 0 is the background.
        prepared: Grid of the scores, made from the source's by `prevox.data.geometry`.
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
        prepared: Grid of the scores, made from the source's by `prevox.data.geometry`.
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
        permutation, flips = canonical_axes(source.affine, source.shape)
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
        array = np.flip(array_ZYX, tuple(axis - 3 for axis in range(3) if self.flips[axis]))
        inverse = [self.permutation.index(axis) for axis in range(3)]
        return np.ascontiguousarray(array.transpose(*range(lead), *(lead + axis for axis in inverse)))
