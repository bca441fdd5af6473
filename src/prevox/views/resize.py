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

_ROWS = 32  # target samples that are computed at a time


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
        x_CDHW: What was read.
        window: First and last edge of the box along z y x, in samples of `x_CDHW`: (0, n) is the whole of an axis of n
            samples, from edge to edge.
        size: Samples wanted along z y x.

    Returns:
        (C, *size), of the type of `x_CDHW`.
    """
    axes = []
    for axis, ((low, high), targets) in enumerate(zip(window, size, strict=True)):
        step = (high - low) / targets
        axes.append((targets / x_CDHW.shape[1 + axis], axis, low + step / 2 - 0.5, step, targets))
    for _, axis, first, step, targets in sorted(axes):  # what shrinks most goes first: less is left for the others
        samples = x_CDHW.shape[1 + axis]
        if samples == targets and step == 1 and first == 0:
            continue
        x_CDHW = _along(axis_weights(samples, first, step, targets), x_CDHW, 1 + axis)
    return x_CDHW


def _along(weights_TS: Tensor, x: Tensor, axis: int) -> Tensor:
    """Multiply one axis by the weights, a few rows at a time: of the samples, a row needs only those near its own."""
    before, samples, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    x_BSA = x.reshape(before.numel(), samples, after.numel())
    result_BTA = x.new_empty(len(x_BSA), len(weights_TS), x_BSA.shape[2])
    for start in range(0, len(weights_TS), _ROWS):
        rows = weights_TS[start : start + _ROWS]
        used = rows.any(0).nonzero()  # on the CPU: a device is not waited for
        near = slice(int(used[0]), int(used[-1]) + 1)
        taps = rows[:, near].to(x)
        part = (x_BSA[:, near, 0] @ taps.T).unsqueeze(2) if result_BTA.shape[2] == 1 else taps @ x_BSA[:, near]
        result_BTA[:, start : start + _ROWS] = part
    return result_BTA.reshape(*before, len(weights_TS), *after)
