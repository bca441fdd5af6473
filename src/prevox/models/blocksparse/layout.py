"""Where the visible blocks of a masked batch lie, at every resolution of a network.

An image is cut into a grid of equal blocks; the same number of them is visible in every image. At a stage of stride t a
block has (block / t) sites along each axis, and the visible ones are the rows of a (R, *side, C) tensor, channels last.
A stage whose stride is larger than the block sees everything: there the whole image is one block.

Shape suffixes: B images, K visible blocks of an image, R = B·K rows, D H W sites (of an image, or of a block in rows),
C channels. D is absent in 2D.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from prevox.errors import ConfigError


@dataclass(frozen=True)
class Halo:
    """Rows widened by neighbouring sites, for one convolution.

    Attributes:
        low: Sites added before each axis.
        high: Sites added behind each axis.
        source: Sites of the rows that are visible from another row, as indices into (R · sites).
        target: Where they stand in the widened rows; every other added site is 0.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class Layout:
    """Visible blocks of a batch at one resolution.

    Attributes:
        visible_BK: Places of the visible blocks on the grid, row-major (int64, on the CPU).
        grid: Blocks along each axis.
        side: Sites of a block along each axis.
        device: Of the tensors that are indexed.
        active_RDHW1: 1 where a site belongs to the image, 0 in padding, as a float; None where nothing is padded.
    """

    visible_BK: Tensor
    grid: tuple[int, ...]
    side: tuple[int, ...]
    device: torch.device
    active_RDHW1: Tensor | None = None
    _halos: dict[tuple[tuple[int, ...], ...], Halo] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Number of images."""
        return len(self.visible_BK)

    @property
    def size(self) -> tuple[int, ...]:
        """Sites of an image along each axis."""
        return tuple(g * b for g, b in zip(self.grid, self.side, strict=True))

    @property
    def full(self) -> bool:
        """Whether every block is visible."""
        return self.visible_BK.shape[1] == math.prod(self.grid)

    def gather(self, x_BDHWC: Tensor) -> Tensor:
        """The visible blocks of images: (B, *size, C) to (R, *side, C)."""
        rows: Tensor = self._blocks(x_BDHWC)[self._places]
        return rows

    def scatter(self, rows_RDHWC: Tensor, fill_C: Tensor | None = None) -> Tensor:
        """Images with the visible blocks in their places and one value per channel (0 for None) everywhere else.

        Returns:
            (B, *size, C).
        """
        shape = (self.batch, *self.size, rows_RDHWC.shape[-1])
        if fill_C is None or self.full:
            x_BDHWC = rows_RDHWC.new_zeros(shape)
        else:
            x_BDHWC = fill_C.to(rows_RDHWC.dtype).expand(shape).clone()
        self._blocks(x_BDHWC)[self._places] = rows_RDHWC
        return x_BDHWC

    def halo(self, low: Sequence[int], high: Sequence[int]) -> Halo:
        """Table of the neighbouring sites that a convolution reads; built once for each pair of widths."""
        key = (tuple(low), tuple(high))
        if key not in self._halos:
            source, target = self._neighbours(*key)
            self._halos[key] = Halo(*key, source.to(self.device), target.to(self.device))
        return self._halos[key]

    @cached_property
    def corners_RA(self) -> Tensor:  # noqa: N802 - shape suffix
        """First site of each row's block, along each axis (int64, on the CPU)."""
        return torch.stack(self._cells(), dim=1) * torch.tensor(self.side)

    def _cells(self) -> tuple[Tensor, ...]:
        return torch.unravel_index(self.visible_BK.flatten(), self.grid)

    @cached_property
    def _places(self) -> tuple[Tensor, ...]:
        image = torch.arange(self.batch).repeat_interleave(self.visible_BK.shape[1])
        return tuple(index.to(self.device, non_blocking=True) for index in (image, *self._cells()))

    def _blocks(self, x_BDHWC: Tensor) -> Tensor:
        """A view of (B, *size, C) as (B, *grid, *side, C)."""
        n = len(self.grid)
        split = [m for pair in zip(self.grid, self.side, strict=True) for m in pair]
        order = (*range(1, 2 * n, 2), *range(2, 2 * n + 1, 2))
        return x_BDHWC.view(len(x_BDHWC), *split, x_BDHWC.shape[-1]).permute(0, *order, 2 * n + 1)

    def _neighbours(self, low: tuple[int, ...], high: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Source and target indices of all added sites that lie in visible blocks."""
        side, size = torch.tensor(self.side), torch.tensor(self.size)
        wide = [b + lo + hi for b, lo, hi in zip(self.side, low, high, strict=True)]
        offsets_PA = torch.cartesian_prod(*[torch.arange(-lo, w - lo) for lo, w in zip(low, wide, strict=True)])
        offsets_PA = offsets_PA.view(-1, len(self.side))
        added_P = ((offsets_PA < 0) | (offsets_PA >= side)).any(1).nonzero().squeeze(1)
        sites_RPA = self.corners_RA.unsqueeze(1) + offsets_PA[added_P]
        inside_RP = ((sites_RPA >= 0) & (sites_RPA < size)).all(-1)
        cells_RPA = sites_RPA.clamp(min=torch.zeros_like(size), max=size - 1).div(side, rounding_mode="floor")

        batch, kept = self.visible_BK.shape
        rows = torch.full((batch, math.prod(self.grid)), -1)
        rows.scatter_(1, self.visible_BK, torch.arange(batch * kept).view(batch, kept))
        image_R1 = torch.arange(batch).repeat_interleave(kept).unsqueeze(1)
        row_RP = torch.where(inside_RP, rows[image_R1, _ravel(cells_RPA, self.grid)], -1)
        seen_RP = row_RP >= 0

        source_RP = row_RP * math.prod(self.side) + _ravel(sites_RPA - cells_RPA * side, self.side)
        target_RP = torch.arange(batch * kept).unsqueeze(1) * math.prod(wide) + added_P
        return source_RP[seen_RP], target_RP[seen_RP]


def _ravel(places: Tensor, shape: Sequence[int]) -> Tensor:
    """Row-major index of places (..., axes)."""
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return (places * torch.tensor(steps)).sum(-1)


def check_block(block: Sequence[int], size: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
    """Refuse blocks that do not tile the image, or that a stage's stride cuts.

    Args:
        block: Voxels of a block along each axis.
        size: Voxels of the image.
        strides: Total stride of each stage.

    Raises:
        ConfigError: With the axis, and the stage where it is one.
    """
    names = "zyx"[-len(size) :]
    for axis, b, n in zip(names, block, size, strict=True):
        if n % b:
            raise ConfigError(
                f"mask block: {b} voxels along {axis} do not divide the view of {n}. Change method.block or views.size."
            )
    for s, stride in enumerate(strides):
        if _larger(stride, block):
            continue
        for axis, b, t in zip(names, block, stride, strict=True):
            if b % t:
                raise ConfigError(
                    f"mask block: stage {s} has a stride of {t} along {axis}, which does not divide the block of {b}; "
                    f"a site would be half visible. Give method.block a multiple of {t}, or less than it: then "
                    "the stage sees everything."
                )


def pyramid(
    visible_BK: Tensor,
    block: Sequence[int],
    size: Sequence[int],
    strides: Sequence[Sequence[int]],
    valid_BDHW1: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> list[Layout]:
    """The layouts of the image itself and of each stage.

    Args:
        visible_BK: Places of the visible blocks, row-major on the grid size / block (int64).
        block: Voxels of a block along each axis.
        size: Voxels of the image.
        strides: Total stride of each stage.
        valid_BDHW1: False in padding. A site is active where any voxel under it is valid. None where nothing is padded.
        device: Where the rows will be.

    Raises:
        ConfigError: If no block is visible, or the block does not fit (`check_block`).
    """
    check_block(block, size, strides)
    if visible_BK.shape[1] == 0:
        raise ConfigError(
            "mask: no block is visible; a sparse network has nothing to compute. Lower method.mask_ratio."
        )
    device, visible_BK = torch.device(device), visible_BK.cpu()
    layouts: list[Layout] = []
    strides = [(1,) * len(size), *map(tuple, strides)]
    for before, stride in zip([None, *strides], strides, strict=False):
        if stride == before:
            layouts.append(layouts[-1])  # with the tables that it has built
            continue
        sites = tuple(n // t for n, t in zip(size, stride, strict=True))
        if _larger(stride, block):
            layout = whole(len(visible_BK), sites, device)
        else:
            grid = tuple(n // b for n, b in zip(size, block, strict=True))
            layout = Layout(visible_BK, grid, tuple(b // t for b, t in zip(block, stride, strict=True)), device)
        if valid_BDHW1 is not None:
            active_RDHW1 = layout.gather(_any_valid(valid_BDHW1, stride))
            layout = Layout(layout.visible_BK, layout.grid, layout.side, device, active_RDHW1)
        layouts.append(layout)
    return layouts


def whole(batch: int, size: Sequence[int], device: torch.device, active_RDHW1: Tensor | None = None) -> Layout:
    """The layout of images that are visible everywhere: one block each."""
    return Layout(torch.zeros(batch, 1, dtype=torch.int64), (1,) * len(size), tuple(size), device, active_RDHW1)


def _larger(stride: Sequence[int], block: Sequence[int]) -> bool:
    return any(t > b for t, b in zip(stride, block, strict=True))


def _any_valid(valid_BDHW1: Tensor, stride: Sequence[int]) -> Tensor:
    batch, *size, _ = valid_BDHW1.shape
    split = [m for n, t in zip(size, stride, strict=True) for m in (n // t, t)]
    within = tuple(range(2, 2 * len(size) + 1, 2))
    return valid_BDHW1.reshape(batch, *split, 1).float().amax(within)
