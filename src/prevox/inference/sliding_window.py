"""Whole images through a network that was trained on windows.

Overlapping windows are averaged with Gaussian weights (sigma = window / 8, as nnU-Net and MONAI use). The weights are
a product of one profile per axis and the windows lie on a product of starts per axis, so the sum of weights at a voxel
is a product as well and no volume of weights is kept. Windows come in the order of their first plane; planes that no
later window reaches are handed on, so the buffer of sums is as deep as a window however deep the image is.

Shape suffixes: B windows, C channels of the image, F channels of the network's result, D H W voxels along z y x, Z Y X
the same in the buffer.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

SIGMA = 1 / 8
FLOOR = 1e-3  # smallest weight along an axis, so that a voxel seen only from a window's edge keeps its value
PIECES = 4  # in which finished planes are handed on, so that little room is needed beside the buffer


def profile(size: int) -> Tensor:
    """Gaussian weights of a window along one axis, 1 in the middle, at least 1e-3 everywhere; float32 (size,)."""
    distance = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.exp(-0.5 * (distance / (SIGMA * size)).square()).clamp(min=FLOOR).float()


def starts(extent: int, size: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis; the last window is shifted back to end with the image."""
    step = max(1, int(size * (1 - overlap)))
    last = extent - size
    return [*range(0, last, step), last]


@torch.inference_mode()
def sliding_window(
    network: Callable[[Tensor], Tensor],
    x_1CDHW: Tensor,
    size: tuple[int, ...],
    overlap: float,
    batch: int,
    device: torch.device | str,
) -> Iterator[Tensor]:
    """Average the network's outputs over overlapping windows: logits, as nnU-Net does, or what a linear head takes.

    Args:
        network: (B, C, *size) to (B, F, *size); in evaluation mode.
        x_1CDHW: One normalised image. The buffer of sums is kept on its device.
        size: Voxels of the window along z y x; two numbers (y x) run a 2D network slice by slice.
        overlap: Share by which neighbouring windows overlap, in [0, 1).
        batch: Windows per forward pass.
        device: Where the network is.

    Yields:
        Averages (F, planes, H, W), float32, a few planes at a time from the first to the last. An image smaller than
        the window is padded with 0 on both sides for the network, and the result is cut back.
    """
    flat = len(size) == 2
    window = (1, *size) if flat else tuple(size)
    image_CDHW, inside = _pad(x_1CDHW[0], window)
    grid = [starts(extent, side, overlap) for extent, side in zip(image_CDHW.shape[1:], window, strict=True)]
    profiles = [profile(side).to(image_CDHW.device) for side in window]
    weights_DHW = profiles[0][:, None, None] * profiles[1][:, None] * profiles[2]
    totals = [_summed(*axis) for axis in zip(grid, profiles, image_CDHW.shape[1:], strict=True)]
    sums: Tensor | None = None  # of the planes from `first` on
    first = 0
    for (z, y, x), output_FDHW in _outputs(network, image_CDHW, grid, window, batch, device, flat):
        if sums is None:
            sums = output_FDHW.new_zeros(len(output_FDHW), window[0], *image_CDHW.shape[2:])
        if z > first:
            yield from _averages(sums[:, : z - first], first, totals, inside)
            _move_up(sums, z - first)
            first = z
        sums[:, :, y : y + window[1], x : x + window[2]].addcmul_(output_FDHW, weights_DHW)
    assert sums is not None
    yield from _averages(sums, first, totals, inside)


def _outputs(
    network: Callable[[Tensor], Tensor],
    image_CDHW: Tensor,
    grid: list[list[int]],
    window: tuple[int, ...],
    batch: int,
    device: torch.device | str,
    flat: bool,
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """First voxel (z, y, x) of each window and what the network makes of it, (F, *window); z never decreases."""
    corners = list(itertools.product(*grid))
    groups = math.ceil(len(corners) / batch)
    for number in range(groups):
        # alike in size: for a single small map torch takes a slow way, so the last window had better not be alone
        group = corners[number * len(corners) // groups : (number + 1) * len(corners) // groups]
        boxes = [tuple(slice(s, s + side) for s, side in zip(corner, window, strict=True)) for corner in group]
        x = torch.stack([image_CDHW[:, *box] for box in boxes]).to(device)
        y = network(x[:, :, 0]).unsqueeze(2) if flat else network(x)
        yield from zip(group, y.to(image_CDHW.device, torch.float32), strict=True)


def _averages(sums_FZYX: Tensor, first: int, totals: list[Tensor], inside: tuple[slice, ...]) -> Iterator[Tensor]:
    """Divide finished sums, which begin at plane `first`, by the weights; padding is left out."""
    planes, rows, columns = inside
    weight_YX = totals[1][rows, None] * totals[2][columns]
    piece = max(1, sums_FZYX.shape[1] // PIECES)
    start, stop = max(first, planes.start), min(first + sums_FZYX.shape[1], planes.stop)
    for z in range(start, stop, piece):
        end = min(z + piece, stop)
        yield sums_FZYX[:, z - first : end - first, rows, columns] / (totals[0][z:end, None, None] * weight_YX)


def _move_up(sums_FZYX: Tensor, count: int) -> None:
    """Let the sums begin `count` planes later; as many at a time, since source and target overlap."""
    for z in range(0, sums_FZYX.shape[1] - count, count):
        kept = sums_FZYX[:, z + count : z + 2 * count]
        sums_FZYX[:, z : z + kept.shape[1]] = kept
    sums_FZYX[:, -count:] = 0


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
    total = weight.new_zeros(extent)
    for start in axis_starts:
        total[start : start + len(weight)] += weight
    return total
