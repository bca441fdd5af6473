"""Runs of a comparison side by side, aligned by case id; what is missing is accounted for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from prevox.errors import DataError
from prevox.evaluation.arms import Arm
from prevox.evaluation.cases import MEAN
from prevox.evaluation.comparison_tables import LABELS

UNNAMED = "unnamed"  # the dataset of cases whose evaluation does not say
SAME_VOLUME = 1e-4  # relative; the same mask on the same grid, up to rounding


@dataclass(frozen=True)
class Dataset:
    """The common cases of one dataset.

    Attributes:
        name: Of the catalogue's column `dataset`.
        cases: Ids.
        subjects: The subject of each case.
        classes: Names; those that every run has, and last the mean over them.
        values: (classes, cases, runs); NaN where the class is not counted in a case.
        classes_left_out: Names that not every run has.
    """

    name: str
    cases: list[str]
    subjects: list[str]
    classes: list[str]
    values: np.ndarray
    classes_left_out: list[str]


@dataclass(frozen=True)
class Alignment:
    """Datasets in the order of the first run's scores, and what is not compared.

    Attributes:
        datasets: At least one, each with at least one case.
        left_out: Case id → {name of a run that lacks it: "failed", "not predicted" or "not scored"}.
    """

    datasets: list[Dataset]
    left_out: dict[str, dict[str, str]]


def align(arms: Sequence[Arm], metric: str) -> Alignment:
    """Put the scores of the cases that every run has side by side.

    Args:
        arms: At least two.
        metric: Column of the scores.

    Raises:
        DataError: If no case is common, or runs disagree on a case's subject, dataset or reference, or NSD was
            measured at different tolerances; the case is named.
    """
    if metric == "nsd":
        _same_tolerance(arms)
    cases = [list(dict.fromkeys(arm.scores["case"])) for arm in arms]
    common = common_cases([arm.name for arm in arms], cases)
    tables = [arm.scores[arm.scores["case"].isin(common)] for arm in arms]
    _same_reference(arms, tables)
    subjects = _one_answer(arms, tables, "subject")
    datasets = _one_answer(arms, tables, "dataset")
    order = [case for case in cases[0] if case in common]
    groups: dict[str, list[str]] = {}
    for case in order:
        groups.setdefault(datasets[case] or UNNAMED, []).append(case)
    return Alignment(
        [_dataset(name, group, [subjects[case] for case in group], tables, metric) for name, group in groups.items()],
        left_out(arms, cases, common),
    )


def common_cases(names: Sequence[str], cases: Sequence[Sequence[str]]) -> set[str]:
    """Ids that every run has.

    Raises:
        DataError: If there are none.
    """
    common = set(cases[0]).intersection(*cases[1:])
    if not common:
        own = "; ".join(f"{name}: {_few(ids)}" for name, ids in zip(names, cases, strict=True))
        raise DataError(
            "runs",
            found=f"no case that all of them have ({own})",
            expected="runs that were scored on the same cases",
            remedy="Predict and evaluate the same images with each.",
        )
    return common


def case_table(alignment: Alignment, arms: Sequence[Arm]) -> pd.DataFrame:
    """Every metric of every compared case, class and run.

    Args:
        alignment: The common cases.
        arms: The runs.

    Returns:
        Columns dataset, case, subject, class, run, and the metrics that every run has; a case's mean over its counted
        classes stands in the rows of class "mean".
    """
    metrics = [name for name in LABELS if all(name in arm.scores for arm in arms)]
    parts = []
    for dataset in alignment.datasets:
        subjects = dict(zip(dataset.cases, dataset.subjects, strict=True))
        for arm in arms:
            wanted = arm.scores["case"].isin(subjects) & arm.scores["class"].isin(dataset.classes)
            own = arm.scores.loc[wanted, ["case", "class", *metrics]]
            mean = own.groupby("case", sort=False)[metrics].mean().reset_index().assign(**{"class": MEAN})
            both = pd.concat([own, mean]).assign(dataset=dataset.name, run=arm.name)
            parts.append(both.assign(subject=both["case"].map(subjects)))
    return pd.concat(parts, ignore_index=True)[["dataset", "case", "subject", "class", "run", *metrics]]


def left_out(arms: Sequence[Arm], cases: Sequence[Sequence[str]], common: set[str]) -> dict[str, dict[str, str]]:
    """Cases that some run has, or could not segment, and not every one has; with the reason where it is known."""
    every = dict.fromkeys(case for own in cases for case in own)
    every |= dict.fromkeys(sorted(case for arm in arms for case in arm.failed))
    own = [set(found) for found in cases]
    return {
        case: {arm.name: _reason(arm, case) for arm, found in zip(arms, own, strict=True) if case not in found}
        for case in every
        if case not in common
    }


def _same_tolerance(arms: Sequence[Arm]) -> None:
    found = {arm.name: sorted(arm.tolerances) for arm in arms}
    if len({value for values in found.values() for value in values}) > 1:
        raise DataError(
            "runs",
            found="NSD at different tolerances ("
            + "; ".join(f"{name}: {', '.join(f'{v:g}' for v in values)} mm" for name, values in found.items() if values)
            + ")",
            expected="one tolerance",
            remedy="Evaluate all runs with the same --tolerance.",
        )


def _same_reference(arms: Sequence[Arm], tables: Sequence[pd.DataFrame]) -> None:
    """A class must have the same volume in every run's reference of a case, else they were scored on other masks."""
    first = tables[0].set_index(["case", "class"])["reference_ml"]
    for arm, table in zip(arms[1:], tables[1:], strict=True):
        other = table.set_index(["case", "class"])["reference_ml"]
        both = first.index.intersection(other.index, sort=False)
        a, b = first.loc[both].to_numpy(dtype=np.float64), other.loc[both].to_numpy(dtype=np.float64)
        off = np.flatnonzero(~np.isclose(a, b, rtol=SAME_VOLUME, atol=0))
        if len(off):
            case, name = both[off[0]]
            raise DataError(
                f"case {case}",
                found=f"class {name} with {a[off[0]]:.6g} ml in the reference of '{arms[0].name}' and "
                f"{b[off[0]]:.6g} ml in that of '{arm.name}'",
                expected="one reference",
                remedy="Evaluate all runs with the same --references and --regions.",
            )


