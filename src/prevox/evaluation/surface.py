"""Distances between surfaces in mm, with surface elements weighted by their area: NSD, HD95, ASD.

Definition: that of DeepMind's surface-distance package (package `surface-distance-based-measures`; Nikolov et al. 2018,
arXiv:1809.04430). A surface element sits at the centre of every 2×2×2 cell of voxels that is neither all inside nor all
outside the mask; voxels beyond the volume count as outside. Its area is that of the marching-cubes surface in the cell,
so it does not depend on how a smooth surface happens to cut the grid. The distance of an element is the one to the
nearest element of the other surface. In 2D, cells are 2×2 pixels and areas are lengths.

How the areas come about here. In each cell the minority of the corners (inside or outside, at most four of eight) is
cut off, each connected group of them by one polygon through the midpoints of the cut edges. Few groups exist:

    corners   group                         area vectors of its polygon, as multiples of the cell's face areas
    1         corner                        1/8 (1, 1, 1)
    2         edge along a                  1/2 on both other axes
    3         L in a plane normal to a      1/2 on a, and 3/8 (1, 1, 1)
    4         face normal to a              1 on a
    4         corner with its 3 neighbours  3/4 (1, 1, 1)
    4         chain with steps a, b, c      1/2 (1, 1, 1) through every other midpoint, and an ear of 1/4 on a and b,
                                            and one of 1/4 on b and c

An area vector (x, y, z) stands for the area √((x·A₀)² + (y·A₁)² + (z·A₂)²), A_a being the area of a cell's face normal
to axis a. Signs do not matter to an area, so all groups of one shape are alike and the result knows no axis order.

What differs from the package: distances come from a k-d tree over the elements instead of distance transforms of the
whole box (same values, about ten times faster on organs), and comparisons allow for 1e-9 mm of rounding.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.spatial import cKDTree

ROUNDING = 1e-9  # the order in which squares and areas are added must not decide a comparison


@dataclass(frozen=True)
class SurfaceDistances:
    """Every surface element of a prediction and of a reference: its area and its distance to the other surface.

    If one of the two masks is empty, the other's elements all have the distance `diagonal`.

    Attributes:
        prediction_mm: (n,) distances of the prediction's elements to the reference's surface, mm.
        prediction_area: (n,) their areas, mm² (mm in 2D).
        reference_mm: (m,) distances of the reference's elements to the prediction's surface, mm.
        reference_area: (m,) their areas, mm².
        diagonal: Diagonal of the grid in mm.
    """

    prediction_mm: np.ndarray
    prediction_area: np.ndarray
    reference_mm: np.ndarray
    reference_area: np.ndarray
    diagonal: float


def surface_distances(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    *,
    diagonal: float | None = None,
) -> SurfaceDistances:
    """Find the surface elements of two masks and their distances to each other.

    Args:
        prediction: Boolean mask, 3D or 2D, any axis order.
        reference: Boolean mask of the same shape.
        spacing: Voxel size in mm, in the order of the masks' axes.
        diagonal: Distance in mm that stands in where one mask is empty; none takes the diagonal of the masks' grid.
            Crops need that of the whole grid.

    Raises:
        ValueError: If the masks differ in shape, or number of axes and spacings do not fit.
    """
    step = np.asarray(spacing, dtype=np.float64)
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; they must be equal")
    if prediction.ndim not in (2, 3) or step.shape != (prediction.ndim,) or not (step > 0).all():
        raise ValueError(
            f"masks must be 2D or 3D with one positive spacing per axis; found {prediction.ndim}D, {spacing}"
        )
    if diagonal is None:
        diagonal = grid_diagonal(prediction.shape, step)
    areas = element_areas(step)
    cells_p, area_p = _elements(prediction, areas)
    cells_r, area_r = _elements(reference, areas)
    return SurfaceDistances(
        prediction_mm=_nearest(cells_p, cells_r, step, diagonal),
        prediction_area=area_p,
        reference_mm=_nearest(cells_r, cells_p, step, diagonal),
        reference_area=area_r,
        diagonal=diagonal,
    )


def nsd(distances: SurfaceDistances, tolerance: float) -> float:
    """Normalised surface Dice: the share of both surfaces' area that lies within a tolerance of the other surface.

    Args:
        distances: Result of `surface_distances`.
        tolerance: In mm; an element exactly at the tolerance counts as within.

    Returns:
        A value in [0, 1]; NaN if both masks are empty, 0 if one of them is.
    """
    total = distances.prediction_area.sum() + distances.reference_area.sum()
    if total == 0:
        return float("nan")
    if len(distances.prediction_mm) == 0 or len(distances.reference_mm) == 0:
        return 0.0
    within = distances.prediction_area[distances.prediction_mm <= tolerance + ROUNDING].sum()
    within += distances.reference_area[distances.reference_mm <= tolerance + ROUNDING].sum()
    return float(within / total)


def hd95(distances: SurfaceDistances) -> float:
    """95 % Hausdorff distance in mm: the larger of the two directions' 95th percentiles, elements weighted by area.

    Returns:
        NaN if both masks are empty, the grid's diagonal if one of them is.
    """
    directions = (
        _percentile(distances.prediction_mm, distances.prediction_area, 0.95),
        _percentile(distances.reference_mm, distances.reference_area, 0.95),
    )
    return max((value for value in directions if not np.isnan(value)), default=float("nan"))


def asd(distances: SurfaceDistances) -> float:
    """Average surface distance in mm: the mean over both surfaces' elements together, weighted by area.

    Returns:
        NaN if both masks are empty, the grid's diagonal if one of them is.
    """
    total = distances.prediction_area.sum() + distances.reference_area.sum()
    if total == 0:
        return float("nan")
    weighted = distances.prediction_mm @ distances.prediction_area + distances.reference_mm @ distances.reference_area
    return float(weighted / total)


def grid_diagonal(shape: Sequence[int], spacing: Sequence[float] | np.ndarray) -> float:
    """Length in mm of the diagonal of a grid, from outer voxel edge to outer voxel edge."""
    return float(np.linalg.norm(np.asarray(shape, dtype=np.float64) * np.asarray(spacing, dtype=np.float64)))


def element_areas(spacing: Sequence[float] | np.ndarray) -> np.ndarray:
    """Area of the surface in a cell, for every pattern of its corners.

    Args:
        spacing: Voxel size in mm along the three (or two) axes.

    Returns:
        (256,) areas in mm² ((16,) lengths in mm in 2D). The corner at offset (i, j, k) within the cell contributes bit
        4 (1 - i) + 2 (1 - j) + (1 - k) to the pattern.
    """
    step = np.asarray(spacing, dtype=np.float64)
    faces = step.prod() / step  # a cell's face normal to each axis
    patterns, vectors = _area_vectors(len(step))
    return np.bincount(patterns, weights=np.linalg.norm(vectors * faces, axis=1), minlength=1 << (1 << len(step)))


@cache
def _area_vectors(axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Area vectors of all patterns: (n,) pattern numbers and (n, axes) vectors on a grid of unit spacing."""
    corners = 1 << axes
    patterns: list[int] = []
    vectors: list[np.ndarray] = []
    for pattern in range(1 << corners):
        inside = {corner for corner in range(corners) if pattern >> corner & 1}
        minority = inside if 2 * len(inside) <= corners else set(range(corners)) - inside
        for group in _connected(minority, axes):
            found = _polygon(group, axes)
            patterns += [pattern] * len(found)
            vectors += found
    return np.array(patterns), np.array(vectors)


