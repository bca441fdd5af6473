"""Random masks over the tokens of a grid, with the same number of visible tokens in every sample.

Shape suffixes: B samples, L tokens of the grid, K visible and M = L − K masked ones.
"""

# ruff: noqa: N802 - shape suffixes also on the properties that are tensors

from dataclasses import dataclass

import torch
from torch import Tensor

from prevox.errors import ConfigError


def kept_tokens(length: int, ratio: float) -> int:
    """Number of visible tokens, floor(length · (1 − ratio) + 1e-6).

    The 1e-6 undoes the rounding of binary fractions: 1000 · (1 − 0.8) is 199.99999999999997, and 200 tokens are meant.

    Args:
        length: Tokens of the grid.
        ratio: Share that is masked.

    Raises:
        ConfigError: If no token would be visible, or none masked.
    """
    kept = int(length * (1 - ratio) + 1e-6)
    if not 1 <= kept < length:
        raise ConfigError(
            f"mask_ratio {ratio} of {length} tokens leaves {kept} visible; expected at least 1 visible and 1 masked. "
            "Change method.mask_ratio, or get more tokens by a larger views.size or a smaller patch or block."
        )
    return kept


@dataclass(frozen=True)
class TokenMask:
    """Which tokens are visible, as one permutation for each sample.

    Attributes:
        order_BL: A permutation of 0 … L−1 (int64): first the visible tokens, then the masked ones.
        kept: K, the number of visible tokens.
    """

    order_BL: Tensor
    kept: int

    @property
    def visible_BK(self) -> Tensor:
        """Grid indices of the visible tokens."""
        return self.order_BL[:, : self.kept]

    @property
    def masked_BM(self) -> Tensor:
        """Grid indices of the masked tokens."""
        return self.order_BL[:, self.kept :]

    @property
    def restore_BL(self) -> Tensor:
        """Where each token of the grid stands in the shuffled order; gathering by it puts tokens back on the grid."""
        return self.order_BL.argsort(dim=1)

    @property
    def mask_BL(self) -> Tensor:
        """True where a token of the grid is masked."""
        return self.restore_BL >= self.kept


def random_token_mask(
    batch: int, length: int, ratio: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> TokenMask:
    """Mask a random subset of each sample's tokens, all subsets equally likely.

    Args:
        batch: Samples.
        length: Tokens of the grid.
        ratio: Share that is masked; see `kept_tokens`.
        generator: On the CPU, so that a seed gives the same mask whatever the device.
        device: Where the indices are wanted.

    Raises:
        ConfigError: If no token would be visible, or none masked.
    """
    kept = kept_tokens(length, ratio)
    order_BL = torch.rand(batch, length, generator=generator).argsort(dim=1)
    return TokenMask(order_BL.to(device), kept)
