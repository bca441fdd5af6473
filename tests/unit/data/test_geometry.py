import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from tests.unit.data.strategies import affines, shapes

from prevox.data.geometry import (
    Grid,
    canonical_axes,
    crop,
    nonzero_box,
    orientation_of,
    reorient,
    resample,
    resample_label,
    resampled_grid,
    spacing_of,
)
from prevox.errors import DataError

pytestmark = pytest.mark.unit


def world(affine, index):
    return (affine @ np.array([*index, 1.0]))[:3]


def diagonal(*spacing, origin=(0, 0, 0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def canonical(spacing_zyx):
    """Affine of a canonical array: z up, y forwards, x to the right."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing_zyx, 1
    return affine


def test_orientation_and_axes_by_hand():
    assert orientation_of(np.eye(4)) == "RAS"
    assert orientation_of(np.diag([-1, -1, 1, 1])) == "LPS"
    swapped = np.eye(4)[[1, 0, 2, 3]]  # first axis runs to the front
    assert orientation_of(swapped) == "ARS"
    assert canonical_axes(np.eye(4), (2, 3, 4)) == ((2, 1, 0), (False, False, False))
    assert canonical_axes(np.diag([-2, -1, 3, 1]), (2, 3, 4)) == ((2, 1, 0), (False, True, True))
    assert canonical_axes(canonical((1, 1, 1)), (2, 3, 4)) == ((0, 1, 2), (False, False, False))
    assert spacing_of(diagonal(3, 2, 1)) == (3, 2, 1)


def test_oblique_axes_are_each_used_once():
    # two axes lean towards Superior by more than 45 degrees; the better one takes it
    first, second = np.array([0.0, 0.55, 0.835]), np.array([0.0, -0.75, 0.66])
    affine = np.eye(4)
    affine[:3, :3] = np.stack([first, second, [1.0, 0, 0]], axis=1)
    permutation, flips = canonical_axes(affine, (2, 3, 4))
    assert permutation == (0, 1, 2)
    assert flips == (False, True, False)


def test_single_slice_lies_across_z():
    assert canonical_axes(np.eye(4), (1, 5, 6)) == ((0, 2, 1), (False, False, False))  # sagittal: y up, x forwards
    assert canonical_axes(np.eye(4), (5, 1, 6)) == ((1, 2, 0), (False, False, False))  # coronal: y up, x right
    assert canonical_axes(np.diag([-1, 1, -1, 1]), (1, 5, 6)) == ((0, 2, 1), (True, True, False))
    assert canonical_axes(np.eye(4), (5, 6, 1)) == ((2, 1, 0), (False, False, False))
    assert canonical_axes(np.eye(4), (1, 1, 6)) == ((2, 1, 0), (False, False, False))  # a line is in no plane


@pytest.mark.parametrize(
    "broken", [np.zeros((4, 4)), np.diag([1, 0, 1, 1.0]), np.full((4, 4), np.nan), np.ones((4, 4))]
)
def test_singular_affine_is_refused(broken):
    with pytest.raises(DataError, match="independent"):
        canonical_axes(broken, (2, 3, 4))


@given(affines(), shapes)
@settings(max_examples=60, deadline=None)
def test_reorient_keeps_the_place_of_every_voxel(affine, shape):
    rng = np.random.default_rng(0)
    array = rng.permutation(np.prod(shape)).reshape(1, *shape)
    turned, new_affine = reorient(array, affine, *canonical_axes(affine, shape))
    for value in rng.choice(array.size, min(5, array.size), replace=False):
        old_index, new_index = np.argwhere(array[0] == value)[0], np.argwhere(turned[0] == value)[0]
        np.testing.assert_allclose(world(affine, old_index), world(new_affine, new_index), atol=1e-9)
    assert canonical_axes(new_affine, turned.shape[1:]) == ((0, 1, 2), (False, False, False))
    assert sorted(spacing_of(new_affine)) == pytest.approx(sorted(spacing_of(affine)))


def test_nonzero_box_looks_at_all_channels():
    array = np.zeros((2, 5, 6, 7))
    array[0, 1, 2, 3] = 1
    array[1, 3, 2, 6] = -1
    box = nonzero_box(array)
    assert box == ((1, 4), (2, 3), (3, 7))
    cut, affine = crop(array, diagonal(2, 3, 4, origin=(10, 20, 30)), box)
    assert cut.shape == (2, 3, 1, 4)
    assert affine[:3, 3].tolist() == [12, 26, 42]
    assert nonzero_box(np.zeros((1, 2, 3, 4))) == ((0, 2), (0, 3), (0, 4))


def corners(grid):
    """World positions of the outer corners of the field of view."""
    return [world(grid.affine, np.array(c) * grid.shape - 0.5) for c in np.ndindex(2, 2, 2)]


@given(affines(), shapes, st.tuples(*[st.floats(0.4, 5)] * 3))
@settings(max_examples=60, deadline=None)
def test_resampled_grid_keeps_the_field_of_view(affine, shape, spacing):
    old = Grid(shape, affine)
    new = resampled_grid(old, spacing)
    np.testing.assert_allclose(corners(old), corners(new), atol=1e-6)
    expected = [max(1, round(n * s / t)) for n, s, t in zip(shape, old.spacing, spacing, strict=True)]
    assert list(new.shape) == expected


@pytest.mark.parametrize("order", [1, 3])
def test_resample_equals_scipy(order):
    x = np.random.default_rng(1).normal(100, 20, (2, 9, 12, 10))
    got, affine = resample(x, canonical((2.0, 1.0, 1.0)), (1.0, 2.0, 1.0), order)
    smooth = ndimage.gaussian_filter1d(x, 0.5, axis=2, mode="nearest")  # the axis that shrinks: (2 - 1) / 2
    expected = ndimage.zoom(smooth, (1, 2, 0.5, 1), order=order, mode="nearest", grid_mode=True)
    expected = np.clip(expected, x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True))
    assert got.shape == (2, 18, 6, 10)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert spacing_of(affine) == pytest.approx((1, 2, 1))


def test_resample_reproduces_a_ramp_and_clips_overshoot():
    ramp = np.broadcast_to(np.arange(20.0)[:, None, None] + 0.5, (20, 3, 3))[None]
    finer, affine = resample(ramp, canonical((1, 1, 1)), (0.5, 1, 1), 1)
    np.testing.assert_allclose(finer[0, 2:-2, 1, 1], (np.arange(40) + 0.5)[2:-2] / 2, atol=1e-5)
    assert affine[2, 3] == pytest.approx(-0.25)
    step = (ramp > 10).astype(np.int16) * 1000
    sharp, _ = resample(step, canonical((1, 1, 1)), (0.37, 1, 1), 3)
    assert sharp.min() == 0
    assert sharp.max() == 1000


def test_nothing_to_resample_returns_the_array_itself():
    x = np.random.default_rng(0).integers(0, 9, (1, 5, 6, 7))
    same, affine = resample(x, canonical((1.0, 2.0, 3.0)), (1.05, 2.05, 3.0), 3)
    assert same is x
    assert spacing_of(affine) == pytest.approx((1, 2, 3))


def test_label_resampling_equals_plain_one_hot():
    rng = np.random.default_rng(2)
    label = ndimage.zoom(rng.integers(0, 4, (4, 4, 4)), 3, order=0).astype(np.uint8) * 7
    got, affine = resample_label(label, canonical((1.0, 1.5, 2.0)), (1.3, 1.0, 1.0))
    values = np.unique(label)
    one_hot = np.stack([label == value for value in values]).astype(float)
    scores, expected_affine = resample(one_hot, canonical((1.0, 1.5, 2.0)), (1.3, 1.0, 1.0), 1)
    assert got.dtype == np.uint8
    assert (affine == expected_affine).all()
    clear = np.diff(np.sort(scores, axis=0)[-2:], axis=0)[0] > 1e-5  # leave ties out
    assert clear.mean() > 0.8
    assert (got == values[scores.argmax(0)])[clear].all()


def test_thin_class_survives_as_far_as_it_wins():
    label = np.zeros((1, 1, 12), np.uint8)
    label[..., 5] = 1  # one voxel of four: never the largest
    assert not resample_label(label, canonical((1, 1, 1)), (1, 1, 4))[0].any()
    wide = np.zeros((12, 12, 40), np.uint8)
    wide[5, 5, 20] = 3  # reaches no sample at all
    assert not resample_label(wide, canonical((1, 1, 1)), (2, 2, 0.5))[0].any()
    wide[4:8, 4:8, 18:22] = 5
    coarse, _ = resample_label(wide, canonical((1, 1, 1)), (2, 2, 0.5))
    assert np.argwhere(coarse == 5).min(0).tolist() == [2, 2, 36]
    assert np.argwhere(coarse == 5).max(0).tolist() == [3, 3, 43]
