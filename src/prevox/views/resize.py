"""Resize the box that was read for a view to the view's own size, on the device, without aliasing.

Along each axis a target sample is a weighted mean of the samples read: a triangle as wide as the distance between
target samples, but never narrower than that between read ones. Enlarging, this is linear interpolation; shrinking, it
also smooths (PyTorch's and Pillow's `antialias=True`). The axes are independent, so the whole is three small matrix
products, exact for boxes whose edges fall between the samples of a pyramid level.

Shape suffixes: C channels, D H W samples read, T targets and S samples along one axis.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_TARGETS = 16  # samples along an axis that a processor computes at a time: few of the weights between are zero then
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
    for part_PHW, result_PHW in zip(planes_PHW.split(some), flat_PHW.split(some), strict=True):
        rows_BW = _along_last(x, part_PHW.float().reshape(-1, width), size[2])
        _along_middle(y, rows_BW.view(len(part_PHW), height, -1), result_PHW)
    result_CDA = torch.empty(channels, size[0], size[1] * size[2], device=x_CDHW.device)
    _along_middle(z, flat_PHW.view(channels, depth, -1), result_CDA)
    return result_CDA.view(channels, *size)


_Bands = list[tuple[slice, slice, Tensor]]  # target samples, the samples that they need, and their weights


def _bands(samples: int, edges: tuple[float, float], targets: int, device: torch.device) -> _Bands:
    """Weights along one axis, for a few targets at a time the samples near their own only."""
    low, high = edges
    step = (high - low) / targets
    first = low + step / 2 - 0.5
    weights_TS = axis_weights(samples, first, step, targets).to(device)
    count = _TARGETS if device.type == "cpu" else targets  # a GPU rather has few large products
    bands = []
    for start in range(0, targets, count):
        stop = min(start + count, targets)
        lowest, highest = (min(max(first + step * t, 0.0), samples - 1.0) for t in (start, stop - 1))
        reach = max(step, 1.0)
        near = slice(max(0, math.floor(lowest - reach)), min(samples, math.ceil(highest + reach) + 1))
        bands.append((slice(start, stop), near, weights_TS[start:stop, near]))
    return bands


def _along_last(bands: _Bands, x_BS: Tensor, targets: int) -> Tensor:
    """Multiply the last axis by the weights: (B, S) to (B, T)."""
    result_BT = x_BS.new_empty(len(x_BS), targets)
    for some, near, weights in bands:
        torch.mm(x_BS[:, near], weights.T, out=result_BT[:, some])
    return result_BT


def _along_middle(bands: _Bands, x_BSA: Tensor, result_BTA: Tensor) -> None:
    """Multiply the middle axis by the weights: (B, S, A) into (B, T, A)."""
    for some, near, weights in bands:
        if len(x_BSA) == 1:
            torch.mm(weights, x_BSA[0, near], out=result_BTA[0, some])
        else:
            result_BTA[:, some] = weights @ x_BSA[:, near]
