import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from prevox.views.resize import axis_weights, resize

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("old", "new"), [((40, 30), (13, 11)), ((17, 9), (17, 5)), ((8, 9), (20, 31))])
def test_whole_pictures_agree_with_pytorchs_antialiased_interpolation(old, new) -> None:
    x_C1HW = torch.randn(2, 1, *old, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(x_C1HW.transpose(0, 1), new, mode="bilinear", antialias=True, align_corners=False)
    got = resize(x_C1HW, [(0, 1), (0, old[0]), (0, old[1])], (1, *new))
    torch.testing.assert_close(got[:, 0], wanted[0], atol=1e-5, rtol=1e-5)


def test_volumes_agree_with_a_loop_over_samples() -> None:
    """The definition, sample by sample: a triangle of max(1, step) around each target's centre in the box."""
    x = np.random.default_rng(1).normal(size=(5, 7, 6))
    window, size = [(0.5, 4.25), (1, 7), (0, 5.5)], (3, 2, 9)
    wanted = np.zeros(size)
    for place in np.ndindex(*size):
        weights = []
        for axis, index in enumerate(place):
            (low, high), n = window[axis], x.shape[axis]
            step = (high - low) / size[axis]
            centre = min(max(low + (index + 0.5) * step - 0.5, 0), n - 1)
            row = np.array([max(0.0, 1 - abs(s - centre) / max(step, 1.0)) for s in range(n)])
            weights.append(row / row.sum())
        wanted[place] = np.einsum("z,y,x,zyx->", *weights, x)
    got = resize(torch.from_numpy(x).float()[None], window, size)[0]
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-5)


def test_native_size_changes_nothing() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(resize(x, [(0, 3), (0, 4), (0, 5)], (3, 4, 5)), x)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.floats(0.05, 1))
@settings(max_examples=60, deadline=None)
def test_a_constant_stays_and_a_ramp_is_read_at_the_targets_centres(samples, targets, place, share) -> None:
    low = place * samples * (1 - share)
    step = samples * share / targets
    first = low + step / 2 - 0.5
    weights_TS = axis_weights(samples, first, step, targets).double()
    torch.testing.assert_close(weights_TS.sum(1), torch.ones(targets, dtype=torch.float64), atol=1e-6, rtol=0)
    centres = first + step * torch.arange(targets, dtype=torch.float64)
    inner = (centres - max(step, 1) >= -1e-6) & (centres + max(step, 1) <= samples - 1 + 1e-6)  # whole triangle inside
    # a linear function is reproduced wherever the triangle is sampled symmetrically, and nearly so elsewhere
    error = (weights_TS @ torch.arange(samples, dtype=torch.float64) - centres).abs()
    assert (error[inner] <= (1e-5 if step <= 1 else 0.25)).all()
