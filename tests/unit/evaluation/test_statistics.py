"""Bootstrap intervals: hand examples, coverage by simulation, and the subject as the unit."""

import itertools

import numpy as np
import pytest

from prevox.evaluation.statistics import bootstrap_mean, bootstrap_median, paired_difference

pytestmark = pytest.mark.unit


def width(values, subjects, **settings):
    found = bootstrap_mean(values, subjects, **settings)
    return found.high - found.low


def test_counts_and_mean_over_cases():
    found = bootstrap_mean([1.0, 0.0, 0.5, np.nan], ["a", "a", "b", "c"])
    assert (found.cases, found.subjects) == (3, 2)  # subject c has no counted case
    assert found.mean == pytest.approx(0.5)  # over cases: (1 + 0 + 0.5) / 3


def test_interval_against_all_resamples():
    """Three subjects have 27 equally likely resamples; with a level this low the tail lies within them."""
    values, subjects = [0.0, 0.2, 0.5, 0.9], ["a", "a", "b", "c"]
    own = {"a": [0.0, 0.2], "b": [0.5], "c": [0.9]}
    means = [np.mean([v for s in drawn for v in own[s]]) for drawn in itertools.product("abc", repeat=3)]
    # level 0.6: t(0.8, 2 df) = 1.0607; √(3/2) · 1.0607 = 1.2990; Φ(−1.2990) = 0.09697
    expected = np.quantile(np.repeat(means, 1000), [0.09697, 1 - 0.09697])
    found = bootstrap_mean(values, subjects, resamples=20000, level=0.6)
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.02)


def test_seeded_and_independent_of_the_rows_order():
    rng = np.random.default_rng(0)
    values, subjects = rng.random(30), rng.integers(0, 12, 30)
    first = bootstrap_mean(values, subjects, seed=3)
    order = rng.permutation(30)
    again = bootstrap_mean(values[order], subjects[order], seed=3)
    np.testing.assert_allclose([again.low, again.high], [first.low, first.high], atol=1e-12)
    assert bootstrap_mean(values, subjects, seed=4).low != first.low


@pytest.mark.parametrize("skewed", [False, True])
def test_coverage_with_twenty_subjects_of_several_cases(skewed):
    rng = np.random.default_rng(11)
    trials, hits = 1500, 0
    for trial in range(trials):
        subjects = np.repeat(np.arange(20), rng.integers(2, 6, 20))
        if skewed:  # scores near 1 with a tail of failures, as Dice has
            values = 1 - 0.7 * rng.beta(2, 12, 20)[subjects] - 0.3 * rng.beta(2, 12, len(subjects))
            truth = 1 - 2 / 14
        else:
            values = rng.normal(0, 1, 20)[subjects] + rng.normal(0, 0.5, len(subjects))
            truth = 0.0
        found = bootstrap_mean(values, subjects, resamples=400, seed=trial)
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / trials <= 0.97


def test_copies_of_all_cases_change_nothing():
    rng = np.random.default_rng(1)
    values, subjects = rng.random(12), np.arange(12)
    one = bootstrap_mean(values, subjects)
    copied = bootstrap_mean(np.tile(values, 5), np.tile(subjects, 5))
    assert (copied.subjects, copied.cases) == (12, 60)
    np.testing.assert_allclose([copied.low, copied.high], [one.low, one.high], atol=1e-12)
    # were the copies taken for new subjects, the interval would shrink by more than √5
    assert width(np.tile(values, 5), np.arange(60)) < 0.5 * (one.high - one.low)


def test_a_duplicated_subject_does_not_narrow_the_interval():
    """Over all choices of the subject; one by one the mean's weights move a little."""
    rng = np.random.default_rng(2)
    values, subjects = rng.normal(size=15), np.arange(15)
    widths = [width(np.append(values, values[who]), np.append(subjects, who)) for who in range(15)]
    assert np.mean(widths) >= width(values, subjects)


def test_correlated_cases_of_a_subject_count_little():
    """Ten subjects with four nearly equal cases: the interval is that of ten values, not of forty."""
    rng = np.random.default_rng(3)
    base = rng.normal(size=10)
    values = np.repeat(base, 4) + rng.normal(0, 1e-3, 40)
    assert width(values, np.repeat(np.arange(10), 4)) == pytest.approx(width(base, np.arange(10)), rel=0.02)


