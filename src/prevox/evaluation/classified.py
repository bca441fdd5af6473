"""Classification in `prevox evaluate`: AUC, average precision, calibration, Brier score; intervals over subjects.

Shape suffixes: N cases, K classes, R sets of weights (one set is one resample).
"""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from prevox.console import console, warn
from prevox.evaluation.cases import MEAN
from prevox.evaluation.classification import BINS, auc, average_precision, brier, calibration_error
from prevox.evaluation.probability_tables import ALL, Classified
from prevox.evaluation.statistics import drawn_counts, tail_share
from prevox.output import replacing

METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "auc": auc,
    "average_precision": average_precision,
    "ece": calibration_error,
    "brier": brier,
}
Values = dict[tuple[str, str], np.ndarray]  # (class, metric) → (R,)
HEADINGS = {"auc": "AUC", "average_precision": "average precision", "ece": "calibration error", "brier": "Brier"}
TWO_SIDED = ("auc", "average_precision")  # compare positives with negatives
EXCLUSIVE = ("accuracy", "ece", "brier")  # of the row of all classes together


def summarise(found: Classified, level: float, resamples: int, seed: int) -> pd.DataFrame:
    """Value and interval of every class and metric, of the mean over classes, and of exclusive classes together.

    AUC and average precision need both positives and negatives. They are NaN for a class that has only one of them,
    such a class is not in their mean, and a resample in which a class has only one does not count for that class. An
    interval needs two subjects, of these two metrics two on either side: it would be that of the other side alone.

    Args:
        found: Probabilities and references.
        level: Nominal coverage of the intervals.
        resamples: Bootstrap resamples of subjects.
        seed: Seed of the resampling.

    Returns:
        One row per class and metric: class, metric, value, low, high, cases, subjects, positives.
    """
    members = members_of(found.subjects)
    observed, drawn = resampled_values([found], METRICS, resamples, seed)[0]
    rows = []
    for (name, metric), value in observed.items():
        own = np.ones(len(found.cases), bool) if name in (MEAN, ALL) else known(found, name)
        resampled = drawn[name, metric]
        resampled = resampled[~np.isnan(resampled)]
        number = len(np.unique(members[own]))
        low = high = float("nan")
        if varied(found, members, name, metric) and len(resampled):
            tail = tail_share(number, level)
            low, high = np.quantile(resampled, [tail, 1 - tail])
        positives = None if name in (MEAN, ALL) else int(np.nansum(found.truths_NK[:, found.classes.index(name)]))
        counts = {"cases": int(own.sum()), "subjects": number, "positives": positives}
        rows.append(
            {"class": name, "metric": metric, "value": float(value[0]), "low": float(low), "high": float(high)} | counts
        )
    return pd.DataFrame(rows).astype({"positives": "Int64"})


def resampled_values(
    runs: Sequence[Classified], metrics: Collection[str], resamples: int, seed: int
) -> list[tuple[Values, Values]]:
    """Observed and resampled values of classifications of the same cases, the same draws of subjects for all.

    In the resampled mean over classes, a class that a draw leaves without value (without a positive, say) keeps its
    observed one: were it left out, the mean would be over other classes in one draw than in the next.

    Args:
        runs: With equal cases, subjects, classes and truths.
        metrics: Names.
        resamples: Bootstrap resamples of subjects.
        seed: Seed of the resampling.

    Returns:
        Of each run (1,) and (R,) values for each (class, metric).
    """
    members = members_of(runs[0].subjects)
    observed = [measured(run, np.ones((1, len(members))), metrics) for run in runs]
    parts: list[list[Values]] = [[] for _ in runs]
    for counts in drawn_counts(members, resamples, seed):
        for run, own in zip(runs, parts, strict=True):
            own.append(measured(run, counts, metrics))
    found = []
    for run, now, own in zip(runs, observed, parts, strict=True):
        drawn = {key: np.concatenate([part[key] for part in own]) for key in now}
        for metric in metrics:
            values_KR = np.stack([drawn[name, metric] for name in run.classes])
            now_K1 = np.stack([now[name, metric] for name in run.classes])
            drawn[MEAN, metric] = _mean(np.where(np.isnan(values_KR), now_K1, values_KR))
        found.append((now, drawn))
    return found


def members_of(subjects: Sequence[str]) -> np.ndarray:
    """(N,) the number of each case's subject, from 0 without gaps."""
    _, members = np.unique(np.array(subjects, dtype=object).astype(str), return_inverse=True)
    return members


