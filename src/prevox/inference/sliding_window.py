"""Whole images through a network that was trained on windows.

Overlapping windows are averaged with Gaussian weights (sigma = window / 8, as nnU-Net and MONAI use). The weights are
a product of one profile per axis and the windows lie on a product of starts per axis, so the sum of weights at a voxel
is a product as well: no weight volume is kept, one buffer of outputs is all that grows with the image.

Shape suffixes: C channels, K outputs, D H W voxels along z y x.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

SIGMA = 1 / 8
FLOOR = 1e-3  # smallest weight along an axis, so that a voxel seen only from a window's edge keeps its value


def profile(size: int) -> Tensor:
    """Gaussian weights of a window along one axis, 1 in the middle, at least 1e-3 everywhere; float32 (size,)."""
    distance = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.exp(-0.5 * (distance / (SIGMA * size)).square()).clamp(min=FLOOR).float()


def starts(extent: int, size: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis; the last window is shifted back to end with the image."""
    step = max(1, int(size * (1 - overlap)))
    last = extent - size
    return [*range(0, last, step), last]


def sliding_window(
    network: Callable[[Tensor], Tensor],
    x_1CDHW: Tensor,
    size: tuple[int, ...],
    overlap: float,
    batch: int,
    outputs: int,
    device: torch.device | str,
) -> Tensor:
    """Average the network's outputs (logits, as nnU-Net does) over overlapping windows.

    Args:
        network: (B, C, *size) to (B, outputs, *size); in evaluation mode.
        x_1CDHW: One normalised image. The buffer of outputs is kept on its device.
        size: Voxels of the window along z y x; two numbers (y x) run a 2D network slice by slice.
        overlap: Share by which neighbouring windows overlap, in [0, 1).
        batch: Windows per forward pass.
        outputs: Channels of the network's result.
        device: Where the network is.

    Returns:
        Outputs of every voxel (outputs, D, H, W), float32. An image smaller than the window is padded with 0 on both
        sides for the network, and the result is cut back.
    """
    window = (1,) * (3 - len(size)) + tuple(size)
    image, inside = _pad(x_1CDHW[0], window)
    extent = image.shape[1:]
    profiles = [profile(side) for side in window]
    weights = (profiles[0][:, None, None] * profiles[1][:, None] * profiles[2]).to(image.device)
    total = torch.zeros(outputs, *extent, device=image.device)
    grid = [starts(length, side, overlap) for length, side in zip(extent, window, strict=True)]
    with torch.inference_mode():
        for group in _groups(itertools.product(*grid), batch):
            boxes = [tuple(slice(s, s + side) for s, side in zip(start, window, strict=True)) for start in group]
            x = torch.stack([image[:, *box] for box in boxes]).to(device)
            y = network(x if len(size) == 3 else x[:, :, 0]).to(image.device, torch.float32)
            for box, scores in zip(boxes, y if len(size) == 3 else y[:, :, None], strict=True):
                total[:, *box].addcmul_(scores, weights)
        for axis, (axis_starts, weight) in enumerate(zip(grid, profiles, strict=True)):
            total /= _summed(axis_starts, weight, extent[axis]).to(image.device).reshape([-1] + [1] * (2 - axis))
    return total[:, *inside]


def _pad(image_CDHW: Tensor, window: tuple[int, ...]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad to at least the window, the image in the middle; also where the image lies in the result."""
    shape = image_CDHW.shape[1:]
    missing = [max(0, side - length) for side, length in zip(window, shape, strict=True)]
    before = [m // 2 for m in missing]
    inside = tuple(slice(b, b + length) for b, length in zip(before, shape, strict=True))
    if not any(missing):
        return image_CDHW, inside
    flat = [n for b, m in zip(reversed(before), reversed(missing), strict=True) for n in (b, m - b)]
    return functional.pad(image_CDHW, flat), inside


def _summed(axis_starts: list[int], weight: Tensor, extent: int) -> Tensor:
    """Sum of the windows' weights along one axis, (extent,)."""
    total = torch.zeros(extent)
    for start in axis_starts:
        total[start : start + len(weight)] += weight
    return total


def _groups(items: Iterator[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    while group := list(itertools.islice(items, size)):
        yield group
