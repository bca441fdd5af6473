"""Resize the box that was read for a view to the view's own size, on the device, without aliasing.

Along each axis a target sample is a weighted mean of the samples read: a triangle as wide as the distance between
target samples, but never narrower than that between read ones. Enlarging, this is linear interpolation; shrinking, it
also smooths (PyTorch's and Pillow's `antialias=True`). The axes are independent, so the whole is three small matrix
products, exact for boxes whose edges fall between the samples of a pyramid level.

Shape suffixes: C channels, D H W samples read, T targets and S samples along one axis.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_TARGETS = 32  # samples along an axis that are computed at a time
_VALUES = 1 << 20  # of the input that are worked on at a time


def axis_weights(samples: int, first: float, step: float, targets: int) -> Tensor:
    """Weights (T, S) of each target sample's mean; rows sum to 1.

    Args:
        samples: Number of samples that were read, S.
        first: Position of the first target sample, in samples (0 is the first one's centre).
        step: Distance between target samples, in samples; above 1 shrinks.
        targets: Number of target samples, T.
    """
    centres_T1 = (first + step * torch.arange(targets, dtype=torch.float64)).clamp(0, samples - 1).unsqueeze(1)
    distance_TS = (torch.arange(samples, dtype=torch.float64) - centres_T1).abs()
    weights_TS = (1 - distance_TS / max(step, 1.0)).clamp(min=0)
    return (weights_TS / weights_TS.sum(1, keepdim=True)).float()


def resize(x_CDHW: Tensor, window: Sequence[tuple[float, float]], size: Sequence[int]) -> Tensor:
    """Sample a box of a volume on a regular grid.

    Args:
        x_CDHW: What was read, of any real type.
        window: First and last edge of the box along z y x, in samples of `x_CDHW`: (0, n) is the whole of an axis of n
            samples, from edge to edge.
        size: Samples wanted along z y x.

    Returns:
        (C, *size), float32.
    """
    channels, depth, height, width = x_CDHW.shape
    z, y, x = (_bands(*axis, x_CDHW.device) for axis in zip(x_CDHW.shape[1:], window, size, strict=True))
    planes_PHW = x_CDHW.reshape(-1, height, width)
    flat_PHW = torch.empty(len(planes_PHW), *size[1:], device=x_CDHW.device)
    some = max(1, _VALUES // (height * width))  # planes that stay in the processor's cache from type to type
    for first in range(0, len(planes_PHW), some):
        part = planes_PHW[first : first + some].float()
        part = _apply(x, part.reshape(-1, width, 1)).reshape(len(part), height, -1)
        flat_PHW[first : first + some] = _apply(y, part)
    return _apply(z, flat_PHW.reshape(channels, depth, -1)).reshape(channels, *size)


_Bands = list[tuple[slice, slice, Tensor]]  # target samples, the samples that they need, and their weights


def _bands(samples: int, edges: tuple[float, float], targets: int, device: torch.device) -> _Bands | None:
    """Weights along one axis, for a few targets at a time the samples near their own only; None changes nothing."""
    low, high = edges
    step = (high - low) / targets
    first = low + step / 2 - 0.5
    if (samples, step, first) == (targets, 1, 0):
        return None
    weights_TS = axis_weights(samples, first, step, targets)
    bands = []
    for start in range(0, targets, _TARGETS):
        weights = weights_TS[start : start + _TARGETS]
        used = weights.any(0).nonzero()
        near = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((slice(start, start + len(weights)), near, weights[:, near].to(device)))
    return bands


def _apply(bands: _Bands | None, x_BSA: Tensor) -> Tensor:
    """Multiply the middle axis by the weights: (B, S, A) to (B, T, A)."""
    if bands is None:
        return x_BSA
    result_BTA = x_BSA.new_empty(len(x_BSA), bands[-1][0].stop, x_BSA.shape[2])
    for targets, near, weights in bands:
        if x_BSA.shape[2] == 1:
            result_BTA[:, targets, 0] = x_BSA[:, near, 0] @ weights.T
        else:
            result_BTA[:, targets] = weights @ x_BSA[:, near]
    return result_BTA
