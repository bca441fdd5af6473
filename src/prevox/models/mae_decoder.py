"""Decoder of the masked autoencoder: a light transformer over all tokens, used in pre-training only.

Deviation from MAE3D's published code (Chen et al., WACV 2023): mask token and learnable positions start with a standard
deviation of 0.02, as in MAE; there both start with a deviation of 1 (randn, nn.Embedding).

Shape suffixes: B views, L tokens of the grid, K visible and M masked ones, N tokens that the encoder gives (class token
first, where there is one), D channels of a token, P values of a patch.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from prevox.models.positions import interpolate
from prevox.models.vit import EPS, Block, ViT, add_positions, gather_tokens, init_linear


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
        x_BND = self.embed(tokens_BND)
        batch, n, width = x_BND.shape
        kept = n - self.prefix
        masks_BMD = self.mask_token.to(x_BND.dtype).expand(batch, order_BL.shape[1] - kept, width)
        positions_BLD = interpolate(self.positions, self.grid, grid or self.grid)[order_BL]
        patches_BLD = torch.cat([x_BND[:, self.prefix :], masks_BMD], dim=1) + positions_BLD
        x_BND = torch.cat([x_BND[:, : self.prefix], patches_BLD], dim=1) if self.prefix else patches_BLD
        first = self.prefix if everywhere else self.prefix + kept
        for block in self.blocks[:-1]:
            x_BND = block(x_BND)
        prediction = self.head(self.norm(self.blocks[-1](x_BND, asked=slice(first, None))))
        return gather_tokens(prediction, order_BL.argsort(dim=1)) if everywhere else prediction
