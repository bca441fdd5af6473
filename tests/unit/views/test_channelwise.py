import math

import numpy as np
import pytest
import torch

from prevox.views.channelwise import Brightness, Contrast, GammaRetained, around_one, draw
from prevox.views.intensity import deviation, limits, mean

pytestmark = pytest.mark.unit


@pytest.fixture
def views():
    """Two views of two channels and six voxels; the last voxel is padding."""
    x = torch.tensor([[[0.0, 4, 5, 6, 10], [1, 2, 3, 4, 5]], [[-2, -1, 0, 1, 2], [7, 7, 7, 7, 9]]])
    x = torch.cat([x, torch.zeros(2, 2, 1)], dim=2).view(2, 2, 1, 2, 3)
    valid = torch.tensor([True] * 5 + [False]).view(1, 1, 1, 2, 3).repeat(2, 1, 1, 1, 1)
    return x, torch.arange(12).view(2, 1, 1, 2, 3), valid


def drawn(applied, **values):
    return {"applied": torch.tensor(applied), **{name: torch.tensor(value) for name, value in values.items()}}


def slow_gamma(values: np.ndarray, exponent: float) -> np.ndarray:
    """One channel's valid voxels, in double precision, one after the other."""
    low, high = values.min(), values.max()
    bent = np.array([low + ((value - low) / (high - low)) ** exponent * (high - low) for value in values])
    return (bent - bent.mean()) / bent.std() * values.std() + values.mean()


def test_statistics_count_valid_voxels_only(views):
    x, _, valid = views
    assert mean(x, valid).flatten().tolist() == pytest.approx([5, 3, 0, 7.4])
    low, high = limits(x, valid)
    assert low.flatten().tolist() == [0, 1, -2, 7]
    assert high.flatten().tolist() == [10, 5, 2, 9]


def test_brightness_by_hand(views):
    x, label, valid = views
    params = drawn([[True, True], [False, True]], factor=[[1.2, 0.8], [1.1, 2.0]])
    scaled, same_label, same_valid = Brightness(1.0, 2).apply(x, label, valid, params)
    expected = [[[0, 4.8, 6, 7.2, 12], [0.8, 1.6, 2.4, 3.2, 4]], [[-2, -1, 0, 1, 2], [14, 14, 14, 14, 18]]]
    torch.testing.assert_close(scaled.flatten(2)[:, :, :5], torch.tensor(expected))
    assert (scaled.flatten(2)[:, :, 5] == 0).all()
    assert same_label is label
    assert same_valid is valid


def test_contrast_by_hand_is_cut_off_at_the_range(views):
    x, label, valid = views
    params = drawn([[True, True], [False, True]], factor=[[1.2, 0.5], [1.1, 0.5]])
    stretched, _, _ = Contrast(1.0, 2).apply(x, label, valid, params)
    # means 5, 3, 7.4: 5 - 1.2 * 5 = -1 and 5 + 1.2 * 5 = 11 leave the range; 7.4 - 0.5 * 0.4 = 7.2
    expected = [[[0, 3.8, 5, 6.2, 10], [2, 2.5, 3, 3.5, 4]], [[-2, -1, 0, 1, 2], [7.2, 7.2, 7.2, 7.2, 8.2]]]
    torch.testing.assert_close(stretched.flatten(2)[:, :, :5], torch.tensor(expected))
    assert (stretched.flatten(2)[:, :, 5] == 0).all()


@pytest.mark.parametrize("size", [(5, 6, 7), (9, 8)])
def test_gamma_equals_a_slow_one_and_retains_mean_and_deviation(size):
    generator = torch.Generator().manual_seed(0)
    valid = torch.rand(3, 1, *size, generator=generator) < 0.8
    x = (torch.randn(3, 2, *size, generator=generator) * 3 + 1) * valid
    exponents = [[0.7, 1.5], [1.2, 0.9], [1.4, 0.75]]
    params = drawn([[True, True], [False, True], [True, False]], exponent=exponents)
    bent, _, _ = GammaRetained(1.0, 2).apply(x, None, valid, params)
    for view, channel in [(0, 0), (0, 1), (1, 1), (2, 0)]:
        inside = valid[view, 0]
        expected = slow_gamma(x[view, channel][inside].double().numpy(), exponents[view][channel])
        np.testing.assert_allclose(bent[view, channel][inside].numpy(), expected, atol=2e-5)
        assert (bent[view, channel] - x[view, channel]).abs().max() > 0.1, "nothing was bent"
        assert (bent[view, channel][~inside] == 0).all()
    assert torch.equal(bent[1, 0], x[1, 0])
    assert torch.equal(bent[2, 1], x[2, 1])
    torch.testing.assert_close(mean(bent, valid), mean(x, valid), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deviation(bent, valid), deviation(x, valid), atol=1e-5, rtol=1e-5)


