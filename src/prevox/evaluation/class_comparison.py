"""Everything that `prevox compare` computes of classifications.

AUC, average precision and the calibration error belong to a set of cases and are no means over them. So subjects are
drawn with all their cases and the metric is computed anew for both runs on the same draw; and the test exchanges,
subject by subject, what the two runs said, and computes the metric of both anew.

Shape suffixes: N cases, K classes, R resamples or patterns, S subjects.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from prevox.evaluation.alignment import UNNAMED
from prevox.evaluation.arms import Arm
from prevox.evaluation.cases import MEAN
from prevox.evaluation.classified import TWO_SIDED, known, measured, members_of, resampled_values, undefined, varied
from prevox.evaluation.comparison import HIGHER_IS_BETTER, Comparison, rank_entries, verdict
from prevox.evaluation.evaluate import LEVEL, RESAMPLES, SEED
from prevox.evaluation.paired import holm
from prevox.evaluation.probability_tables import ALL, Classified
from prevox.evaluation.ranks import stability_of
from prevox.evaluation.statistics import tail_share

EXACT_UP_TO = 12  # subjects; all 2^n exchanges
EXCHANGES = 4999  # random ones beyond that: the standard error at p = 0.05 is 0.003
AT_ONCE = 1 << 21  # weights held at a time
ROUNDING = 1e-12

Values = dict[str, np.ndarray]  # class → (R,)


def compute_classes(
    found: Sequence[Classified],
    arms: Sequence[Arm],
    metric: str,
    baseline: str | None = None,
    describe: bool = False,
    classes_left_out: Sequence[str] = (),
    left_out: dict[str, dict[str, str]] | None = None,
) -> Comparison:
    """All statistics of aligned classifications.

    Args:
        found: Of each run its probabilities, on the same cases and classes.
        arms: The runs.
        metric: auc, average_precision, ece or brier.
        baseline: Name of the run that the others are compared with; None compares every pair.
        describe: Whether no pair is compared.
        classes_left_out: Names that not every run has.
        left_out: Case id → runs that lack it.
    """
    names = [arm.name for arm in arms]
    members = members_of(found[0].subjects)
    parts = resampled_values(found, [metric], RESAMPLES, SEED)
    observed, resampled = ([_one_metric(values) for values in side] for side in zip(*parts, strict=True))
    pairs: list[tuple[int, int]] = []
    if not describe:
        pairs = [(second, first) for first, second in combinations(range(len(names)), 2)]
    if baseline is not None:
        pairs = [(run, names.index(baseline)) for run in range(len(names)) if names[run] != baseline]
    differences = []
    for name in observed[0]:
        for run, other in pairs:
            apart = observed[run][name] - observed[other][name]
            entry = _entry(found[0], members, name, metric, apart, resampled[run][name] - resampled[other][name])
            entry |= {"run": names[run], "other": names[other]}
            if name == MEAN:
                entry["permutation_p"] = exchange_p(found[run], found[other], metric, SEED)
            differences.append(entry)
    tested = [entry for entry in differences if entry["class"] == MEAN]
    for entry, adjusted in zip(tested, holm([entry["permutation_p"] for entry in tested]), strict=True):
        entry["permutation_p_holm"] = float(adjusted)
    family = sum(not np.isnan(entry["permutation_p"]) for entry in tested)
    no_median = dict.fromkeys(("median", "median_low", "median_high"), float("nan"))
    return Comparison(
        metric=metric,
        tolerance_mm=None,
        baseline=baseline,
        runs={arm.name: arm.folders for arm in arms},
        datasets=[_described(found[0], metric, classes_left_out)],
        left_out=left_out or {},
        scores=[
            {**_entry(found[0], members, name, metric, observed[run][name], resampled[run][name]), "run": label}
            | no_median
            for name in observed[0]
            for run, label in enumerate(names)
        ],
        differences=differences,
        ranks=_ranks(names, observed, resampled, metric),
        verdicts=[verdict(entry, metric, family) for entry in tested],
    )


def exchange_p(first: Classified, second: Classified, metric: str, seed: int = 0) -> float:
    """Two-sided p-value of the permutation test that exchanges two runs' predictions subject by subject.

    Under the null hypothesis either run could have said what the other one did. Runs may use scales of their own, which
    AUC and average precision do not see; so for these two each run's probabilities of a class are replaced by their
    ranks first (Venkatraman and Begg 1996, Biometrika 83). All 2^n exchanges are tried for n up to 12 subjects, else
    4999 random ones, the observed one counting as one more.

    Args:
        first: One run.
        second: The other, on the same cases and classes.
        metric: Its mean over classes is tested.
        seed: Seed of the random exchanges.

    Returns:
        The p-value; NaN with fewer than two subjects, or where the metric has no value.
    """
    members = members_of(first.subjects)
    subjects = int(members.max()) + 1
    if metric in TWO_SIDED:
        first, second = _ranked(first), _ranked(second)
    both = replace(
        first,
        cases=[*first.cases, *second.cases],
        probabilities_NK=np.concatenate([first.probabilities_NK, second.probabilities_NK]),
        truths_NK=np.concatenate([first.truths_NK, second.truths_NK]),
    )

    def differences(exchanged_RS: np.ndarray) -> np.ndarray:
        own_RN = 1.0 - exchanged_RS[:, members]
        there_RN = 1.0 - own_RN
        one, other = (
            measured(both, np.concatenate(parts, axis=1), [metric])[MEAN, metric]
            for parts in ((own_RN, there_RN), (there_RN, own_RN))
        )
        return one - other

    least = abs(differences(np.zeros((1, subjects)))[0]) - ROUNDING
    if subjects < 2 or np.isnan(least):
        return float("nan")
    rows = max(1, AT_ONCE // len(both.cases))
    if subjects <= EXACT_UP_TO:
        patterns = (np.arange(2**subjects)[:, None] >> np.arange(subjects)) & 1
        parts = [differences(patterns[start : start + rows]) for start in range(0, len(patterns), rows)]
        return float((np.abs(np.concatenate(parts)) >= least).mean())
    rng, extreme = np.random.default_rng(seed), 0
    for start in range(0, EXCHANGES, rows):
        patterns = rng.integers(2, size=(min(rows, EXCHANGES - start), subjects))
        extreme += int((np.abs(differences(patterns)) >= least).sum())
    return (extreme + 1) / (EXCHANGES + 1)


def _one_metric(values: dict[tuple[str, str], np.ndarray]) -> Values:
    return {name: value for (name, _), value in values.items() if name != ALL}


def _ranked(found: Classified) -> Classified:
    """Each class's probabilities replaced by their mid-ranks among the cases whose truth is known, as shares."""
    from scipy.stats import rankdata  # slow to import

    ranks_NK = found.probabilities_NK.copy()
    for k, name in enumerate(found.classes):
        own = known(found, name)
        ranks_NK[own, k] = rankdata(found.probabilities_NK[own, k]) / max(1, own.sum())
    return replace(found, probabilities_NK=ranks_NK)