def measured(found: Classified, weights_RN: np.ndarray, metrics: Collection[str] = tuple(METRICS)) -> Values:
    """(R,) values for each (class, metric), in the order of the summary; of the mean over classes under `MEAN`."""
    values: Values = {}
    for k, name in enumerate(found.classes):
        own = known(found, name)
        p, positive, weights = found.probabilities_NK[own, k], found.truths_NK[own, k] == 1, weights_RN[:, own]
        for metric in metrics:
            values[name, metric] = METRICS[metric](p, positive, weights) if own.any() else np.full(len(weights), np.nan)
    for metric in metrics:
        values[MEAN, metric] = _mean(np.stack([values[name, metric] for name in found.classes]))
    if found.exclusive and set(EXCLUSIVE) & set(metrics):
        top = found.probabilities_NK.argmax(axis=1)
        confidence = found.probabilities_NK.max(axis=1)
        right = found.truths_NK[np.arange(len(top)), top] == 1
        total = weights_RN.sum(axis=1)
        squares_N = ((found.probabilities_NK - found.truths_NK) ** 2).sum(axis=1)
        together = (weights_RN @ right / total, calibration_error(confidence, right, weights_RN))
        values |= {(ALL, m): v for m, v in zip(EXCLUSIVE, (*together, weights_RN @ squares_N / total), strict=True)}
    return values


def varied(found: Classified, members: np.ndarray, name: str, metric: str) -> bool:
    """Whether resampling subjects can say how sure a value is."""
    if name in (MEAN, ALL) or metric not in TWO_SIDED:
        return len(np.unique(members if name in (MEAN, ALL) else members[known(found, name)])) > 1
    truths_N = found.truths_NK[:, found.classes.index(name)]
    return all(len(np.unique(members[truths_N == side])) > 1 for side in (0, 1))


def known(found: Classified, name: str) -> np.ndarray:
    """(N,) whether the reference says whether a case is of a class."""
    return ~np.isnan(found.truths_NK[:, found.classes.index(name)])


def _mean(values_KR: np.ndarray) -> np.ndarray:
    """Mean over the classes that have a value; (R,)."""
    counted = ~np.isnan(values_KR)
    number = counted.sum(axis=0)
    total = np.where(counted, values_KR, 0).sum(axis=0)
    return np.divide(total, number, out=np.full(len(number), np.nan), where=number > 0)


def undefined(found: Classified) -> dict[str, str]:
    """Classes without AUC and average precision, and why."""
    sides = {name: set(found.truths_NK[known(found, name), k]) for k, name in enumerate(found.classes)}
    missing = {frozenset(): "no reference", frozenset({0.0}): "no positive", frozenset({1.0}): "no negative"}
    return {name: missing[frozenset(values)] for name, values in sides.items() if len(values) < 2}


def write(out: Path, found: Classified, scores: pd.DataFrame, summary: pd.DataFrame, settings: dict[str, Any]) -> None:
    """Write classification.parquet (cases), classification.csv (summary) and classification.json (all about it)."""
    with replacing(out / "classification.parquet") as path:
        scores.to_parquet(path, index=False)
    with replacing(out / "classification.csv") as path:
        summary.to_csv(path, index=False)
    content = {
        "schema": 1,
        "classes_exclusive": found.exclusive,
        "calibration_bins": BINS,
        **settings,
        "cases": len(found.cases),
        "subjects": len(set(found.subjects)),
        "undefined": undefined(found),
        "not_predicted": found.not_predicted,
        "without_reference": found.without_reference,
        "summary": json.loads(summary.to_json(orient="records", double_precision=15)),  # NaN becomes null
    }
    with replacing(out / "classification.json") as path:
        path.write_text(json.dumps(content, indent=1))


def tidy(found: Classified) -> pd.DataFrame:
    """One row per case and class: case, subject, class, probability, reference (NaN where unknown)."""
    n, k = found.probabilities_NK.shape
    return pd.DataFrame(
        {
            "case": np.repeat(np.array(found.cases, dtype=object), k),
            "subject": np.repeat(np.array(found.subjects, dtype=object), k),
            "class": np.tile(np.array(found.classes, dtype=object), n),
            "probability": found.probabilities_NK.ravel(),
            "reference": found.truths_NK.ravel(),
        }
    ).astype({"case": str, "subject": str, "class": str})


def say(found: Classified, summary: pd.DataFrame, level: float, out: Path) -> None:
    """Print the summary and what is not in it."""
    table = Table(caption=escape(f"[{level:.0%} interval over subjects]; mean: of the classes that have a value"))
    for title in ("class", *HEADINGS.values(), "cases", "positives"):
        table.add_column(title, justify="left" if title == "class" else "right")
    for name, group in summary.groupby("class", sort=False):
        rows = {str(row["metric"]): row for row in group.to_dict("records")}
        counts = rows["brier"]
        positives = "" if pd.isna(counts["positives"]) else str(counts["positives"])
        table.add_row(
            escape(str(name)), *(_cell(rows.get(metric)) for metric in HEADINGS), str(counts["cases"]), positives
        )
    console.print(table)
    if found.exclusive:
        console.print(f"accuracy {_cell(summary[summary['metric'] == 'accuracy'].iloc[0].to_dict())}")
    lacking = undefined(found)
    if lacking:
        why = ", ".join(f"{name} ({reason})" for name, reason in lacking.items())
        warn(f"no AUC and no average precision, not counted in their mean: {why}")
    console.print(f"written: {out}", markup=False)


def _cell(row: dict[Any, Any] | None) -> str:
    if row is None or np.isnan(row["value"]):
        return "–"
    return f"{row['value']:.3f}" + ("" if np.isnan(row["low"]) else f" \\[{row['low']:.3f}, {row['high']:.3f}]")
