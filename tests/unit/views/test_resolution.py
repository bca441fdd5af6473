import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from prevox.views.resolution import Blur, LowResolution, gaussian

pytestmark = pytest.mark.unit


def noise(size: tuple[int, ...], views: int = 1, channels: int = 1, share: float = 1.0):
    """White noise, and validity of a share of the voxels, each for itself."""
    generator = torch.Generator().manual_seed(5)
    valid = torch.rand(views, 1, *size, generator=generator) < share
    return torch.randn(views, channels, *size, generator=generator) * valid, valid


def one(**values):
    """Parameters of one view with one channel."""
    return {"applied": torch.tensor([[True]]), **{name: torch.tensor([[value]]) for name, value in values.items()}}


def slow_blur(x: np.ndarray, valid: np.ndarray, sigma, **cut) -> np.ndarray:
    """SciPy's Gaussian filter in double precision, of the image and of its validity."""
    share = ndimage.gaussian_filter(valid.astype(float), sigma, mode="constant", **cut)
    total = ndimage.gaussian_filter(x.astype(float) * valid, sigma, mode="constant", **cut)
    return np.where(valid, total / np.maximum(share, 1e-12), 0)


@pytest.mark.parametrize(("size", "sigma"), [((9, 12, 7), (0.5, 1.0, 0.8)), ((11, 8), (1.0, 0.6))])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_blur_equals_scipy_with_the_same_cut(size, sigma, share):
    x, valid = noise(size, share=share)
    blurred, _, _ = Blur(1.0, 1).apply(x, None, valid, one(sigma=sigma))
    expected = slow_blur(x[0, 0].numpy(), valid[0, 0].numpy(), sigma, radius=3)
    np.testing.assert_allclose(blurred[0, 0].numpy(), expected, atol=1e-5)
    assert np.abs(expected - x[0, 0].numpy()).max() > 0.5


def test_blur_equals_scipy_nearly_uncut():
    # Beyond 3 voxels lie 2.7e-4 of a Gaussian of deviation 1: at most 2 * 2.7e-4 of the largest value for each axis.
    x, valid = noise((12, 13, 14))
    blurred, _, _ = Blur(1.0, 1).apply(x, None, valid, one(sigma=(1.0, 1.0, 1.0)))
    expected = slow_blur(x[0, 0].numpy(), valid[0, 0].numpy(), 1.0, truncate=8)
    np.testing.assert_allclose(blurred[0, 0].numpy(), expected, atol=3 * 2 * 2.7e-4 * float(x.abs().max()))


def test_weights_of_a_gaussian_by_hand():
    weights = gaussian(torch.tensor([1.0, 0.5]))
    sides = [math.exp(-0.5), math.exp(-2), math.exp(-4.5)]
    assert weights[0].tolist() == pytest.approx([value / (1 + 2 * sum(sides)) for value in [1, *sides]])
    assert (weights[:, 0] + 2 * weights[:, 1:].sum(1)).tolist() == pytest.approx([1, 1])
    assert weights[1, 0] > weights[0, 0]


@pytest.mark.parametrize("size", [(1, 2, 9), (2, 3)])
def test_blur_of_axes_shorter_than_the_kernel(size):
    x, valid = noise(size)
    blurred, _, _ = Blur(1.0, 1).apply(x, None, valid, one(sigma=(1.0,) * len(size)))
    expected = slow_blur(x[0, 0].numpy(), valid[0, 0].numpy(), 1.0, radius=3)
    np.testing.assert_allclose(blurred[0, 0].numpy(), expected, atol=1e-5)


def test_low_resolution_by_hand():
    # Half of four samples: of each pair the right voxel is nearest (the grid's samples lie between the two), so 4 and
    # 20 are kept; read at -0.25 0.25 0.75 1.25 of the coarse grid, the first and the last beyond its ends.
    row = torch.tensor([0.0, 4.0, 8.0, 20.0])
    x, valid = row.repeat(1, 1, 4, 1), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    coarse, _, _ = LowResolution(1.0, 1).apply(x, None, valid, one(zoom=0.5))
    torch.testing.assert_close(coarse[0, 0], torch.tensor([4.0, 8.0, 16.0, 20.0]).repeat(4, 1))


