"""Intensity transforms that treat each channel of a view by itself, as nnU-Net's do: brightness, contrast, gamma.

Parameters are drawn first and applied after, as in `prevox.views.spatial`; here they have one row per view and one
column per channel. Statistics are taken over the valid voxels of a channel. Padding stays 0; labels are never touched.

What the transforms do follows batchgeneratorsv2 (MIC-DKFZ, Apache-2.0), on which nnU-Net v2 trains; written anew. What
is different here stands in docs/reference/augmentation.md.

Shape suffixes: B views, C channels, P channels that are changed (of all views), K numbers per channel, D H W voxels
along z y x (D is absent in 2D).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from prevox.views.intensity import FLOOR, column, deviation, limits, mean
from prevox.views.spatial import Params, Triple


@dataclass(frozen=True)
class Brightness:
    """Multiply each channel by a factor of its own.

    Args:
        probability: Of changing a view, then all its channels.
        channels: Of the views.
        factors: Range; one half of the factors lies below 1, the other above.
    """

    probability: float
    channels: int
    factors: tuple[float, float] = (0.75, 1.25)
    name = "brightness"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `applied` (B, C) and `factor` (B, C)."""
        applied_BC, u_BC1 = draw(num_views, self.channels, 1, self.probability, generator)
        return {"applied": applied_BC, "factor": around_one(u_BC1[:, :, 0], self.factors)}

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Scale the channels that drew it."""
        return on_channels(lambda x, valid, p: x * column(p["factor"], x), x_BCDHW, label_B1DHW, valid_B1DHW, params)


@dataclass(frozen=True)
class Contrast:
    """Stretch each channel about its mean by a factor of its own; what leaves the channel's range is set to its ends.

    Args:
        probability: Of changing a view, then all its channels.
        channels: Of the views.
        factors: Range; one half of the factors lies below 1, the other above.
    """

    probability: float
    channels: int
    factors: tuple[float, float] = (0.75, 1.25)
    name = "contrast"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `applied` (B, C) and `factor` (B, C)."""
        applied_BC, u_BC1 = draw(num_views, self.channels, 1, self.probability, generator)
        return {"applied": applied_BC, "factor": around_one(u_BC1[:, :, 0], self.factors)}

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Stretch the channels that drew it."""

        def effect(x: Tensor, valid: Tensor, p: Params) -> Tensor:
            middle = mean(x, valid)
            return (middle + (x - middle) * column(p["factor"], x)).clamp(*limits(x, valid))

        return on_channels(effect, x_BCDHW, label_B1DHW, valid_B1DHW, params)


@dataclass(frozen=True)
class GammaRetained:
    """Bend each channel over its own range by an exponent of its own, then give it its mean and deviation back.

    Args:
        probability: Of changing a view, then all its channels.
        channels: Of the views.
        inverted: Bend the negated image, so that the bright end is stretched instead of the dark one, or the other
            way round.
        exponents: Range; one half of the exponents lies below 1, the other above.
    """

    probability: float
    channels: int
    inverted: bool = False
    exponents: tuple[float, float] = (0.7, 1.5)

    @property
    def name(self) -> str:
        """Key of the parameters; a set may hold both kinds."""
        return "gamma_inverted" if self.inverted else "gamma_retained"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `applied` (B, C) and `exponent` (B, C)."""
        applied_BC, u_BC1 = draw(num_views, self.channels, 1, self.probability, generator)
        return {"applied": applied_BC, "exponent": around_one(u_BC1[:, :, 0], self.exponents)}

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Bend the channels that drew it."""

        def effect(x: Tensor, valid: Tensor, p: Params) -> Tensor:
            x = -x if self.inverted else x
            low, high = limits(x, valid)
            share = ((x - low) / (high - low).clamp_min(FLOOR)).clamp(0, 1)
            bent = low + share ** column(p["exponent"], x) * (high - low)
            factor = deviation(x, valid) / deviation(bent, valid).clamp_min(FLOOR)
            bent = (bent - mean(bent, valid)) * factor + mean(x, valid)
            return -bent if self.inverted else bent

        return on_channels(effect, x_BCDHW, label_B1DHW, valid_B1DHW, params)


def draw(
    num_views: int, channels: int, numbers: int, probability: float, generator: Generator, per_channel: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw which channels are changed, and numbers for all of them.

    Args:
        num_views: B.
        channels: C.
        numbers: K, wanted for each channel.
        probability: Of changing a view.
        generator: On the CPU.
        per_channel: Of changing a channel of a view that is changed.

    Returns:
        (B, C), True where a channel is changed; and (B, C, K), uniform in [0, 1).
    """
    u_B1 = torch.rand(num_views, 1, generator=generator)
    u_BCK = torch.rand(num_views, channels, 1 + numbers, generator=generator)
    return (u_B1 < probability) & (u_BCK[:, :, 0] < per_channel), u_BCK[:, :, 1:]


def around_one(u: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Numbers within `bounds`, from uniform ones: below 1 and above with equal chance, uniform on each side."""
    low, high = bounds
    return torch.where(u < 0.5, low + (1 - low) * 2 * u, 1 + (high - 1) * (2 * u - 1))


def on_channels(
    effect: Callable[[Tensor, Tensor, Params], Tensor],
    x_BCDHW: Tensor,
    label_B1DHW: Tensor | None,
    valid_B1DHW: Tensor,
    params: Params,
) -> Triple:
    """Apply `effect` to the channels that drew it; the very same tensor comes back if none did.

    Args:
        effect: Gets the channels as views of one channel each (P, 1, D, H, W), their validity, and parameters with
            one row for each.
        x_BCDHW: Voxels.
        label_B1DHW: Handed on as they are.
        valid_B1DHW: Handed on as it is.
        params: `applied` (B, C), and others whose first axes are B and C.

    Returns:
        Voxels, labels, validity.
    """
    view, channel = params["applied"].nonzero().unbind(1)
    if not len(view):
        return x_BCDHW, label_B1DHW, valid_B1DHW
    there = (view.to(x_BCDHW.device), channel.to(x_BCDHW.device))
    valid_P1DHW = valid_B1DHW[there[0]]
    own = {name: values[view, channel] for name, values in params.items()}
    changed_P1DHW = effect(x_BCDHW[there].unsqueeze(1), valid_P1DHW, own)
    changed_P1DHW = torch.where(valid_P1DHW, changed_P1DHW, 0.0)
    return x_BCDHW.index_put(there, changed_P1DHW.squeeze(1)), label_B1DHW, valid_B1DHW
