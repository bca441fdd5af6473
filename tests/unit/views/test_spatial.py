import numpy as np
import pytest
import torch
from scipy import ndimage

from prevox.views.spatial import Affine, Flip, Rotate90, backward_matrix

pytestmark = pytest.mark.unit


def make(size: tuple[int, ...], views: int = 2, channels: int = 1):
    """An image that is its own label, all valid."""
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(1, 9, (views, 1, *size), generator=generator)
    return label.float().repeat(1, channels, *(1,) * len(size)), label, torch.ones_like(label, dtype=torch.bool)


@pytest.mark.parametrize("size", [(3, 4, 5), (4, 5)])
def test_flip_twice_is_identity_and_labels_follow(size):
    x, label, valid = make(size, views=4)
    valid[..., -1:] = False
    flip = Flip(0.5)
    params = flip.sample_params(4, size, torch.Generator().manual_seed(3))
    once = flip.apply(x, label, valid, params)
    assert torch.equal(once[0], once[1].float())
    for view, axes in enumerate(params["axes"]):
        dims = [1 + a for a, on in enumerate(axes.tolist()) if on]
        assert torch.equal(once[0][view], x[view].flip(dims))
        assert torch.equal(once[2][view], valid[view].flip(dims))
    for before, after in zip((x, label, valid), flip.apply(*once, params), strict=True):
        assert torch.equal(before, after)


def test_flip_probability_holds_for_each_axis_by_itself():
    axes = Flip(0.3).sample_params(4000, (2, 2, 2), torch.Generator().manual_seed(0))["axes"].float()
    assert torch.allclose(axes.mean(0), torch.full((3,), 0.3), atol=0.03)
    assert (axes.sum(1) == 2).any()
    assert (axes.sum(1) == 1).any()


def test_flip_probability_may_differ_per_axis():
    axes = Flip((0.0, 1.0)).sample_params(20, (4, 4), torch.Generator().manual_seed(0))["axes"]
    assert axes.tolist() == [[False, True]] * 20


@pytest.mark.parametrize("size", [(3, 3, 3), (2, 4, 4), (4, 4)])
def test_rotate90_four_times_is_identity_and_labels_follow(size):
    x, label, valid = make(size, views=6)
    turn = Rotate90(1.0)
    params = turn.sample_params(6, size, torch.Generator().manual_seed(0))
    assert (params["turns"] >= 1).all()
    state = (x, label, valid)
    for _ in range(4):
        state = turn.apply(*state, params)
        assert torch.equal(state[0], state[1].float())
    assert torch.equal(state[0], x)


def test_rotate90_turns_only_planes_with_equal_sides():
    params = Rotate90(1.0).sample_params(50, (2, 4, 4), torch.Generator().manual_seed(0))
    assert params["plane"].tolist() == [[1, 2]] * 50
    assert set(params["turns"].tolist()) == {1, 2, 3}
    assert Rotate90(1.0).sample_params(5, (2, 3, 4), torch.Generator())["turns"].tolist() == [0] * 5
    cube = Rotate90(1.0).sample_params(50, (4, 4, 4), torch.Generator().manual_seed(0))
    assert {tuple(plane) for plane in cube["plane"].tolist()} == {(0, 1), (0, 2), (1, 2)}


@pytest.mark.parametrize(("axis", "plane"), [(0, (3, 4)), (1, (2, 4)), (2, (2, 3))])
def test_affine_by_90_degrees_equals_rot90_on_a_cube(axis, plane):
    x, label, valid = make((5, 5, 5), channels=2)
    degrees = torch.zeros(2, 3)
    degrees[:, axis] = 90
    params = {"applied": torch.tensor([True, True]), "scale": torch.ones(2), "degrees": degrees}
    turned_x, turned_label, turned_valid = Affine(1.0, 15, (1, 1)).apply(x, label, valid, params)
    torch.testing.assert_close(turned_x, torch.rot90(x, 1, plane), atol=1e-4, rtol=0)
    assert torch.equal(turned_label, torch.rot90(label, 1, plane))
    assert turned_valid.all()


def test_affine_by_90_degrees_in_2d():
    x, label, valid = make((4, 4), views=1)
    params = {"applied": torch.tensor([True]), "scale": torch.ones(1), "degrees": torch.full((1, 1), 90.0)}
    turned, turned_label, _ = Affine(1.0, 15, (1, 1)).apply(x, label, valid, params)
    torch.testing.assert_close(turned, torch.rot90(x, 1, (2, 3)), atol=1e-4, rtol=0)
    assert torch.equal(turned_label, torch.rot90(label, 1, (2, 3)))


