"""Sine-cosine position tables for 2D and 3D token grids, and their interpolation to other grids.

Shape suffixes: L tokens of the grid in row-major order (z, y, x; 2D: y, x), D channels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from prevox.errors import ConfigError


def sincos(grid: Sequence[int], width: int) -> Tensor:
    """Fixed sine-cosine positions (SelfMedMAE 2.1; MAE's table, one share of the channels for each axis).

    Each of the n axes has width/n channels, in the order of the axes (z, y, x): first sin(position · ω_i), then
    cos(position · ω_i), with ω_i = 10000^(−i/(d/2)) for i < d/2 and d = width/n. Sine and cosine of one angle have
    squares that add up to 1, so every row's squared norm is width/2 (384 for 768 channels), and row 0, all sines 0 and
    all cosines 1, has the sum width/2.

    Where 2n does not divide the width (ViT-L's 1024 channels in 3D) the largest multiple of 2n below it is used and
    the remaining channels are 0; the published code refuses such widths.

    Args:
        grid: Tokens along each axis, two or three numbers.
        width: Channels.

    Returns:
        (prod(grid), width) float32, computed in float64.

    Raises:
        ConfigError: If the width has not two channels for each axis.
    """
    half = width // (2 * len(grid))
    if half < 1:
        raise ConfigError(
            f"sincos positions: found {width} channels for {len(grid)} axes; expected at least {2 * len(grid)}. "
            "Widen the network or take learnable positions."
        )
    omega = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in axes]
    table_LD = torch.zeros(math.prod(grid), width, dtype=torch.float64)
    table_LD[:, : 2 * half * len(grid)] = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
    return table_LD.float()


def interpolate(table_LD: Tensor, old_grid: Sequence[int], new_grid: Sequence[int]) -> Tensor:
    """Resample a position table to another grid, bi- or trilinearly with aligned borders (align_corners False).

    Args:
        table_LD: Positions of the old grid, without a class token's row.
        old_grid: Tokens along each axis that the table is for.
        new_grid: Tokens along each axis that it is wanted for.

    Returns:
        (prod(new_grid), D) in the table's type; the table itself, unchanged, where the grids are equal.
    """
    old, new = tuple(old_grid), tuple(new_grid)
    assert len(old) == len(new), f"a {len(old)}D table cannot serve a {len(new)}D grid"
    if old == new:
        return table_LD
    volume = table_LD.T.reshape(1, -1, *old)
    mode = "bilinear" if len(old) == 2 else "trilinear"
    volume = functional.interpolate(volume.float(), size=new, mode=mode, align_corners=False)
    return volume.flatten(2)[0].T.contiguous().to(table_LD.dtype)
