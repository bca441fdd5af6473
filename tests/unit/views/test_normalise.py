import numpy as np
import pytest
import torch

from prevox.config.data import NormaliseConfig
from prevox.errors import ConfigError
from prevox.views.normalise import normalise

pytestmark = pytest.mark.unit


def statistics_of(x_CDHW: np.ndarray) -> list[dict[str, float]]:
    """What the store keeps, by numpy."""
    result = []
    for channel in x_CDHW.astype(np.float64):
        body = channel[channel != 0]
        low, high = np.percentile(channel, [0.5, 99.5])
        result.append(
            {
                "mean": channel.mean(),
                "std": channel.std(),
                "mean_nonzero": body.mean() if body.size else 0.0,
                "std_nonzero": body.std() if body.size else 0.0,
                "p005": low,
                "p995": high,
                "minimum": channel.min(),
                "maximum": channel.max(),
            }
        )
    return result


@pytest.fixture
def images() -> np.ndarray:
    rng = np.random.default_rng(0)
    x_BCDHW = rng.normal(300, 40, (2, 2, 3, 4, 5)) * np.array([1.0, 1000.0])[None, :, None, None, None]
    x_BCDHW[:, :, 0] = 0  # background
    return x_BCDHW


def run(x: np.ndarray, settings: NormaliseConfig) -> np.ndarray:
    return normalise(torch.from_numpy(x).float(), [statistics_of(view) for view in x], settings).numpy()


def test_zscore_equals_numpy(images):
    axes = (2, 3, 4)
    expected = (images - images.mean(axes, keepdims=True)) / images.std(axes, keepdims=True)
    np.testing.assert_allclose(run(images, NormaliseConfig()), expected, atol=1e-4)


def test_zscore_nonzero_scores_the_body_and_leaves_background_at_zero(images):
    result = run(images, NormaliseConfig(name="zscore_nonzero"))
    assert np.all(result[:, :, 0] == 0)
    body = images[:, :, 1:]
    expected = (body - body.mean((2, 3, 4), keepdims=True)) / body.std((2, 3, 4), keepdims=True)
    np.testing.assert_allclose(result[:, :, 1:], expected, atol=1e-4)


def test_zscore_nonzero_recognises_a_zero_that_quantisation_moved(images):
    statistics = [statistics_of(view) for view in images]
    step = (images[0, 0].max() - images[0, 0].min()) / 65535  # of an int16 store
    moved = images.copy()
    moved[0, 0, 0, 0], moved[0, 0, 0, 1], moved[0, 0, 0, 2] = 0.5 * step, -0.5 * step, step
    result = normalise(torch.from_numpy(moved), statistics, NormaliseConfig(name="zscore_nonzero"))
    assert (result[0, 0, 0, :2] == 0).all()
    assert (result[0, 0, 0, 2] != 0).all()


def test_zscore_nonzero_keeps_the_smallest_integer_of_a_full_range_image():
    x = np.array([0.0, 1.0, 65535.0, 65535.0]).reshape(1, 1, 1, 2, 2)
    body = np.array([1.0, 65535.0, 65535.0])
    result = run(x, NormaliseConfig(name="zscore_nonzero")).ravel()
    assert result[0] == 0
    assert result[1] == pytest.approx((1 - body.mean()) / body.std(), rel=1e-5)


def test_window_maps_to_unit_range_and_clips():
    x = np.array([-1000.0, -175.0, 37.5, 250.0, 2000.0]).reshape(1, 1, 1, 1, 5)
    result = run(x, NormaliseConfig(name="window", window=(-175, 250)))
    np.testing.assert_allclose(result.ravel(), [0, 0, 0.5, 1, 1], atol=1e-6)


def test_percentile_equals_numpy(images):
    result = run(images, NormaliseConfig(name="percentile"))
    low, high = np.percentile(images, [0.5, 99.5], axis=(2, 3, 4), keepdims=True)
    np.testing.assert_allclose(result, np.clip((images - low) / (high - low), 0, 1), atol=1e-4)


def test_two_dimensional_views_equal_the_slice_of_a_volume(images):
    slices = images[:, :, 1]
    statistics = [statistics_of(view) for view in images]
    flat = normalise(torch.from_numpy(slices), statistics, NormaliseConfig())
    full = normalise(torch.from_numpy(images), statistics, NormaliseConfig())
    assert torch.equal(flat, full[:, :, 1])


@pytest.mark.parametrize("name", ["zscore", "zscore_nonzero", "percentile"])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_images_give_zeros_not_nan(name, value):
    assert np.all(run(np.full((1, 1, 2, 2, 2), value), NormaliseConfig(name=name)) == 0)


def test_wrong_number_of_channels_is_refused(images):
    statistics = [statistics_of(view)[:1] for view in images]
    with pytest.raises(ConfigError, match=r"\[1, 1\] channels; expected 2 views with 2 channels"):
        normalise(torch.from_numpy(images), statistics, NormaliseConfig())