def test_scaling_by_two_hand_example():
    # Centred voxels of a row of four lie at -1.5 -0.5 0.5 1.5; enlarged twice they read -0.75 -0.25 0.25 0.75.
    x = torch.tensor([0.0, 4.0, 8.0, 12.0]).view(1, 1, 1, 4).repeat(1, 1, 4, 1)
    valid = torch.ones_like(x, dtype=torch.bool)
    params = {"applied": torch.tensor([True]), "scale": torch.tensor([2.0]), "degrees": torch.zeros(1, 1)}
    enlarged, _, _ = Affine(1.0, 0, (2, 2)).apply(x, None, valid, params)
    torch.testing.assert_close(enlarged[0, 0, 0], torch.tensor([3.0, 5.0, 7.0, 9.0]))
    params["scale"] = torch.tensor([0.5])  # -3 -1 1 3: the outer two are outside, the inner two between voxels
    shrunk, _, still_valid = Affine(1.0, 0, (0.5, 0.5)).apply(x, None, valid, params)
    torch.testing.assert_close(shrunk[0, 0, 1], torch.tensor([0.0, 2.0, 10.0, 0.0]))
    assert still_valid[0, 0].int().tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_affine_on_unequal_sides_equals_scipy_in_voxel_units():
    size = (6, 11, 9)
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=size), 1.5).astype(np.float32)
    label = (smooth > 0.02).astype(np.int64) + 1
    degrees, scale = torch.tensor([[20.0, -10.0, 30.0]]), torch.tensor([1.1])
    matrix = backward_matrix(degrees, scale)[0].numpy()
    assert np.allclose(matrix @ matrix.T, np.eye(3) / 1.1**2, atol=1e-6)
    centre = (np.array(size) - 1) / 2
    offset = centre - matrix @ centre
    expected = ndimage.affine_transform(smooth, matrix, offset, order=1, cval=np.nan)
    expected_label = ndimage.affine_transform(label, matrix, offset, order=0, cval=0)
    x, found_label, valid = Affine(1.0, 30, (1, 1)).apply(
        torch.from_numpy(smooth)[None, None],
        torch.from_numpy(label)[None, None],
        torch.ones(1, 1, *size, dtype=torch.bool),
        {"applied": torch.tensor([True]), "scale": scale, "degrees": degrees},
    )
    inside = ~np.isnan(expected)
    assert 0.4 < inside.mean() < 1
    np.testing.assert_allclose(x[0, 0].numpy()[inside], expected[inside], atol=1e-4)
    assert np.array_equal(found_label[0, 0].numpy()[inside], expected_label[inside])
    assert valid[0, 0].numpy()[inside].all()
    assert (x[~valid] == 0).all()
    assert (found_label[~valid] == 0).all()


def test_affine_does_not_blend_padding_into_the_image():
    x = torch.full((1, 1, 6, 6, 6), 5.0)
    valid = torch.ones_like(x, dtype=torch.bool)
    x[..., 4:], valid[..., 4:] = 0, False
    params = {"applied": torch.tensor([True]), "scale": torch.ones(1), "degrees": torch.tensor([[20.0, 10.0, 5.0]])}
    turned, _, still_valid = Affine(1.0, 20, (1, 1)).apply(x, None, valid, params)
    assert 0 < still_valid.sum() < 6**3
    torch.testing.assert_close(turned[still_valid], torch.full((int(still_valid.sum()),), 5.0))
    assert (turned[~still_valid] == 0).all()


def test_affine_changes_only_the_views_that_drew_it():
    x, label, valid = make((4, 4, 4))
    params = {"applied": torch.tensor([False, True]), "scale": torch.ones(2), "degrees": torch.full((2, 3), 12.0)}
    turned, turned_label, _ = Affine(1.0, 12, (1, 1)).apply(x, label, valid, params)
    assert torch.equal(turned[0], x[0])
    assert torch.equal(turned_label[0], label[0])
    assert not torch.equal(turned[1], x[1])


def test_affine_parameters_stay_in_their_ranges():
    params = Affine(0.5, 30, (0.8, 1.4)).sample_params(2000, (4, 4, 4), torch.Generator().manual_seed(0))
    assert params["degrees"].shape == (2000, 3)
    assert params["degrees"].abs().max() <= 30
    assert params["degrees"].min() < -25
    assert params["scale"].min() >= 0.8
    assert params["scale"].max() <= 1.4
    assert abs(params["applied"].float().mean() - 0.5) < 0.05


