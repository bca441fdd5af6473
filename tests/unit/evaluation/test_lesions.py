"""Lesions: the matching rule by hand, empty masks, and components against a flood fill."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prevox.evaluation.lesions import Lesions, match_lesions

pytestmark = pytest.mark.unit


def mask(*voxels, shape=(9, 9, 9)):
    found = np.zeros(shape, bool)
    for voxel in voxels:
        found[voxel] = True
    return found


def flood(mask):
    """Components as sets of voxels, by walking from neighbour to neighbour over faces, edges and corners."""
    left, components = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        component, reached = set(), [left.pop()]
        while reached:
            voxel = reached.pop()
            component.add(voxel)
            for step in itertools.product((-1, 0, 1), repeat=len(voxel)):
                neighbour = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if neighbour in left:
                    left.remove(neighbour)
                    reached.append(neighbour)
        components.append(component)
    return components


def slow(prediction, reference):
    predicted, lesions = flood(prediction), flood(reference)
    found = sum(any(lesion & part for part in predicted) for lesion in lesions)
    return Lesions(len(lesions), found, sum(not any(part & lesion for lesion in lesions) for part in predicted))


def test_one_shared_voxel_finds_a_lesion():
    reference = mask((slice(1, 4),) * 3, (7, 7, 7))
    prediction = mask((3, 3, slice(3, 8)), (6, 1, 1), (1, 7, 7))
    found = match_lesions(prediction, reference)
    assert found == Lesions(reference=2, found=1, false_positives=2)
    assert found.sensitivity == 0.5


def test_a_lesion_beside_the_prediction_is_missed():
    """Touching is not overlapping: the two masks have no voxel in common."""
    assert match_lesions(mask((4, 4, 4)), mask((4, 4, 5))) == Lesions(1, 0, 1)


def test_faces_edges_and_corners_connect():
    diagonal = mask((1, 1, 1), (2, 2, 2), (3, 3, 2), (3, 4, 2))  # by a corner, an edge, a face
    assert match_lesions(diagonal, diagonal) == Lesions(1, 1, 0)
    apart = mask((1, 1, 1), (3, 1, 1))
    assert match_lesions(apart, apart) == Lesions(2, 2, 0)


def test_pieces_and_bridges():
    two, bridge = mask((2, 2, 1), (2, 2, 7)), mask((2, 2, slice(1, 8)))
    assert match_lesions(bridge, two) == Lesions(2, 2, 0)  # one component may find several lesions
    assert match_lesions(two, bridge) == Lesions(1, 1, 0)  # pieces of one lesion find it once, and none is false


def test_empty_masks():
    nothing, something = mask(), mask((1, 1, 1), (5, 5, 5))
    assert match_lesions(nothing, something) == Lesions(2, 0, 0)
    assert match_lesions(nothing, something).sensitivity == 0.0
    for reference in (nothing, np.zeros((0, 9, 9), bool)):  # a box around nothing has no voxel
        assert match_lesions(reference, reference) == Lesions(0, 0, 0)
        assert np.isnan(match_lesions(reference, reference).sensitivity)
    invented = match_lesions(something, nothing)
    assert invented == Lesions(0, 0, 2)
    assert np.isnan(invented.sensitivity)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(9, 9, 9\).*\(9, 9\)"):
        match_lesions(mask(), mask()[0])


@pytest.mark.parametrize("shape", [(6, 7, 5), (9, 11)])
@pytest.mark.parametrize("share", [0.03, 0.1, 0.25])
def test_random_masks_equal_a_flood_fill(shape, share):
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, r = rng.random((2, *shape)) < share
        assert match_lesions(p, r) == slow(p, r)


@given(arrays(bool, (2, 4, 5, 3)), st.permutations(range(3)), st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_axis_order_direction_and_place_do_not_matter(masks, order, flips):
    p, r = masks
    expected = match_lesions(p, r)
    axes = tuple(axis for axis in range(3) if flips >> axis & 1)
    moved = (np.pad(np.flip(m.transpose(order), axes), ((2, 0), (1, 3), (0, 1))) for m in (p, r))
    assert match_lesions(*moved) == expected
    exchanged = match_lesions(r, p)  # what is found of P in R is what is not false in P
    assert exchanged.reference - exchanged.found == expected.false_positives
