"""The way back: from scores on the prepared grid to the source's own grid.

Planes come in order, a few at a time, and leave in blocks of the source: all scores of a few voxels at once, never all
scores of the volume. They are interpolated linearly along each axis. Where the grids differ only by permutation, flips
and crop, nothing is interpolated and the result is exact.

Shape suffixes: F features, K classes, R regions, Z Y X canonical axes, I J K source axes.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prevox.data.geometry import Grid, canonical_axes, orientation_of, reorient
from prevox.errors import DataError

# scores of the source grid that are interpolated at a time: few enough for the processor's cache, more on a GPU
_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 24}
_ON_GRID = 1e-4  # voxels; positions nearer than this to a voxel's centre are that voxel


def best_class(scores_KZYX: Tensor) -> np.ndarray:
    """Index of the largest score of each voxel, the smaller one where two are level, in the smallest unsigned type."""
    kind = np.min_scalar_type(max(1, len(scores_KZYX) - 1))
    if scores_KZYX.is_cuda:
        return scores_KZYX.argmax(0).cpu().numpy().astype(kind)
    # argmax along the outermost axis is slow in numpy and slower in torch; these four steps per class are vectorised
    first_ZYX, *others = scores_KZYX.numpy()
    best_ZYX, winner_ZYX = first_ZYX.copy(), np.zeros(first_ZYX.shape, kind)
    larger_ZYX, index_ZYX = np.empty(first_ZYX.shape, bool), np.empty_like(winner_ZYX)
    for index, score_ZYX in enumerate(others, start=1):
        np.greater(score_ZYX, best_ZYX, out=larger_ZYX)
        np.multiply(larger_ZYX, kind.type(index), out=index_ZYX)
        np.maximum(winner_ZYX, index_ZYX, out=winner_ZYX)
        np.maximum(best_ZYX, score_ZYX, out=best_ZYX)
    return winner_ZYX


@dataclass(frozen=True, eq=False)
class _Axis:
    """Where the voxels of one canonical source axis lie on the prepared axis: between `lower` and `upper`."""

    start: int  # source voxels start .. stop lie in the prepared field of view
    stop: int
    lower: np.ndarray
    upper: np.ndarray
    share: np.ndarray  # weight of upper
    exact: bool  # the source voxels are prepared voxels, `lower` and `upper` alike

    @classmethod
    def between(cls, size: int, prepared_size: int, scale: float, offset: float) -> "_Axis":
        position = scale * np.arange(size) + offset
        hit = np.flatnonzero((position > -0.5 - _ON_GRID) & (position < prepared_size - 0.5 + _ON_GRID))
        start, stop = (int(hit[0]), int(hit[-1]) + 1) if hit.size else (0, 0)
        position = np.clip(position[start:stop], 0, prepared_size - 1)
        nearest = np.rint(position)
        exact = bool((np.abs(position - nearest) < _ON_GRID).all() and (np.diff(nearest) == 1).all())
        lower = (nearest if exact else np.floor(position)).astype(int)
        upper = lower if exact else np.minimum(lower + 1, prepared_size - 1)
        return cls(start, stop, lower, upper, (position - lower).astype(np.float32), exact)

    def needed(self, rows: slice) -> np.ndarray:
        """Prepared voxels between which these rows of the source lie, ascending."""
        return np.unique(np.concatenate([self.lower[rows], self.upper[rows]]))

    def interpolate(self, x_KZYX: Tensor, axis: int, rows: slice) -> Tensor:
        """These rows of the source along one axis, from the prepared voxels that they need."""
        if self.exact:
            return x_KZYX
        needed, share = self.needed(rows), self.share[rows]
        lower, upper = (np.searchsorted(needed, index[rows]) for index in (self.lower, self.upper))
        if axis == 3:
            low, high = _take(x_KZYX, lower, 3), _take(x_KZYX, upper, 3)
            return torch.lerp(low, high, torch.from_numpy(share).to(x_KZYX.device))
        # few rows and columns: a product of small matrices is faster than two copies and their mean
        number = np.arange(len(share))
        matrix = np.zeros((len(share), len(needed)), np.float32)
        matrix[number, lower] = 1 - share
        matrix[number, upper] += share
        weights = torch.from_numpy(matrix).to(x_KZYX.device)
        if axis == 2:
            return torch.matmul(weights, x_KZYX)
        return torch.matmul(weights, x_KZYX.flatten(2)).unflatten(2, x_KZYX.shape[2:])


def _take(x_KZYX: Tensor, index: np.ndarray, axis: int) -> Tensor:
    """Copy voxels along one axis; a view where they lie side by side."""
    if (np.diff(index) == 1).all():
        return x_KZYX.narrow(axis, int(index[0]), len(index))
    places = torch.from_numpy(index).to(x_KZYX.device)
    if axis < 3:
        return x_KZYX.index_select(axis, places)
    return x_KZYX.gather(axis, places.expand(*x_KZYX.shape[:3], -1))  # index_select is much slower here on a CPU


@dataclass(frozen=True, eq=False)
class WayBack:
    """The source's grid turned to canonical axes, with the prepared grid laid over it axis by axis."""

    _axes: list[_Axis]
    _prepared: tuple[int, int, int]
    _permutation: tuple[int, int, int]
    _flips: tuple[bool, bool, bool]

    @classmethod
    def between(cls, prepared: Grid, source: Grid) -> "WayBack":
        """The way from a prepared grid to the source that it was made from.

        Raises:
            DataError: If the grids do not belong together.
        """
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
        return cls(axes, prepared.shape, permutation, flips)

    def turned(self, array_IJK: np.ndarray) -> np.ndarray:
        """An array in the source's order, with any leading axes, as a view (Z, Y, X) along its canonical axes."""
        return reorient(array_IJK, np.eye(4), self._permutation, self._flips)[0]

    @torch.inference_mode()
    def blocks(
        self, planes: Iterable[Tensor], scores: Callable[[Tensor], Tensor] = lambda x_FZYX: x_FZYX
    ) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
        """Interpolate scores at the source's voxels; nothing is kept but the planes that are still needed.

        Args:
            planes: What the scores are made of, (F, planes, Y, X), from the first plane of the prepared grid to the
                last, any number at a time.
            scores: (F, Z, Y, X) to (K, Z, Y, X), voxel by voxel. It sees some voxels several times.

        Yields:
            Window of the canonical source, and its scores (K, Z, Y, X), float32. Windows do not overlap; together they
            fill the prepared field of view.
        """
        z = self._axes[0]
        first, done = 0, 0  # plane that `held` begins with; rows of the source that are finished
        held_FZYX: Tensor | None = None
        for new_FZYX in planes:
            assert new_FZYX.shape[2:] == self._prepared[1:], (new_FZYX.shape, self._prepared)
            held_FZYX = new_FZYX if held_FZYX is None else torch.cat([held_FZYX, new_FZYX], dim=1)
            end = first + held_FZYX.shape[1]
            ready = int(np.searchsorted(z.upper, end))  # the first row that needs a later plane
            for rows in self._tiles(done, ready, held_FZYX, scores):
                yield self._window(rows), self._block(rows, held_FZYX, first, scores)
            keep = min(end, int(z.lower[ready])) if ready < len(z.lower) else end
            held_FZYX = held_FZYX[:, keep - first :].clone() if keep < end else None
            first, done = keep, ready
        assert first == self._prepared[0], (first, self._prepared)

    def _tiles(
        self, start: int, stop: int, held_FZYX: Tensor, scores: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[slice, slice, slice]]:
        """Rows of each axis's list, from start to stop along z, so few at a time that their scores are a block."""
        _, y, x = self._axes
        if start == stop or not len(y.lower) or not len(x.lower):
            return
        outputs = len(scores(held_FZYX[:, :1, :1, :1]))
        lines = max(1, _BLOCK[held_FZYX.device.type] // (outputs * len(x.lower)))
        depth = min(stop - start, math.isqrt(lines))  # about square: few voxels are shared with the next tile
        for first_z in range(start, stop, depth):
            for first_y in range(0, len(y.lower), lines // depth):
                yield (
                    slice(first_z, min(first_z + depth, stop)),
                    slice(first_y, min(first_y + lines // depth, len(y.lower))),
                    slice(0, len(x.lower)),
                )

    def _window(self, rows: tuple[slice, slice, slice]) -> tuple[slice, slice, slice]:
        z, y, x = (slice(a.start + r.start, a.start + r.stop) for a, r in zip(self._axes, rows, strict=True))
        return z, y, x

    def _block(
        self, rows: tuple[slice, slice, slice], held_FZYX: Tensor, first: int, scores: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Scores of the source's voxels in these rows, float32."""
        block = held_FZYX
        for axis, (a, r) in enumerate(zip(self._axes, rows, strict=True)):
            needed = a.needed(r) - (first if axis == 0 else 0)
            block = _take(block, needed, axis + 1)
        block = scores(block).float()
        for axis in (2, 0, 1):  # the costliest per voxel first, while there are few
            block = self._axes[axis].interpolate(block, axis + 1, rows[axis])
        return block