def _entry(
    found: Classified, members: np.ndarray, name: str, metric: str, observed: np.ndarray, resampled: np.ndarray
) -> dict[str, Any]:
    """A value with its interval, as the rows of `summarise` have it."""
    own = np.ones(len(members), bool) if name == MEAN else known(found, name)
    number = len(np.unique(members[own]))
    resampled = resampled[~np.isnan(resampled)]
    low = high = float("nan")
    if not np.isnan(observed[0]) and varied(found, members, name, metric) and len(resampled):
        tail = tail_share(number, LEVEL)
        low, high = map(float, np.quantile(resampled, [tail, 1 - tail]))
    entry: dict[str, Any] = {"dataset": UNNAMED, "class": name, "mean": float(observed[0]), "low": low, "high": high}
    positives = None if name == MEAN else int(np.nansum(found.truths_NK[:, found.classes.index(name)]))
    return entry | {"subjects": number, "cases": int(own.sum()), "positives": positives}


def _described(found: Classified, metric: str, classes_left_out: Sequence[str]) -> dict[str, Any]:
    return {
        "name": UNNAMED,
        "cases": len(found.cases),
        "subjects": len(set(found.subjects)),
        "classes": found.classes,
        "classes_left_out": list(classes_left_out),
        "not_counted": {},
        "undefined": undefined(found) if metric in TWO_SIDED else {},
    }


def _ranks(
    names: Sequence[str], observed: Sequence[Values], resampled: Sequence[Values], metric: str
) -> list[dict[str, Any]]:
    means = np.stack([values[MEAN] for values in resampled], axis=1)
    means = means[~np.isnan(means).any(axis=1)]
    now = np.array([values[MEAN][0] for values in observed])
    part = stability_of(now, means, HIGHER_IS_BETTER[metric])
    return rank_entries([(UNNAMED, part), (None, part)], names)
