"""The encoder of a residual encoder U-Net on visible blocks.

Equal to the dense encoder on the masked image with the mask applied again after every layer and norms over visible
sites (SparK: Tian et al., arXiv:2301.03580), with work in proportion to what is visible.

Shape suffixes: B images, R rows, D H W voxels or sites, C channels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from prevox.models.blocksparse.layout import Layout, whole
from prevox.models.blocksparse.ops import check_norm, convolve, normalise, pool
from prevox.models.resenc.network import SLOPE, ConvNorm, Encoder, ResidualBlock


def check_sparse(encoder: nn.Module) -> None:
    """Refuse an encoder that cannot be computed on visible blocks.

    Raises:
        ConfigError: If one of its norms is not an instance norm.
    """
    for module in encoder.modules():
        if isinstance(module, ConvNorm):
            check_norm(module.norm)


def encode(encoder: Encoder, x_BDHWC: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
    """Rows of every stage.

    Args:
        encoder: Of a residual encoder U-Net.
        x_BDHWC: Images, channels last; only visible and valid voxels are looked at.
        layouts: Of the image and of each stage (`pyramid`).

    Returns:
        (R, *side, C) of each stage, finest first; 0 in padding.
    """
    layout = layouts[0]
    rows_RDHWC = layout.gather(x_BDHWC)
    if layout.active_RDHW1 is not None:
        rows_RDHWC = rows_RDHWC.masked_fill(layout.active_RDHW1 == 0, 0)  # not a product: padding may hold NaN
    for unit in encoder.stem.convs:
        rows_RDHWC = _conv_norm(rows_RDHWC, unit, layout, layout)
    maps = []
    stages: Any = encoder.stages
    for stage, target in zip(stages, layouts[1:], strict=True):
        if target.grid != layout.grid:  # from here on everything is visible
            rows_RDHWC = layout.scatter(rows_RDHWC)
            layout = whole(layout.batch, layout.size, layout.device)
        for block in stage.blocks:
            rows_RDHWC = _residual(rows_RDHWC, block, layout, target)
            layout = target
        maps.append(rows_RDHWC)
    return maps


def _conv_norm(rows_RDHWC: Tensor, unit: Any, source: Layout, target: Layout) -> Tensor:
    slope = None if isinstance(unit.nonlin, nn.Identity) else SLOPE
    return normalise(convolve(rows_RDHWC, unit.conv, source), unit.norm, target, slope)


def _residual(rows_RDHWC: Tensor, block: ResidualBlock, source: Layout, target: Layout) -> Tensor:
    short_RDHWC = rows_RDHWC
    shortcut: Any = block.skip
    for step in shortcut:
        if isinstance(step, ConvNorm):
            short_RDHWC = _conv_norm(short_RDHWC, step, target, target)
        else:
            short_RDHWC = pool(short_RDHWC, tuple(step.stride))
    rows_RDHWC = _conv_norm(rows_RDHWC, block.conv1, source, target)
    rows_RDHWC = _conv_norm(rows_RDHWC, block.conv2, target, target)
    return functional.leaky_relu(rows_RDHWC + short_RDHWC, SLOPE, inplace=True)
