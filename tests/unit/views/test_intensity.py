import math

import pytest
import torch

from prevox.views.intensity import Gamma, IntensityScale, IntensityShift, Noise, deviation

pytestmark = pytest.mark.unit


@pytest.fixture
def views():
    """Two views of four voxels; the last voxel is padding."""
    x = torch.tensor([[1.0, 2.0, 3.0, 0.0], [-2.0, 0.0, 2.0, 0.0]]).view(2, 1, 1, 2, 2)
    valid = torch.tensor([True, True, True, False]).view(1, 1, 1, 2, 2).repeat(2, 1, 1, 1, 1)
    return x, valid


def both(**values):
    return {"applied": torch.tensor([True, True]), **{name: torch.tensor(value) for name, value in values.items()}}


def test_deviation_counts_valid_voxels_only(views):
    # 1 2 3: variance 2/3; -2 0 2: variance 8/3
    assert deviation(*views).flatten().tolist() == pytest.approx([math.sqrt(2 / 3), math.sqrt(8 / 3)])


def test_scale_by_hand(views):
    x, valid = views
    scaled, label, same = IntensityScale(1.0).apply(x, None, valid, both(factor=[1.1, 0.9]))
    torch.testing.assert_close(scaled.flatten(1), torch.tensor([[1.1, 2.2, 3.3, 0], [-1.8, 0, 1.8, 0]]))
    assert label is None
    assert same is valid


def test_shift_by_hand_keeps_padding_at_zero(views):
    x, valid = views
    shifted, _, _ = IntensityShift(1.0).apply(x, None, valid, both(deviations=[0.1, -0.1]))
    first, second = 0.1 * math.sqrt(2 / 3), -0.1 * math.sqrt(8 / 3)
    expected = torch.tensor([[1 + first, 2 + first, 3 + first, 0], [-2 + second, second, 2 + second, 0]])
    torch.testing.assert_close(shifted.flatten(1), expected)


def test_gamma_by_hand_keeps_the_ends_of_the_range(views):
    x, valid = views
    bent, _, _ = Gamma(1.0).apply(x, None, valid, both(exponent=[2.0, 0.5]))
    # middle of 1..3: 1 + 0.5² · 2; middle of -2..2: -2 + √0.5 · 4
    expected = torch.tensor([[1, 1.5, 3, 0], [-2, -2 + math.sqrt(0.5) * 4, 2, 0]])
    torch.testing.assert_close(bent.flatten(1), expected)


def test_noise_has_the_drawn_deviation_and_its_own_seed():
    x = torch.randn(3, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0)) * 50
    valid = torch.ones_like(x, dtype=torch.bool)
    params = {"applied": torch.ones(3).bool(), "deviations": torch.tensor([0.1, 0.05, 0.1])}
    params["seed"] = torch.tensor([1, 2, 1])
    noise = Noise(1.0).apply(x, None, valid, params)[0] - x
    assert noise.std(dim=(1, 2, 3, 4)).tolist() == pytest.approx([5, 2.5, 5], rel=0.05)
    torch.testing.assert_close(noise[0] / x[0].std(), noise[2] / x[2].std(), atol=1e-3, rtol=1e-3)
    assert abs(torch.corrcoef(noise.flatten(1))[0, 1]) < 0.05


@pytest.mark.parametrize("transform", [IntensityScale(1.0), IntensityShift(1.0), Noise(1.0), Gamma(1.0)])
def test_constant_padded_and_empty_views_stay_finite(transform):
    x = torch.stack([torch.full((1, 2, 2, 2), 3.0), torch.zeros(1, 2, 2, 2)])
    valid = torch.stack([torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)]).bool()
    params = transform.sample_params(2, (2, 2, 2), torch.Generator().manual_seed(0))
    result, _, _ = transform.apply(x, None, valid, params)
    assert result.isfinite().all()
    assert (result[1] == 0).all()
    if transform.name != "intensity_scale":  # no deviation and no range: nothing to add, nothing to bend
        assert (result[0] == 3).all()


def test_ranges_of_the_draws():
    generator = torch.Generator().manual_seed(0)
    assert (IntensityScale(1.0).sample_params(500, (2,), generator)["factor"] - 1).abs().max() <= 0.1
    assert IntensityShift(1.0).sample_params(500, (2,), generator)["deviations"].abs().max() <= 0.1
    spread = Noise(1.0).sample_params(500, (2,), generator)["deviations"]
    assert 0 <= spread.min() < 0.005
    assert 0.095 < spread.max() <= 0.1
    exponent = Gamma(1.0).sample_params(4000, (2,), generator)["exponent"]
    assert 0.7 <= exponent.min() < 0.71
    assert 1.48 < exponent.max() <= 1.5
    assert exponent.log().mean() == pytest.approx((math.log(0.7) + math.log(1.5)) / 2, abs=0.02)
