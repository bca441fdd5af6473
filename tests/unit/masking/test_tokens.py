"""Kept tokens by exact arithmetic, and the properties of random masks."""

from fractions import Fraction
from math import floor

import pytest
import torch

from prevox.errors import ConfigError
from prevox.masking.tokens import TokenMask, kept_tokens, random_token_mask

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("length", "ratio", "kept"),
    [
        (216, 0.6, 86),
        (216, 0.7, 64),
        (216, 0.75, 54),
        (216, 0.125, 189),
        (512, 0.125, 448),
        (512, 0.75, 128),
        (1000, 0.6, 400),
        (1000, 0.75, 250),
        (1000, 0.8, 200),  # 1000 * (1 - 0.8) is 199.99999999999997
        (1000, 0.9, 100),
        (125, 0.8, 25),
    ],
)
def test_kept_tokens_by_hand(length: int, ratio: float, kept: int) -> None:
    assert kept_tokens(length, ratio) == kept


@pytest.mark.parametrize("length", [27, 125, 175, 196, 216, 512, 1000, 4096])
def test_kept_tokens_equals_exact_arithmetic_for_every_per_mille(length: int) -> None:
    for k in range(1, 1000):
        exact = floor(length * (1 - Fraction(k, 1000)))
        if 1 <= exact < length:
            assert kept_tokens(length, k / 1000) == exact, k


@pytest.mark.parametrize(("length", "ratio"), [(8, 0.95), (8, 0.0), (1, 0.5), (8, 1.0)])
def test_a_mask_without_visible_or_masked_tokens_is_refused(length: int, ratio: float) -> None:
    with pytest.raises(ConfigError, match=r"mask_ratio.*at least 1 visible and 1 masked"):
        kept_tokens(length, ratio)


def test_visible_and_masked_are_a_partition_and_restore_undoes_the_order() -> None:
    mask = random_token_mask(5, 27, 0.6, torch.Generator().manual_seed(3))
    assert mask.order_BL.dtype == torch.int64
    assert mask.visible_BK.shape == (5, 10)
    assert mask.masked_BM.shape == (5, 17)
    assert torch.equal(mask.order_BL.sort(dim=1).values, torch.arange(27).expand(5, 27))
    assert torch.equal(mask.order_BL.gather(1, mask.restore_BL), torch.arange(27).expand(5, 27))
    for b in range(5):
        assert set(mask.mask_BL[b].nonzero().flatten().tolist()) == set(mask.masked_BM[b].tolist())


def test_mask_of_a_known_order() -> None:
    mask = TokenMask(torch.tensor([[2, 0, 3, 1]]), kept=1)
    assert mask.visible_BK.tolist() == [[2]]
    assert mask.masked_BM.tolist() == [[0, 3, 1]]
    assert mask.mask_BL.tolist() == [[True, True, False, True]]
    assert mask.restore_BL.tolist() == [[1, 3, 0, 2]]


def test_the_generator_alone_decides() -> None:
    torch.manual_seed(0)
    first = random_token_mask(4, 64, 0.5, torch.Generator().manual_seed(1)).order_BL
    torch.manual_seed(99)
    assert torch.equal(first, random_token_mask(4, 64, 0.5, torch.Generator().manual_seed(1)).order_BL)
    assert not torch.equal(first, random_token_mask(4, 64, 0.5, torch.Generator().manual_seed(2)).order_BL)
    assert not torch.equal(first[0], first[1])  # samples of a batch differ


def test_every_token_is_masked_equally_often() -> None:
    mask_BL = random_token_mask(20000, 8, 0.25, torch.Generator().manual_seed(0)).mask_BL
    share = mask_BL.float().mean(0)
    # standard error sqrt(0.25 * 0.75 / 20000) = 0.003; five of them
    assert torch.allclose(share, torch.full((8,), 0.25), atol=0.0153)
