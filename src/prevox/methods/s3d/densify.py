"""Between encoder and decoder: what is put in the places that the encoder did not see.

Shape suffixes: R rows of visible blocks, D H W sites of a block, C channels.
"""

import torch
from torch import Tensor, nn

from prevox.models.blocksparse.decoder import FilledMap
from prevox.models.blocksparse.layout import Layout
from prevox.models.blocksparse.ops import normalise
from prevox.models.resenc.network import CONV, EPS, NORM, initialise


class DensifyStage(nn.Module):
    """Norm of the visible sites, one token for all others, then a 3³ convolution where asked for.

    Args:
        features: Channels of the stage.
        axes: 2 or 3.
        masked: Whether the stage has masked sites; without, there is no token to learn.
        convolution: Whether the filled map is convolved.
    """

    def __init__(self, features: int, axes: int, masked: bool, convolution: bool) -> None:
        super().__init__()
        self.norm = NORM[axes](features, eps=EPS, affine=True)
        self.conv = CONV[axes](features, features, 3, padding=1) if convolution else None
        self.mask_token = nn.Parameter(torch.empty(features)) if masked else None
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.apply(initialise)

    def forward(self, rows_RDHWC: Tensor, layout: Layout) -> FilledMap:
        """The map for the decoder, which computes no more of it than it needs."""
        return FilledMap(normalise(rows_RDHWC, self.norm, layout), layout, self.mask_token, self.conv)
