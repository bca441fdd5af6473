"""Pictures of a masked autoencoder's step that show what the loss sees, and say what is not predicted."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from prevox.models.vit import unpatchify
from prevox.task import Picture

RAW_NOTE = "Prediction: masked patches are predicted, visible ones are shown as they are in the image."
NORMALISED_NOTE = (
    "The loss sees the two panels in the middle: each masked patch standardised by its own mean and deviation; visible "
    "patches are left blank. The last panel multiplies the prediction by the true deviation of each masked patch and "
    "adds its true mean. The network does not predict these two, they are taken from the image, so this panel looks "
    "better than the prediction is: judge by the panels in the middle."
)


def reconstruction_picture(
    image_LP: Tensor,
    masked_M: Tensor,
    target_MP: Tensor,
    prediction_MP: Tensor,
    statistics: tuple[Tensor, Tensor] | None,
    grid: Sequence[int],
    patch: Sequence[int],
) -> Picture:
    """Middle slice (first channel) of one view: original, masked input, target, prediction.

    Args:
        image_LP: The view's patches.
        masked_M: Grid indices of the masked ones.
        target_MP: Target of the loss for the masked patches.
        prediction_MP: Prediction for them.
        statistics: True mean and deviation (M, 1) of the masked patches where the target is normalised by them; None
            for a raw target.
        grid: Patches along each axis.
        patch: Voxels of a patch along each axis.
    """

    def panel(patches_LP: Tensor) -> np.ndarray:
        x = unpatchify(patches_LP.detach().float().unsqueeze(0), grid, patch)[0, 0]
        return (x[x.shape[0] // 2] if x.ndim == 3 else x).cpu().numpy()

    def fill(background_LP: Tensor, masked_MP: Tensor | float) -> np.ndarray:
        patches_LP = background_LP.detach().float().clone()
        patches_LP[masked_M] = masked_MP.detach().float() if isinstance(masked_MP, Tensor) else masked_MP
        return panel(patches_LP)

    panels = [("original", panel(image_LP)), ("masked input", fill(image_LP, float(image_LP.min())))]
    if statistics is None:
        panels += [("target", panel(image_LP)), ("prediction", fill(image_LP, prediction_MP))]
        return Picture(panels, RAW_NOTE, scales=(0, 0, 0, 0))
    mean, deviation = statistics
    blank_LP = image_LP.new_zeros(image_LP.shape)  # 0 is the mean of a normalised target
    panels += [
        ("target of the loss", fill(blank_LP, target_MP)),
        ("prediction", fill(blank_LP, prediction_MP)),
        (
            "prediction with the true patch mean and deviation",
            fill(image_LP, prediction_MP.detach().float() * deviation + mean),
        ),
    ]
    return Picture(panels, NORMALISED_NOTE, scales=(0, 0, 1, 1, 0))
