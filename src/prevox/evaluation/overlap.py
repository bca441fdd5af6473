"""Dice of label maps; all classes of a label map from one pass over its voxels.

The joint histogram of (predicted value, reference value) holds everything that overlap needs, so the cost does not grow
with the number of classes, and no class is ever expanded to a volume of its own.

Shape suffixes: none; label maps are (i, j) or (i, j, k) in any axis order, both in the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

VOXELS_AT_ONCE = 1 << 20  # index arithmetic widens to 8 bytes a voxel, so it goes through the volume in pieces


@dataclass(frozen=True)
class Overlap:
    """Voxels of one class in the prediction, in the reference, and in both."""

    prediction: int
    reference: int
    both: int

    @property
    def dice(self) -> float:
        """2 |P ∩ R| / (|P| + |R|); NaN if both are empty (such a case is not counted), 0 if one of them is."""
        total = self.prediction + self.reference
        return 2.0 * self.both / total if total else float("nan")

    @property
    def empty(self) -> str:
        """What is empty: "both", "prediction", "reference", or "" for neither."""
        if self.prediction == 0:
            return "both" if self.reference == 0 else "prediction"
        return "reference" if self.reference == 0 else ""


def overlap(
    prediction: np.ndarray, reference: np.ndarray, regions: Mapping[str, tuple[int, ...]]
) -> dict[str, Overlap]:
    """Overlap of every class or region of two label maps, in one pass.

    Args:
        prediction: Label map of non-negative integers.
        reference: Label map on the same grid.
        regions: Label values that belong to each class; values may be shared between regions (WT, TC, ET).

    Returns:
        One `Overlap` for each region, in the given order.

    Raises:
        ValueError: If the shapes differ.
    """
    _same_shape(prediction, reference)
    values = sorted({value for members in regions.values() for value in members})
    row = {value: index + 1 for index, value in enumerate(values)}  # row 0: everything that no region names
    counts = joint_histogram(prediction, reference, values)
    result = {}
    for name, members in regions.items():
        rows = [row[value] for value in dict.fromkeys(members)]
        result[name] = Overlap(
            prediction=int(counts[rows].sum()),
            reference=int(counts[:, rows].sum()),
            both=int(counts[np.ix_(rows, rows)].sum()),
        )
    return result


def joint_histogram(prediction: np.ndarray, reference: np.ndarray, values: list[int]) -> np.ndarray:
    """Count voxels by (predicted value, reference value).

    Args:
        prediction: Label map of non-negative integers.
        reference: Label map of the same shape.
        values: Label values of interest, each of them once.

    Returns:
        (n + 1, n + 1) int64; row and column 1 + i belong to values[i], 0 to all other values.
    """
    size = len(values) + 1
    rows, columns = _row_of(prediction, values) * size, _row_of(reference, values)
    # walk in the files' order in memory (NIfTI: first axis fastest), lest ravel makes copies
    if reference.flags.f_contiguous:
        prediction, reference = prediction.T, reference.T
    p, r = prediction.ravel(), reference.ravel()
    counts = np.zeros(size * size, dtype=np.int64)
    for start in range(0, p.size, VOXELS_AT_ONCE):
        piece = slice(start, start + VOXELS_AT_ONCE)
        counts += np.bincount(rows[p[piece]] + columns[r[piece]], minlength=size * size)
    return counts.reshape(size, size)


def _row_of(labels: np.ndarray, values: list[int]) -> np.ndarray:
    """Lookup table from label value to its row in the joint histogram."""
    table = np.zeros(max([int(labels.max(initial=0)), *values]) + 1, dtype=np.intp)
    table[values] = np.arange(1, len(values) + 1)
    return table


def _same_shape(prediction: np.ndarray, reference: np.ndarray) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; they must be equal")
