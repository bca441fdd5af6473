"""Paired tests and effect sizes of two runs on the same cases; the unit is the subject.

Cases of one subject resemble each other, so the differences of a subject's cases are averaged first: everything below
takes one difference a subject. Taking cases for units would find differences where there are none.
"""

from collections.abc import Hashable, Sequence

import numpy as np

EXACT_UP_TO = 16  # subjects; 2^16 sign patterns take milliseconds
FLIPS = 20000  # random patterns beyond that: the standard error at p = 0.05 is 0.0015
FLIPS_AT_ONCE = 1 << 20
ROUNDING = 1e-10  # of the largest possible sum: sums that are equal on paper may differ in their last bits


def subject_means(values: np.ndarray, subjects: Sequence[Hashable]) -> np.ndarray:
    """Average the cases of each subject.

    Args:
        values: (cases,) or (cases, runs), without NaN.
        subjects: The subject of each case.

    Returns:
        (subjects,) or (subjects, runs), in the order of the subjects' names.

    Raises:
        ValueError: If values and subjects differ in length.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) != len(subjects):
        raise ValueError(f"found {len(values)} values and {len(subjects)} subjects; expected one of each a case")
    names, members = np.unique([str(subject) for subject in subjects], return_inverse=True)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, members, values)
    counts = np.bincount(members, minlength=len(names))
    return sums / counts.reshape(-1, *[1] * (values.ndim - 1))


def wilcoxon_p(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test.

    Subjects without a difference are left out (Wilcoxon 1945); scipy takes the exact distribution for small samples.

    Args:
        differences: One difference a subject.

    Returns:
        The p-value; 1 if no subject differs, NaN with fewer than two subjects.
    """
    from scipy import stats  # slow to import

    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2:
        return float("nan")
    return float(stats.wilcoxon(d).pvalue) if d.any() else 1.0


def permutation_p(differences: Sequence[float] | np.ndarray, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p-value of the sign-flip permutation test on the mean difference.

    Under the null hypothesis the two runs are exchangeable within a subject, so every pattern of signs is equally
    likely. All 2^n patterns are tried for n up to 16, else `flips` random ones, the observed one counting as one more
    (Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9), so that p is never 0.
    The smallest possible p is 2 / 2^n: with five subjects no difference, however large, falls below 0.05.

    Args:
        differences: One difference a subject.
        flips: Random sign patterns where not all are tried.
        seed: Seed of these patterns.

    Returns:
        The p-value; NaN with fewer than two subjects.
    """
    d = np.asarray(differences, dtype=np.float64)
    n = len(d)
    if n < 2:
        return float("nan")
    least = abs(d.sum()) - ROUNDING * np.abs(d).sum()
    if n <= EXACT_UP_TO:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * patterns) @ d) >= least).mean())
    rng = np.random.default_rng(seed)
    rows = max(1, FLIPS_AT_ONCE // n)
    extreme = 0
    for start in range(0, flips, rows):
        signs = 1 - 2 * rng.integers(2, size=(min(rows, flips - start), n), dtype=np.int8)
        extreme += int((np.abs(signs @ d) >= least).sum())
    return (extreme + 1) / (flips + 1)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values adjusted by Holm's step-down method (Holm 1979, Scandinavian Journal of Statistics 6).

    Args:
        p_values: One family of p-values; NaN (no test) stays NaN and does not count.

    Returns:
        Adjusted p-values in the same order: the smallest of m times m, the next times m − 1, never falling, at most 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted


def cohens_d(differences: Sequence[float] | np.ndarray) -> float:
    """Paired Cohen's d (d_z): mean difference over the standard deviation of the differences.

    Args:
        differences: One difference a subject.

    Returns:
        d; 0 if no subject differs, NaN where there is no spread to divide by or fewer than two subjects.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2:
        return float("nan")
    if not d.any():
        return 0.0
    spread = d.std(ddof=1)
    return float(d.mean() / spread) if spread > ROUNDING * np.abs(d).max() else float("nan")


def rank_biserial(differences: Sequence[float] | np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation (Kerby 2014, Comprehensive Psychology 3), the effect size of Wilcoxon.

    The share of rank sums in favour minus the share against, from −1 to 1; unlike Cohen's d one failed case cannot
    decide it.

    Args:
        differences: One difference a subject.

    Returns:
        The correlation; 0 if no subject differs, NaN with fewer than two subjects.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2:
        return float("nan")
    d = d[d != 0]
    if not len(d):
        return 0.0
    size = np.abs(d)
    ranks = (size[:, None] > size).sum(axis=1) + ((size[:, None] == size).sum(axis=1) + 1) / 2
    return float((ranks * np.sign(d)).sum() / ranks.sum())
