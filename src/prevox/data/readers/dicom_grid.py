"""The grid of a stack of slices: order, affine, tilt; or why the slices are no volume.

Axis letters: I rises along a row (the column's index), J along a column, K from slice to slice along I × J. DICOM's
world is LPS; affines here are RAS.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prevox.data.readers.dicom_header import Frame, Instance

Slice = tuple[Instance, Frame]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ANGLE = 1e-3  # by which numbers of two orientations may differ
_SIZE = 1e-3  # by which two spacings may differ, as a share
_PLACE = 0.01  # mm; positions that are closer are one place
# by which a slice may lie off its place on the regular grid: positions may be rounded to 0.1 mm, while one missing of
# three slices puts the middle one off by half of a distance
_ROUNDED = 0.1  # mm, but not more than
_OFF_GRID = 0.3  # of a slice distance
_TILT = 0.01  # sine of the angle between the stack's direction and the slices' normal, 0.6 degrees


class NoVolume(ValueError):  # noqa: N818  # it is an answer
    """Why slices are no image. Carries no path, so that its words can be shown.

    Args:
        found: What was found.
        expected: What should have been there.
        remedy: What the user can do.
    """

    def __init__(self, found: str, expected: str, remedy: str = "") -> None:
        self.found, self.expected, self.remedy = found, expected, remedy
        super().__init__(f"found {found}; expected {expected}")


@dataclass(frozen=True, eq=False)
class StackGrid:
    """Where the voxels of a stack lie.

    Args:
        slices: In order along K.
        affine: (4, 4), voxel indices to RAS mm; its third column follows a tilt.
        shift_ij: By which each slice is off the one before within its plane, in voxels along I and J: a gantry's tilt.
            Zeros where there is none worth mentioning.
        flags: What is assumed.
    """

    slices: tuple[Slice, ...]
    affine: np.ndarray
    shift_ij: tuple[float, float]
    flags: tuple[str, ...]


def same_plane(a: Slice, b: Slice) -> bool:
    """Whether two slices are of one size and orientation, as those of one volume are."""
    (one, first), (other, second) = a, b
    if (one.rows, one.columns, first.stack) != (other.rows, other.columns, second.stack):
        return False
    return same_orientation(first, second) and _close(first.spacing, second.spacing, _SIZE, relative=True)


def same_orientation(a: Frame, b: Frame) -> bool:
    """Whether two frames are parallel, the same way up."""
    return _close(a.orientation, b.orientation, _ANGLE)


def place_of(frame: Frame) -> tuple[int, ...]:
    """Position as a key: equal for frames at one place."""
    return tuple(round(number / _PLACE) for number in frame.position or ())


def grid_of(slices: Sequence[Slice]) -> StackGrid:
    """Order slices and find their affine.

    Raises:
        NoVolume: If sizes or orientations differ, positions or spacing are not said, or slices are two, at one place,
            missing or irregular.
    """
    _check_alike(slices)
    first, frame = slices[0]
    if frame.spacing is None:
        raise NoVolume(
            "no pixel spacing, or one that makes no sense",
            "the size of a pixel in mm",
            "Nothing is assumed, lest lengths be wrong. Export the series from its source again.",
        )
    if any(other.position is None or other.orientation is None for _, other in slices):
        return _without_place(slices)
    assert frame.orientation is not None
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    normal = np.cross(row, column)
    positions = np.array([frame.position for _, frame in slices])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    ordered = tuple(slices[index] for index in order)
    flags: tuple[str, ...] = ("detector_spacing",) if frame.at_detector else ()
    if len(slices) == 1:
        step = normal * (frame.thickness or 1.0)
        flags += () if frame.thickness else ("no_thickness",)
    else:
        step = _step(positions, positions @ normal)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * frame.spacing[1], column * frame.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    aside = step - (step @ normal) * normal
    shift = (0.0, 0.0)
    if np.linalg.norm(aside) > _TILT * np.linalg.norm(step):
        shift = (float(aside @ row) / frame.spacing[1], float(aside @ column) / frame.spacing[0])
    return StackGrid(ordered, _LPS_TO_RAS @ affine, shift, _inverted(first) + flags)


def _check_alike(slices: Sequence[Slice]) -> None:
    """Check that slices can be of one volume, wherever they lie."""
    orientations: list[Frame] = []
    for _, other in slices:
        if not any(same_orientation(other, seen) for seen in orientations):
            orientations.append(other)
    if len(orientations) > 1:
        raise NoVolume(
            f"{len(slices)} slices in {len(orientations)} orientations",
            "parallel slices, three at least of each orientation",
            "These are single pictures (a localiser, a rotating projection), no volume.",
        )
    if not all(same_plane(other, slices[0]) for other in slices):
        sizes = sorted({f"{one.columns}×{one.rows}" for one, _ in slices})
        raise NoVolume(f"slices of different size ({', '.join(sizes)}) or spacing", "slices of one size and spacing")


def _without_place(slices: Sequence[Slice]) -> StackGrid:
    """A single picture without position: columns to the right, rows downwards, as for PNG."""
    first, frame = slices[0]
    if len(slices) > 1:
        raise NoVolume(
            "several frames without positions: a film, or a volume whose places are not said",
            "Image Position and Image Orientation of each frame",
            "Convert it with a tool that knows this kind of object.",
        )
    assert frame.spacing is not None
    affine = np.diag([frame.spacing[1], -frame.spacing[0], 1.0, 1.0])
    flags = ("no_geometry", "detector_spacing") if frame.at_detector else ("no_geometry",)
    return StackGrid(tuple(slices), affine, (0.0, 0.0), _inverted(first) + flags)


def _inverted(instance: Instance) -> tuple[str, ...]:
    return ("inverted",) if instance.inverted else ()


def _step(positions: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The vector from slice to slice.

    Args:
        positions: (n, 3) in order along the normal.
        places: (n,) along the normal, in mm.
    """
    count = len(places)
    if np.ptp(positions, axis=0).max() < _PLACE:
        raise NoVolume(
            f"all {count} slices at one place",
            "slices side by side",
            "This is a film of one slice (bolus monitoring, cine), no volume.",
        )
    if count == 2:
        raise NoVolume("two slices", "three at least", "Two slices do not show whether any are missing between them.")
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    together = int((gaps < _PLACE).sum())
    if together:
        raise NoVolume(
            f"{together} of {count} slices at the place of another one, and no header that tells them apart",
            "one slice at each place",
            "Export phases, echoes or reconstructions as series of their own.",
        )
    regular = np.linspace(positions[0], positions[-1], count)
    if np.linalg.norm(positions - regular, axis=1).max() > min(max(_ROUNDED, 0.1 * usual), _OFF_GRID * usual):
        widest = int(gaps.argmax())
        if gaps[widest] > 1.5 * usual:
            raise NoVolume(
                f"missing slices: {gaps[widest]:.4g} mm between slices {widest + 1} and {widest + 2} of {count}, "
                f"{usual:.4g} mm between most others",
                "slices at equal distances",
                "Export the series again, whole.",
            )
        raise NoVolume(
            f"irregular slices: {gaps.min():.4g} to {gaps.max():.4g} mm apart, or not in one line",
            "slices at equal distances",
            "Export the series again; if it was acquired like this, resample it with a tool that knows how.",
        )
    return (positions[-1] - positions[0]) / (count - 1)


def _close(a: tuple[float, ...] | None, b: tuple[float, ...] | None, tolerance: float, relative: bool = False) -> bool:
    if a is None or b is None:
        return a is b
    if len(a) != len(b):
        return False
    return all(abs(x - y) <= tolerance * (max(abs(x), abs(y)) if relative else 1.0) for x, y in zip(a, b, strict=True))
