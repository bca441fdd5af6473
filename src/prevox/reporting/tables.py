"""The numbers of the report: scores with intervals, paired differences, settings that differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from prevox.evaluation.statistics import Interval, bootstrap_mean, paired_difference
from prevox.reporting.folders import Run

METRICS = {  # column of scores.csv -> (heading, decimals)
    "dice": ("Dice", 3),
    "hd95": ("HD95 (mm)", 2),
    "nsd": ("NSD", 3),
    "volume_error": ("Volume error (ml)", 2),  # predicted - reference, added by `read_runs`
}
MEAN = "mean of classes"
# may differ between a run and its arm from scratch: how it starts, and what that asks of the first steps
ARM_SETTINGS = {
    *("scratch", "pretrained", "transfer", "decoder_first", "schedule.warmup"),
    *("optim.lr", "out", "resume"),
}


@dataclass(frozen=True)
class Row:
    """One line of a table of scores: a metric of a class, one cell per run."""

    metric: str
    decimals: int
    class_name: str
    cells: list[Interval | None]


def per_case(run: Run, metric: str) -> pd.DataFrame:
    """Values of one metric, one row per case and one column per class, with the mean over classes last.

    Classes that are not counted in a case (empty in reference and prediction) are left out of the case's mean.
    """
    if run.scores.empty or metric not in run.scores:
        return pd.DataFrame()
    wide = run.scores.pivot(index="case", columns="class", values=metric)[list(dict.fromkeys(run.scores["class"]))]
    return wide.assign(**{MEAN: wide.mean(axis=1)}) if wide.shape[1] > 1 else wide


def subjects_of(run: Run, cases: pd.Index) -> list[str]:
    """The subject of each case."""
    return run.scores.drop_duplicates("case").set_index("case")["subject"].loc[cases].tolist()


def score_rows(runs: Sequence[Run]) -> list[Row]:
    """Every metric and class, with the mean and its interval over subjects for every run."""
    return _rows(runs, lambda run, _, values: bootstrap_mean(values.to_numpy(), subjects_of(run, values.index)))


def difference_rows(first: Run, others: Sequence[Run]) -> list[Row]:
    """Every metric and class, with the paired difference of each other run to the first over the same cases.

    NSD at one tolerance says nothing about NSD at another, so there is no difference between such runs.
    """

    def difference(run: Run, metric: str, values: pd.Series) -> Interval | None:
        before = per_case(first, metric)
        if values.name not in before or (metric == "nsd" and tolerance(run) != tolerance(first)):
            return None
        aligned = before[values.name].loc[values.index]
        return paired_difference(values.to_numpy(), aligned.to_numpy(), subjects_of(run, values.index))

    return _rows(others, difference)


def tolerance(run: Run) -> float | None:
    """Tolerance of a run's NSD in mm, None where its evaluation does not say."""
    found = run.scored.get("tolerance_mm")
    return None if found is None else float(found)


def nsd_heading(runs: Sequence[Run]) -> str:
    """NSD with its tolerance, or with each run's where they differ."""
    texts = ["unknown tolerance" if (found := tolerance(run)) is None else f"{found:g} mm" for run in runs]
    if len(set(texts)) == 1:
        return f"NSD at {texts[0]}"
    return "NSD at " + ", ".join(f"{text} ({run.name})" for run, text in zip(runs, texts, strict=True))


def _rows(runs: Sequence[Run], measure: Callable[[Run, str, pd.Series], Interval | None]) -> list[Row]:
    rows = []
    for metric, (heading, decimals) in METRICS.items():
        found = [per_case(run, metric) for run in runs]
        names = list(dict.fromkeys(name for table in found for name in map(str, table) if name != MEAN))
        if any(MEAN in table for table in found) and metric != "volume_error":
            names.append(MEAN)
        for name in names:
            cells = [
                measure(run, metric, table[name]) if name in table else None
                for run, table in zip(runs, found, strict=True)
            ]
            if any(cell is not None for cell in cells):
                rows.append(Row(heading, decimals, name, cells))
    return rows