def test_affine_with_one_probability_draws_as_it_always_did():
    generator, again = (torch.Generator().manual_seed(4) for _ in range(2))
    params = Affine(0.4, 30, (0.8, 1.4)).sample_params(50, (4, 4, 4), generator)
    u = torch.rand(50, 5, generator=again)
    assert torch.equal(params["applied"], u[:, 0] < 0.4)
    assert torch.equal(params["scale"], 0.8 + (1.4 - 0.8) * u[:, 1])
    assert torch.equal(params["degrees"], (2 * u[:, 2:] - 1) * 30)
    Affine((0.2, 0.1), 30, (0.8, 1.4)).sample_params(50, (4, 4, 4), again.manual_seed(4))
    assert torch.equal(generator.get_state(), again.get_state()), "two probabilities draw as much as one"


@pytest.mark.parametrize("size", [(4, 4, 4), (4, 4)])
def test_rotation_and_scaling_are_drawn_each_by_itself(size):
    views = 40_000
    params = Affine((0.2, 0.3), 30, (0.7, 1.4)).sample_params(views, size, torch.Generator().manual_seed(0))
    rotated, scaled = (params["degrees"] != 0).any(1), params["scale"] != 1
    assert torch.equal(params["applied"], rotated | scaled)
    for found, wanted in [(rotated, 0.2), (scaled, 0.3), (rotated & scaled, 0.06)]:
        assert abs(found.double().mean() - wanted) < 5 * (wanted * (1 - wanted) / views) ** 0.5
    scale, degrees = params["scale"][scaled], params["degrees"][rotated]
    assert 0.7 <= scale.min() < 0.701
    assert 1.399 < scale.max() <= 1.4
    assert (degrees.min(), degrees.max()) == pytest.approx((-30, 30), abs=0.1)
    # what both have, or only one, says nothing about how far
    assert params["scale"][rotated & scaled].mean() == pytest.approx(1.05, abs=0.03)
    assert params["scale"][scaled & ~rotated].mean() == pytest.approx(1.05, abs=0.03)


@pytest.mark.parametrize("probability", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_rotation_and_scaling_never_or_always(probability):
    params = Affine(probability, 30, (0.7, 0.9)).sample_params(2000, (4, 4), torch.Generator().manual_seed(0))
    rotated, scaled = (params["degrees"] != 0).any(1), params["scale"] != 1
    assert (rotated == bool(probability[0])).all()
    assert (scaled == bool(probability[1])).all()
    assert (params["applied"] == any(probability)).all()


@pytest.mark.parametrize("in_plane", [False, True])
def test_rotation_and_scaling_together_equal_one_resampling_by_scipy(in_plane):
    size, angles = (7, 12, 10), (25.0, 0.0, 0.0) if in_plane else (25.0, -15.0, 20.0)
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=size), 1.2).astype(np.float32)
    label = (smooth > 0).astype(np.int64) + 1
    params = Affine((1.0, 1.0), 30, (0.7, 1.4)).sample_params(1, size, torch.Generator().manual_seed(0))
    params |= {"degrees": torch.tensor([angles]), "scale": torch.tensor([1.25])}
    x, found_label, valid = Affine((1.0, 1.0), 30, (0.7, 1.4), in_plane=in_plane).apply(
        torch.from_numpy(smooth)[None, None],
        torch.from_numpy(label)[None, None],
        torch.ones(1, 1, *size, dtype=torch.bool),
        params,
    )
    (cz, sz), (cy, sy), (cx, sx) = ((np.cos(np.radians(a)), np.sin(np.radians(a))) for a in angles)
    about_z = np.array([[1, 0, 0], [0, cz, sz], [0, -sz, cz]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[cx, sx, 0], [-sx, cx, 0], [0, 0, 1]])
    matrix = about_z @ about_y @ about_x @ np.diag([1.0 if in_plane else 0.8, 0.8, 0.8])  # enlarged: read 1 / 1.25
    centre = (np.array(size) - 1) / 2
    offset = centre - matrix @ centre
    expected = ndimage.affine_transform(smooth, matrix, offset, order=1, cval=np.nan)
    expected_label = ndimage.affine_transform(label, matrix, offset, order=0, cval=0)
    inside = ~np.isnan(expected)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(x[0, 0].numpy()[inside], expected[inside], atol=1e-4)
    assert np.array_equal(found_label[0, 0].numpy()[inside], expected_label[inside])
    assert valid[0, 0].numpy()[inside].all()


def test_in_plane_turns_about_z_only_and_leaves_z_alone():
    transform = Affine(1.0, 180, (0.7, 1.4), in_plane=True)
    params = transform.sample_params(200, (3, 8, 8), torch.Generator().manual_seed(0))
    assert (params["degrees"][:, 1:] == 0).all()
    assert params["degrees"][:, 0].abs().max() > 170
    planes = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1, 1).expand(200, 1, 3, 8, 8)
    turned, _, valid = transform.apply(planes, None, torch.ones(200, 1, 3, 8, 8, dtype=torch.bool), params)
    torch.testing.assert_close(turned, planes * valid)
    assert 0.5 < valid.float().mean() < 1
