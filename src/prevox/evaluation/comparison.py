"""Everything that `prevox compare` computes of aligned runs: scores, differences, tests, ranks, and a verdict."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from prevox.errors import DataError
from prevox.evaluation.alignment import Alignment, Dataset
from prevox.evaluation.arms import Arm
from prevox.evaluation.cases import MEAN
from prevox.evaluation.comparison_tables import LABELS, interval, p_value
from prevox.evaluation.curves import curves
from prevox.evaluation.evaluate import LEVEL, RESAMPLES, SEED
from prevox.evaluation.paired import cohens_d, holm, permutation_p, rank_biserial, subject_means, wilcoxon_p
from prevox.evaluation.ranks import Stability, stability
from prevox.evaluation.statistics import bootstrap_mean, bootstrap_median, paired_difference

if TYPE_CHECKING:
    import pandas as pd

HIGHER_IS_BETTER = {"dice": True, "hd95": False, "nsd": True, "asd": False, "ravd": False}
HIGHER_IS_BETTER |= {"lesion_sensitivity": True, "lesion_false_positives": False}
HIGHER_IS_BETTER |= {"auc": True, "average_precision": True, "ece": False, "brier": False}
TESTS = ("wilcoxon_p", "permutation_p")


@dataclass(frozen=True)
class Comparison:
    """Everything that was found; the content of comparison.json.

    Attributes:
        metric: Column of the scores.
        tolerance_mm: Of NSD; None for other metrics, or where no evaluation says.
        baseline: The run that the others are compared with; None if every pair is.
        runs: Names with their folders.
        datasets: name, cases, subjects, classes, classes_left_out, not_counted (class → ids of cases in which it is
            not counted in every run).
        left_out: Case id → {run that lacks it: reason}.
        scores: One entry per dataset, class and run: mean, low, high, median, median_low, median_high, cases, subjects.
        differences: One entry per dataset, class and pair: mean of run minus other, low, high, cases, subjects; for the
            mean over classes also both tests (wilcoxon_p, permutation_p; _holm: adjusted) and effect sizes (cohens_d,
            rank_biserial).
        ranks: One entry per dataset and run, and one per run with dataset None for the average over datasets: rank,
            low, high, shares (of the resamples with place 1, 2, ...).
        verdicts: One sentence per dataset and pair.
        curves: One entry per dataset and point: setting, over (in words), line, x (None: a level), runs, mean, low,
            high, subjects, cases.
    """

    metric: str
    tolerance_mm: float | None
    baseline: str | None
    runs: dict[str, list[str]]
    datasets: list[dict[str, Any]]
    left_out: dict[str, dict[str, str]]
    scores: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    ranks: list[dict[str, Any]]
    verdicts: list[str]
    curves: list[dict[str, Any]] = field(default_factory=list)


def compute(
    alignment: Alignment, arms: Sequence[Arm], metric: str, baseline: str | None = None, describe: bool = False
) -> Comparison:
    """All statistics of aligned runs.

    Args:
        alignment: The common cases.
        arms: The runs, in the order of the last axis of the values.
        metric: Column of the scores.
        baseline: Name of the run that the others are compared with; None compares every pair.
        describe: Whether no pair is compared.

    Raises:
        DataError: If a dataset has no case that is counted in every run.
    """
    names = [arm.name for arm in arms]
    for dataset in alignment.datasets:
        if not _counted(dataset.values[-1]).any():
            raise DataError(
                f"dataset {dataset.name}",
                found="no case that is counted in every run (classes are empty in reference and prediction)",
                expected="cases with a labelled voxel",
                remedy="Leave the dataset out, or score other classes with prevox evaluate --regions.",
            )
    pairs: list[tuple[int, int]] = []
    if baseline is None and not describe:
        pairs = [(second, first) for first, second in combinations(range(len(names)), 2)]
    elif baseline is not None:
        pairs = [(run, names.index(baseline)) for run in range(len(names)) if names[run] != baseline]
    differences = [entry for dataset in alignment.datasets for entry in _differences(dataset, names, pairs)]
    tested = [entry for entry in differences if entry["class"] == MEAN]
    for test in TESTS:
        for entry, adjusted in zip(tested, holm([entry[test] for entry in tested]), strict=True):
            entry[f"{test}_holm"] = float(adjusted)
    family = sum(entry["subjects"] > 1 for entry in tested)
    tolerances = sorted({value for arm in arms for value in arm.tolerances}) if metric == "nsd" else []
    return Comparison(
        metric=metric,
        tolerance_mm=tolerances[0] if tolerances else None,  # `align` has refused several
        baseline=baseline,
        runs={arm.name: arm.folders for arm in arms},
        datasets=[_described(dataset) for dataset in alignment.datasets],
        left_out=alignment.left_out,
        scores=[entry for dataset in alignment.datasets for entry in _scores(dataset, names)],
        differences=differences,
        ranks=_ranks(alignment.datasets, names, metric),
        verdicts=[verdict(entry, metric, family, len(alignment.datasets) > 1) for entry in tested],
        curves=[entry for dataset in alignment.datasets for entry in _curves(dataset, arms)],
    )


def verdict(entry: dict[str, Any], metric: str, family: int, name_dataset: bool = False) -> str:
    """Say in words whether two runs can be told apart.

    Args:
        entry: A difference of the mean over classes, as in `Comparison.differences`.
        metric: Column of the scores.
        family: Number of tests that Holm's correction counts.
        name_dataset: Whether to begin with the dataset's name.
    """
    run, other = entry["run"], entry["other"]
    n = entry["subjects"]
    where = f"{entry['dataset']}: " if name_dataset else ""
    if n < 2:
        return f"{where}one subject says nothing about {run} and {other}."
    if np.isnan(entry["mean"]):
        return f"{where}no class has a value, so nothing can be said about {run} and {other}."
    label, decimals = LABELS[metric]
    found = f"{run} minus {other} {interval(entry, decimals, signed=True)} {label}"
    p = p_value(entry["permutation_p_holm"])
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    if entry["low"] <= 0 <= entry["high"]:
        return f"{where}{run} and {other} cannot be told apart by these cases ({found})."
    better, worse = (run, other) if (entry["mean"] > 0) == HIGHER_IS_BETTER[metric] else (other, run)
    holms = f", {p} by permutation" + (f" after Holm's correction for {family} tests" if family > 1 else "")
    if entry["permutation_p_holm"] <= 1 - LEVEL:
        return f"{where}{better} is better than {worse} ({found}{holms})."
    least = min(1.0, family * 2.0 ** (1 - n))  # every subject on one side
    bound = f"; with {n} subjects it cannot be smaller than {p_value(least)}" if least > 1 - LEVEL else ""
    return (
        f"{where}{better} is ahead of {worse} by its interval, but the test does not bear it out "
        f"({found}{holms}{bound})."
    )


def tidy(comparison: Comparison) -> "pd.DataFrame":
    """One row per quantity; columns as in `CompareResult.table`."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for entry in comparison.scores:
        where: dict[str, Any] = {key: entry[key] for key in ("dataset", "class", "run", "cases", "subjects")}
        rows.append(where | {"quantity": "mean", "value": entry["mean"], "low": entry["low"], "high": entry["high"]})
        ends = {"low": entry["median_low"], "high": entry["median_high"]}
        rows.append(where | {"quantity": "median", "value": entry["median"]} | ends)
    for entry in comparison.differences:
        where = {key: entry[key] for key in ("dataset", "class", "run", "other", "cases", "subjects")}
        ends = {"low": entry["low"], "high": entry["high"]}
        rows.append(where | {"quantity": "difference", "value": entry["mean"]} | ends)
        measured = [key for key in entry if key not in where and key not in ("mean", "low", "high")]
        rows.extend(where | {"quantity": key, "value": entry[key]} for key in measured)
    for entry in comparison.ranks:
        where = {"dataset": entry["dataset"], "class": MEAN, "run": entry["run"]}
        quantity = "average_rank" if entry["dataset"] is None else "rank"
        rows.append(where | {"quantity": quantity, "value": entry["rank"], "low": entry["low"], "high": entry["high"]})
        shares = enumerate(entry["shares"], start=1)
        rows.extend(where | {"quantity": f"{quantity}_share", "place": place, "value": v} for place, v in shares)
    for entry in comparison.curves:
        where = {"dataset": entry["dataset"], "class": MEAN, "run": entry["line"], "x": entry["x"]}
        where |= {key: entry[key] for key in ("low", "high", "cases", "subjects")}
        rows.append(where | {"quantity": f"over {entry['setting']}", "value": entry["mean"]})
    columns = [
        "dataset",
        "class",
        "run",
        "other",
        "quantity",
        "place",
        "x",
        "value",
        "low",
        "high",
        "cases",
        "subjects",
    ]
    table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(["place", "cases", "subjects"], "Int64"))
    table.insert(0, "metric", comparison.metric)
    return table


