"""Dice of two masks."""

from dataclasses import dataclass

import numpy as np


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


def overlap(prediction: np.ndarray, reference: np.ndarray) -> Overlap:
    """Count the voxels of two boolean masks.

    Args:
        prediction: Mask.
        reference: Mask of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; they must be equal")
    return Overlap(*(int(np.count_nonzero(mask)) for mask in (prediction, reference, prediction & reference)))
