"""The decoder of a residual encoder U-Net on maps whose masked sites all hold one token.

Such a map is a constant plus a difference that is 0 outside the visible blocks, and a convolution of a constant is
known from a map of a few sites. So what a densifying convolution adds to a map, and what a map adds to the first
convolution of its decoder stage, is computed on the visible blocks alone, each with the margin that its kernels reach
into: by linearity, the full convolution of each block is added where it lies. Only the upsampled half of that
convolution is dense. Wherever blocks are so small that their margins outweigh this, the plain way is taken; both give
the same result.

Shape suffixes: B images, R rows, D H W sites, C channels, A axes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from prevox.models.blocksparse.layout import Layout, whole
from prevox.models.blocksparse.ops import channels_first, channels_last, normalise, upsample
from prevox.models.blocksparse.upsampled import Up, composing_pays, convolve_upsampled
from prevox.models.resenc.network import SLOPE, Decoder

Conv = nn.Conv2d | nn.Conv3d
_CONV: dict[int, Any] = {2: functional.conv2d, 3: functional.conv3d}


@dataclass(frozen=True)
class FilledMap:
    """A stage's map: visible blocks, one token per masked site, and a convolution over both.

    Attributes:
        rows_RDHWC: Visible blocks; 0 in padding.
        layout: Of the rows.
        token_C: What masked sites hold, and padding too; None for 0.
        conv: Densifying convolution; None for none.
    """

    rows_RDHWC: Tensor
    layout: Layout
    token_C: Tensor | None = None
    conv: Conv | None = None

    def dense(self) -> Tensor:
        """The whole map after the convolution: (B, *size, C)."""
        layout, rows_RDHWC = self.layout, self.rows_RDHWC
        if self.token_C is not None and layout.active_RDHW1 is not None:
            rows_RDHWC = rows_RDHWC + (1 - layout.active_RDHW1.to(rows_RDHWC.dtype)) * self.token_C
        x_BDHWC = layout.scatter(rows_RDHWC, self.token_C)
        return x_BDHWC if self.conv is None else channels_last(self.conv(channels_first(x_BDHWC)))

    def joined(self, below_BDHWC: Tensor, up: Up, conv: Conv) -> Tensor:
        """The convolution `conv` of this map behind the upsampled one (concatenated channels), the cheapest way.

        Args:
            below_BDHWC: Map of the stage below.
            up: Upsamples it; its outputs are the first inputs of the convolution.
            conv: Odd kernel, stride 1.
        """
        if not self._blocks_pay(conv):
            both_BDHWC = torch.cat([upsample(below_BDHWC, up), self.dense()], dim=-1)
            return channels_last(conv(channels_first(both_BDHWC)))
        channels = up.weight.shape[1]
        first, second = conv.weight[:, :channels], conv.weight[:, channels:]
        composed = composing_pays(len(below_BDHWC), below_BDHWC.shape[1:-1], up, conv.kernel_size)
        if composed:
            y_BDHWC = convolve_upsampled(below_BDHWC, up, first)
        else:
            y_BDHWC = _convolve(upsample(below_BDHWC, up), first, _reach(first))
        constant_DHWC = self._constant(up.bias if composed else None, conv)
        joined_BDHWC: Tensor = _AddBlocks.apply(y_BDHWC, constant_DHWC, *self._differences(second))
        return joined_BDHWC

    def _blocks_pay(self, conv: Conv) -> bool:
        """Whether blocks with margins take fewer multiply-adds than the whole map; only that, so that it is exact."""
        kernels = [*([self.conv.kernel_size] if self.conv is not None else []), conv.kernel_size]
        side, blocks, dense = list(self.layout.side), 0, 0
        for kernel in kernels:
            side = [b + k - 1 for b, k in zip(side, kernel, strict=True)]
            blocks += self.layout.visible_BK.numel() * math.prod(side) * math.prod(kernel)
            dense += self.layout.batch * math.prod(self.layout.size) * math.prod(kernel)
        return blocks < dense

    def _constant(self, up_bias: Tensor | None, conv: Conv) -> Tensor | None:
        """What a map of nothing but tokens, behind an upsampled one of nothing but its bias, is convolved to.

        Beyond the kernels' reach from the border it is the same everywhere, so a map of twice the reach and one site
        knows all its values.

        Returns:
            (*size, outputs), or (outputs,) where both maps are 0.
        """
        kernels = [conv.weight] if self.conv is None else [conv.weight, self.conv.weight]
        reach = [sum(axis) for axis in zip(*map(_reach, kernels), strict=True)]
        small = [min(n, 2 * r + 1) for n, r in zip(self.layout.size, reach, strict=True)]
        channels, parts = conv.weight.shape[1] - self.rows_RDHWC.shape[-1], []
        if up_bias is not None:
            parts.append((_everywhere(up_bias, small), conv.weight[:, :channels]))
        if self.conv is not None:  # even a map of zeros becomes its bias
            token_C = self.rows_RDHWC.new_zeros(self.rows_RDHWC.shape[-1]) if self.token_C is None else self.token_C
            parts.append((self.conv(_everywhere(token_C, small)), conv.weight[:, channels:]))
        elif self.token_C is not None:
            parts.append((_everywhere(self.token_C, small), conv.weight[:, channels:]))
        if not parts:
            return conv.bias
        maps, weights = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
        y_DHWC = _CONV[len(small)](maps, weights, conv.bias, padding=_reach(conv.weight))[0].movedim(0, -1)
        for axis, (n, m, r) in enumerate(zip(self.layout.size, small, reach, strict=True)):
            if m < n:
                first, middle, last = y_DHWC.split([r, 1, r], axis)
                counts = [n - m + 1 if i == axis else -1 for i in range(y_DHWC.ndim)]
                y_DHWC = torch.cat([first, middle.expand(counts), last], axis)
        return y_DHWC

    def _differences(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What visible blocks add to a map of nothing but tokens, with margins, and the first site of each block."""
        rows_RDHWC, layout, corners_RA = self.rows_RDHWC, self.layout, self.layout.corners_RA
        if self.token_C is not None:
            rows_RDHWC = rows_RDHWC - self.token_C
            if layout.active_RDHW1 is not None:
                rows_RDHWC = rows_RDHWC * layout.active_RDHW1.to(rows_RDHWC.dtype)
        if self.conv is not None:
            rows_RDHWC = _full(rows_RDHWC, self.conv.weight)
            corners_RA = corners_RA - torch.tensor(_reach(self.conv.weight))
            rows_RDHWC = rows_RDHWC * _inside(corners_RA, rows_RDHWC.shape[1:-1], layout.size).to(rows_RDHWC)
        return _full(rows_RDHWC, weight), corners_RA - torch.tensor(_reach(weight))


