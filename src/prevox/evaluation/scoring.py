"""Scores of one case: read prediction and reference, refuse what does not fit, measure every class in its own box.

Shape suffixes: I J K the file's own axes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from prevox.data.readers import Reading, read_image
from prevox.errors import DataError
from prevox.evaluation.cases import LARGEST_LABEL, Case, Regions
from prevox.evaluation.lesions import Lesions, match_lesions
from prevox.evaluation.overlap import overlap
from prevox.evaluation.surface import asd, grid_diagonal, hd95, nsd, surface_distances

METRICS = ("dice", "hd95", "nsd", "asd", "rvd", "ravd")
LESION_METRICS = ("lesion_sensitivity", "lesion_false_positives")
GRID_TOLERANCE = 0.05  # voxels by which a corner of the grid may be off: headers round, other tools convert them
NAN = float("nan")
SPACING_DIGITS = 6  # headers are float32: a voxel of 1.0000001 mm must not lie beyond a tolerance of 1 mm


@dataclass(frozen=True)
class Score:
    """What is measured of one class of one case; distances in mm, NaN where both masks are empty.

    Attributes:
        dice: Dice coefficient.
        hd95: 95 % Hausdorff distance.
        nsd: Normalised surface Dice.
        asd: Average surface distance.
        reference_voxels: Size of the class in the reference.
        prediction_voxels: Size of the class in the prediction.
        empty: "both", "prediction", "reference", or "" for neither.
        lesions: Connected components, for classes whose lesions are counted.
    """

    dice: float
    hd95: float
    nsd: float
    asd: float
    reference_voxels: int
    prediction_voxels: int
    empty: str
    lesions: Lesions | None = None

    @property
    def rvd(self) -> float:
        """Relative volume difference (P − R) / R, negative where too little is predicted; NaN if R is empty."""
        return self.prediction_voxels / self.reference_voxels - 1 if self.reference_voxels else NAN

    @property
    def ravd(self) -> float:
        """Relative absolute volume difference |P − R| / R; NaN if R is empty."""
        return abs(self.rvd)


def score_of_nothing(lesions: bool) -> Score:
    """Of a class that is empty in both maps; `lesions` says whether its lesions are counted: there are none."""
    return Score(NAN, NAN, NAN, NAN, 0, 0, "both", Lesions(0, 0, 0) if lesions else None)


def score_labels(
    prediction: np.ndarray,
    reference: np.ndarray,
    regions: Regions,
    spacing: Sequence[float] | np.ndarray,
    tolerance: float = 1.0,
    lesions: Collection[str] = (),
) -> dict[str, Score]:
    """Score every class of a label map.

    Args:
        prediction: Label map of non-negative integers, 3D or 2D, any axis order.
        reference: Label map on the same grid.
        regions: Label values of each class, from 1 upwards.
        spacing: Voxel size in mm, in the order of the maps' axes.
        tolerance: Of NSD, in mm.
        lesions: Regions whose connected components are counted, see `prevox.evaluation.lesions`.

    Returns:
        One `Score` for each region, in the given order.

    Raises:
        ValueError: If shapes or numbers of axes do not fit.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; they must be equal")
    highest = max((value for members in regions.values() for value in members), default=1)
    boxes = [ndimage.find_objects(labels, max_label=highest) for labels in (prediction, reference)]
    diagonal = grid_diagonal(prediction.shape, spacing)
    scores = {}
    for name, members in regions.items():
        box = _union([part[value - 1] for part in boxes for value in members])
        mask_p, mask_r = _mask(prediction[box], members), _mask(reference[box], members)
        found = overlap(mask_p, mask_r)
        distances = surface_distances(mask_p, mask_r, spacing, diagonal=diagonal)
        scores[name] = Score(
            dice=found.dice,
            hd95=hd95(distances),
            nsd=nsd(distances, tolerance),
            asd=asd(distances),
            reference_voxels=found.reference,
            prediction_voxels=found.prediction,
            empty=found.empty,
            lesions=match_lesions(mask_p, mask_r) if name in lesions else None,
        )
    return scores


def score_case(case: Case, tolerance: float, lesions: Collection[str] = ()) -> list[dict[str, Any]] | DataError:
    """Score one case: one row per class. A `DataError` is returned, so that the caller can tell all faults at once."""
    try:
        prediction, affine_p = read_labels(case.prediction, case.case, "prediction")
        reference, affine_r = read_labels(case.reference, case.case, "reference", case.reading)
        _check_grids(case, prediction.shape, affine_p, reference.shape, affine_r)
        values = {"prediction": present_values(prediction), "reference": present_values(reference)}
        if case.regions is not None and case.strict:
            for role, found in values.items():
                _check_values(case, role, found)
        regions = case.regions or {str(value): (value,) for value in sorted(values["prediction"] | values["reference"])}
    except DataError as error:
        return error
    spacing = np.array([float(f"{size:.{SPACING_DIGITS}g}") for size in np.linalg.norm(affine_r[:3, :3], axis=0)])
    millilitres = abs(np.linalg.det(affine_r[:3, :3])) / 1000
    flat = tuple(axis for axis, size in enumerate(reference.shape) if size == 1)
    if len(flat) == 1:  # one slice: contours, not the two faces of a slab
        prediction, reference, spacing = prediction.squeeze(flat), reference.squeeze(flat), np.delete(spacing, flat)
    # files are first-axis-fastest; no score depends on the axis order, and C order is what numpy walks best
    scores = score_labels(prediction.T, reference.T, regions, spacing[::-1], tolerance, lesions)
    return [score_row(case, name, score, millilitres, bool(lesions)) for name, score in scores.items()]


