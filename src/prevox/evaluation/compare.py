"""`prevox compare`: evaluated runs on the same cases; paired tests, effect sizes, ranks and how stable they are."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prevox.config.runs import CompareConfig, ReportConfig
from prevox.console import console, warn
from prevox.errors import ConfigError
from prevox.evaluation.alignment import align, case_table
from prevox.evaluation.arms import Arm, read_arms
from prevox.evaluation.class_arms import align_classes, are_classifications, class_table, read_class_arms
from prevox.evaluation.class_comparison import compute_classes
from prevox.evaluation.comparison import HIGHER_IS_BETTER, Comparison, compute, tidy
from prevox.evaluation.comparison_tables import OF_CLASSES, latex, markdown, say
from prevox.evaluation.evaluate import LEVEL, RESAMPLES, SEED
from prevox.output import replacing, writable_folder
from prevox.reporting.report import report

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CompareResult:
    """What `compare` found.

    Attributes:
        comparison: Everything.
        table: The same in tidy form: metric, dataset, class, run, other, quantity, place, x, value, low, high,
            cases, subjects.
        path: Folder with comparison.json, comparison.parquet, cases.parquet, tables.md, tables.tex and report.html.
    """

    comparison: Comparison
    table: "pd.DataFrame"
    path: Path


def compare(config: CompareConfig) -> CompareResult:
    """Compare runs on the cases that all of them have.

    Means and medians are over cases, intervals over subjects; tests and effect sizes take one difference a subject.
    Holm's correction is over one family a test: every pair in every dataset, for the mean over classes. Metrics of
    probabilities belong to a set of cases; see `class_comparison`.

    Raises:
        RunError: If a run has no scores, or the tables cannot be written.
        DataError: If scores do not fit each other; the case is named.
        ConfigError: If there is only one run, or the baseline is none of them.
    """
    of_classes = are_classifications(config.runs)
    metric = config.metric or ("auc" if of_classes else "dice")
    if (metric in OF_CLASSES) != of_classes:
        known = [name for name in HIGHER_IS_BETTER if (name in OF_CLASSES) == of_classes]
        kind = "probabilities of classes" if of_classes else "scores of masks"
        raise ConfigError(f"metric: found {metric}; expected one of {', '.join(known)} for {kind}.")
    arms = read_class_arms(config.runs) if of_classes else read_arms(config.runs, metric)
    names = [arm.name for arm in arms]
    if config.baseline is not None and config.baseline not in names:
        raise ConfigError(f"baseline: '{config.baseline}' is none of the runs; expected one of {', '.join(names)}.")
    if of_classes:
        found, others, missing = align_classes(arms)
        writable_folder(config.out)
        comparison = compute_classes(found, arms, metric, config.baseline, config.describe, others, missing)
        cases = class_table(found, names)
    else:
        alignment = align(arms, metric)
        writable_folder(config.out)
        comparison = compute(alignment, arms, metric, config.baseline, config.describe)
        cases = case_table(alignment, arms)
    table = tidy(comparison)
    with replacing(config.out / "comparison.json") as path:
        path.write_text(json.dumps(_plain(_content(comparison)), indent=1, ensure_ascii=False), encoding="utf-8")
    with replacing(config.out / "comparison.parquet") as path:
        table.to_parquet(path, index=False)
    with replacing(config.out / "cases.parquet") as path:
        cases.to_parquet(path, index=False)
    with replacing(config.out / "tables.md") as path:
        path.write_text(markdown(comparison), encoding="utf-8")
    with replacing(config.out / "tables.tex") as path:
        path.write_text(latex(comparison), encoding="utf-8")
    say(comparison)
    _warn(arms, comparison, set(cases["case"]))
    report(ReportConfig(comparison=config.out))
    console.print(f"written: {config.out}", markup=False)
    return CompareResult(comparison, table, config.out)


def _content(comparison: Comparison) -> dict[str, Any]:
    how = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED}
    return {"schema": 1, "higher_is_better": HIGHER_IS_BETTER[comparison.metric], **how, **asdict(comparison)}


def _plain(value: Any) -> Any:
    """NaN as null: JSON has no other word for it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _warn(arms: Sequence[Arm], comparison: Comparison, compared: set[str]) -> None:
    for arm in arms:
        failed = [case for case, missing in comparison.left_out.items() if missing.get(arm.name) == "failed"]
        if failed:
            warn(f"{arm.name} could not segment {len(failed)} cases; without them it may look better than it is")
        seen = len(compared & arm.trained_on)
        if seen:
            warn(f"{arm.name} was trained on {seen} of the compared cases; they say nothing about new ones")
