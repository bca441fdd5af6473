"""The way back for whole arrays, as tests of geometry want it; `predict` takes it block by block."""

import numpy as np
import torch

from prevox.data.geometry import Grid
from prevox.data.restore import WayBack, best_class


def to_source(scores_KZYX: np.ndarray, prepared: Grid, source: Grid) -> np.ndarray:
    """Bring class scores back to the source's grid and take the best class of each voxel.

    Args:
        scores_KZYX: Scores of K classes on the prepared grid; class 0 is the background.
        prepared: Grid of the scores, made from the source's by `prevox.data.geometry`.
        source: Grid of the source, in its own axis order.

    Returns:
        (I, J, K) class indices in the smallest unsigned type; 0 outside the prepared field of view. Where two classes
        are level, the smaller index wins.

    Raises:
        DataError: If the grids do not belong together.
    """
    way = WayBack.between(prepared, source)
    labels_IJK = np.zeros(source.shape, np.min_scalar_type(max(1, len(scores_KZYX) - 1)))
    labels_ZYX = way.turned(labels_IJK)
    for window, block_KZYX in way.blocks([torch.from_numpy(scores_KZYX)]):
        labels_ZYX[window] = best_class(block_KZYX)
    return labels_IJK


def scores_to_source(scores_RZYX: np.ndarray, prepared: Grid, source: Grid, outside: float = 0.0) -> np.ndarray:
    """Bring scores of regions (or class probabilities) back to the source's grid.

    Args:
        scores_RZYX: Scores on the prepared grid.
        prepared: Grid of the scores, made from the source's by `prevox.data.geometry`.
        source: Grid of the source, in its own axis order.
        outside: Value outside the prepared field of view.

    Returns:
        (R, I, J, K) float32.

    Raises:
        DataError: If the grids do not belong together.
    """
    way = WayBack.between(prepared, source)
    result_RIJK = np.full((len(scores_RZYX), *source.shape), outside, np.float32)
    result_RZYX = way.turned(result_RIJK)
    for window, block_RZYX in way.blocks([torch.from_numpy(scores_RZYX)]):
        result_RZYX[:, *window] = block_RZYX.numpy()
    return result_RIJK
