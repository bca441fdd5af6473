"""Transformer blocks over tokens of views of one size or of several, packed into one long row where that pays.

Shape suffixes: B views of one size, N their tokens, D channels of a token, A tokens that are asked for; V views of all
sizes, R rows: the tokens of all views, one view after the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from prevox.errors import ConfigError

EPS = 1e-6  # of every layer norm (MAE)
EVERY = slice(None)  # token


class Rows(NamedTuple):
    """Where the views of one size lie in a long row of tokens.

    Args:
        views: Their number.
        tokens: Of each view.
        asked: Which of them are asked for.
    """

    views: int
    tokens: int
    asked: slice = EVERY

    @property
    def answers(self) -> int:
        """Number of tokens of each view that are asked for."""
        return len(range(*self.asked.indices(self.tokens)))


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then a two-layer perceptron with GELU, each with a residual."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"transformer: found width {width} and {heads} heads; the heads must divide the width.")
        self.heads = heads
        self.checkpoint_activations = False  # set by the function of this name
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x_RD: Tensor, sizes: Sequence[Rows], scale_2V: Tensor | None = None) -> Tensor:
        """One block. Norms and linear layers see one long row of tokens, attention stays within a view.

        Args:
            x_RD: Tokens.
            sizes: Where the views of each size lie, and which of their tokens are asked for: what nobody reads need
                not be computed.
            scale_2V: Factors on the two residual branches of each view (drop path); None for 1.

        Returns:
            The tokens that are asked for, one view after the other.
        """
        if self.checkpoint_activations and torch.is_grad_enabled():
            # drop path was drawn before, so nothing in here is random and no random state need be kept
            result: Tensor = checkpoint(
                self._compute, x_RD, sizes, scale_2V, use_reentrant=False, preserve_rng_state=False
            )
            return result
        return self._compute(x_RD, sizes, scale_2V)

    def _compute(self, x_RD: Tensor, sizes: Sequence[Rows], scale_2V: Tensor | None) -> Tensor:
        attended = self._attend(self.norm1(x_RD), sizes)
        scale_2R1 = None if scale_2V is None else _by_row(scale_2V, sizes)
        x_RD = _asked_rows(x_RD, sizes) + (attended if scale_2R1 is None else attended * scale_2R1[0])
        mlp = self.contract(functional.gelu(self.expand(self.norm2(x_RD))))
        return x_RD + (mlp if scale_2R1 is None else mlp * scale_2R1[1])

    def _attend(self, x_RD: Tensor, sizes: Sequence[Rows]) -> Tensor:
        """Multi-head self-attention over all tokens of each view, asked by some."""
        width = x_RD.shape[1]
        if all(size.asked == EVERY for size in sizes):
            triples = [self._heads(part, 3) for part in separate(self.qkv(x_RD), sizes)]
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q_RD = functional.linear(_asked_rows(x_RD, sizes), weight[:width], bias[:width])
            kv_RD = functional.linear(x_RD, weight[width:], bias[width:])
            pairs = zip(_answers(q_RD, sizes), separate(kv_RD, sizes), strict=True)
            triples = [[*self._heads(q, 1), *self._heads(kv, 2)] for q, kv in pairs]
        mixed = [functional.scaled_dot_product_attention(q, k, v) for q, k, v in triples]
        return self.projection(together([x_BHAE.transpose(1, 2).flatten(2) for x_BHAE in mixed]))

    def _heads(self, x_BND: Tensor, count: int) -> Sequence[Tensor]:
        """Take queries, keys and values (or some of them) apart: `count` tensors (B, heads, N, width of a head)."""
        return x_BND.unflatten(2, (count, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def run_blocks(
    blocks: Sequence[nn.Module],
    parts: Sequence[Tensor],
    asked: Sequence[slice],
    scales: Sequence[Sequence[Tensor | None]],
) -> list[Tensor]:
    """Let blocks work on views of several sizes.

    Packed, a block's layers run once over all tokens instead of once for each size, and its weights get one gradient
    instead of one for each size, all of which are kept until the last size is through. It costs one more copy of the
    tokens a block, behind attention. So views are packed where a block has more weights than that copy has values.

    Args:
        blocks: At least one, of one width.
        parts: Tokens (B, N, D) of each size.
        asked: Tokens of each size that are wanted of the last block.
        scales: Drop path's factors (2, B) for each size and block; None for 1.

    Returns:
        (B, A, D) for each size.
    """
    weights, values = 12 * parts[0].shape[2] ** 2, sum(part.numel() for part in parts)
    if len(parts) > 1 and values > weights:
        apart = zip(parts, asked, scales, strict=True)
        return [run_blocks(blocks, [part], [which], [scale])[0] for part, which, scale in apart]
    sizes = [Rows(part.shape[0], part.shape[1]) for part in parts]
    last = [size._replace(asked=which) for size, which in zip(sizes, asked, strict=True)]
    *early, final = (_joined(of_block) for of_block in zip(*scales, strict=True))
    x_RD: Tensor = together(parts)
    for block, scale_2V in zip(blocks[:-1], early, strict=True):
        x_RD = block(x_RD, sizes, scale_2V)
    return _answers(blocks[-1](x_RD, last, final), last)


def _joined(scales: Sequence[Tensor | None]) -> Tensor | None:
    """Factors of the views of all sizes, (2, V)."""
    given = [scale_2B for scale_2B in scales if scale_2B is not None]
    return torch.cat(given, dim=1) if given else None


def together(parts: Sequence[Tensor]) -> Tensor:
    """Tokens (B, N, D) of each size, as one long row (R, D)."""
    rows = [part.flatten(0, 1) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def separate(x_RD: Tensor, sizes: Sequence[Rows]) -> list[Tensor]:
    """The inverse of `together`."""
    parts = x_RD.split([size.views * size.tokens for size in sizes])
    return [part.unflatten(0, (size.views, size.tokens)) for part, size in zip(parts, sizes, strict=True)]


def _answers(x_RD: Tensor, sizes: Sequence[Rows]) -> list[Tensor]:
    """`separate` for the rows that were asked for."""
    return separate(x_RD, [Rows(size.views, size.answers) for size in sizes])


def _asked_rows(x_RD: Tensor, sizes: Sequence[Rows]) -> Tensor:
    """The rows that are asked for."""
    if all(size.asked == EVERY for size in sizes):
        return x_RD
    return together([part[:, size.asked] for part, size in zip(separate(x_RD, sizes), sizes, strict=True)])


def _by_row(scale_2V: Tensor, sizes: Sequence[Rows]) -> Tensor:
    """Factors of views as those of the rows that are asked for, (2, R, 1)."""
    counts_V = torch.tensor([size.answers for size in sizes for _ in range(size.views)], device=scale_2V.device)
    return scale_2V.repeat_interleave(counts_V, dim=1).unsqueeze(2)


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for linear layers (MAE); for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def checkpoint_activations(network: nn.Module) -> bool:
    """Let every transformer block of a network keep its input alone, and compute the rest again when going backwards.

    Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174. Results stay the same.

    Returns:
        Whether the network has such blocks.
    """
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    for block in blocks:
        block.checkpoint_activations = True
    return bool(blocks)