def score_row(case: Case, name: str, score: Score, millilitres: float, lesions: bool) -> dict[str, Any]:
    """One row of the table of scores.

    Args:
        case: The case.
        name: The class.
        score: What was measured.
        millilitres: Volume of a voxel.
        lesions: Whether the table has columns for lesions; they are NaN for classes whose lesions are not counted.
    """
    row = {
        "case": case.case,
        "subject": case.subject,
        "dataset": case.dataset,
        "class": name,
        **{metric: getattr(score, metric) for metric in METRICS},
        "reference_ml": score.reference_voxels * millilitres,
        "prediction_ml": score.prediction_voxels * millilitres,
        "empty": score.empty,
    }
    if lesions:
        found = score.lesions
        counts = [found.reference, found.found, found.sensitivity, found.false_positives] if found else [NAN] * 4
        row |= zip(("lesions", "lesions_found", *LESION_METRICS), map(float, counts), strict=True)
    return row


def read_labels(path: Path, case: str, role: str, reading: Reading | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a label map in its file's own axis order.

    Args:
        path: Mask file.
        case: Id, for messages.
        role: "prediction" or "reference", for messages.
        reading: Which volume of it is meant, for example; None is the default.

    Returns:
        (I, J, K) uint8 or uint16, and the affine.

    Raises:
        DataError: If the file cannot be read, has several channels, or values that are not integers of 0 to 65535.
    """
    where = f"case {case}, {role} {path}"
    try:
        image = read_image(path, reading)
    except DataError as error:  # a file's name need not hold the case's id
        raise DataError(where, found=error.found, expected=error.expected, remedy=error.remedy) from error
    if image.header.channels != 1:
        raise DataError(where, found=f"{image.header.channels} channels", expected="one label map")
    array_IJK = image.array_CIJK[0]
    low, high = array_IJK.min(), array_IJK.max()
    whole = array_IJK.dtype.kind in "bui" or bool((np.rint(array_IJK) == array_IJK).all())  # NaN equals nothing
    if not whole:
        example = array_IJK[np.rint(array_IJK) != array_IJK][0]
        raise DataError(
            where,
            found=f"the value {example:g}",
            expected="integer label values",
            remedy="Give a label map, not probabilities or an image; resample labels without interpolation.",
        )
    if low < 0 or high > LARGEST_LABEL:
        raise DataError(where, found=f"values from {low:g} to {high:g}", expected=f"labels of 0 to {LARGEST_LABEL}")
    return array_IJK.astype(np.uint8 if high < 256 else np.uint16, copy=False), image.header.affine


def present_values(labels: np.ndarray) -> set[int]:
    """Label values other than 0 that occur."""
    boxes = ndimage.find_objects(labels.T)  # first axis fastest, as files are
    return {value for value, box in enumerate(boxes, start=1) if box is not None}


def _check_grids(
    case: Case, shape_p: tuple[int, ...], affine_p: np.ndarray, shape_r: tuple[int, ...], affine_r: np.ndarray
) -> None:
    """Both masks must lie on one grid, corner by corner."""
    remedy = "Predictions are scored on the reference's own grid: resample them to it (labels without interpolation)."
    where = f"case {case.case}, prediction {case.prediction}"
    if shape_p != shape_r:
        found = f"{'×'.join(map(str, shape_p))} voxels"
        raise DataError(where, found=found, expected=f"the reference's {'×'.join(map(str, shape_r))}", remedy=remedy)
    corners = np.array(np.meshgrid(*((0, size - 1) for size in shape_r), [1], indexing="ij")).reshape(4, -1)
    off = float(np.linalg.norm((affine_p - affine_r)[:3] @ corners, axis=0).max())
    spacing = np.linalg.norm(affine_r[:3, :3], axis=0)
    if off > GRID_TOLERANCE * spacing.min():
        raise DataError(
            where,
            found=f"a grid whose corners lie up to {off:.3g} mm off the reference's",
            expected=f"the grid of {case.reference} (voxels of {' × '.join(f'{size:.3g}' for size in spacing)} mm)",
            remedy=remedy,
        )


def _check_values(case: Case, role: str, found: set[int]) -> None:
    assert case.regions is not None
    named = {value for members in case.regions.values() for value in members}
    if found - named:
        classes = ", ".join(f"{name} {list(members)}" for name, members in case.regions.items())
        raise DataError(
            f"case {case.case}, {role} {getattr(case, role)}",
            found=f"label values {sorted(found - named)}",
            expected=f"0 and those of the classes {classes}",
            remedy="Say with --regions which values to score; the others then count as background.",
        )


def _mask(labels: np.ndarray, members: tuple[int, ...]) -> np.ndarray:
    return labels == members[0] if len(members) == 1 else np.isin(labels, members)


def _union(boxes: list[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    """Smallest box around several; without any, an empty one at the origin."""
    given = [box for box in boxes if box is not None]
    if not given:
        return (slice(0, 0),)
    return tuple(slice(min(p.start for p in parts), max(p.stop for p in parts)) for parts in zip(*given, strict=True))