def case_table(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Every case and class as a table that sorts: of one run all metrics, of several their Dice.

    Returns:
        Heads as the template's macro `sortable` takes them, and rows of cells.
    """
    metrics = METRICS if len(runs) == 1 else {"dice": METRICS["dice"]}
    columns: list[tuple[str, int, dict[Any, Any]]] = []
    for run in runs:
        for metric, (heading, decimals) in metrics.items():
            wide = per_case(run, metric)
            if metric == "volume_error":
                wide = wide.drop(columns=MEAN, errors="ignore")  # volumes of classes are not averaged
            values = wide.stack(future_stack=True).to_dict()
            columns.append((heading if len(runs) == 1 else run.name, decimals, values))
    rows: dict[tuple[str, str], list[Any]] = {}
    for case, class_name in dict.fromkeys(key for _, _, values in columns for key in values):
        rows[case, class_name] = [
            value_cell(values.get((case, class_name)), decimals) for _, decimals, values in columns
        ]
    subjects = {case: subject for run in runs for case, subject in run.scores[["case", "subject"]].to_numpy()}
    classes = {class_name for _, class_name in rows}
    heads: list[dict[str, Any]] = [
        {"name": "Case", "number": False},
        {"name": "Subject", "number": False},
        {"name": "Class", "number": False, "menu": MEAN if MEAN in classes else ""},
        *({"name": name if len(runs) == 1 else f"Dice of {name}", "number": True} for name, _, _ in columns),
    ]
    return heads, [[case, subjects[case], class_name, *cells] for (case, class_name), cells in rows.items()]


def value_cell(value: float | None, decimals: int) -> dict[str, str]:
    """A cell that sorts by its number; empty where there is none."""
    if value is None or np.isnan(value):
        return {"text": "–", "value": ""}
    return {"text": format(value, f".{decimals}f").replace("-", "−"), "value": repr(float(value))}


def same_cases(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of at least two runs that were evaluated on exactly the same cases."""
    groups: dict[frozenset[str], list[Run]] = {}
    for run in runs:
        if not run.scores.empty:
            groups.setdefault(frozenset(run.scores["case"]), []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def comparisons(runs: Sequence[Run]) -> list[tuple[Run, list[Run]]]:
    """What is compared with what, among runs on the same cases: (run to compare with, the others).

    Runs whose settings differ in nothing but how the encoder starts (`ARM_SETTINGS`) are the arms of one experiment:
    each pre-trained arm is compared with its arm from scratch. Without such arms, all are compared with the first run.
    """
    result = []
    for group in same_cases(runs):
        arms = [
            (scratch, [run for run in group if _pretrained(run) and _experiment(run) == _experiment(scratch)])
            for scratch in group
            if scratch.verb == "finetune" and not _pretrained(scratch)
        ]
        arms = [(scratch, others) for scratch, others in arms if others]
        result += arms or [(group[0], group[1:])]
    return result


def _pretrained(run: Run) -> bool:
    return run.config.get("pretrained") is not None and not run.config.get("scratch")


def _experiment(run: Run) -> dict[str, str]:
    """Settings that the arms of one experiment share."""
    settings = {key: _text(value) for key, value in _flat(run.config) if value is not None}
    return {key: value for key, value in settings.items() if key not in ARM_SETTINGS}


def mean_dice(run: Run) -> pd.Series:
    """Mean Dice over classes, by case."""
    table = per_case(run, "dice")
    return table.iloc[:, -1] if table.shape[1] else pd.Series(dtype=float)


def mean_interval(run: Run) -> Interval | None:
    """Mean Dice over classes and cases with its interval; None if the run was not evaluated."""
    dice = mean_dice(run)
    return bootstrap_mean(dice.to_numpy(), subjects_of(run, dice.index)) if len(dice) else None


def cell(interval: Interval | None, decimals: int, signed: bool = False) -> tuple[str, str]:
    """A mean and its interval as text: ("0.812", "0.790 to 0.831"); dashes where there is none."""

    def number(value: float) -> str:
        shown = round(value, decimals)
        sign = "+" if signed and shown else ""
        return format(shown or 0.0, f"{sign}.{decimals}f").replace("-", "−")  # 0.0 without a sign

    if interval is None or interval.cases == 0:
        return "–", ""
    if interval.subjects < 2:
        return number(interval.mean), "no interval: one subject"
    return number(interval.mean), f"{number(interval.low)} to {number(interval.high)}"


def changed_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings in which runs of one verb differ: (dotted key, value in each run)."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings if key not in {"out", "resume"}))
    rows = [(key, [_text(settings.get(key)) for settings in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    result: list[tuple[str, Any]] = []
    for key, value in settings.items():
        result.extend(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)])
    return result


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
