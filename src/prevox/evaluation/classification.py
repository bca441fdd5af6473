"""How well probabilities tell cases of a class from others, and how far they can be taken at their word.

Every metric takes weights, many sets at once: 1 for every case gives the metric itself, and how often each case was
drawn gives it on a bootstrap resample, so that two thousand resamples are a few sums over one sorted array.

Shape suffixes: N cases, R sets of weights, B bins, G groups of cases with equal probability.
"""

import numpy as np

BINS = 15  # of equal width, as in Guo et al. 2017


def auc(probabilities_N: np.ndarray, positive_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the share of (positive, negative) pairs in which the positive has more probability.

    Ties count one half, so this is the Mann-Whitney statistic over its largest value (Hanley and McNeil 1982, Radiology
    143) and equals the trapezoidal area.

    Args:
        probabilities_N: Probability of the class.
        positive_N: Boolean; whether the case is of the class.
        weights_RN: Weight of each case.

    Returns:
        (R,) areas; NaN where a set of weights leaves no positive or no negative.
    """
    positive_RG, negative_RG = _groups(probabilities_N, positive_N, weights_RN)
    below_RG = np.cumsum(negative_RG, axis=1) - negative_RG
    won = (positive_RG * (below_RG + negative_RG / 2)).sum(axis=1)
    return _share(won, positive_RG.sum(axis=1) * negative_RG.sum(axis=1))


def average_precision(probabilities_N: np.ndarray, positive_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Average precision: the mean, over the positives, of the precision at the positive's probability as a threshold.

    Nothing is interpolated, and tied cases pass a threshold together. By chance it is the share of positives.

    Args:
        probabilities_N: Probability of the class.
        positive_N: Boolean; whether the case is of the class.
        weights_RN: Weight of each case.

    Returns:
        (R,) values; NaN where a set of weights leaves no positive or no negative.
    """
    positive_RG, negative_RG = (part[:, ::-1] for part in _groups(probabilities_N, positive_N, weights_RN))
    true_RG, false_RG = np.cumsum(positive_RG, axis=1), np.cumsum(negative_RG, axis=1)
    precision_RG = np.divide(true_RG, true_RG + false_RG, out=np.zeros_like(true_RG), where=true_RG > 0)
    return _share((positive_RG * precision_RG).sum(axis=1), true_RG[:, -1] * (false_RG[:, -1] > 0))


def calibration_error(probabilities_N: np.ndarray, positive_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Expected calibration error: |share of positives − mean probability| in each bin, averaged over the cases.

    Bins are 15 of equal width, [0, 1/15), [1/15, 2/15), …, [14/15, 1] (Guo et al. 2017, "On calibration of modern
    neural networks", equation 3).

    Args:
        probabilities_N: Probability of the class.
        positive_N: Boolean; whether the case is of the class.
        weights_RN: Weight of each case.

    Returns:
        (R,) errors in [0, 1]; NaN where a set of weights leaves no case.
    """
    bins_N = np.searchsorted(np.arange(1, BINS) / BINS, probabilities_N, side="right")
    gap_NB = np.zeros((len(probabilities_N), BINS))
    gap_NB[np.arange(len(bins_N)), bins_N] = positive_N - probabilities_N
    return _share(np.abs(weights_RN @ gap_NB).sum(axis=1), weights_RN.sum(axis=1))


def brier(probabilities_N: np.ndarray, positive_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Brier score: the mean squared difference between probability and truth (1 or 0).

    Args:
        probabilities_N: Probability of the class.
        positive_N: Boolean; whether the case is of the class.
        weights_RN: Weight of each case.

    Returns:
        (R,) scores in [0, 1], 0 is best; NaN where a set of weights leaves no case.
    """
    return _share(weights_RN @ (probabilities_N - positive_N) ** 2, weights_RN.sum(axis=1))


def _groups(
    probabilities_N: np.ndarray, positive_N: np.ndarray, weights_RN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives and of the negatives at each probability that occurs, from the lowest; (R, G) each."""
    order = np.argsort(probabilities_N, kind="stable")
    ordered = probabilities_N[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] > ordered[:-1]])
    weights_RN, positive_N = weights_RN[:, order].astype(np.float64), positive_N[order]
    parts = (np.add.reduceat(weights_RN * chosen, starts, axis=1) for chosen in (positive_N, ~positive_N))
    positive_RG, negative_RG = parts
    return positive_RG, negative_RG


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
