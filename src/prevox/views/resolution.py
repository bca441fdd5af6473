"""Transforms that take away detail, channel by channel: Gaussian blur and low resolution.

Both take means of neighbouring voxels. Validity is averaged in the same way and divided by, so that only valid voxels
count: padding and the view's own border pull nothing towards 0. Padding stays 0; labels are never touched.

What the transforms do follows batchgeneratorsv2 (MIC-DKFZ, Apache-2.0), on which nnU-Net v2 trains; written anew. What
is different here stands in docs/reference/augmentation.md.

Shape suffixes: B views, C channels, A spatial axes, P channels that are changed (of all views), D H W voxels along
z y x (D is absent in 2D).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation
from torch import Generator, Tensor

from prevox.views.channelwise import draw, on_channels
from prevox.views.spatial import Params, Triple

RADIUS = 3  # voxels on each side that a blur looks at: three deviations of the widest one
LEAST = 1e-6  # share of a mean that must be valid


@dataclass(frozen=True)
class Blur:
    """Blur each channel that draws it with a Gaussian of its own for each axis, cut off after `RADIUS` voxels.

    Args:
        probability: Of changing a view.
        channels: Of the views.
        sigmas: Range of the Gaussian's deviation in voxels, uniform.
        per_channel: Probability of changing a channel of a view that is changed.
    """

    probability: float
    channels: int
    sigmas: tuple[float, float] = (0.5, 1.0)
    per_channel: float = 0.5
    name = "blur"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `applied` (B, C) and `sigma` (B, C, A) in voxels."""
        applied_BC, u_BCA = draw(num_views, self.channels, len(size), self.probability, generator, self.per_channel)
        low, high = self.sigmas
        return {"applied": applied_BC, "sigma": low + (high - low) * u_BCA}

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Blur the channels that drew it."""

        def effect(x: Tensor, valid: Tensor, p: Params) -> Tensor:
            weight = valid.to(x.dtype)
            both = torch.cat([x * weight, weight], dim=1)
            for axis, sigma_P in enumerate(p["sigma"].unbind(1)):
                both = convolve(both, gaussian(sigma_P), 2 + axis)
            return both[:, :1] / both[:, 1:].clamp_min(LEAST)

        return on_channels(effect, x_BCDHW, label_B1DHW, valid_B1DHW, params)


@dataclass(frozen=True)
class LowResolution:
    """Keep only the nearest voxel of a coarser grid, and interpolate linearly back from it.

    Args:
        probability: Of changing a view.
        channels: Of the views.
        zooms: Range of the coarser grid's samples as a share of the view's voxels along each axis, uniform; the same
            share for all axes.
        in_plane: Leave z as it is.
        per_channel: Probability of changing a channel of a view that is changed.
    """

    probability: float
    channels: int
    zooms: tuple[float, float] = (0.5, 1.0)
    in_plane: bool = False
    per_channel: float = 0.5
    name = "low_resolution"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `applied` (B, C) and `zoom` (B, C)."""
        applied_BC, u_BC1 = draw(num_views, self.channels, 1, self.probability, generator, self.per_channel)
        low, high = self.zooms
        return {"applied": applied_BC, "zoom": low + (high - low) * u_BC1[:, :, 0]}

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Coarsen the channels that drew it."""

        def effect(x: Tensor, valid: Tensor, p: Params) -> Tensor:
            weight = valid.to(x.dtype)
            both = torch.cat([x * weight, weight], dim=1)
            # Each channel has a coarse grid of another size, so they go one by one.
            rows = [self._coarsen(both[row : row + 1], zoom) for row, zoom in enumerate(p["zoom"].tolist())]
            total, share = torch.cat(rows).split(1, dim=1)
            # A thin strip of valid voxels may fall between the samples of the coarse grid; it stays as it is.
            return torch.where(share > LEAST, total / share.clamp_min(LEAST), x)

        return on_channels(effect, x_BCDHW, label_B1DHW, valid_B1DHW, params)

    def _coarsen(self, both_12DHW: Tensor, zoom: float) -> Tensor:
        size = both_12DHW.shape[2:]
        kept = len(size) - 2 if self.in_plane else 0
        coarse = [n if axis < kept else max(1, round(n * zoom)) for axis, n in enumerate(size)]
        sampled = F.interpolate(both_12DHW, coarse, mode="nearest-exact")
        return F.interpolate(sampled, size, mode="trilinear" if len(size) == 3 else "bilinear", align_corners=False)


def gaussian(sigma_P: Tensor) -> Tensor:
    """Weights at distances 0 to `RADIUS` from a Gaussian's middle, (P, RADIUS + 1); both sides together sum to 1."""
    distance = torch.arange(RADIUS + 1, dtype=sigma_P.dtype)
    weights = torch.exp(-0.5 * (distance / sigma_P[:, None]).square())
    return weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1])


def convolve(x_PCDHW: Tensor, weights_PR: Tensor, axis: int) -> Tensor:
    """Convolve along one axis with a symmetric kernel per row; outside lies 0.

    Args:
        x_PCDHW: Rows, each with channels that share the kernel.
        weights_PR: Weight at each distance from the middle, 0 first.
        axis: Of `x_PCDHW`.
    """
    length = x_PCDHW.shape[axis]
    weights_RP1 = weights_PR.to(x_PCDHW).T.reshape(-1, len(x_PCDHW), *(1,) * (x_PCDHW.ndim - 1))
    result = x_PCDHW * weights_RP1[0]
    for distance, weight_P1 in enumerate(weights_RP1[1:length], start=1):
        rest = length - distance
        result.narrow(axis, distance, rest).addcmul_(x_PCDHW.narrow(axis, 0, rest), weight_P1)
        result.narrow(axis, 0, rest).addcmul_(x_PCDHW.narrow(axis, distance, rest), weight_P1)
    return result