class _AddBlocks(torch.autograd.Function):
    """Images plus a constant map, plus blocks where they lie; what falls outside is dropped, what overlaps adds up."""

    @staticmethod
    def forward(
        ctx: Any, x_BDHWC: Tensor, constant_DHWC: Tensor | None, rows_RDHWC: Tensor, corners_RA: Tensor
    ) -> Tensor:
        ctx.places, ctx.shape = _places(corners_RA, rows_RDHWC.shape[1:-1], x_BDHWC.shape), rows_RDHWC.shape
        ctx.constant = None if constant_DHWC is None else (constant_DHWC.shape, constant_DHWC.dtype)
        y_BDHWC = x_BDHWC.clone() if constant_DHWC is None else x_BDHWC + constant_DHWC.to(x_BDHWC.dtype)
        for row_DHWC, (target, source) in zip(rows_RDHWC, ctx.places, strict=True):
            y_BDHWC[target] += row_DHWC[source]
        return y_BDHWC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BDHWC: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        rows_RDHWC = grad_BDHWC.new_zeros(ctx.shape)
        for row_DHWC, (target, source) in zip(rows_RDHWC, ctx.places, strict=True):
            row_DHWC[source] = grad_BDHWC[target]
        if not ctx.needs_input_grad[1]:
            return grad_BDHWC, None, rows_RDHWC, None
        shape, dtype = ctx.constant
        return grad_BDHWC, grad_BDHWC.sum_to_size(shape).to(dtype), rows_RDHWC, None


def decode(decoder: Decoder, maps: Sequence[FilledMap]) -> Tensor:
    """The output at full resolution.

    Args:
        decoder: Of a residual encoder U-Net.
        maps: Of each stage, finest first.

    Returns:
        (B, *size, outputs).
    """
    x_BDHWC = maps[-1].dense()
    ups: Any = decoder.transpconvs
    stages: Any = decoder.stages
    for up, stage, skip in zip(ups, stages, reversed(maps[:-1]), strict=True):
        everywhere = whole(len(x_BDHWC), skip.layout.size, x_BDHWC.device)
        for i, unit in enumerate(stage.convs):
            conv: Any = unit.conv
            x_BDHWC = skip.joined(x_BDHWC, up, conv) if i == 0 else channels_last(conv(channels_first(x_BDHWC)))
            x_BDHWC = normalise(x_BDHWC, unit.norm, everywhere, SLOPE)
    head: Any = decoder.seg_layers[-1]
    return functional.linear(x_BDHWC, head.weight.flatten(1), head.bias)


def _reach(weight: Tensor) -> tuple[int, ...]:
    return tuple(k // 2 for k in weight.shape[2:])


def _everywhere(value_C: Tensor, size: Sequence[int]) -> Tensor:
    return value_C.view(1, -1, *(1,) * len(size)).expand(-1, -1, *size)


def _convolve(x_BDHWC: Tensor, weight: Tensor, padding: Any) -> Tensor:
    return channels_last(_CONV[weight.ndim - 2](channels_first(x_BDHWC), weight, padding=padding))


def _full(rows_RDHWC: Tensor, weight: Tensor) -> Tensor:
    """Every output site that a block reaches: (R, *side, C) to (R, *side + k − 1, outputs)."""
    return _convolve(rows_RDHWC, weight, tuple(k - 1 for k in weight.shape[2:]))


def _inside(corners_RA: Tensor, side: Sequence[int], size: Sequence[int]) -> Tensor:
    """True where a site of a block lies inside the image: (R, *side, 1)."""
    inside = torch.ones(len(corners_RA), *(1,) * len(side), 1, dtype=torch.bool)
    for axis, (b, n) in enumerate(zip(side, size, strict=True)):
        place_Rb = corners_RA[:, axis, None] + torch.arange(b)
        shape = [len(corners_RA), *(1,) * len(side), 1]
        shape[1 + axis] = b
        inside = inside & ((place_Rb >= 0) & (place_Rb < n)).view(shape)
    return inside


def _places(
    corners_RA: Tensor, side: Sequence[int], shape: Sequence[int]
) -> list[tuple[tuple[Any, ...], tuple[slice, ...]]]:
    """For each block: the part of its image that it covers, and the part of the block that lies inside."""
    places = []
    per_image = len(corners_RA) // shape[0]
    for row, corner in enumerate(corners_RA.tolist()):
        first = [max(c, 0) for c in corner]
        last = [min(c + b, n) for c, b, n in zip(corner, side, shape[1:-1], strict=True)]
        target = tuple(slice(a, z) for a, z in zip(first, last, strict=True))
        source = tuple(slice(a - c, z - c) for a, z, c in zip(first, last, corner, strict=True))
        places.append(((row // per_image, *target), source))
    return places
