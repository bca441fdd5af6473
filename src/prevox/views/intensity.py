"""Intensity transforms of whole batches: scale, shift, noise, gamma. Padding stays 0; labels are never touched.

Parameters are drawn first and applied after, as in `prevox.views.spatial`. Statistics ("of the view") are taken over
the view's valid voxels, channel by channel.

Shape suffixes: B views, C channels, D H W voxels along z y x (D is absent in 2D).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from prevox.views.spatial import Params, Triple

FLOOR = 1e-8  # smallest range that is divided by: constant views stay as they are


@dataclass(frozen=True)
class IntensityScale:
    """Multiply by 1 + u, u uniform within ±`limit`."""

    probability: float
    limit: float = 0.1
    name = "intensity_scale"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `applied` (B,) and `factor` (B,)."""
        u_B2 = torch.rand(num_views, 2, generator=generator)
        return {"applied": u_B2[:, 0] < self.probability, "factor": 1 + (2 * u_B2[:, 1] - 1) * self.limit}

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Scale the views that drew it."""
        return _on_drawn(lambda x, valid, p: x * column(p["factor"], x), x_BCDHW, label_B1DHW, valid_B1DHW, params)


@dataclass(frozen=True)
class IntensityShift:
    """Add u standard deviations of the view, u uniform within ±`limit`."""

    probability: float
    limit: float = 0.1
    name = "intensity_shift"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `applied` (B,) and `deviations` (B,)."""
        u_B2 = torch.rand(num_views, 2, generator=generator)
        return {"applied": u_B2[:, 0] < self.probability, "deviations": (2 * u_B2[:, 1] - 1) * self.limit}

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Shift the views that drew it."""

        def effect(x: Tensor, valid: Tensor, p: Params) -> Tensor:
            return x + column(p["deviations"], x) * deviation(x, valid)

        return _on_drawn(effect, x_BCDHW, label_B1DHW, valid_B1DHW, params)


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise with a deviation of up to `limit` standard deviations of the view.

    The noise itself is made on the view's device from a seed that is one of the parameters.
    """

    probability: float
    limit: float = 0.1
    name = "noise"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `applied` (B,), `deviations` (B,) and `seed` (B,)."""
        u_B2 = torch.rand(num_views, 2, generator=generator)
        seed_B = torch.randint(2**62, (num_views,), generator=generator)
        return {"applied": u_B2[:, 0] < self.probability, "deviations": u_B2[:, 1] * self.limit, "seed": seed_B}

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Add noise to the views that drew it."""

        def effect(x: Tensor, valid: Tensor, p: Params) -> Tensor:
            own = [torch.Generator(x.device).manual_seed(seed) for seed in p["seed"].tolist()]
            noise = torch.stack([torch.randn(x.shape[1:], generator=g, device=x.device, dtype=x.dtype) for g in own])
            return x + noise * column(p["deviations"], x) * deviation(x, valid)

        return _on_drawn(effect, x_BCDHW, label_B1DHW, valid_B1DHW, params)


@dataclass(frozen=True)
class Gamma:
    """Bend intensities over the view's own range by an exponent, log-uniform within `exponents`; the ends stay."""

    probability: float
    exponents: tuple[float, float] = (0.7, 1.5)
    name = "gamma"

    def sample_params(self, num_views: int, size: tuple[int, ...], generator: Generator) -> Params:
        """Draw `applied` (B,) and `exponent` (B,)."""
        u_B2 = torch.rand(num_views, 2, generator=generator)
        low, high = (math.log(exponent) for exponent in self.exponents)
        return {"applied": u_B2[:, 0] < self.probability, "exponent": (low + (high - low) * u_B2[:, 1]).exp()}

    def apply(self, x_BCDHW: Tensor, label_B1DHW: Tensor | None, valid_B1DHW: Tensor, params: Params) -> Triple:
        """Bend the views that drew it."""

        def effect(x: Tensor, valid: Tensor, p: Params) -> Tensor:
            low, high = limits(x, valid)
            share = ((x - low) / (high - low).clamp_min(FLOOR)).clamp(0, 1)
            return low + share ** column(p["exponent"], x) * (high - low)

        return _on_drawn(effect, x_BCDHW, label_B1DHW, valid_B1DHW, params)


def deviation(x_BCDHW: Tensor, valid_B1DHW: Tensor) -> Tensor:
    """Standard deviation (divisor N) of each view's channels over valid voxels, (B, C, 1, 1, 1)."""
    axes = tuple(range(2, x_BCDHW.ndim))
    count = valid_B1DHW.sum(axes, keepdim=True).clamp_min(1)
    centred = (x_BCDHW - mean(x_BCDHW, valid_B1DHW)) * valid_B1DHW
    return (centred.square().sum(axes, keepdim=True) / count).sqrt()


def mean(x_BCDHW: Tensor, valid_B1DHW: Tensor) -> Tensor:
    """Mean of each view's channels over valid voxels, (B, C, 1, 1, 1); 0 where there are none."""
    axes = tuple(range(2, x_BCDHW.ndim))
    return (x_BCDHW * valid_B1DHW).sum(axes, keepdim=True) / valid_B1DHW.sum(axes, keepdim=True).clamp_min(1)


def limits(x_BCDHW: Tensor, valid_B1DHW: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest valid value of each view's channels, (B, C, 1, 1, 1) each; infinite where there are none."""
    axes = tuple(range(2, x_BCDHW.ndim))
    low = x_BCDHW.masked_fill(~valid_B1DHW, math.inf).amin(axes, keepdim=True)
    return low, x_BCDHW.masked_fill(~valid_B1DHW, -math.inf).amax(axes, keepdim=True)


def column(values_N: Tensor, like: Tensor) -> Tensor:
    """One number per row, in a shape that goes with whole images."""
    return values_N.to(like).view(-1, *(1,) * (like.ndim - 1))


def _on_drawn(
    effect: Callable[[Tensor, Tensor, Params], Tensor],
    x_BCDHW: Tensor,
    label_B1DHW: Tensor | None,
    valid_B1DHW: Tensor,
    params: Params,
) -> Triple:
    """Apply `effect` to the views that drew it; the very same tensor comes back if none did."""
    rows = params["applied"].nonzero().flatten()
    if len(rows):
        there = rows.to(x_BCDHW.device)
        valid = valid_B1DHW[there]
        changed = effect(x_BCDHW[there], valid, {name: values[rows] for name, values in params.items()})
        x_BCDHW = x_BCDHW.index_copy(0, there, torch.where(valid, changed, 0.0))
    return x_BCDHW, label_B1DHW, valid_B1DHW
