"""Lesions: connected components of a mask, and which of them the other mask meets.

Matching rule: voxels that touch by a face, an edge or a corner belong to one lesion (26 neighbours; 8 in 2D). A lesion
of the reference is found if at least one of its voxels is predicted. A component of the prediction without a voxel in
the reference is a false positive. So one predicted component may find several lesions, a lesion in several pieces is
found once, and none of its pieces that meet it is false. A single voxel decides: the rule says whether a lesion was
noticed, not how well it was outlined, which is what Dice and surface distances say.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Lesions:
    """Connected components of one class of one case.

    Attributes:
        reference: Lesions of the reference.
        found: Those of them that the prediction meets.
        false_positives: Components of the prediction that meet no lesion.
    """

    reference: int
    found: int
    false_positives: int

    @property
    def sensitivity(self) -> float:
        """Share of the reference's lesions that were found; NaN if it has none (such a case is not counted)."""
        return self.found / self.reference if self.reference else float("nan")


def match_lesions(prediction: np.ndarray, reference: np.ndarray) -> Lesions:
    """Count lesions, found lesions and false positives of two masks.

    Args:
        prediction: Boolean mask, 3D or 2D.
        reference: Boolean mask of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; they must be equal")
    both = prediction & reference
    lesions, found = _components(reference, both)
    predicted, true = _components(prediction, both)
    return Lesions(lesions, found, predicted - true)


def _components(mask: np.ndarray, both: np.ndarray) -> tuple[int, int]:
    """Components of a mask, and how many of them have a voxel in both masks."""
    if mask.size == 0:  # ndimage.label refuses an axis without voxels
        return 0, 0
    parts, number = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return number, int((np.bincount(parts[both], minlength=1) > 0).sum())
