"""Sine-cosine tables against the formula written out, and their interpolation."""

import math

import numpy as np
import pytest
import torch

from prevox.errors import ConfigError
from prevox.models.positions import interpolate, sincos

pytestmark = pytest.mark.unit


def by_hand(position: tuple[int, ...], width: int) -> list[float]:
    """One row: for each axis all sines, then all cosines, ω_i = 10000^(-i / (d/2))."""
    share = width // len(position)
    row: list[float] = []
    for p in position:
        omegas = [10000 ** (-i / (share / 2)) for i in range(share // 2)]
        row += [math.sin(p * w) for w in omegas] + [math.cos(p * w) for w in omegas]
    return row


@pytest.mark.parametrize(("grid", "width"), [((2, 3, 4), 24), ((3, 5), 16), ((1, 2, 1), 6)])
def test_rows_equal_the_formula_in_row_major_order(grid: tuple[int, ...], width: int) -> None:
    table = sincos(grid, width)
    assert table.dtype == torch.float32
    for row, position in zip(table, np.ndindex(*grid), strict=True):
        np.testing.assert_allclose(row.numpy(), by_hand(position, width), atol=1e-7)


def test_norms_and_first_row_of_the_published_table() -> None:
    table = sincos((6, 6, 6), 768).double()
    assert torch.allclose(table.square().sum(1), torch.full((216,), 384.0, dtype=torch.float64), atol=1e-4)
    assert table[0].sum() == 384


def test_a_width_that_six_does_not_divide_ends_in_zeros() -> None:
    table = sincos((2, 2, 2), 1024)  # ViT-L: 1020 = 170 * 6
    assert torch.equal(table[:, :1020], sincos((2, 2, 2), 1020))
    assert not table[:, 1020:].any()


def test_a_width_below_two_channels_an_axis_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 6"):
        sincos((2, 2, 2), 5)


def test_interpolation_to_the_native_grid_is_the_identity() -> None:
    table = torch.randn(24, 7)
    assert interpolate(table, (2, 3, 4), (2, 3, 4)) is table


def test_linear_tables_stay_linear_inside() -> None:
    # value = z coordinate of the token's centre in units of the grid's extent; linear interpolation is exact inside
    old, new = (4, 2, 2), (8, 2, 2)
    centres = (torch.arange(4) + 0.5) / 4
    table = centres.repeat_interleave(4).unsqueeze(1)
    got = interpolate(table, old, new).reshape(new)[:, 0, 0]
    want = (torch.arange(8) + 0.5) / 8
    assert torch.allclose(got[1:-1], want[1:-1], atol=1e-6)
    assert got[0] == centres[0]  # borders are clamped
    assert got[-1] == centres[-1]


def test_interpolation_keeps_axes_apart_in_2d() -> None:
    # rows differ along y only; doubling x repeats them
    table = torch.tensor([0.0, 0.0, 1.0, 1.0]).unsqueeze(1)
    assert interpolate(table, (2, 2), (2, 4)).flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_interpolation_passes_gradients_on() -> None:
    table = torch.randn(8, 3, requires_grad=True)
    interpolate(table, (2, 2, 2), (3, 4, 2)).sum().backward()
    assert table.grad is not None
    assert table.grad.sum().item() == pytest.approx(24 * 3, rel=1e-5)  # weights of each new token add up to 1
