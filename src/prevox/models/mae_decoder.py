"""Decoder of the masked autoencoder: a light transformer over all tokens, used in pre-training only.

Deviation from MAE3D's published code (Chen et al., WACV 2023): mask token and learnable positions start with a standard
deviation of 0.02, as in MAE; there both start with a deviation of 1 (randn, nn.Embedding).

Shape suffixes: B views, L tokens of the grid, K visible and M masked ones, N tokens that the encoder gives (class token
first, where there is one), D channels of a token, P values of a patch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from prevox.models.positions import interpolate
from prevox.models.transformer import EPS, Block, init_linear, run_blocks
from prevox.models.vit import ViT, add_positions, gather_tokens


@dataclass(frozen=True)
class Tokens:
    """What the decoder gets of views of one size; as the arguments of `MAEDecoder.forward`."""

    tokens_BND: Tensor
    order_BL: Tensor
    grid: Sequence[int] | None = None


class MAEDecoder(nn.Module):
    """Predicts the voxels of patches from the encoder's tokens of the visible ones.

    The tokens stay in the mask's shuffled order, visible ones first, and take the positions of the grid places they
    belong to; attention does not mind the order. So nothing is unshuffled, and the masked tokens, the only ones whose
    voxels are predicted in training, are one slice.

    Args:
        grid: Tokens along each axis of the native view, z y x (2D: y x).
        patch: Voxels of a patch along each axis.
        channels: Channels of the images.
        encoder_width: Width of the encoder's tokens.
        width: Width of the decoder's tokens.
        depth: Number of blocks.
        heads: Attention heads; must divide the width.
        positions: "sincos" (fixed) or "learnable".
        class_token: Whether the encoder's first token is a class token; it passes through without a position.

    Raises:
        ConfigError: If heads do not divide the width.
    """

    positions: Tensor

    def __init__(
        self,
        grid: Sequence[int],
        patch: Sequence[int],
        channels: int,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        positions: str = "sincos",
        class_token: bool = True,
    ) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.prefix = 1 if class_token else 0
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, math.prod(patch) * channels)
        self.apply(init_linear)
        add_positions(self, self.grid, width, positions)

    @classmethod
    def behind(cls, encoder: ViT, width: int, depth: int, heads: int, positions: str) -> Self:
        """A decoder for an encoder's views and tokens; arguments as for the class."""
        return cls(
            grid=encoder.grid,
            patch=encoder.patch,
            channels=encoder.channels,
            encoder_width=encoder.width,
            width=width,
            depth=depth,
            heads=heads,
            positions=positions,
            class_token=encoder.class_token is not None,
        )

    def forward(
        self, tokens_BND: Tensor, order_BL: Tensor, grid: Sequence[int] | None = None, everywhere: bool = False
    ) -> Tensor:
        """Predict patches.

        Args:
            tokens_BND: The encoder's output: class token (if any), then the visible tokens in the mask's order.
            order_BL: The mask's permutation, visible tokens first (`TokenMask.order_BL`).
            grid: Tokens along each axis of this view; None for the native grid, else positions are interpolated.
            everywhere: Also predict the visible patches.

        Returns:
            (B, M, P), the masked patches in the order of `TokenMask.masked_BM`; with `everywhere` (B, L, P), all
            patches in the grid's own order.
        """
        return self.decode([Tokens(tokens_BND, order_BL, grid)], everywhere)[0]

    def decode(self, parts: Sequence[Tokens], everywhere: bool = False) -> list[Tensor]:
        """`forward` for views of several sizes."""
        on_grid = [self._on_grid(part) for part in parts]
        kept = [part.tokens_BND.shape[1] for part in parts]
        asked = [slice(self.prefix if everywhere else count, None) for count in kept]
        decoded = run_blocks(list(self.blocks), on_grid, asked, [[None] * len(self.blocks)] * len(parts))
        predictions = [self.head(self.norm(x_BAD)) for x_BAD in decoded]
        if not everywhere:
            return predictions
        return [gather_tokens(x, part.order_BL.argsort(dim=1)) for x, part in zip(predictions, parts, strict=True)]

    def _on_grid(self, part: Tokens) -> Tensor:
        """All tokens of the grid, in the mask's order: (B, 1 + L, width), or (B, L, width) without a class token."""
        x_BND = self.embed(part.tokens_BND)
        batch, n, width = x_BND.shape
        masks_BMD = self.mask_token.to(x_BND.dtype).expand(batch, part.order_BL.shape[1] - n + self.prefix, width)
        positions_BLD = interpolate(self.positions, self.grid, part.grid or self.grid)[part.order_BL]
        patches_BLD = torch.cat([x_BND[:, self.prefix :], masks_BMD], dim=1) + positions_BLD
        return torch.cat([x_BND[:, : self.prefix], patches_BLD], dim=1) if self.prefix else patches_BLD