def _counted(values: np.ndarray) -> np.ndarray:
    """Cases in which every run is counted, of (cases, runs)."""
    return ~np.isnan(values).any(axis=-1)


def _described(dataset: Dataset) -> dict[str, Any]:
    not_counted = {
        name: [case for case, counted in zip(dataset.cases, _counted(values), strict=True) if not counted]
        for name, values in zip(dataset.classes, dataset.values, strict=True)
    }
    return {
        "name": dataset.name,
        "cases": len(dataset.cases),
        "subjects": len(set(dataset.subjects)),
        "classes": dataset.classes[:-1],
        "classes_left_out": dataset.classes_left_out,
        "not_counted": {name: cases for name, cases in not_counted.items() if cases},
    }


def _scores(dataset: Dataset, names: Sequence[str]) -> list[dict[str, Any]]:
    """Means and medians of every class and run over the cases that are counted in every run."""
    entries = []
    for class_name, values in zip(dataset.classes, dataset.values, strict=True):
        same = np.where(_counted(values)[:, None], values, np.nan)
        for run, name in enumerate(names):
            mean = bootstrap_mean(same[:, run], dataset.subjects, RESAMPLES, SEED, LEVEL)
            median = bootstrap_median(same[:, run], dataset.subjects, RESAMPLES, SEED, LEVEL)
            entries.append(
                {"dataset": dataset.name, "class": class_name, "run": name, **asdict(mean)}
                | dict(zip(("median", "median_low", "median_high"), median, strict=True))
            )
    return entries