def test_low_resolution_leaves_padding_out_and_keeps_strips_that_it_cannot_see():
    x = torch.tensor([3.0, 4.0, 8.0, 0.0]).repeat(1, 1, 4, 1)
    valid = torch.tensor([True, True, True, False]).repeat(1, 1, 4, 1)
    coarse, _, _ = LowResolution(1.0, 1).apply(x, None, valid, one(zoom=0.5))
    torch.testing.assert_close(coarse[0, 0, 0], torch.tensor([4.0, 4.0, 4.0, 0.0]))
    valid = torch.tensor([True, False, False, False]).repeat(1, 1, 4, 1)
    coarse, _, _ = LowResolution(1.0, 1).apply(x * valid, None, valid, one(zoom=0.5))
    torch.testing.assert_close(coarse[0, 0, 0], torch.tensor([3.0, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize(("size", "zoom"), [((9, 7, 6), 0.63), ((8, 5, 10), 0.5), ((11, 6), 0.8)])
def test_low_resolution_equals_one_axis_after_the_other(size, zoom):
    x, valid = noise(size)
    coarse, _, _ = LowResolution(1.0, 1).apply(x, None, valid, one(zoom=zoom))
    expected = x[0, 0].double().numpy()
    for axis, n in enumerate(size):
        samples = round(n * zoom)
        centres = (np.arange(samples) + 0.5) * n / samples - 0.5
        kept = np.floor(centres + 0.5).astype(int)  # the nearest voxel, of two equally near ones the later
        wanted = (np.arange(n) + 0.5) * samples / n - 0.5
        expected = np.apply_along_axis(lambda line: np.interp(wanted, np.arange(len(kept)), line[kept]), axis, expected)  # noqa: B023
    np.testing.assert_allclose(coarse[0, 0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 6, 7), (6, 5)])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_low_resolution_of_zoom_one_is_the_identity(size, share):
    x, valid = noise(size, share=share)
    same, _, _ = LowResolution(1.0, 1).apply(x, None, valid, one(zoom=1.0))
    torch.testing.assert_close(same, x, atol=1e-6, rtol=0)
    other, _, _ = LowResolution(1.0, 1).apply(x, None, valid, one(zoom=0.6))
    assert (other - x).abs().max() > 0.1


def test_low_resolution_in_plane_treats_each_plane_as_a_picture():
    x, valid = noise((3, 8, 9), share=0.8)
    volume, _, _ = LowResolution(1.0, 1, in_plane=True).apply(x, None, valid, one(zoom=0.6))
    for z in range(3):
        plane, _, _ = LowResolution(1.0, 1).apply(x[:, :, z], None, valid[:, :, z], one(zoom=0.6))
        torch.testing.assert_close(volume[:, :, z], plane)


@pytest.mark.parametrize("transform", [Blur(1.0, 2, per_channel=1.0), LowResolution(1.0, 2, per_channel=1.0)])
@pytest.mark.parametrize("size", [(6, 7, 8), (7, 8)])
def test_padding_stays_zero_and_never_blends_in(transform, size):
    x, valid = noise(size, views=3, channels=2, share=0.7)
    params = transform.sample_params(3, size, torch.Generator().manual_seed(0))
    result, _, same_valid = transform.apply(x, None, valid, params)
    trap, _, _ = transform.apply(x.masked_fill(~valid, 1e4), None, valid, params)
    padding = ~valid.expand_as(x)
    assert (result[padding] == 0).all()
    torch.testing.assert_close(trap, result, atol=1e-6, rtol=0)
    constant, _, _ = transform.apply(valid.expand_as(x) * 5.0, None, valid, params)
    torch.testing.assert_close(constant, valid.expand_as(x) * 5.0)
    assert same_valid is valid


@pytest.mark.parametrize("kind", [Blur, LowResolution])
def test_only_channels_that_drew_it_change(kind):
    x, valid = noise((5, 6, 7), views=2, channels=3)
    params = kind(1.0, 3).sample_params(2, (5, 6, 7), torch.Generator().manual_seed(0))
    params["applied"] = torch.tensor([[True, False, False], [False, False, True]])
    label = torch.ones_like(valid, dtype=torch.long)
    result, same_label, _ = kind(1.0, 3).apply(x, label, valid, params)
    changed = (result != x).flatten(2).any(2)
    assert torch.equal(changed, params["applied"])
    assert same_label is label
    alone, _, _ = kind(1.0, 3).apply(x[1:], None, valid[1:], {name: value[1:] for name, value in params.items()})
    torch.testing.assert_close(alone, result[1:])
    params["applied"] = torch.zeros(2, 3, dtype=torch.bool)
    assert kind(1.0, 3).apply(x, label, valid, params)[0] is x


def test_draws_have_their_probability_and_range():
    generator = torch.Generator().manual_seed(0)
    views, sure = 20_000, 5
    for transform, probability, key, low, high in [
        (Blur(0.2, 2), 0.2, "sigma", 0.5, 1.0),
        (LowResolution(0.25, 2), 0.25, "zoom", 0.5, 1.0),
    ]:
        params = transform.sample_params(views, (4, 4, 4), generator)
        # each channel with one half: 1 - (1 - 1/2)² of the views that are changed have a channel that is
        for found, wanted in [
            (params["applied"][:, 0], probability / 2),
            (params["applied"].any(1), probability * 3 / 4),
        ]:
            bound = sure * math.sqrt(wanted * (1 - wanted) / views)
            assert abs(found.double().mean() - wanted) < bound
        values = params[key].flatten(1)
        assert low <= values.min() < low + 0.001
        assert high - 0.001 < values.max() <= high
        assert values.double().mean() == pytest.approx((low + high) / 2, abs=0.005)
        assert torch.corrcoef(values.T).triu(1).abs().max() < 0.04
    assert Blur(0.2, 2).sample_params(3, (4, 4), generator)["sigma"].shape == (3, 2, 2)
