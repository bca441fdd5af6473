"""Vision transformer for 2D images and 3D volumes, built so that only visible patches are ever embedded.

Shape suffixes: B views, C channels, D H W voxels (D is absent in 2D), L patches of the grid in row-major order,
K visible patches, N tokens (class token first, where there is one), P values of a patch. In token tensors a last D is
the width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prevox.config.models import ViTConfig
from prevox.errors import ConfigError
from prevox.models.positions import interpolate, sincos
from prevox.models.transformer import EPS, EVERY, Block, Rows, init_linear, run_blocks, separate, together

PRESETS = {"T": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}  # width, depth, heads


def vit_settings(config: ViTConfig, size: Sequence[int], channels: int) -> dict[str, Any]:
    """Plain keyword arguments of `ViT` for a view of the given size; JSON-able, so that they fit a `ModelSpec`.

    Args:
        config: Settings of the network.
        size: Voxels of the view, z y x (2D: y x).
        channels: Channels of the images.

    Raises:
        ConfigError: If patch and view differ in their number of axes, or a patch does not divide the view; the axis
            and the nearest sizes that fit are named.
    """
    if len(config.patch) != len(size):
        raise ConfigError(
            f"model.patch has {len(config.patch)} numbers ({list(config.patch)}) and views.size has {len(size)} "
            f"({list(size)}). Give both three (z y x) for volumes, or both two (y x) for images and slices."
        )
    for axis, n, p in zip("zyx"[-len(size) :], size, config.patch, strict=True):
        if n % p:
            fitting = [str(m) for m in (n // p * p, n // p * p + p) if m > 0]
            raise ConfigError(
                f"views.size is {n} along {axis}, which model.patch {p} does not divide. "
                f"The nearest sizes that fit are {' and '.join(fitting)}."
            )
    width, depth, heads = PRESETS[config.size]
    return {
        "grid": [n // p for n, p in zip(size, config.patch, strict=True)],
        "patch": list(config.patch),
        "channels": channels,
        "width": width,
        "depth": config.depth or depth,
        "heads": heads,
        "class_token": config.class_token,
        "positions": config.positions,
        "drop_path": config.drop_path,
        "final_norm": config.final_norm,
    }


def patchify(x_BCDHW: Tensor, patch: Sequence[int]) -> Tensor:
    """Cut images into flattened patches.

    Patches follow the grid in row-major order; inside a patch the voxels do too, and the channels of a voxel lie side
    by side: (p_z, p_y, p_x, C), SelfMedMAE's order.

    Args:
        x_BCDHW: (B, C, D, H, W), or (B, C, H, W) with a patch of two numbers.
        patch: Voxels of a patch along each axis.

    Returns:
        (B, L, P) with P = prod(patch) · C.

    Raises:
        ConfigError: If the number of axes differs, or the patch does not divide the image.
    """
    batch, channels, *size = x_BCDHW.shape
    if len(size) != len(patch) or any(n % p for n, p in zip(size, patch, strict=True)):
        raise ConfigError(
            f"patches: found an image of {list(size)} voxels; expected {len(patch)} axes, each a multiple of the patch "
            f"{list(patch)}. Change views.size or model.patch."
        )
    n = len(size)
    split = [m for s, p in zip(size, patch, strict=True) for m in (s // p, p)]
    x = x_BCDHW.reshape(batch, channels, *split)
    x = x.permute(0, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2), 1)
    return x.reshape(batch, math.prod(split[::2]), math.prod(patch) * channels)


def unpatchify(patches_BLP: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Put flattened patches back together; the inverse of `patchify`.

    Args:
        patches_BLP: (B, prod(grid), prod(patch) · C).
        grid: Patches along each axis.
        patch: Voxels of a patch along each axis.

    Returns:
        (B, C, D, H, W), or (B, C, H, W) with two numbers.
    """
    n = len(grid)
    x = patches_BLP.reshape(patches_BLP.shape[0], *grid, *patch, -1)
    x = x.permute(0, 2 * n + 1, *(axis for i in range(n) for axis in (1 + i, 1 + n + i)))
    return x.reshape(x.shape[0], x.shape[1], *(g * p for g, p in zip(grid, patch, strict=True)))


