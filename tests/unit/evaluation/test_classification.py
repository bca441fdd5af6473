"""Metrics of probabilities: by hand, against slow definitions, and weights against repeated cases."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prevox.evaluation.classification import auc, average_precision, brier, calibration_error

pytestmark = pytest.mark.unit
ALL = (auc, average_precision, calibration_error, brier)
# rounded, so that there are ties; never on the border between two bins
CASES = st.lists(st.tuples(st.integers(0, 9).map(lambda n: n / 10 + 0.03), st.booleans()), min_size=1, max_size=12)


def once(metric, p, y):
    return metric(np.array(p, float), np.array(y, bool), np.ones((1, len(p))))[0]


def slow_auc(p, y):
    """Every pair of a positive and a negative."""
    pairs = [(a > b) + (a == b) / 2 for (a, s), (b, t) in itertools.product(zip(p, y, strict=True), repeat=2) if s > t]
    return np.mean(pairs) if pairs else np.nan


def slow_average_precision(p, y):
    """Σ (recall − recall before) · precision over all thresholds, from the highest."""
    total, before = 0.0, 0.0
    if len(set(y)) < 2:
        return np.nan
    for threshold in sorted(set(p), reverse=True):
        passed = [truth for value, truth in zip(p, y, strict=True) if value >= threshold]
        recall = sum(passed) / sum(y)
        total += (recall - before) * sum(passed) / len(passed)
        before = recall
    return total


def slow_calibration_error(p, y):
    error = 0.0
    for b in range(15):
        inside = [(v, t) for v, t in zip(p, y, strict=True) if b / 15 <= v < (b + 1) / 15 or (b == 14 and v == 1)]
        if inside:
            values, truths = zip(*inside, strict=True)
            error += len(inside) / len(p) * abs(np.mean(truths) - np.mean(values))
    return error


def slow_brier(p, y):
    return np.mean([(v - t) ** 2 for v, t in zip(p, y, strict=True)])


SLOW = {
    auc: slow_auc, average_precision: slow_average_precision, calibration_error: slow_calibration_error,
    brier: slow_brier,
}  # fmt: skip


def test_auc_by_hand():
    """Positives 0.8 and 0.4, negatives 0.4, 0.3, 0.1: 6 pairs; 0.8 wins 3, 0.4 wins 2 and ties once."""
    assert once(auc, [0.8, 0.4, 0.4, 0.3, 0.1], [1, 1, 0, 0, 0]) == pytest.approx(5.5 / 6)
    assert once(auc, [0.5] * 4, [1, 0, 0, 1]) == 0.5
    assert once(auc, [0.1, 0.9], [1, 0]) == 0.0


def test_average_precision_by_hand():
    """From the top: 1 of 1 (recall ½), 1 of 2, then 2 of 4 at once (recall 1): ½ · 1 + ½ · ½."""
    assert once(average_precision, [0.9, 0.8, 0.5, 0.5], [1, 0, 1, 0]) == pytest.approx(0.75)
    assert once(average_precision, [0.5] * 4, [1, 0, 0, 0]) == 0.25  # by chance


def test_calibration_error_by_hand():
    """Bin [0, 1/15): 0.01, 0.05, none positive, mean 0.03. Bin [14/15, 1]: 0.95, 1, one positive: |0.5 − 0.975|."""
    expected = 0.5 * 0.03 + 0.5 * 0.475
    assert once(calibration_error, [0.01, 0.05, 0.95, 1.0], [0, 0, 1, 0]) == pytest.approx(expected)
    assert once(calibration_error, [0.5] * 4, [1, 0, 0, 1]) == 0.0
    # 1/15 belongs to the second bin; in the first the two would make up for each other: |0.99 − 1/15| / 2
    assert once(calibration_error, [0.01, 1 / 15], [1, 0]) == pytest.approx((0.99 + 1 / 15) / 2)


def test_brier_by_hand():
    assert once(brier, [0.2, 0.7], [0, 1]) == pytest.approx((0.04 + 0.09) / 2)
    assert (once(brier, [0, 1], [0, 1]), once(brier, [0, 1], [1, 0])) == (0, 1)


@given(CASES)
@settings(deadline=None, max_examples=150)
def test_equal_slow_definitions(cases):
    p, y = zip(*cases, strict=True)
    for metric, slow in SLOW.items():
        np.testing.assert_allclose(once(metric, p, y), slow(p, y), atol=1e-12)


@given(CASES, st.lists(st.lists(st.integers(0, 3), min_size=12, max_size=12), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_weights_are_repeated_cases(cases, counts):
    p, y = (np.array(part) for part in zip(*cases, strict=True))
    weights = np.array(counts)[:, : len(p)]
    for metric, slow in SLOW.items():
        found = metric(p, y, weights)
        for value, own in zip(found, weights, strict=True):
            repeated = slow(p.repeat(own), y.repeat(own)) if own.any() else np.nan
            np.testing.assert_allclose(value, repeated, atol=1e-12)


@given(CASES, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_order_of_cases_does_not_matter_and_ranks_decide_auc(cases, random):
    p, y = zip(*cases, strict=True)
    shuffled = random.sample(cases, len(cases))
    for metric in ALL:
        np.testing.assert_allclose(once(metric, *zip(*shuffled, strict=True)), once(metric, p, y), atol=1e-12)
    np.testing.assert_allclose(once(auc, np.array(p) ** 3, y), once(auc, p, y))
    np.testing.assert_allclose(once(auc, 1 - np.array(p), ~np.array(y)), once(auc, p, y), atol=1e-12)


@pytest.mark.parametrize("truth", [0, 1])
def test_one_class_only_has_no_ranking_but_is_calibrated(truth):
    p, y = [0.2, 0.6, 0.9], [truth] * 3
    assert np.isnan([once(auc, p, y), once(average_precision, p, y)]).all()
    assert once(brier, p, y) == pytest.approx(slow_brier(p, y))
    assert once(calibration_error, p, y) == pytest.approx(slow_calibration_error(p, y))
