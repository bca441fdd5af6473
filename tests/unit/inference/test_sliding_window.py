import itertools

import pytest
import torch

from prevox.inference.sliding_window import profile, sliding_window, starts
from prevox.models.pointwise import pointwise

pytestmark = pytest.mark.unit


def image(*size, channels=2):
    return torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))


def run(network, x, size, overlap=0.5, batch=3):
    return torch.cat(list(sliding_window(network, x, size, overlap, batch, "cpu")), dim=1)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("extent", [8, 9, 20, 31])
def test_windows_cover_the_image_and_stay_inside(extent, overlap):
    first = starts(extent, 8, overlap)
    assert set().union(*(range(s, s + 8) for s in first)) == set(range(extent))
    assert first == sorted(set(first))
    assert starts(20, 8, 0.5) == [0, 4, 8, 12]
    assert starts(19, 8, 0.5) == [0, 4, 8, 11]


@pytest.mark.parametrize("size", [1, 2, 5, 8, 64])
def test_profile_is_a_symmetric_gaussian_without_zeros(size):
    weights = profile(size)
    assert weights.min() >= 1e-3
    assert torch.equal(weights, weights.flip(0))
    # one standard deviation, size / 8, from the middle
    if size == 64:
        assert torch.exp(torch.tensor(-0.5 * (8.5 / 8) ** 2)) == pytest.approx(weights[40].item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(20, 17, 9), (3, 17, 30), (2, 2, 2)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_a_voxelwise_network_is_unchanged_by_windows(shape, overlap):
    x = image(*shape)
    mix = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])
    result = run(lambda w: torch.einsum("kc,bczyx->bkzyx", mix, w), x, (8, 6, 5), overlap)
    torch.testing.assert_close(result, torch.einsum("kc,czyx->kzyx", mix, x[0]), rtol=1e-5, atol=1e-5)


def test_one_window_is_the_forward_pass():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 2, 3, padding=1)
    x = image(8, 6, 5)
    torch.testing.assert_close(run(network, x, (8, 6, 5)), network(x)[0].detach(), rtol=1e-5, atol=1e-6)


def test_a_small_image_is_padded_with_zeros_on_both_sides():
    seen = []
    run(lambda w: seen.append(w.clone()) or w, image(3, 4, 5), (8, 4, 5))
    assert seen[0].shape == (1, 2, 8, 4, 5)
    assert torch.equal(seen[0][0, :, 2:5], image(3, 4, 5)[0])
    assert seen[0][0, :, :2].abs().max() == 0
    assert seen[0][0, :, 5:].abs().max() == 0


def test_weighted_mean_against_a_slow_reference():
    """Each window answers with a constant of its own; the result is the Gaussian-weighted mean, voxel by voxel."""
    shape, size = (13, 9, 10), (8, 6, 5)
    grid = list(itertools.product(*(starts(n, s, 0.5) for n, s in zip(shape, size, strict=True))))
    count = iter(range(len(grid)))
    result = run(lambda w: torch.stack([torch.full(w.shape[1:], float(next(count))) for _ in w]), image(*shape), size)
    upper, lower = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for number, corner in enumerate(grid):
        for offset in itertools.product(*map(range, size)):
            weight = 1.0
            for o, s in zip(offset, size, strict=True):
                weight *= max(1e-3, 2.718281828459045 ** (-0.5 * ((o - (s - 1) / 2) / (s / 8)) ** 2))
            voxel = tuple(c + o for c, o in zip(corner, offset, strict=True))
            upper[voxel] += weight * number
            lower[voxel] += weight
    torch.testing.assert_close(result[0].double(), upper / lower, rtol=1e-4, atol=1e-4)


def test_agrees_with_monai_where_its_windows_and_weights_are_the_same():
    """Along one axis MONAI's floor (on the product of weights) and ours (on each axis) are one."""
    from monai.inferers import sliding_window_inference

    x = image(37, 1, 1)
    network = torch.cumsum  # depends on where the window lies
    ours = run(lambda w: network(w, 2), x, (16, 1, 1))
    peer = sliding_window_inference(x, (16, 1, 1), 4, lambda w: network(w, 2), 0.5, mode="gaussian", sigma_scale=0.125)
    torch.testing.assert_close(ours, peer[0], rtol=1e-5, atol=1e-5)