def gather_tokens(tokens_BLD: Tensor, index_BK: Tensor) -> Tensor:
    """Take, for each sample, the tokens at its own indices: (B, L, D), (B, K) -> (B, K, D)."""
    # whole rows at once: Tensor.gather with an expanded index took 14 times as long for 162 of 216 patches of 16³
    return tokens_BLD[torch.arange(len(index_BK), device=index_BK.device).unsqueeze(1), index_BK]


@dataclass(frozen=True)
class Cut:
    """Views of one size, cut into patches.

    Args:
        patches_BLP: All patches.
        grid: Patches along each axis.
        visible_BK: Indices of those to embed, in the order in which their tokens come out; None for all.
        generator: Source of drop path's randomness while training (on the CPU); None for torch's default one.
    """

    patches_BLP: Tensor
    grid: Sequence[int]
    visible_BK: Tensor | None = None
    generator: torch.Generator | None = None


class ViT(nn.Module):
    """Vision transformer over the patches of a view, 3D or 2D by the length of `patch`.

    Sine-cosine positions are a buffer (fixed) until `make_positions_learnable`; in both cases they are `positions` in
    the state dict, (L, width), without a row for the class token, which has no position.

    Args:
        grid: Patches along each axis of the native view, z y x (2D: y x).
        patch: Voxels of a patch along each axis.
        channels: Channels of the images.
        width: Channels of a token.
        depth: Number of blocks.
        heads: Attention heads; must divide the width.
        mlp_ratio: Hidden width of the perceptron as a multiple of the width.
        class_token: Whether a learnable token goes first.
        positions: "sincos" (fixed) or "learnable" (from normal noise, deviation 0.02).
        drop_path: Rate in the last block; grows linearly from 0 in the first.
        final_norm: Whether a layer norm follows the last block.

    Raises:
        ConfigError: If heads do not divide the width, or grid and patch differ in length.
    """

    positions: Tensor

    def __init__(
        self,
        grid: Sequence[int],
        patch: Sequence[int],
        channels: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        class_token: bool = True,
        positions: str = "sincos",
        drop_path: float = 0.0,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        if len(grid) != len(patch):
            raise ConfigError(f"ViT: found grid {list(grid)} and patch {list(patch)}; both need the same axes.")
        self.grid, self.patch = tuple(grid), tuple(patch)
        self.channels, self.width, self.depth = channels, width, depth
        self.drop_path = drop_path
        self.patch_embed = nn.Linear(math.prod(patch) * channels, width)
        self.class_token = nn.Parameter(torch.randn(width) * 0.02) if class_token else None
        self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=EPS) if final_norm else nn.Identity()
        self.apply(init_linear)
        add_positions(self, self.grid, width, positions)

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches' (1 with a class token, else 0)."""
        return 0 if self.class_token is None else 1

    def make_positions_learnable(self) -> None:
        """Turn the fixed positions into a parameter that starts from them (SelfMedMAE 2.1, fine-tuning)."""
        if not isinstance(self.positions, nn.Parameter):
            table_LD = self.positions
            del self.positions
            self.positions = nn.Parameter(table_LD.clone())

    def forward(
        self, x_BCDHW: Tensor, visible_BK: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Tokens of an image after all blocks and the final norm.

        Args:
            x_BCDHW: Images of any size that the patch divides; positions are interpolated where the grid is not the
                native one.
            visible_BK: Indices of the patches to embed, in the order in which their tokens come out; None for all.
            generator: Source of drop path's randomness while training (on the CPU); None for torch's default one.

        Returns:
            (B, N, width), class token first where there is one, then K (or L) patches.
        """
        cut = Cut(patchify(x_BCDHW, self.patch), self.grid_of(x_BCDHW), visible_BK, generator)
        return self.encode([cut])[0]

    def encode(self, cuts: Sequence[Cut], asked: slice = EVERY) -> list[Tensor]:
        """`forward` for views of several sizes, cut into patches already, with a choice of the tokens that are wanted.

        Args:
            cuts: Views of one size each.
            asked: Tokens of each view that are wanted; the last block computes no others.

        Returns:
            As `forward`, for each size.
        """
        embedded = [self._embed(cut.patches_BLP, cut.grid, cut.visible_BK) for cut in cuts]
        scales = [self._drop_scales(x, cut.generator) for x, cut in zip(embedded, cuts, strict=True)]
        encoded = run_blocks(list(self.blocks), embedded, [asked] * len(cuts), scales)
        return [self.norm(x_BND) for x_BND in encoded]

    def forward_features(
        self, x_BCDHW: Tensor, blocks: Sequence[int] = (), generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Feature maps for dense decoders.

        Args:
            x_BCDHW: Images of any size that the patch divides.
            blocks: Indices (from 0) of the blocks after which a map is wanted, without norm; increasing.
            generator: As in `forward`.

        Returns:
            One (B, width, *grid) map for each index, then the last block's with the final norm; class token dropped.
        """
        patches_BLP = patchify(x_BCDHW, self.patch)
        grid = self.grid_of(x_BCDHW)
        x_BND = self._embed(patches_BLP, grid, None)
        scales = self._drop_scales(x_BND, generator)
        size, x_RD = [Rows(x_BND.shape[0], x_BND.shape[1])], together([x_BND])
        maps = []
        for i, (block, scale_2B) in enumerate(zip(self.blocks, scales, strict=True)):
            x_RD = block(x_RD, size, scale_2B)
            if i in blocks:
                maps += separate(x_RD, size)
        maps += separate(self.norm(x_RD), size)
        return [m[:, self.prefix :].transpose(1, 2).reshape(m.shape[0], self.width, *grid) for m in maps]

    def grid_of(self, x_BCDHW: Tensor) -> tuple[int, ...]:
        """Patches along each axis of an image."""
        return tuple(n // p for n, p in zip(x_BCDHW.shape[2:], self.patch, strict=True))

    def layer_index(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning-rate decay, lr · γ^(depth + 1 − index) (MAE, SelfMedMAE).

        Patch embedding, class token and positions are 0, block i (from 0) is i + 1; the final norm is depth + 1, that
        is outside the decay, as in MAE.

        Args:
            name: As in `named_parameters()`.
        """
        first, _, rest = name.partition(".")
        if first == "blocks":
            return int(rest.partition(".")[0]) + 1
        return self.depth + 1 if first == "norm" else 0

    def _embed(self, patches_BLP: Tensor, grid: Sequence[int], visible_BK: Tensor | None) -> Tensor:
        """Embed the visible patches only, add their positions, prepend the class token."""
        positions_LD = interpolate(self.positions, self.grid, grid)
        if visible_BK is not None:
            patches_BLP = gather_tokens(patches_BLP, visible_BK)
            positions_LD = positions_LD[visible_BK]  # (B, K, D)
        x_BND = self.patch_embed(patches_BLP) + positions_LD
        if self.class_token is None:
            return x_BND
        return torch.cat([self.class_token.to(x_BND.dtype).expand(x_BND.shape[0], 1, -1), x_BND], dim=1)

    def _drop_scales(self, x_BND: Tensor, generator: torch.Generator | None) -> Sequence[Tensor | None]:
        """Drop path's factors (2, B) of each block, 0 or 1 / kept share by branch and sample; None where all are 1."""
        if not self.training or self.drop_path == 0:
            return [None] * self.depth
        keep = 1 - torch.linspace(0, self.drop_path, self.depth).view(-1, 1, 1)
        noise = torch.rand(self.depth, 2, x_BND.shape[0], generator=generator)
        scales = torch.where(noise < keep, 1 / keep.clamp(min=EPS), 0.0)
        return list(scales.to(x_BND.device, x_BND.dtype).unbind(0))


def add_positions(module: nn.Module, grid: Sequence[int], width: int, kind: str) -> None:
    """Give a module its (L, width) `positions`: a fixed buffer for "sincos", a parameter for "learnable".

    Raises:
        ConfigError: If the kind is neither.
    """
    if kind == "sincos":
        module.register_buffer("positions", sincos(grid, width))
    elif kind == "learnable":
        module.register_parameter("positions", nn.Parameter(torch.randn(math.prod(grid), width) * 0.02))
    else:
        raise ConfigError(f"positions: found {kind!r}; expected 'sincos' or 'learnable'.")
