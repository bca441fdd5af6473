"""Ranks and their stability, against all possible resamples."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prevox.evaluation.ranks import rank, stability

pytestmark = pytest.mark.unit
# three runs; subject a has two cases. Every resample of subjects can be listed: 3³ = 27
SMALL = (np.array([[0.9, 0.8, 0.5], [0.7, 0.8, 0.6], [0.4, 0.6, 0.7], [0.8, 0.2, 0.8]]), ["a", "a", "b", "c"])
OTHER = (np.array([[0.2, 0.3, 0.25], [0.9, 0.5, 0.6]]), ["x", "y"])  # 2² = 4 resamples


def slow_rank(means):
    """Place by counting, ties sharing their places: written out apart from the code under test."""
    order = sorted(means, reverse=True)
    return [np.mean([i + 1 for i, m in enumerate(order) if abs(m - mean) < 1e-9]) for mean in means]


def slow_shares(ranked):
    """Share of the resamples in which each run has each place, from tuples of means or of negative ranks."""
    k = len(ranked[0])
    shares = np.zeros((k, k))
    for means in ranked:
        order = sorted(means, reverse=True)
        for run, mean in enumerate(means):
            places = [i for i, m in enumerate(order) if abs(m - mean) < 1e-9]
            shares[run, places] += 1 / len(places) / len(ranked)
    return shares


def every_resample(values, subjects):
    own = {name: [row for row, s in zip(values, subjects, strict=True) if s == name] for name in sorted(set(subjects))}
    for drawn in itertools.product(own, repeat=len(own)):
        yield np.mean([row for name in drawn for row in own[name]], axis=0)


def test_ranks_by_hand():
    np.testing.assert_array_equal(rank(np.array([0.7, 0.9, 0.8])), [3, 1, 2])
    np.testing.assert_array_equal(rank(np.array([7.0, 9.0, 8.0]), higher_is_better=False), [1, 3, 2])
    np.testing.assert_array_equal(rank(np.array([0.7, 0.9, 0.7, 0.9])), [3.5, 1.5, 3.5, 1.5])
    np.testing.assert_array_equal(rank(np.array([0.1 + 0.2, 0.3])), [1.5, 1.5])  # equal but for the last bit


def test_average_ranks_of_the_s3d_paper():
    """Table 4 of the paper, two rows by hand: Hippocampus 4, 3, 6, 5, 2, 1; Cosmos22 6, 4, 5, 1, 3, 2."""
    table = np.array([[89.18, 89.24, 88.78, 89.03, 89.38, 89.60], [60.28, 78.17, 77.40, 80.09, 79.67, 80.00]])
    _, average = stability([(table[:1], ["s"]), (table[1:], ["s"])], resamples=1)
    np.testing.assert_array_equal(average.ranks, [5, 3.5, 5.5, 3, 2.5, 1.5])


def test_stability_of_one_dataset_against_all_resamples():
    means = list(every_resample(*SMALL))
    (found,), average = stability([SMALL], resamples=40000)
    np.testing.assert_array_equal(found.ranks, slow_rank(SMALL[0].mean(axis=0)))
    np.testing.assert_allclose(found.shares, slow_shares(means), atol=0.01)  # four standard errors of 0.0025
    np.testing.assert_allclose(average.shares, found.shares)
    assert ((found.low <= found.ranks) & (found.ranks <= found.high)).all()
    wrong_unit = slow_shares(list(every_resample(SMALL[0], ["1", "2", "3", "4"])))
    assert np.abs(wrong_unit - found.shares).max() > 0.05  # cases for units give other shares


def test_stability_of_the_average_rank_against_all_resamples():
    both = itertools.product(*(list(every_resample(*part)) for part in (SMALL, OTHER)))
    ranked = [-np.mean([slow_rank(a), slow_rank(b)], axis=0) for a, b in both]
    each, average = stability([SMALL, OTHER], resamples=40000)
    np.testing.assert_allclose(average.shares, slow_shares(ranked), atol=0.01)
    np.testing.assert_allclose(average.ranks, (each[0].ranks + each[1].ranks) / 2)


def test_distances_are_ranked_from_the_smallest():
    (near,), _ = stability([SMALL], resamples=500)
    (far,), _ = stability([(-SMALL[0], SMALL[1])], higher_is_better=False, resamples=500)
    np.testing.assert_allclose(far.shares, near.shares)


def test_equal_runs_share_their_places():
    values = np.random.default_rng(0).random((10, 1)).repeat(2, axis=1)
    (found,), _ = stability([(values, list(range(10)))], resamples=200)
    np.testing.assert_array_equal(found.ranks, [1.5, 1.5])
    np.testing.assert_allclose(found.shares, np.full((2, 2), 0.5))


def test_a_run_that_always_wins_is_stable():
    values = np.random.default_rng(0).random((10, 2)) + np.array([1, 0])
    (found,), _ = stability([(values, list(range(10)))], resamples=200)
    np.testing.assert_array_equal(found.shares, np.eye(2))
    np.testing.assert_array_equal([found.low, found.high], [[1, 2], [1, 2]])


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=2, max_size=6),
    st.permutations(range(3)),
)
@settings(deadline=None, max_examples=40)
def test_places_are_given_once_and_follow_the_runs(rows, order):
    values, subjects = np.array(rows, dtype=float), list(range(len(rows)))
    (found,), _ = stability([(values, subjects)], resamples=50)
    np.testing.assert_allclose(found.shares.sum(axis=0), 1)
    np.testing.assert_allclose(found.shares.sum(axis=1), 1)
    assert found.ranks.sum() == pytest.approx(6)
    (moved,), _ = stability([(values[:, order], subjects)], resamples=50)
    np.testing.assert_allclose(moved.shares, found.shares[order])


def test_equal_input_gives_equal_output():
    (first,), _ = stability([SMALL], seed=3)
    (again,), _ = stability([SMALL], seed=3)
    np.testing.assert_array_equal(first.shares, again.shares)
