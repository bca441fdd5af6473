"""Which cases are shown, and the one slice of each that needs no script: image, reference and prediction."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from prevox.errors import DataError
from prevox.reporting.folders import Run
from prevox.reporting.scans import read_scan


@dataclass(frozen=True, eq=False)
class Overlay:
    """One axial slice of a case; rows run from posterior to anterior, columns from left to right of the subject.

    Attributes:
        rank: Why the case is shown.
        score: Its mean Dice.
        aspect: Height of a voxel divided by its width.
        volumes: For every label value: reference and predicted volume of the whole case in ml.
    """

    rank: str
    image: str
    score: float
    image_YX: np.ndarray
    reference_YX: np.ndarray
    prediction_YX: np.ndarray
    aspect: float
    slice_number: int
    slices: int
    volumes: dict[int, tuple[float, float]]


def choose(dice: pd.Series) -> list[tuple[str, str]]:
    """Best, median and worst case by mean Dice; the same case is not chosen twice.

    Args:
        dice: Mean Dice by image.

    Returns:
        (rank, image), at most three.
    """
    order = dice.dropna().sort_values(ascending=False, kind="stable").index.tolist()
    chosen: dict[str, str] = {}
    for rank, place in (("best", 0), ("worst", len(order) - 1), ("median", len(order) // 2)):
        if order and order[place] not in chosen.values():
            chosen[rank] = order[place]
    return [(rank, chosen[rank]) for rank in ("best", "median", "worst") if rank in chosen]


def overlays(run: Run, dice: pd.Series) -> tuple[list[Overlay], list[str]]:
    """Overlays of a run's best, median and worst case.

    Args:
        run: An evaluated run.
        dice: Mean Dice by image.

    Returns:
        The overlays, and one sentence for every case whose files cannot be shown (moved, say).
    """
    shown, problems = [], []
    for rank, case in choose(dice[dice.index.isin(list(run.files))]):
        try:
            shown.append(_overlay(rank, case, float(dice[case]), run))
        except DataError as error:
            problems.append(f"Case {case} cannot be shown. {error}")
    return shown, problems


def _overlay(rank: str, case: str, score: float, run: Run) -> Overlay:
    scan = read_scan(case, {run.name: run.files[case]})
    reference, prediction = scan.reference, scan.predictions[run.name]
    area_Z = (reference > 0).sum(axis=(1, 2))
    z = int(np.argmax(area_Z if area_Z.any() else (prediction > 0).sum(axis=(1, 2))))
    _, height, width = scan.spacing
    millilitres = float(np.prod(scan.spacing)) / 1000
    values = np.union1d(np.unique(reference), np.unique(prediction)).astype(int)
    volumes = {
        int(v): (float((reference == v).sum() * millilitres), float((prediction == v).sum() * millilitres))
        for v in values
        if v > 0
    }
    return Overlay(
        rank, case, score, scan.image[z], reference[z], prediction[z], height / width, z + 1, len(reference), volumes
    )  # fmt: skip