def _curves(dataset: Dataset, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Curves of the mean over classes, on the cases that are counted in every run."""
    values = dataset.values[-1]
    same = np.where(_counted(values)[:, None], values, np.nan)
    settings = {arm.name: arm.settings.get(dataset.name) or arm.settings.get("") or {} for arm in arms}
    found = curves(settings, same, dataset.subjects, RESAMPLES, SEED, LEVEL)
    return [{"dataset": dataset.name, **entry} for entry in found]


def _differences(dataset: Dataset, names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    entries = []
    for class_name, values in zip(dataset.classes, dataset.values, strict=True):
        counted = _counted(values)
        subjects = [subject for subject, found in zip(dataset.subjects, counted, strict=True) if found]
        for run, other in pairs:
            difference = values[counted, run] - values[counted, other]
            found = paired_difference(values[counted, run], values[counted, other], subjects, RESAMPLES, SEED, LEVEL)
            where = {"dataset": dataset.name, "class": class_name, "run": names[run], "other": names[other]}
            entry: dict[str, Any] = where | asdict(found)
            if class_name == MEAN:
                own = subject_means(difference, subjects)
                entry |= {"wilcoxon_p": wilcoxon_p(own), "permutation_p": permutation_p(own, seed=SEED)}
                entry |= {"cohens_d": cohens_d(own), "rank_biserial": rank_biserial(own)}
            entries.append(entry)
    return entries


def _ranks(datasets: Sequence[Dataset], names: Sequence[str], metric: str) -> list[dict[str, Any]]:
    parts = []
    for dataset in datasets:
        counted = _counted(dataset.values[-1])
        subjects = [subject for subject, found in zip(dataset.subjects, counted, strict=True) if found]
        parts.append((dataset.values[-1][counted], subjects))
    each, average = stability(parts, HIGHER_IS_BETTER[metric], RESAMPLES, SEED)
    found = [(dataset.name, part) for dataset, part in zip(datasets, each, strict=True)]
    return rank_entries([*found, (None, average)], names)


def rank_entries(parts: Sequence[tuple[str | None, Stability]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Ranks by dataset (None: the average) and run, as `Comparison.ranks` has them."""
    return [
        {
            "dataset": dataset,
            "run": label,
            "rank": float(part.ranks[run]),
            "low": float(part.low[run]),
            "high": float(part.high[run]),
            "shares": [float(share) for share in part.shares[run]],
        }
        for dataset, part in parts
        for run, label in enumerate(names)
    ]
