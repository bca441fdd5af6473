"""Convolution, norm and pooling on rows of visible blocks; equal to the dense operation, masked before and after.

A masked site holds 0, so a convolution needs only the visible blocks, each widened by what its kernel reads beyond it:
sites of visible neighbours, 0 elsewhere. Output site o of a block reads input sites o·t − p to o·t − p + k − 1 for
kernel k, stride t and padding p = (k − 1) / 2, so p sites are added before the block and k − t − p (or none) behind it.

Shape suffixes: R rows, D H W sites of a block, C channels, B images, N sites of an image's rows.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from prevox.errors import ConfigError
from prevox.models.blocksparse.layout import Halo, Layout

_CONV: dict[int, Any] = {2: functional.conv2d, 3: functional.conv3d}
_POOL: dict[int, Any] = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


class _Widen(torch.autograd.Function):
    """Rows with their halo. The gradient of the halo flows back to the rows that it was read from."""

    @staticmethod
    def forward(ctx: Any, rows_RDHWC: Tensor, halo: Halo) -> Tensor:
        widths = [w for pair in zip(reversed(halo.low), reversed(halo.high), strict=True) for w in pair]
        wide = functional.pad(rows_RDHWC, (0, 0, *widths))
        channels = rows_RDHWC.shape[-1]
        read = rows_RDHWC.reshape(-1, channels).index_select(0, halo.source)
        wide.view(-1, channels).index_copy_(0, halo.target, read)
        ctx.halo, ctx.side = halo, rows_RDHWC.shape[1:-1]
        return wide

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        halo, channels = ctx.halo, grad.shape[-1]
        grad = grad.contiguous()
        own = grad[(slice(None), *(slice(lo, lo + b) for lo, b in zip(halo.low, ctx.side, strict=True)))].contiguous()
        own.view(-1, channels).index_add_(0, halo.source, grad.view(-1, channels).index_select(0, halo.target))
        return own, None


def channels_first(x_RDHWC: Tensor) -> Tensor:
    """A view with the channels second, whose memory stays channels-last."""
    return x_RDHWC.movedim(-1, 1)


def channels_last(x_RCDHW: Tensor) -> Tensor:
    """Channels last and contiguous, without a copy where memory is so already."""
    return x_RCDHW.movedim(1, -1).contiguous()


def convolve(rows_RDHWC: Tensor, conv: nn.Module, layout: Layout) -> Tensor:
    """The convolution of masked images at the visible blocks.

    Args:
        rows_RDHWC: Visible blocks; padding holds 0.
        conv: `nn.Conv2d` or `nn.Conv3d` with odd kernels, padding (k − 1) / 2 and strides that divide the block.
        layout: Of the rows.

    Returns:
        (R, *side / stride, outputs). Sites in padding hold whatever they see; a norm drops them.
    """
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    weight, bias, axes = conv.weight, conv.bias, len(layout.side)
    if conv.groups == 1 and all(k == 1 for k in conv.kernel_size) and all(t == 1 for t in conv.stride):
        return functional.linear(rows_RDHWC, weight.flatten(1), bias)
    low = tuple((k - 1) // 2 for k in conv.kernel_size)
    high = tuple(max(k - t - p, 0) for k, t, p in zip(conv.kernel_size, conv.stride, low, strict=True))
    padding: Any = (0,) * axes
    halo = layout.halo(low, high)
    if len(halo.source) == 0:  # no two blocks touch: the halo is nothing but zeros
        weight, padding = _taps_that_see(weight, layout.side, conv.stride, low)
    else:
        rows_RDHWC = _Widen.apply(rows_RDHWC, halo)
    sites = len(rows_RDHWC) * math.prod(b // t for b, t in zip(layout.side, conv.stride, strict=True))
    if conv.groups == 1 and 4 * sites <= len(weight):
        return _product(rows_RDHWC, weight, bias, conv.stride, padding)
    return channels_last(
        _CONV[axes](channels_first(rows_RDHWC), weight, bias, conv.stride, padding, groups=conv.groups)
    )


def _taps_that_see(
    weight: Tensor, side: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """A kernel without the taps that see nothing of a block that lies alone, and what is left of the padding."""
    first = [max(p - (b - t), 0) for p, b, t in zip(padding, side, stride, strict=True)]
    taps: Any = (..., *(slice(a, p + b) for a, p, b in zip(first, padding, side, strict=True)))
    return weight[taps], tuple(p - a for p, a in zip(padding, first, strict=True))


def _product(
    rows_RDHWC: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A convolution as one matrix product over what each site reads: faster where sites are few and weights many."""
    axes = len(stride)
    read = functional.pad(rows_RDHWC, (0, 0, *(p for width in reversed(padding) for p in (width, width))))
    for axis, (k, t) in enumerate(zip(weight.shape[2:], stride, strict=True)):
        read = read.unfold(1 + axis, k, t)
    read = read.movedim(1 + axes, -1).flatten(1 + axes)  # (R, *side / stride, *k · C)
    return functional.linear(read, weight.movedim(1, -1).flatten(1), bias)


