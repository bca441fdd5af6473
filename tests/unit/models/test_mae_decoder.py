"""The decoder works in shuffled order; here it is compared with the unshuffled way, written out."""

import pytest
import torch

from prevox.masking.tokens import TokenMask, random_token_mask
from prevox.models.mae_decoder import MAEDecoder
from prevox.models.positions import interpolate
from prevox.models.transformer import Rows

pytestmark = pytest.mark.unit


def tiny(class_token: bool = True, positions: str = "sincos") -> MAEDecoder:
    torch.manual_seed(0)
    decoder = MAEDecoder(
        grid=(2, 3, 2),
        patch=(2, 2, 2),
        channels=2,
        encoder_width=24,
        width=12,
        depth=2,
        heads=3,
        positions=positions,
        class_token=class_token,
    )
    return decoder.double()


def unshuffled(decoder: MAEDecoder, tokens: torch.Tensor, mask: TokenMask, table: torch.Tensor) -> torch.Tensor:
    """MAE's way: put tokens and mask tokens on the grid, add the grid's positions, predict all patches."""
    embedded = decoder.embed(tokens)
    rows = []
    for b in range(len(tokens)):
        grid = [decoder.mask_token] * mask.order_BL.shape[1]
        for k, place in enumerate(mask.visible_BK[b].tolist()):
            grid[place] = embedded[b, decoder.prefix + k]
        rows.append(torch.cat([embedded[b, : decoder.prefix], torch.stack(grid) + table]))
    x, size = torch.cat(rows), [Rows(len(rows), len(rows[0]))]
    for block in decoder.blocks:
        x = block(x, size)
    return decoder.head(decoder.norm(x)).unflatten(0, size[0][:2])[:, decoder.prefix :]


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("positions", ["sincos", "learnable"])
def test_shuffled_and_unshuffled_order_agree(class_token: bool, positions: str) -> None:
    decoder = tiny(class_token, positions)
    mask = random_token_mask(3, 12, 0.6, torch.Generator().manual_seed(1))
    tokens = torch.randn(3, mask.kept + decoder.prefix, 24, dtype=torch.float64)
    want = unshuffled(decoder, tokens, mask, decoder.positions)
    everywhere = decoder(tokens, mask.order_BL, everywhere=True)
    masked = decoder(tokens, mask.order_BL)
    assert masked.shape == (3, 8, 16)
    torch.testing.assert_close(everywhere, want, atol=1e-12, rtol=0)
    for b in range(3):
        torch.testing.assert_close(masked[b], want[b, mask.masked_BM[b]], atol=1e-12, rtol=0)


def test_another_grid_takes_interpolated_positions() -> None:
    decoder = tiny()
    mask = random_token_mask(2, 24, 0.5, torch.Generator().manual_seed(1))
    tokens = torch.randn(2, mask.kept + 1, 24, dtype=torch.float64)
    table = interpolate(decoder.positions, (2, 3, 2), (4, 3, 2))
    want = unshuffled(decoder, tokens, mask, table)
    got = decoder(tokens, mask.order_BL, grid=(4, 3, 2), everywhere=True)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_masked_tokens_differ_only_by_their_position() -> None:
    decoder = tiny(class_token=False)
    decoder.positions.zero_()
    mask = random_token_mask(1, 12, 0.5, torch.Generator().manual_seed(1))
    prediction = decoder(torch.randn(1, 6, 24, dtype=torch.float64), mask.order_BL)
    torch.testing.assert_close(prediction, prediction[:, :1].expand_as(prediction))
