"""Surface metrics against values worked out by hand, and in 2D against DeepMind's surface-distance package."""

import itertools

import numpy as np
import pytest
from surface_distance import lookup_tables
from tests.unit.evaluation.peers import peer_values, random_labels

from prevox.evaluation.surface import asd, element_areas, grid_diagonal, hd95, nsd, surface_distances

pytestmark = pytest.mark.unit


def our_values(prediction, reference, spacing, tolerance):
    found = surface_distances(prediction, reference, spacing)
    return nsd(found, tolerance), hd95(found), asd(found)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.7, 5.0), (3.3, 0.4, 1.9)])
def test_areas_equal_the_packages_table(spacing):
    table = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    np.testing.assert_allclose(element_areas(spacing), table, atol=1e-12)
    contour = lookup_tables.create_table_neighbour_code_to_contour_length(spacing[:2])
    np.testing.assert_allclose(element_areas(spacing[:2]), contour, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_random_images_equal_the_package(seed):
    rng = np.random.default_rng(seed)
    shape, spacing = rng.integers(5, 40, 2), rng.uniform(0.3, 5, 2)
    p, r = random_labels(rng, shape) == 1, random_labels(rng, shape) == 1
    np.testing.assert_allclose(our_values(p, r, spacing, 1.0), peer_values(p, r, spacing, 1.0), atol=1e-9)


def test_results_do_not_depend_on_axis_order_direction_crop_or_place():
    rng = np.random.default_rng(7)
    shape, spacing = (14, 17, 11), np.array([0.6, 1.1, 2.7])
    p, r = random_labels(rng, shape) == 1, random_labels(rng, shape) == 1
    expected = our_values(p, r, spacing, 1.3)
    for order in itertools.permutations(range(3)):
        flips = tuple(np.flatnonzero(rng.random(3) < 0.5))
        moved = (np.flip(mask.transpose(order), flips) for mask in (p, r))
        np.testing.assert_allclose(our_values(*moved, spacing[list(order)], 1.3), expected, atol=1e-12)
    np.testing.assert_allclose(our_values(r, p, spacing, 1.3), expected, atol=1e-12)
    larger = (np.pad(mask, ((3, 40), (9, 0), (101, 2))) for mask in (p, r))
    np.testing.assert_array_equal(our_values(*larger, spacing, 1.3), expected)


def test_single_voxel():
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    found = surface_distances(mask, mask, (2.0, 2.0, 2.0))
    # eight cells meet in the voxel, each with the triangle that cuts one corner off: √3/8 of a cell's face of 4 mm²
    np.testing.assert_allclose(found.prediction_area, [np.sqrt(3) / 8 * 4] * 8)
    assert (nsd(found, 0.0), hd95(found), asd(found)) == (1.0, 0.0, 0.0)


def test_slab_shifted_along_its_normal():
    """A slab of 4 × 20 × 20 voxels of 2 × 1 × 1 mm, and the same one voxel (2 mm) further."""
    p, r = np.zeros((10, 20, 20), bool), np.zeros((10, 20, 20), bool)
    r[2:6], p[3:7] = True, True
    found = surface_distances(p, r, (2.0, 1.0, 1.0))
    # cells on two faces (19² each, 1 mm²), four sides (3 layers of 19, 2 mm²), edges along the normal (4 × 3,
    # ½√(2²+2²)), edges across it (8 × 19, ½√(1²+2²)) and corners (8, ⅛√(1²+2²+2²))
    total = 2 * 361 + 4 * 57 * 2 + 12 * np.sqrt(2) + 76 * np.sqrt(5) + 3
    assert found.reference_area.sum() == pytest.approx(total)
    assert hd95(found) == 2.0
    assert nsd(found, 2.0) == pytest.approx(1.0)  # exactly at the tolerance counts
    # nearer than 2 mm: the three shared layers of sides, and of the face inside the other slab its rim (on the other's
    # sides) and the 19² − 17² cells next to it (1 mm from them)
    near = 4 * 57 * 2 + 12 * np.sqrt(2) + 38 * np.sqrt(5) + 1.5 + 72
    assert nsd(found, 1.99) == pytest.approx(near / total)


def test_distance_to_a_far_voxel():
    p, r = np.zeros((30, 5, 5), bool), np.zeros((30, 5, 5), bool)
    p[2, 2, 2], r[22, 2, 2] = True, True
    found = surface_distances(p, r, (1.5, 1, 1))
    # cells of p at 2 and 3, of r at 22 and 23: the facing ones are 19 voxels apart, the others 20
    assert sorted(set(found.prediction_mm)) == [19 * 1.5, 20 * 1.5]
    assert hd95(found) == 30.0
    assert asd(found) == pytest.approx(19.5 * 1.5)


def test_percentile_is_weighted_by_area():
    p, r = np.zeros((40, 12, 12), bool), np.zeros((40, 12, 12), bool)
    p[2:10, 2:10, 2:10], r[2:10, 2:10, 2:10] = True, True
    p[35, 6, 6] = True  # √3 of about 370 mm², less than 5 % of the area
    assert hd95(surface_distances(p, r, (1, 1, 1))) == 0.0
    p[25:33, 2:10, 2:10] = True  # now half of the predicted surface is far away
    assert hd95(surface_distances(p, r, (1, 1, 1))) > 15


def test_empty_rules():
    nothing, something = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    something[1, 2, 3] = True
    spacing = (2.0, 1.0, 0.5)
    diagonal = np.sqrt(8.0**2 + 5.0**2 + 3.0**2)
    assert grid_diagonal((4, 5, 6), spacing) == pytest.approx(diagonal)
    both = surface_distances(nothing, nothing, spacing)
    assert np.isnan([nsd(both, 1.0), hd95(both), asd(both)]).all()
    for pair in ((nothing, something), (something, nothing)):
        found = surface_distances(*pair, spacing)
        assert nsd(found, 1000.0) == 0.0  # even with a tolerance beyond the diagonal
        assert hd95(found) == pytest.approx(diagonal)
        assert asd(found) == pytest.approx(diagonal)
    cropped = surface_distances(something[:2, :3, :4], nothing[:2, :3, :4], spacing, diagonal=diagonal)
    assert hd95(cropped) == pytest.approx(diagonal)


def test_wrong_arguments():
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(ValueError, match=r"\(3, 3, 3\).*\(3, 3\)"):
        surface_distances(mask, mask[0], (1, 1, 1))
    with pytest.raises(ValueError, match="one positive spacing per axis"):
        surface_distances(mask, mask, (1, 1))