def normalise(rows_RDHWC: Tensor, norm: nn.Module, layout: Layout, slope: float | None = None) -> Tensor:
    """Instance norm over each image's visible and valid sites; sites in padding become 0.

    Args:
        rows_RDHWC: Visible blocks.
        norm: Affine instance norm.
        layout: Of the rows.
        slope: Of a leaky ReLU that follows; None for none.

    Raises:
        ConfigError: If the norm is not an affine instance norm.
    """
    check_norm(norm)
    assert isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d)
    batch, channels = layout.batch, rows_RDHWC.shape[-1]
    x_BNC = rows_RDHWC.view(batch, -1, channels)
    if layout.active_RDHW1 is None:
        y_BNC = _Norm.apply(x_BNC, norm.weight, norm.bias, norm.eps, slope)
        return y_BNC.view(rows_RDHWC.shape)
    weight_BN1 = layout.active_RDHW1.view(batch, -1, 1).to(rows_RDHWC.dtype)
    count_B11 = weight_BN1.sum(1, keepdim=True).clamp(min=1)
    mean_B1C = (x_BNC * weight_BN1).sum(1, keepdim=True) / count_B11
    centred_BNC = (x_BNC - mean_B1C) * weight_BN1
    var_B1C = centred_BNC.square().sum(1, keepdim=True) / count_B11
    y_BNC = centred_BNC * ((var_B1C + norm.eps).rsqrt() * norm.weight) + norm.bias * weight_BN1
    y_BNC = y_BNC if slope is None else functional.leaky_relu(y_BNC, slope)
    return y_BNC.view(rows_RDHWC.shape)


class _Norm(torch.autograd.Function):
    """Instance norm of channels-last rows, and the leaky ReLU behind it, keeping only input and output.

    Torch's own ways either copy channels-last memory (instance_norm) or are inexact on it (group_norm: 0.06 off for a
    mean of 30 deviations over 262 144 sites in float32), so only the kernels of batch norm are used, image by image.
    """

    @staticmethod
    def forward(ctx: Any, x_BNC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float, slope: float | None) -> Tensor:
        var_B1C, mean_B1C = (torch.stack(parts).unsqueeze(1) for parts in zip(*map(_moments, x_BNC), strict=True))
        inverse_B1C = (var_B1C + eps).rsqrt()
        scale_B1C = inverse_B1C * weight_C
        y_BNC = torch.addcmul((bias_C - mean_B1C * scale_B1C).to(x_BNC), x_BNC, scale_B1C.to(x_BNC))
        if slope is not None:
            y_BNC = functional.leaky_relu_(y_BNC, slope)
        ctx.save_for_backward(x_BNC, weight_C, mean_B1C, inverse_B1C, *([] if slope is None else [y_BNC]))
        ctx.eps, ctx.slope = eps, slope
        return y_BNC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNC: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x_BNC, weight_C, mean_B1C, inverse_B1C, *after = ctx.saved_tensors
        if after:
            grad_BNC = torch.ops.aten.leaky_relu_backward(grad_BNC, after[0], ctx.slope, True)
        found = [
            torch.ops.aten.native_batch_norm_backward(
                grad_NC, x_NC, weight_C, None, None, mean_1C[0], inverse_1C[0], True, ctx.eps, [True] * 3
            )
            for grad_NC, x_NC, mean_1C, inverse_1C in zip(grad_BNC, x_BNC, mean_B1C, inverse_B1C, strict=True)
        ]
        inputs, weights, biases = zip(*found, strict=True)
        grad_BNC = inputs[0].unsqueeze(0) if len(inputs) == 1 else torch.stack(inputs)
        return grad_BNC, torch.stack(weights).sum(0), torch.stack(biases).sum(0), None, None


def _moments(x_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Biased variance and mean over the sites.

    Torch's kernel adds up one site after the other; so neighbouring sites go through it as channels of their own, which
    keeps its sums short, and are put together afterwards.
    """
    sites, channels = x_NC.shape
    parts = math.gcd(sites, 512)
    if x_NC.dtype in (torch.bfloat16, torch.float16):
        x_NC = x_NC.float()  # the CPU's kernel gives moments in the type of its input
    mean_PC, var_PC = (
        moment.view(parts, channels)
        for moment in torch.batch_norm_update_stats(x_NC.reshape(sites // parts, -1), None, None, 0.0)
    )
    mean_C = mean_PC.mean(0)
    return (var_PC + (mean_PC - mean_C).square()).mean(0), mean_C


def check_norm(norm: nn.Module) -> None:
    """Refuse norms whose statistics are not those of one image.

    Raises:
        ConfigError: If the norm is not an affine instance norm.
    """
    if not isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d) or not norm.affine:
        raise ConfigError(
            f"sparse encoder: found {type(norm).__name__}; expected an affine instance norm. Batch statistics would "
            "mix images whose masks differ. Build the network with instance norms."
        )


def pool(rows_RDHWC: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Average over strides that divide the block: (R, *side, C) to (R, *side / stride, C)."""
    return channels_last(_POOL[len(stride)](channels_first(rows_RDHWC), stride, stride))


def upsample(x_BDHWC: Tensor, conv: nn.Module) -> Tensor:
    """A transposed convolution whose kernel is its stride: (B, *n, C) to (B, *n · stride, outputs).

    Each site gives its own block, so it is one matrix product; torch has no fast 3D kernel for it on a CPU.
    """
    assert isinstance(conv, nn.ConvTranspose2d | nn.ConvTranspose3d)
    stride, outputs = conv.stride, conv.weight.shape[1]
    batch, *size, _ = x_BDHWC.shape
    axes = len(size)
    weight = conv.weight.flatten(2).transpose(1, 2).flatten(1).t()  # (stride sites · outputs, C)
    bias = None if conv.bias is None else conv.bias.repeat(math.prod(stride))
    y = functional.linear(x_BDHWC, weight, bias).view(batch, *size, *stride, outputs)
    y = y.permute(0, *(axis for i in range(axes) for axis in (1 + i, 1 + axes + i)), 1 + 2 * axes)
    return y.reshape(batch, *(n * t for n, t in zip(size, stride, strict=True)), outputs)