def test_seams_are_no_worse_than_monais_in_three_dimensions():
    """MONAI floors the product of the axes' weights, so its windows' unreliable corners weigh more than ours."""
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 2, 3, padding=1)  # wrong in the outermost voxels of a window, exact elsewhere
    x = image(24, 20, 16)
    ours = run(network, x, (16, 16, 16))
    with torch.no_grad():
        peer = sliding_window_inference(x, (16,) * 3, 4, network, 0.5, mode="gaussian", sigma_scale=0.125)[0]
        exact = network(x)[0]
    assert (ours - exact).abs().max() <= (peer - exact).abs().max()
    middle = (slice(None), slice(4, -4), slice(6, -6), slice(6, -6))
    torch.testing.assert_close(ours[middle], exact[middle], rtol=0, atol=0.02)


def test_a_two_dimensional_network_goes_slice_by_slice():
    torch.manual_seed(0)
    network = torch.nn.Conv2d(2, 3, 3, padding=1)
    x = image(4, 6, 5)
    result = run(network, x, (6, 5))
    expected = torch.stack([network(x[:, :, z])[0] for z in range(4)], dim=1).detach()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("batch", "expected"), [(4, [3, 3, 3]), (5, [4, 5]), (9, [9]), (100, [9])])
def test_no_more_windows_at_once_than_asked_for_and_none_left_alone(batch, expected):
    sizes = []
    run(lambda w: sizes.append(len(w)) or w, image(8, 12, 9), (8, 6, 5), batch=batch)  # 1 × 3 × 3 windows
    assert sizes == expected


def slow_average(network, x, size, overlap):
    """Every window's output and weight in volumes of the whole image, in double precision."""
    grid = [starts(n, s, overlap) for n, s in zip(x.shape[2:], size, strict=True)]
    upper = lower = 0
    for corner in itertools.product(*grid):
        box = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
        weights = torch.zeros(x.shape[2:], dtype=torch.float64)
        weights[box] = torch.einsum("z,y,x->zyx", *(profile(s).double() for s in size))
        output = network(x[:, :, *box])[0].double()
        whole = torch.zeros(len(output), *x.shape[2:], dtype=torch.float64)
        whole[:, *box] = output
        upper, lower = upper + whole * weights, lower + weights
    return upper / lower


CASES = [
    ((19, 13, 10), (8, 6, 5), 0.5, 4),
    ((19, 6, 11), (8, 6, 5), 0.7, 3),  # planes move up by 2 of 8
    ((9, 13, 5), (4, 6, 5), 0.0, 2),
    ((5, 13, 10), (1, 6, 5), 0.5, 7),
]


@pytest.mark.parametrize(("shape", "size", "overlap", "batch"), CASES)
def test_streamed_planes_are_the_average_over_the_whole_volume(shape, size, overlap, batch):
    def network(w):  # depends on where the voxel lies in its window
        return torch.cat([w.cumsum(2), w.cumsum(3) * w.cumsum(4), w], dim=1)

    x = image(*shape)
    expected = slow_average(network, x, size, overlap)
    if size[0] == 1:  # the same as a 2D network, slice by slice
        flat = run(lambda w: network(w[:, :, None])[:, :, 0], x, size[1:], overlap, batch)
        torch.testing.assert_close(flat.double(), expected, rtol=1e-5, atol=1e-5)
    pieces = list(sliding_window(network, x, size, overlap, batch, "cpu"))
    torch.testing.assert_close(torch.cat(pieces, dim=1).double(), expected, rtol=1e-5, atol=1e-5)
    assert max(piece.shape[1] for piece in pieces) <= max(1, size[0] // 4)


@pytest.mark.parametrize("outputs", [1, 3, 100])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_linear_head_may_wait_until_windows_are_averaged(outputs, dimensions):
    torch.manual_seed(0)
    conv = (torch.nn.Conv2d, torch.nn.Conv3d)[dimensions - 2]
    body, head = torch.nn.Sequential(conv(2, 4, 3, padding=1), torch.nn.Tanh()), conv(4, outputs, 1)
    x, size = image(11, 9, 7), (4, 6, 5)[-dimensions:]
    with torch.no_grad():
        at_once = run(lambda w: head(body(w)), x, size)
        waiting = pointwise(head, run(body, x, size))
    torch.testing.assert_close(waiting, at_once, rtol=1e-5, atol=1e-5)
