"""Slices of best, median and worst case: image, reference and prediction in canonical orientation."""

import json
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prevox.data.geometry import canonical_axes, reorient, spacing_of
from prevox.data.readers import is_picture, read_image
from prevox.errors import DataError
from prevox.reporting.folders import Run


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
        run: A run with predictions.
        dice: Mean Dice by image.

    Returns:
        The overlays, and one sentence for every case whose files cannot be shown (moved, say).
    """
    if run.predictions.empty:
        return [], []
    files = {str(row["image"]): row for row in run.predictions.to_dict("records")}
    shown, problems = [], []
    for rank, image in choose(dice[dice.index.isin(list(files))]):
        try:
            shown.append(_overlay(rank, image, float(dice[image]), files[image], run.path / "predictions"))
        except DataError as error:
            problems.append(f"Case {image} cannot be shown. {error}")
    return shown, problems


def _overlay(rank: str, image: str, score: float, row: dict[Hashable, Any], folder: Path) -> Overlay:
    prediction, affine = _canonical(_locate(folder, row["file"]))
    if not row.get("label"):
        raise DataError(image, found="no reference in predictions.csv", expected="a label path")
    reference, _ = _canonical(_locate(folder, row["label"]))
    voxels, _ = _canonical(_locate(folder, first_path(row["source"])))
    if not voxels.shape == reference.shape == prediction.shape:
        shapes = f"shapes {voxels.shape}, {reference.shape} and {prediction.shape}"
        raise DataError(image, found=shapes, expected="image, reference and prediction on one grid")
    area_Z = (reference > 0).sum(axis=(1, 2))
    z = int(np.argmax(area_Z if area_Z.any() else (prediction > 0).sum(axis=(1, 2))))
    _, height, width = spacing_of(affine)
    millilitres = float(np.prod(spacing_of(affine))) / 1000
    values = np.union1d(np.unique(reference), np.unique(prediction)).astype(int)
    volumes = {
        int(v): (float((reference == v).sum() * millilitres), float((prediction == v).sum() * millilitres))
        for v in values
        if v > 0
    }
    return Overlay(
        rank, image, score, voxels[z], reference[z], prediction[z], height / width, z + 1, len(voxels), volumes
    )  # fmt: skip


def first_path(source: str) -> str:
    """First channel's file of a `source` cell: a JSON list of paths; anything else is a path itself."""
    try:
        paths = json.loads(source)
    except ValueError:
        return source
    return paths[0] if isinstance(paths, list) and paths and isinstance(paths[0], str) else source


def _locate(folder: Path, path: str) -> Path:
    """A path of predictions.csv: absolute, beside the table, or as it was given on the command line."""
    return folder / path if (folder / path).is_file() else Path(path)


def _canonical(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """First channel of a file, (Z, Y, X), and its affine; of a picture, x runs to the left."""
    found = read_image(path)
    axes = canonical_axes(found.header.affine, found.header.shape_ijk)
    array_CZYX, affine = reorient(found.array_CIJK[:1], found.header.affine, *axes)
    # shown with the subject's right on the left; a picture does not say where that is, and is shown as it is
    return array_CZYX[0, :, :, ::-1] if is_picture(path) else array_CZYX[0], affine
