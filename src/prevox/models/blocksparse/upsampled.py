"""A convolution of an upsampled map, computed on the map before it is upsampled.

A transposed convolution whose kernel is its stride t, and a convolution behind it, are together one linear map: an
output site reads k neighbours along an axis, which stem from fewer sites of the small map (3 neighbours from 2 sites at
t = 2). So one convolution of the small map, with kernel m and t outputs per axis for each output, gives the same in
16 instead of 29 multiply-adds at k = 3, t = 2 and halved channels, and the upsampled map is never stored.

Along an axis, with reach r = (k − 1) / 2: output site t·j + p − r, for p in 0 … t − 1, reads upsampled sites
t·j + p − 2r to t·j + p, which stem from sites j − m + 1 to j of the small map, where m = 1 + ceil(2r / t).

Shape suffixes: B images, D H W sites, C channels, F outputs, G channels of the upsampled map.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from prevox.models.blocksparse.ops import channels_first, channels_last

Up = nn.ConvTranspose2d | nn.ConvTranspose3d
_CONV: dict[int, Any] = {2: functional.conv2d, 3: functional.conv3d}


def composing_pays(batch: int, size: Sequence[int], up: Up, kernel: Sequence[int]) -> bool:
    """Whether the one convolution takes fewer multiply-adds than the two, its weights included.

    Args:
        batch: Number of images.
        size: Sites of the small map.
        up: Transposed convolution.
        kernel: Of the convolution behind it, which is taken to have as many outputs as it reads upsampled channels.
    """
    channels, features = up.weight.shape[:2]
    widths = [_width(k, t) for k, t in zip(kernel, up.stride, strict=True)]
    scale = math.prod(up.stride)
    two = batch * math.prod(size) * scale * (channels + math.prod(kernel) * features) * features
    sites = math.prod(n + m - 1 for n, m in zip(size, widths, strict=True))
    one = batch * sites * math.prod(widths) * channels * scale * features
    return one + math.prod(kernel) * scale * features * features * channels < two


def convolve_upsampled(x_BDHWC: Tensor, up: Up, weight: Tensor) -> Tensor:
    """The convolution of a map that is upsampled first, without either bias.

    Args:
        x_BDHWC: The small map.
        up: Transposed convolution whose kernel is its stride t.
        weight: (F, G, *k) of a convolution of stride 1, padding (k − 1) / 2 and odd k.

    Returns:
        (B, *size · t, F).
    """
    batch, *size, _ = x_BDHWC.shape
    kernel, stride, outputs = weight.shape[2:], up.stride, len(weight)
    widths = [_width(k, t) for k, t in zip(kernel, stride, strict=True)]
    composed = _composed(up.weight, weight, stride)
    padding: Any = tuple(m - 1 for m in widths)
    y_BCDHW = _CONV[len(size)](channels_first(x_BDHWC), composed, padding=padding)
    places = y_BCDHW.shape[2:]
    y = channels_last(y_BCDHW).view(batch, *places, *stride, outputs)
    axes = len(size)
    y = y.permute(0, *(axis for i in range(axes) for axis in (1 + i, 1 + axes + i)), 1 + 2 * axes)
    y_BDHWC = y.reshape(batch, *(n * t for n, t in zip(places, stride, strict=True)), outputs)
    cropped: Tensor = _Crop.apply(y_BDHWC, [k // 2 for k in kernel], [n * t for n, t in zip(size, stride, strict=True)])
    return cropped


class _Crop(torch.autograd.Function):
    """A part of each image; slices would fill and copy the gradient once an axis."""

    @staticmethod
    def forward(ctx: Any, x_BDHWC: Tensor, first: Sequence[int], size: Sequence[int]) -> Tensor:
        behind = [whole - a - n for whole, a, n in zip(x_BDHWC.shape[1:-1], first, size, strict=True)]
        ctx.margins = [m for pair in zip(reversed(first), reversed(behind), strict=True) for m in pair]
        return x_BDHWC[(slice(None), *(slice(a, a + n) for a, n in zip(first, size, strict=True)))]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BDHWC: Tensor) -> tuple[Tensor, None, None]:
        return functional.pad(grad_BDHWC, (0, 0, *ctx.margins)), None, None


def _width(kernel: int, stride: int) -> int:
    """Sites of the small map that an output reads along an axis."""
    return 1 + math.ceil((kernel - 1) / stride)


def _composed(up: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """Weights of the one convolution: (t outputs per axis · F, C, *m).

    Args:
        up: (C, G, *t).
        weight: (F, G, *k).
        stride: t.
    """
    (features, middle), channels = weight.shape[:2], len(up)
    kernel, widths = weight.shape[2:], [_width(k, t) for k, t in zip(weight.shape[2:], stride, strict=True)]
    with torch.autocast(up.device.type, enabled=False):  # rounded once, by the convolution, not twice
        taps = weight.movedim((0, 1), (-2, -1)).reshape(-1, middle)  # (*k · F, G)
        sites = up.movedim((0, 1), (-1, -2)).reshape(-1, middle, channels)  # (*t, G, C)
        pairs = torch.matmul(taps, sites).view(-1, features, channels)  # (*t · *k, F, C)
        index = _outputs_and_inputs(kernel, stride, widths).to(pairs.device)
        summed = pairs.new_zeros(math.prod(stride) * math.prod(widths), features, channels).index_add(0, index, pairs)
    by_output = summed.view(math.prod(stride), -1, features, channels).transpose(1, 2)  # (*t, F, *m, C)
    return by_output.reshape(-1, *widths, channels).movedim(-1, 1)


def _outputs_and_inputs(kernel: Sequence[int], stride: Sequence[int], widths: Sequence[int]) -> Tensor:
    """Which output, and which of the sites that it reads, each pair of upsampled site and tap belongs to.

    Returns:
        Place of the output within its t · place of the site within its m, flat, for (*t, *k) pairs.
    """
    axes = len(kernel)
    output = read = torch.zeros((1,) * (2 * axes), dtype=torch.int64)
    for axis, (k, t, m) in enumerate(zip(kernel, stride, widths, strict=True)):
        site_T1, tap_K = torch.arange(t)[:, None], torch.arange(k)
        p_TK = (site_T1 - tap_K + k - 1) % t
        o_TK = torch.div(p_TK + tap_K - (k - 1), t, rounding_mode="floor") + m - 1
        shape = [t if i == axis else k if i == axes + axis else 1 for i in range(2 * axes)]
        output, read = output * t + p_TK.view(shape), read * m + o_TK.view(shape)
    return (output * math.prod(widths) + read).flatten()