def test_interval_stays_within_the_scores_range():
    found = bootstrap_mean([1.0] * 9 + [0.3], np.arange(10))
    assert found.low >= 0.3
    assert found.high <= 1.0


def test_one_subject_has_a_mean_but_no_interval():
    found = bootstrap_mean([0.4, 0.6], ["a", "a"])
    assert found.mean == pytest.approx(0.5)
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    nothing = bootstrap_mean([np.nan], ["a"])
    assert np.isnan(nothing.mean)
    assert (nothing.cases, nothing.subjects) == (0, 0)


def test_paired_difference():
    rng = np.random.default_rng(4)
    hard = rng.normal(0, 0.3, 30)  # differences between cases are far larger than those between arms
    first, second = 0.7 + hard, 0.65 + hard + rng.normal(0, 0.01, 30)
    first[3], second[7] = np.nan, np.nan
    subjects = np.repeat(np.arange(15), 2)
    found = paired_difference(first, second, subjects)
    assert (found.cases, found.subjects) == (28, 15)
    assert found.mean == pytest.approx(np.nanmean(first - second))
    assert found.low > 0.04
    assert found.high < 0.06
    swapped = paired_difference(second, first, subjects)
    assert swapped.mean == pytest.approx(-found.mean)


def test_median_against_all_resamples():
    """As for the mean; three subjects, one of them with two cases."""
    values, subjects = [0.0, 0.2, 0.5, 0.9], ["a", "a", "b", "c"]
    own = {"a": [0.0, 0.2], "b": [0.5], "c": [0.9]}
    medians = [np.median([v for s in drawn for v in own[s]]) for drawn in itertools.product("abc", repeat=3)]
    expected = np.quantile(np.repeat(medians, 1000), [0.09697, 1 - 0.09697])
    median, low, high = bootstrap_median(values, subjects, resamples=20000, level=0.6)
    assert median == pytest.approx(0.35)
    np.testing.assert_allclose([low, high], expected, atol=1e-9)


def test_median_of_an_even_number_lies_between():
    """Of 0 and 1 the resampled medians are 0, 0.5, 0.5, 1; 41 % are left out on each side at this level."""
    assert bootstrap_median([0.0, 1.0], ["a", "b"], level=0.1) == (0.5, 0.5, 0.5)


def test_median_counts_subjects_and_leaves_nan_out():
    values, subjects = np.random.default_rng(5).random(12), np.arange(12)
    once = bootstrap_median(values, subjects)
    copied = bootstrap_median(np.append(np.tile(values, 3), np.nan), np.append(np.tile(subjects, 3), 99))
    np.testing.assert_allclose(copied, once, atol=1e-12)
    assert bootstrap_median([0.1, 0.4], ["a", "a"])[0] == pytest.approx(0.25)
    assert np.isnan(bootstrap_median([0.1, 0.4], ["a", "a"])[1:]).all()
    assert np.isnan(bootstrap_median([np.nan], ["a"])).all()
    with pytest.raises(ValueError, match="2 subjects"):
        bootstrap_median([1.0], ["a", "b"])


def test_coverage_of_the_median():
    rng = np.random.default_rng(12)
    trials, hits = 1000, 0
    for trial in range(trials):
        subjects = np.repeat(np.arange(20), 3)
        values = rng.normal(0, 1, 20)[subjects] + rng.normal(0, 0.5, 60)
        _, low, high = bootstrap_median(values, subjects, resamples=300, seed=trial)
        hits += low <= 0 <= high
    assert 0.91 <= hits / trials <= 0.97


def test_wrong_arguments():
    with pytest.raises(ValueError, match="2 subjects"):
        bootstrap_mean([1.0, 2.0, 3.0], ["a", "b"])
    with pytest.raises(ValueError, match=r"level is 95"):
        bootstrap_mean([1.0, 2.0], ["a", "b"], level=95)
    with pytest.raises(ValueError, match="same cases"):
        paired_difference([1.0], [1.0, 2.0], ["a"])
