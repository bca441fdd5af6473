"""Ranks of runs per dataset, their average, and how stable both are when other subjects are drawn.

This answers the question of Figure 2 of S3D (Wald et al. 2025) in the manner of Wiesenfarth et al. (2021, Scientific
Reports 11), but with subjects as the unit: each resample draws subjects with all their cases within each dataset, and
the runs are ranked again by their means over cases.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

DIGITS = 9  # means that differ by less are tied; identical runs must not be ranked by the last bit of a sum
DRAWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Stability:
    """Ranks of n runs, and how they fare under the bootstrap.

    Attributes:
        ranks: (n,) rank of each run, 1 is best; for several datasets the average of the ranks in them.
        shares: (n, n) share of the resamples in which run i has place j + 1; runs that tie share their places equally,
            so rows and columns sum to 1.
        low: (n,) 2.5th percentile of the resampled (average) ranks.
        high: (n,) 97.5th percentile.
    """

    ranks: np.ndarray
    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray


def rank(means: np.ndarray, higher_is_better: bool = True) -> np.ndarray:
    """Rank along the last axis, 1 is best; equal means get the average of their ranks.

    Args:
        means: (..., runs).
        higher_is_better: False for distances.

    Returns:
        (..., runs) ranks.
    """
    better, equal = _better_and_equal(means, higher_is_better)
    return better + (equal + 1) / 2


def stability(
    datasets: Sequence[tuple[np.ndarray, Sequence[Hashable]]],
    higher_is_better: bool = True,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[list[Stability], Stability]:
    """Rank stability in each dataset, and of the average rank over all of them.

    Args:
        datasets: Of each dataset its values, (cases, runs) without NaN, and the subject of each case.
        higher_is_better: False for distances.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        One entry a dataset, and one for the average rank (for one dataset the same).
    """
    rng = np.random.default_rng(seed)
    observed = [rank(values.mean(axis=0), higher_is_better) for values, _ in datasets]
    means = [_resampled_means(values, subjects, resamples, rng) for values, subjects in datasets]
    ranks = [rank(mean, higher_is_better) for mean in means]
    each = [
        _stability(now, drawn, shares_of(mean, higher_is_better))
        for now, drawn, mean in zip(observed, ranks, means, strict=True)
    ]
    average = np.mean(ranks, axis=0)
    return each, _stability(np.mean(observed, axis=0), average, shares_of(average, higher_is_better=False))


def stability_of(observed: np.ndarray, resampled: np.ndarray, higher_is_better: bool = True) -> Stability:
    """Rank stability of values that were resampled elsewhere.

    Args:
        observed: (runs,).
        resampled: (resamples, runs).
        higher_is_better: False for errors.
    """
    shares = shares_of(resampled, higher_is_better)
    return _stability(rank(observed, higher_is_better), rank(resampled, higher_is_better), shares)


def shares_of(means: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """Share of resamples in which each run has each place; ties share places equally.

    Args:
        means: (resamples, runs).
        higher_is_better: False for distances and for average ranks.

    Returns:
        (runs, places).
    """
    better, equal = _better_and_equal(means, higher_is_better)
    places = [((better < place) & (place <= better + equal)) / equal for place in range(1, means.shape[1] + 1)]
    return np.stack([place.mean(axis=0) for place in places], axis=1)


def _stability(observed: np.ndarray, resampled: np.ndarray, shares: np.ndarray) -> Stability:
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return Stability(observed, shares, low, high)


def _better_and_equal(means: np.ndarray, higher_is_better: bool) -> tuple[np.ndarray, np.ndarray]:
    """How many runs are better than each, and how many (itself included) are as good."""
    rounded = np.round(means if higher_is_better else -means, DIGITS)
    others, own = rounded[..., None, :], rounded[..., :, None]
    return (others > own).sum(axis=-1), (others == own).sum(axis=-1)


def _resampled_means(
    values: np.ndarray, subjects: Sequence[Hashable], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Means over cases of each resample of subjects; (resamples, runs)."""
    names, members = np.unique([str(subject) for subject in subjects], return_inverse=True)
    n = len(names)
    sums = np.zeros((n, values.shape[1]))
    np.add.at(sums, members, values)
    counts = np.bincount(members, minlength=n)
    rows = max(1, DRAWS_AT_ONCE // n)
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=min(rows, resamples - start))
        means.append((drawn @ sums) / (drawn @ counts)[:, None])
    return np.concatenate(means)
