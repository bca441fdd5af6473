import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

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
    scores_to_source,
    spacing_of,
    to_source,
)
from prevox.errors import DataError

pytestmark = pytest.mark.unit


@st.composite
def affines(draw, largest_angle=180.0):
    """Rotations of any kind, with mirrors, spacings from 0.3 to 6 mm and distant origins."""
    angle = st.floats(-largest_angle, largest_angle)
    rotation = Rotation.from_euler("xyz", [draw(angle) for _ in range(3)], degrees=True).as_matrix()
    signs = [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    spacing = [draw(st.floats(0.3, 6.0)) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(signs) @ np.diag(spacing)
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return affine


shapes = st.tuples(*[st.integers(1, 7)] * 3)


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
    assert canonical_axes(np.eye(4)) == ((2, 1, 0), (False, False, False))
    assert canonical_axes(np.diag([-2, -1, 3, 1])) == ((2, 1, 0), (False, True, True))
    assert canonical_axes(canonical((1, 1, 1))) == ((0, 1, 2), (False, False, False))
    assert spacing_of(diagonal(3, 2, 1)) == (3, 2, 1)


def test_oblique_axes_are_each_used_once():
    # two axes lean towards Superior by more than 45 degrees; the better one takes it
    first, second = np.array([0.0, 0.55, 0.835]), np.array([0.0, -0.75, 0.66])
    affine = np.eye(4)
    affine[:3, :3] = np.stack([first, second, [1.0, 0, 0]], axis=1)
    permutation, flips = canonical_axes(affine)
    assert permutation == (0, 1, 2)
    assert flips == (False, True, False)


@pytest.mark.parametrize(
    "broken", [np.zeros((4, 4)), np.diag([1, 0, 1, 1.0]), np.full((4, 4), np.nan), np.ones((4, 4))]
)
def test_singular_affine_is_refused(broken):
    with pytest.raises(DataError, match="independent"):
        canonical_axes(broken)


@given(affines(), shapes)
@settings(max_examples=60, deadline=None)
def test_reorient_keeps_the_place_of_every_voxel(affine, shape):
    rng = np.random.default_rng(0)
    array = rng.permutation(np.prod(shape)).reshape(1, *shape)
    turned, new_affine = reorient(array, affine, *canonical_axes(affine))
    for value in rng.choice(array.size, min(5, array.size), replace=False):
        old_index, new_index = np.argwhere(array[0] == value)[0], np.argwhere(turned[0] == value)[0]
        np.testing.assert_allclose(world(affine, old_index), world(new_affine, new_index), atol=1e-9)
    assert canonical_axes(new_affine) == ((0, 1, 2), (False, False, False))
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


def prepare(array, affine, box=None, spacing=None):
    turned, turned_affine = reorient(array, affine, *canonical_axes(affine))
    cut, cut_affine = crop(turned, turned_affine, box or nonzero_box(turned))
    return resample(cut, cut_affine, spacing, 1) if spacing else (cut, cut_affine)


@given(affines(), shapes, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_way_back_is_exact_without_resampling(affine, shape, seed):
    labels = np.random.default_rng(seed).integers(0, 3, shape) * (np.random.default_rng(seed + 1).random(shape) > 0.7)
    cut, cut_affine = prepare(labels[None], affine)
    scores = np.random.default_rng(seed).normal(0, 0.1, (3, *cut.shape[1:]))
    np.put_along_axis(scores, cut.astype(int), 5.0, axis=0)
    prepared, source = Grid(cut.shape[1:], cut_affine), Grid(shape, affine)
    back = to_source(scores, prepared, source)
    assert back.dtype == np.uint8
    assert (back == labels).all()
    regions = scores_to_source(scores, prepared, source, outside=-1.0)
    inside, _ = reorient(regions, affine, *canonical_axes(affine))
    kept = nonzero_box(reorient(labels[None], affine, *canonical_axes(affine))[0])
    window = tuple(slice(*edge) for edge in kept)
    assert (inside[(slice(None), *window)] == scores.astype(np.float32)).all()
    outside = np.ones(inside.shape[1:], bool)
    outside[window] = False
    assert (inside[:, outside] == -1).all()


@given(affines(), st.tuples(*[st.integers(4, 9)] * 3), st.tuples(*[st.floats(0.5, 4)] * 3))
@settings(max_examples=40, deadline=None)
def test_way_back_puts_scores_where_they_belong(affine, shape, spacing):
    """A linear function of the world, given on the prepared grid, has its own values at the source's voxels."""
    zeros = np.zeros((1, *shape))
    prepared_array, prepared_affine = prepare(zeros, affine, spacing=spacing)
    prepared = Grid(prepared_array.shape[1:], prepared_affine)
    slope = np.array([0.3, -0.2, 0.5])
    positions = np.moveaxis(np.indices(prepared.shape), 0, -1) @ prepared_affine[:3, :3].T + prepared_affine[:3, 3]
    back = scores_to_source((positions @ slope)[None], prepared, Grid(shape, affine))[0]
    # inside the outermost prepared centres nothing is clipped, so interpolation is exact
    index = np.moveaxis(np.indices(shape), 0, -1)
    source_positions = index @ affine[:3, :3].T + affine[:3, 3]
    on_prepared = (source_positions - prepared_affine[:3, 3]) @ np.linalg.inv(prepared_affine[:3, :3]).T
    interior = ((on_prepared >= 0) & (on_prepared <= np.array(prepared.shape) - 1)).all(-1)
    np.testing.assert_allclose(back[interior], (source_positions @ slope)[interior], atol=2e-3)
    assert (on_prepared > -0.5 - 1e-6).all()  # the field of view was kept: no source voxel lies outside


def test_labels_back_are_the_largest_interpolated_score(monkeypatch):
    monkeypatch.setattr("prevox.data.geometry._SLAB_VOXELS", 50)  # several slabs
    rng = np.random.default_rng(3)
    affine = diagonal(-1.5, 1.0, 0.8, origin=(3, 4, 5))
    source = Grid((7, 9, 11), affine)
    turned, turned_affine = reorient(np.zeros((1, 7, 9, 11)), affine, *canonical_axes(affine))
    prepared = resampled_grid(Grid(turned.shape[1:], turned_affine), (1, 1, 1))
    scores = rng.normal(size=(5, *prepared.shape))
    expected = scores_to_source(scores, prepared, source).argmax(0)
    assert (to_source(scores, prepared, source) == expected).all()


def test_grids_that_do_not_belong_together_are_refused():
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix()
    with pytest.raises(DataError, match="turned against"):
        to_source(np.zeros((2, 4, 4, 4)), Grid((4, 4, 4), canonical((1, 1, 1))), Grid((4, 4, 4), turned))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_oracle_round_trip_on_oblique_grids():
    """Smooth shapes of hippocampus size on oblique 1.5 x 1 x 0.8 mm grids, prepared at 1 mm and brought back."""
    scores = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        affine = np.eye(4)
        angles = rng.uniform(-25, 25, 3)
        affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag([1.5, -1.0, 0.8])
        shape = (26, 50, 45)
        centred = (np.moveaxis(np.indices(shape), 0, -1) - np.array(shape) / 2) @ affine[:3, :3].T
        wobble = ndimage.gaussian_filter(rng.normal(size=shape), 4) * 8
        inside = (centred**2 / np.array([9.0, 18, 8]) ** 2).sum(-1) + wobble < 1
        label = np.where(inside, 1 + (centred[..., 1] > 0), 0).astype(np.uint8)
        turned, turned_affine = reorient(label[None], affine, *canonical_axes(affine))
        ready, ready_affine = resample_label(turned[0], turned_affine, (1, 1, 1))
        one_hot = np.stack([ready == value for value in range(3)]).astype(np.float32)
        back = to_source(one_hot, Grid(ready.shape, ready_affine), Grid(shape, affine))
        scores.append([dice(back == value, label == value) for value in (1, 2)])
    assert np.mean(scores, axis=0).min() >= 0.965
    assert np.min(scores) >= 0.95
