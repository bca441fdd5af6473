"""Intensity normalisation on the device, from statistics that the store keeps for every image and channel.

Shape suffixes: B views, C channels, D H W voxels along z y x (D is absent in 2D).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prevox.config.data import NormaliseConfig
from prevox.errors import ConfigError

FLOOR = 1e-8  # smallest deviation or range that is divided by: constant images become 0, not NaN
# A store spreads a channel that is not integral over 2^16 - 1 steps of its range, so a zero comes back up to half a
# step off. Values nearer to zero than that were stored as the same number anyway.
ZERO_SHARE = 0.501 / 65535


def normalise(
    x_BCDHW: Tensor,
    statistics: Sequence[Sequence[Mapping[str, float]]],
    settings: NormaliseConfig,
) -> Tensor:
    """Map intensities to the range that networks expect.

    Args:
        x_BCDHW: Voxels in the image's own units, floating point; (B, C, H, W) for 2D.
        statistics: For every view and channel: mean, std, mean_nonzero, std_nonzero, p005, p995, minimum, maximum.
        settings: Kind of normalisation. `zscore_nonzero` leaves background (zeros) at 0, as SelfMedMAE does.

    Returns:
        Normalised voxels of the same shape.

    Raises:
        ConfigError: If the statistics do not belong to this batch (wrong number of views or channels).
    """
    views, channels = x_BCDHW.shape[:2]
    if len(statistics) != views or any(len(per_channel) != channels for per_channel in statistics):
        found = ", ".join(str(len(per_channel)) for per_channel in statistics)
        raise ConfigError(
            f"normalise: statistics of {len(statistics)} views with [{found}] channels; expected {views} views with "
            f"{channels} channels each. Prepare the store again if its images have different numbers of channels."
        )

    def column(key: str) -> Tensor:
        values = [[float(channel[key]) for channel in view] for view in statistics]
        shape = (views, channels, *(1,) * (x_BCDHW.ndim - 2))
        return torch.tensor(values, dtype=x_BCDHW.dtype, device=x_BCDHW.device).view(shape)

    if settings.name == "zscore":
        result = (x_BCDHW - column("mean")) / column("std").clamp_min(FLOOR)
    elif settings.name == "zscore_nonzero":
        tolerance = (column("maximum") - column("minimum")) * ZERO_SHARE
        scored = (x_BCDHW - column("mean_nonzero")) / column("std_nonzero").clamp_min(FLOOR)
        result = torch.where(x_BCDHW.abs() <= tolerance, 0.0, scored)
    elif settings.name == "window":
        assert settings.window is not None, "NormaliseConfig demands a window for this name"
        low, high = settings.window
        result = ((x_BCDHW - low) / (high - low)).clamp(0, 1)
    else:
        low_BC, high_BC = column("p005"), column("p995")
        result = ((x_BCDHW - low_BC) / (high_BC - low_BC).clamp_min(FLOOR)).clamp(0, 1)
    return result
