"""A slow residual encoder U-Net on masked images: dense layers, the mask applied again after every one of them.

Knows nothing of blocks or rows: it takes a mask of sites for each stage. Norms gather the active sites of one image
at a time. Shape suffixes: B images, C channels, D H W sites, N active sites.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def site_masks(
    cells: Tensor, block: Sequence[int], strides: Sequence[Sequence[int]], valid: Tensor | None = None
) -> Any:
    """Active sites (B, 1, D, H, W) of the image and of each stage, from the visible cells (B, grid) of a mask."""
    voxels = cells.unsqueeze(1)
    for axis, b in enumerate(block):
        voxels = voxels.repeat_interleave(b, 2 + axis)
    masks = []
    for stride in [(1,) * len(block), *strides]:
        seen = voxels[(..., *(slice(None, None, t) for t in stride))]
        if any(t > b for t, b in zip(stride, block, strict=True)):
            seen = torch.ones_like(seen)
        if valid is not None:
            seen = seen & (functional.max_pool3d(valid.double(), tuple(stride), tuple(stride)) > 0)
        masks.append(seen)
    return masks


def masked_norm(x_BCDHW: Tensor, norm: Any, mask: Tensor) -> Tensor:
    result = torch.zeros_like(x_BCDHW)
    for b in range(len(x_BCDHW)):
        if mask[b, 0].any():
            x_CN = x_BCDHW[b][:, mask[b, 0]]
            y_CN = (x_CN - x_CN.mean(1, keepdim=True)) / (x_CN.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            result[b, :, mask[b, 0]] = y_CN * norm.weight[:, None] + norm.bias[:, None]
    return result


def masked_unit(unit: Any, x: Tensor, mask: Tensor) -> Tensor:
    y = masked_norm(unit.conv(x) * mask, unit.norm, mask) * mask
    return y if isinstance(unit.nonlin, nn.Identity) else functional.leaky_relu(y, 0.01) * mask


def masked_encoder(encoder: Any, x: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
    x, maps = torch.where(masks[0], x, 0), []
    for unit in encoder.stem.convs:
        x = masked_unit(unit, x, masks[0])
    for stage, mask in zip(encoder.stages, masks[1:], strict=True):
        for block in stage.blocks:
            short = x
            for step in block.skip:
                short = masked_unit(step, short, mask) if hasattr(step, "conv") else step(short) * mask
            y = masked_unit(block.conv2, masked_unit(block.conv1, x, mask), mask)
            x = functional.leaky_relu(y + short, 0.01) * mask
        maps.append(x)
    return maps


def dense_decoder(decoder: Any, maps: Sequence[Tensor]) -> Tensor:
    """nnU-Net's decoder; norms by hand, because torch's refuse maps of a single site."""
    x = maps[-1]
    for s, stage in enumerate(decoder.stages):
        x = torch.cat([decoder.transpconvs[s](x), maps[-2 - s]], dim=1)
        for unit in stage.convs:
            everywhere = torch.ones_like(x[:, :1], dtype=torch.bool)
            x = functional.leaky_relu(masked_norm(unit.conv(x), unit.norm, everywhere), 0.01)
    return decoder.seg_layers[-1](x)