def _connected(corners: set[int], axes: int) -> list[list[int]]:
    """Groups of corners that hang together along edges of the cell; corner numbers differ in one bit along an edge."""
    left, groups = set(corners), []
    while left:
        group = [left.pop()]
        for corner in group:  # grows while it is walked
            near = left & {corner ^ (1 << axis) for axis in range(axes)}
            left -= near
            group += sorted(near)
        groups.append(group)
    return groups


def _polygon(group: list[int], axes: int) -> list[np.ndarray]:
    """Area vectors of the polygon that cuts a group of corners off its cell (the table in the module's docstring)."""
    ones, unit = np.ones(axes), np.eye(axes)
    edges = [(a, b) for a in group for b in group if a < b and (a ^ b).bit_count() == 1]
    along = [axes - (a ^ b).bit_length() for a, b in edges]  # the last axis owns the lowest bit of a corner's number
    across = ones - unit[sorted(set(along))].sum(axis=0)  # the axes along which the group has no edge
    if len(group) == 1:
        return [ones / (8 if axes == 3 else 2)]
    if axes == 2:
        return [across]
    if len(group) == 2:
        return [across / 2]
    if len(group) == 3:
        return [across / 2, 3 / 8 * ones]
    if len(edges) == 4:
        return [across]
    degree = Counter(corner for edge in edges for corner in edge)
    if max(degree.values()) == 3:
        return [3 / 4 * ones]
    middle = next(axis for (a, b), axis in zip(edges, along, strict=True) if degree[a] == degree[b] == 2)
    return [ones / 2, *((unit[middle] + unit[axis]) / 4 for axis in range(3) if axis != middle)]


