"""Picture of an S3D step.

Shape suffixes: D H W voxels (D is absent in 2D), C channels.
"""

import numpy as np
import torch
from torch import Tensor

from prevox.task import Picture

NOTE = (
    "Reconstruction: hidden blocks are predicted, visible ones are shown as they are in the image. All panels share "
    "their grey scale."
)


def reconstruction_picture(x_DHWC: Tensor, hidden_DHW1: Tensor, prediction_DHWC: Tensor) -> Picture:
    """Middle slice (first channel) of one view: original, masked input, reconstruction."""

    def panel(image_DHWC: Tensor) -> np.ndarray:
        image = image_DHWC[..., 0].detach().float()
        return (image[image.shape[0] // 2] if image.ndim == 3 else image).cpu().numpy()

    masked = torch.where(hidden_DHW1, x_DHWC.min(), x_DHWC)
    reconstruction = torch.where(hidden_DHW1, prediction_DHWC.to(x_DHWC.dtype), x_DHWC)
    panels = [("original", panel(x_DHWC)), ("masked input", panel(masked)), ("reconstruction", panel(reconstruction))]
    return Picture(panels, NOTE, scales=(0, 0, 0))