def test_inverted_gamma_is_gamma_of_the_negated_image_negated():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 1, 4, 5, 6, generator=generator).exp()  # skewed, so that the two kinds differ
    valid = torch.ones_like(x, dtype=torch.bool)
    params = drawn([[True]], exponent=[[1.5]])
    inverted, _, _ = GammaRetained(1.0, 1, inverted=True).apply(x, None, valid, params)
    expected = -slow_gamma(-x.flatten().double().numpy(), 1.5)
    np.testing.assert_allclose(inverted.flatten().numpy(), expected, atol=2e-5)
    plain, _, _ = GammaRetained(1.0, 1).apply(x, None, valid, params)
    assert (plain - inverted).abs().max() > 0.1


TRANSFORMS = [Brightness(1.0, 1), Contrast(1.0, 1), GammaRetained(1.0, 1), GammaRetained(1.0, 1, inverted=True)]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.name)
def test_constant_and_empty_views_stay_finite(transform):
    x = torch.stack([torch.full((1, 2, 2, 2), 3.0), torch.zeros(1, 2, 2, 2)])
    valid = torch.stack([torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)]).bool()
    params = transform.sample_params(2, (2, 2, 2), torch.Generator().manual_seed(0))
    result, _, _ = transform.apply(x, None, valid, params)
    assert result.isfinite().all()
    assert (result[1] == 0).all()
    if transform.name != "brightness":  # no deviation and no range: nothing to stretch, nothing to bend
        torch.testing.assert_close(result[0], x[0])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.name)
def test_padding_has_no_influence(transform):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 4, 4, 4, generator=generator)
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[..., 2:] = False
    params = transform.sample_params(1, (4, 4, 4), generator)
    inside, _, _ = transform.apply(x[..., :2], None, valid[..., :2], params)
    whole, _, _ = transform.apply(x.masked_fill(~valid, 1e4), None, valid, params)
    torch.testing.assert_close(whole[..., :2], inside)
    assert (whole[..., 2:] == 0).all()


@pytest.mark.parametrize("kind", [Brightness, Contrast, GammaRetained])
def test_nothing_drawn_returns_the_same_tensor(kind, views):
    x, label, valid = views
    params = kind(0.0, 2).sample_params(2, (1, 2, 3), torch.Generator().manual_seed(0))
    assert kind(0.0, 2).apply(x, label, valid, params)[0] is x


def five_deviations(probability: float, trials: int) -> float:
    return 5 * math.sqrt(probability * (1 - probability) / trials)


@pytest.mark.parametrize(
    ("transform", "probability", "key", "bounds"),
    [
        (Brightness(0.15, 3), 0.15, "factor", (0.75, 1.25)),
        (Contrast(0.15, 3), 0.15, "factor", (0.75, 1.25)),
        (GammaRetained(0.1, 3, inverted=True), 0.1, "exponent", (0.7, 1.5)),
        (GammaRetained(0.3, 3), 0.3, "exponent", (0.7, 1.5)),
    ],
    ids=["brightness", "contrast", "gamma_inverted", "gamma_retained"],
)
def test_draws_have_their_probability_and_range(transform, probability, key, bounds):
    params = transform.sample_params(20_000, (4, 4), torch.Generator().manual_seed(0))
    applied, values = params["applied"], params[key]
    assert applied.shape == values.shape == (20_000, 3)
    assert abs(applied[:, 0].double().mean() - probability) < five_deviations(probability, 20_000)
    assert (applied == applied[:, :1]).all(), "all channels of a view, or none"
    low, high = bounds
    assert low <= values.min() < low + 0.001
    assert high - 0.001 < values.max() <= high
    assert abs((values < 1).double().mean() - 0.5) < five_deviations(0.5, 60_000)
    assert torch.corrcoef(values.T).triu(1).abs().max() < 0.04, "each channel has its own"
    assert torch.corrcoef(torch.stack([applied[:, 0].float(), values[:, 0]]))[0, 1].abs() < 0.04


def test_numbers_around_one_are_uniform_on_each_side():
    u = torch.tensor([0.0, 0.25, 0.5, 0.75])
    torch.testing.assert_close(around_one(u, (0.7, 1.5)), torch.tensor([0.7, 0.85, 1.0, 1.25]))
    torch.testing.assert_close(around_one(u, (0.75, 1.25)), torch.tensor([0.75, 0.875, 1.0, 1.125]))


def test_channels_are_drawn_within_views_that_are_drawn():
    applied, numbers = draw(20_000, 2, 3, 0.2, torch.Generator().manual_seed(0), per_channel=0.5)
    assert numbers.shape == (20_000, 2, 3)
    assert abs(applied[:, 0].double().mean() - 0.1) < five_deviations(0.1, 20_000)
    assert abs(applied.any(1).double().mean() - 0.15) < five_deviations(0.15, 20_000)
    assert abs(applied.all(1).double().mean() - 0.05) < five_deviations(0.05, 20_000)


def test_as_much_is_drawn_whatever_is_said():
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    draw(5, 2, 1, 0.0, first)
    draw(5, 2, 1, 1.0, second)
    assert torch.equal(first.get_state(), second.get_state())
