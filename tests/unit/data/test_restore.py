import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tests.unit.data.strategies import affines, shapes
from tests.unit.data.way_back import scores_to_source, to_source

from prevox.data import restore
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
)
from prevox.data.restore import WayBack, best_class
from prevox.errors import DataError

pytestmark = pytest.mark.unit


def diagonal(*spacing, origin=(0, 0, 0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def canonical(spacing_zyx):
    """Affine of a canonical array: z up, y forwards, x to the right."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing_zyx, 1
    return affine


def prepare(array, affine, box=None, spacing=None):
    turned, turned_affine = reorient(array, affine, *canonical_axes(affine, array.shape[1:]))
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
    inside, _ = reorient(regions, affine, *canonical_axes(affine, shape))
    kept = nonzero_box(reorient(labels[None], affine, *canonical_axes(affine, shape))[0])
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
    monkeypatch.setitem(restore._BLOCK, "cpu", 300)  # many blocks
    rng = np.random.default_rng(3)
    affine = diagonal(-1.5, 1.0, 0.8, origin=(3, 4, 5))
    source = Grid((7, 9, 11), affine)
    turned, turned_affine = reorient(np.zeros((1, 7, 9, 11)), affine, *canonical_axes(affine, (7, 9, 11)))
    prepared = resampled_grid(Grid(turned.shape[1:], turned_affine), (1, 1, 1))
    scores = rng.normal(size=(5, *prepared.shape))
    expected = scores_to_source(scores, prepared, source).argmax(0)
    assert (to_source(scores, prepared, source) == expected).all()


SPACINGS = [(1, 1, 1), (1.1, 0.9, 1.7), (0.6, 2.3, 1), (2, 2, 2), (1.5, 1, 0.8)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("pieces", "limit"), [(1, 1 << 20), (4, 200), (100, 1 << 20)])
def test_planes_in_any_pieces_are_interpolated_as_scipy_does(monkeypatch, spacing, pieces, limit):
    monkeypatch.setitem(restore._BLOCK, "cpu", limit)
    source = Grid((9, 10, 11), canonical((1.5, 1.0, 0.8)))
    prepared = resampled_grid(source, spacing)
    features = np.random.default_rng(0).normal(size=(2, *prepared.shape)).astype(np.float32)
    mix = np.array([[1, 0], [0.5, -1], [0, 2]], np.float32)
    way = WayBack.between(prepared, source)
    found, times = np.zeros((3, *source.shape)), np.zeros(source.shape, int)
    planes = [torch.from_numpy(part) for part in np.array_split(features, pieces, axis=1)]
    for window, block in way.blocks(
        planes, lambda x: torch.einsum("kf,fzyx->kzyx", torch.from_numpy(mix), x).sigmoid()
    ):
        found[:, *window] = block.numpy()
        times[window] += 1
        assert block.numel() <= max(limit, 3 * 11)  # a line of all classes is the least
    assert (times == 1).all()
    scores = 1 / (1 + np.exp(-np.einsum("kf,fzyx->kzyx", mix, features)))
    step = np.linalg.solve(prepared.affine, source.affine)
    positions = np.einsum("ij,jzyx->izyx", step[:3, :3], np.indices(source.shape)) + step[:3, 3, None, None, None]
    expected = [ndimage.map_coordinates(s, positions, order=1, mode="nearest") for s in scores]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 100, 300])
def test_the_best_class_is_the_first_of_the_largest(classes):
    scores = np.random.default_rng(classes).integers(0, 8, (classes, 3, 4, 5)).astype(np.float32)
    found = best_class(torch.from_numpy(scores))
    assert np.array_equal(found, scores.argmax(0))
    assert found.dtype == (np.uint16 if classes == 300 else np.uint8)


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
        turned, turned_affine = reorient(label[None], affine, *canonical_axes(affine, shape))
        ready, ready_affine = resample_label(turned[0], turned_affine, (1, 1, 1))
        one_hot = np.stack([ready == value for value in range(3)]).astype(np.float32)
        back = to_source(one_hot, Grid(ready.shape, ready_affine), Grid(shape, affine))
        scores.append([dice(back == value, label == value) for value in (1, 2)])
    assert np.mean(scores, axis=0).min() >= 0.965
    assert np.min(scores) >= 0.95


@pytest.mark.parametrize(("axis", "codes"), [(0, "RSA"), (1, "ASR"), (2, "SAR")])
def test_a_single_slice_of_any_plane_is_one_voxel_thick_along_z_and_comes_back(axis, codes):
    shape = [6, 5, 7]
    shape[axis] = 1
    affine = diagonal(-1.5, 1.0, 0.8, origin=(3, 4, 5))  # L A S
    labels = np.random.default_rng(axis).integers(0, 3, shape)
    cut, cut_affine = prepare(labels[None], affine, box=((0, 1), (1, 5), (0, 4)))
    assert cut.shape == (1, 1, 4, 4)
    # sagittal: y is superior, x anterior; coronal: y superior, x right; axial as ever
    assert orientation_of(cut_affine) == codes
    scores = np.stack([cut[0] == value for value in range(3)]).astype(np.float32)
    back = to_source(scores, Grid(cut.shape[1:], cut_affine), Grid(tuple(shape), affine))
    kept = np.zeros((3, *shape), bool)
    turned = reorient(kept, affine, *canonical_axes(affine, tuple(shape)))[0]
    turned[:, :, 1:5, 0:4] = True  # a view of `kept`
    assert (back == np.where(kept[0], labels, 0)).all()