def _one_answer(arms: Sequence[Arm], tables: Sequence[pd.DataFrame], column: str) -> dict[str, str]:
    """The subject or dataset of each case, on which the runs must agree; one that does not say ("") has no say."""
    answers: dict[str, tuple[str, str]] = {}
    for arm, table in zip(arms, tables, strict=True):
        for case, answer in table.drop_duplicates("case")[["case", column]].itertuples(index=False):
            known, by = answers.setdefault(case, (answer, arm.name))
            if not known:
                answers[case] = (answer, arm.name)
            elif answer and answer != known:
                raise DataError(
                    f"case {case}",
                    found=f"{column} '{known}' in run '{by}' and '{answer}' in run '{arm.name}'",
                    expected=f"one {column}",
                    remedy="Evaluate all runs with the same catalogue as --references.",
                )
    return {case: answer for case, (answer, _) in answers.items()}


def _dataset(name: str, cases: list[str], subjects: list[str], tables: Sequence[pd.DataFrame], metric: str) -> Dataset:
    wide = []
    for table in tables:
        own = table[table["case"].isin(set(cases))]
        complete = own["class"].value_counts()
        complete = complete[complete == len(cases)]
        order = [found for found in dict.fromkeys(own["class"]) if found in complete.index]
        wide.append(own.pivot(index="case", columns="class", values=metric).loc[cases, order])
    everywhere = set(wide[0]).intersection(*wide[1:])
    classes = [str(found) for found in wide[0] if found in everywhere]
    if not classes:
        raise DataError(
            f"dataset {name}",
            found="no class that every run has",
            expected="runs that were scored on the same classes",
            remedy="Evaluate all runs with the same --references and --regions.",
        )
    # the mean over a case's counted classes, as in the summary of `prevox evaluate`
    values = [np.column_stack([table[classes].to_numpy(float), table[classes].mean(axis=1)]) for table in wide]
    found = {str(found) for table in tables for found in table.loc[table["case"].isin(set(cases)), "class"]}
    return Dataset(
        name=name,
        cases=cases,
        subjects=subjects,
        classes=[*classes, MEAN],
        values=np.stack(values, axis=-1).transpose(1, 0, 2),
        classes_left_out=sorted(found - set(classes)),
    )


def _reason(arm: Arm, case: str) -> str:
    if case in arm.failed:
        return "failed"
    return "not predicted" if case in arm.not_predicted else "not scored"


def _few(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
