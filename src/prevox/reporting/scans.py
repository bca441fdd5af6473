"""The files of an evaluated case, read in canonical orientation and as the eye wants them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prevox.data.geometry import canonical_axes, reorient, spacing_of
from prevox.data.readers import is_picture, read_image
from prevox.errors import DataError


@dataclass(frozen=True)
class CaseFiles:
    """Where a case lies, as evaluation/cases.csv says.

    Attributes:
        image: None where the evaluation does not know the scan.
    """

    prediction: Path
    reference: Path
    image: Path | None


@dataclass(frozen=True, eq=False)
class Scan:
    """A case's image and masks on one grid, (Z, Y, X): z runs up, y to the front, x to the subject's right.

    Attributes:
        predictions: Label map of each run.
        spacing: In mm, (z, y, x).
    """

    image: np.ndarray
    reference: np.ndarray
    predictions: dict[str, np.ndarray]
    spacing: tuple[float, float, float]


def read_scan(case: str, files: Mapping[str, CaseFiles]) -> Scan:
    """Read a case of which one or several runs have a prediction.

    Args:
        case: Id, for messages.
        files: Of each run; at least one.

    Returns:
        The case; its image is zero where no run's evaluation knows the scan.

    Raises:
        DataError: If a file is missing or cannot be read, or the grids differ.
    """
    some = next(iter(files.values()))
    image = next((own.image for own in files.values() if own.image is not None), None)
    reference, affine = _canonical(some.reference, mask=True)
    voxels = np.zeros(reference.shape, np.uint8) if image is None else _canonical(image)[0]
    predictions = {run: _canonical(own.prediction, mask=True)[0] for run, own in files.items()}
    for name, array in {"image": voxels, **predictions}.items():
        if array.shape != reference.shape:
            raise DataError(
                f"case {case}",
                found=f"shape {array.shape} of {name} and {reference.shape} of the reference",
                expected="image, reference and predictions on one grid",
            )
    return Scan(voxels, reference, predictions, spacing_of(affine))


def _canonical(path: Path, mask: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """First channel of a file, (Z, Y, X), and its affine; of a picture, x runs to the left."""
    found = read_image(path)
    if mask and found.header.channels > 1:
        raise DataError(path, found=f"{found.header.channels} volumes", expected="one label map, to show it")
    axes = canonical_axes(found.header.affine, found.header.shape_ijk)
    array_CZYX, affine = reorient(found.array_CIJK[:1], found.header.affine, *axes)
    # shown with the subject's right on the left; a picture does not say where that is, and is shown as it is
    return array_CZYX[0, :, :, ::-1] if is_picture(path) else array_CZYX[0], affine