def _elements(mask: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells that a mask's surface cuts: (n, axes) integer positions and (n,) areas."""
    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, mask.ndim), dtype=np.intp), np.zeros(0)
    pattern: np.ndarray = np.pad(
        mask[box].astype(np.uint8), 1
    )  # the surface closes around the box: beyond it there is no mask
    for axis in reversed(range(mask.ndim)):  # fold the two neighbours along one axis after the other into one number
        low, high = (_along(axis, part) for part in (slice(None, -1), slice(1, None)))
        pattern = pattern[low] << (1 << (mask.ndim - 1 - axis)) | pattern[high]
    cut = (pattern != 0) & (pattern != len(areas) - 1)
    cells = np.argwhere(cut) + np.array([part.start for part in box])
    return cells, areas[pattern[cut]]


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, part)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Smallest box that holds every True voxel; None if there is none."""
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if len(hits) == 0:
            return None
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def _nearest(cells: np.ndarray, others: np.ndarray, step: np.ndarray, diagonal: float) -> np.ndarray:
    """Distance in mm of every cell to the nearest of the others; the diagonal if there are none."""
    if len(cells) == 0 or len(others) == 0:
        return np.full(len(cells), diagonal)
    distances = np.zeros(len(cells))
    apart = ~_shared(cells, others)  # where both surfaces cut a cell, as good predictions often do, nothing is sought
    # measured: a quick build with large leaves is as good as a balanced tree on near surfaces, and better on far ones
    tree = cKDTree(others * step, leafsize=32, balanced_tree=False, compact_nodes=False)
    _, index = tree.query(cells[apart] * step)
    # from whole numbers of voxels, so that the place of the structure in the volume leaves no rounding behind
    distances[apart] = np.sqrt((((others[index] - cells[apart]) * step) ** 2).sum(axis=1))
    return distances


def _shared(cells: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the cells are among the others."""
    low, high = others.min(axis=0), others.max(axis=0)
    taken = np.zeros(high - low + 1, dtype=bool)
    taken[tuple((others - low).T)] = True
    inside = ((cells >= low) & (cells <= high)).all(axis=1)
    inside[inside] = taken[tuple((cells[inside] - low).T)]
    return inside


def _percentile(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    """Smallest distance within which at least the given share of the area lies; NaN without elements."""
    if len(distances) == 0:
        return float("nan")
    order = np.argsort(distances)
    reached = np.cumsum(areas[order])
    index = np.searchsorted(reached, (share - ROUNDING) * reached[-1])
    return float(distances[order[min(index, len(order) - 1)]])
