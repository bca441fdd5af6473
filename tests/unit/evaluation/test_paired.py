"""Paired tests and effect sizes: hand-worked values, symmetry, and false positives under the null hypothesis."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prevox.evaluation.paired import cohens_d, holm, permutation_p, rank_biserial, subject_means, wilcoxon_p

pytestmark = pytest.mark.unit


def test_cases_are_averaged_within_a_subject():
    values = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 7.0]])
    np.testing.assert_array_equal(subject_means(values, ["b", "b", "a"]), [[5, 7], [2, 0]])
    np.testing.assert_array_equal(subject_means(values[:, 0], ["b", "b", "a"]), [5, 2])
    with pytest.raises(ValueError, match="3 values and 2 subjects"):
        subject_means(values, ["a", "b"])


def test_wilcoxon_by_hand():
    """Ranks 1 to 5, all positive: W = 0 in 2 of 32 sign patterns. With the smallest one negative, W ≤ 1 in 4 of 32."""
    assert wilcoxon_p([1, 2, 3, 4, 5]) == pytest.approx(2 / 32)
    assert wilcoxon_p([-1, 2, 3, 4, 5]) == pytest.approx(4 / 32)
    assert wilcoxon_p([0.0, 0.0, 0.0]) == 1.0
    assert np.isnan(wilcoxon_p([0.3]))


def test_permutation_by_hand():
    """Differences 1, 2, 3: sums of the 8 patterns are ±6, ±4, ±2, 0, 0."""
    assert permutation_p([1, 2, 3]) == pytest.approx(2 / 8)
    assert permutation_p([-1, 2, 3]) == pytest.approx(4 / 8)
    assert permutation_p([1, 2, -3]) == 1.0
    assert permutation_p([0.1, 0.2, -0.1]) == pytest.approx(6 / 8)  # ±0.2 is reached in two ways, unequal in binary
    assert permutation_p([0, 0]) == 1.0
    assert np.isnan(permutation_p([2.0]))


def test_exact_permutation_against_every_pattern():
    d = np.random.default_rng(0).normal(0.3, 1, 9)
    sums = [abs(np.dot(signs, d)) for signs in itertools.product((1, -1), repeat=9)]
    assert permutation_p(d) == pytest.approx(np.mean(np.array(sums) >= abs(d.sum()) - 1e-9))


def test_random_permutations_agree_with_all_of_them(monkeypatch):
    d = np.random.default_rng(1).normal(0.5, 1, 14)
    exact = permutation_p(d)
    monkeypatch.setattr("prevox.evaluation.paired.EXACT_UP_TO", 0)
    assert permutation_p(d) == permutation_p(d)  # seeded
    assert permutation_p(d, seed=1) != permutation_p(d)
    assert permutation_p(d) == pytest.approx(exact, abs=0.006)  # four standard errors at 20000 patterns
    assert permutation_p(np.full(30, 0.1)) == pytest.approx(1 / 20001)  # never 0


def test_holm_by_hand():
    """0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04; never falling: 0.04, 0.06, 0.06, 0.06."""
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    np.testing.assert_allclose(holm([0.02]), [0.02])
    np.testing.assert_allclose(holm([np.nan, 0.03, 0.02]), [np.nan, 0.04, 0.04])  # what is not tested does not count
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_holm_lies_between_plain_and_bonferroni(p, random):
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()
    order = random.sample(range(len(p)), len(p))
    np.testing.assert_array_equal(holm([p[i] for i in order]), adjusted[order])


def test_effect_sizes_by_hand():
    """1, 2, 3: mean 2, deviation 1. −1, 2, 3: (2 + 3 − 1) / 6 by ranks. Ties: −1, 1, 2: (1.5 + 3 − 1.5) / 6."""
    assert cohens_d([1, 2, 3]) == pytest.approx(2.0)
    assert rank_biserial([-1, 2, 3]) == pytest.approx(4 / 6)
    assert rank_biserial([-1, 1, 2, 0]) == pytest.approx(3 / 6)
    assert rank_biserial([1, 2]) == 1.0
    assert (cohens_d([0, 0]), rank_biserial([0, 0])) == (0.0, 0.0)
    assert np.isnan(cohens_d([0.1, 0.1, 0.1]))  # no spread
    assert np.isnan([cohens_d([1.0]), rank_biserial([1.0])]).all()


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=10))
@settings(deadline=None, max_examples=50)
def test_swapping_the_runs_turns_the_sign_only(values):
    d = np.array(values, dtype=float)
    assert permutation_p(-d) == permutation_p(d)
    assert wilcoxon_p(-d) == pytest.approx(wilcoxon_p(d))
    assert rank_biserial(-d) == pytest.approx(-rank_biserial(d))
    np.testing.assert_allclose(cohens_d(-d), -cohens_d(d))
    assert -1 - 1e-12 <= rank_biserial(d) <= 1 + 1e-12
    assert 0 < permutation_p(d) <= 1


def null_differences(trials, subjects, seed=5):
    """Two equally good runs; two to five cases a subject, whose differences resemble each other."""
    rng = np.random.default_rng(seed)
    for _ in range(trials):
        owner = np.repeat(np.arange(subjects), rng.integers(2, 6, subjects))
        yield rng.normal(0, 1, subjects)[owner] + rng.normal(0, 0.5, len(owner)), owner


def random_flips(differences):
    return permutation_p(differences, flips=999)


@pytest.mark.parametrize(("test", "subjects"), [(permutation_p, 12), (random_flips, 20), (wilcoxon_p, 20)])
def test_false_positives_are_at_the_nominal_level(test, subjects):
    p = [test(subject_means(d, owner)) for d, owner in null_differences(1000, subjects)]
    assert 0.03 <= np.mean(np.array(p) <= 0.05) <= 0.07  # 0.05 ± 3 standard errors of 0.007


def test_cases_for_units_would_find_what_is_not_there():
    p = [wilcoxon_p(d) for d, _ in null_differences(300, 12)]
    assert np.mean(np.array(p) <= 0.05) > 0.15
