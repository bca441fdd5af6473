"""`prevox evaluate`: predictions against references, on the original grid, with intervals over subjects."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from prevox.config.runs import EvaluateConfig
from prevox.console import console, warn
from prevox.data.runner import Failure, run_cases
from prevox.errors import ConfigError, DataError, RunError
from prevox.evaluation import classified
from prevox.evaluation.cases import MEAN, Case, Matching, match_cases, predictions_folder
from prevox.evaluation.probability_tables import Classified, read_classified
from prevox.evaluation.scoring import LESION_METRICS, METRICS, score_case, score_of_nothing, score_row
from prevox.evaluation.statistics import bootstrap_mean
from prevox.output import replacing, writable_folder

if TYPE_CHECKING:
    import pandas as pd

LEVEL, RESAMPLES, SEED = 0.95, 2000, 0
NAMED = 5  # ids in a message; files hold all of them


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` found.

    Of classification, `scores` has one row per case and class (case, subject, class, probability, reference), `summary`
    one per class and metric (value, low, high, cases, subjects, positives), and the files are called classification.*.

    Attributes:
        scores: One row per case and class: case, subject, dataset ("" if unknown), class, dice, hd95, nsd, asd (mm),
            rvd, ravd, reference_ml, prediction_ml, empty ("", "prediction", "reference", "both"); where lesions are
            counted also lesions, lesions_found, lesion_sensitivity, lesion_false_positives.
        summary: One row per class (and "mean" over classes) and metric: mean, low, high, median, cases (counted ones),
            subjects, and pairs of case and class that are empty: one_empty, both_empty.
        path: Folder with scores.parquet, scores.csv, cases.csv (which files were compared), summary.csv and
            summary.json.
        failed: Ids of cases that `predict` could not segment; no mean contains them.
    """

    scores: "pd.DataFrame"
    summary: "pd.DataFrame"
    path: Path
    failed: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 if a case is missing from the means because its prediction failed, else 0."""
        return int(bool(self.failed))


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Score predictions against references: Dice, HD95, NSD, ASD and volumes per case and class; lesions if asked.

    Masks are compared voxel by voxel on the reference's own grid, distances are in mm. Where one of prediction and
    reference is empty, Dice and NSD are 0 and distances are the grid's diagonal; where both are, the class of that case
    is not counted. Volumes and sensitivity are relative to the reference and not counted where that is empty. One case
    that cannot be scored stops it all: a table without its worst cases would be too good.

    If `predictions` is a table of probabilities: AUC, average precision, calibration error and Brier score per class.

    Raises:
        DataError: If predictions and references do not fit each other; the case is named.
        RunError: If a run has no predictions, a case fails for another reason, or scores cannot be written.
        ConfigError: If classes are asked for that do not exist, or settings of masks are given with tables.
    """
    if config.predictions.is_file():
        return _evaluate_table(config)
    matching = match_cases(config)
    folder = predictions_folder(config.predictions)
    out = config.out or folder.parent / "evaluation"
    writable_folder(out)
    subjects = len({case.subject for case in matching.cases})
    _say_matching(len(matching.cases), subjects, matching)
    if matching.trained_on:
        warn(
            f"the run was trained on {len(matching.trained_on)} of these cases; their scores say nothing about new ones"
        )
    scores = _score_all(matching.cases, config)
    summary = summarise(scores)
    _write(out, scores, summary, matching, config)
    _say_summary(scores, summary, config.tolerance, out)
    nowhere = [name for name in config.lesions if name not in set(scores["class"])]
    if nowhere:
        warn(f"lesions: no mask holds the label value {', '.join(nowhere)}")
    if matching.failed:
        warn(
            f"{len(matching.failed)} cases could not be segmented and are in NO mean above: {_few(matching.failed)}; "
            f"reasons in {folder / 'failures.csv'}. Correct them and predict again."
        )
    return EvaluateResult(scores, summary, out, matching.failed)


def _evaluate_table(config: EvaluateConfig) -> EvaluateResult:
    """Probabilities of classes against true classes, both in tables."""
    for name in ("regions", "lesions", "tolerance"):
        if getattr(config, name) != type(config).model_fields[name].default:
            raise ConfigError(f"{name}: given with a table of probabilities; expected with masks only. Leave it out.")
    found = read_classified(config.predictions, config.references)
    out = config.out or config.predictions.parent / "evaluation"
    writable_folder(out)
    _say_matching(len(found.cases), len(set(found.subjects)), found)
    scores, summary = classified.tidy(found), classified.summarise(found, LEVEL, RESAMPLES, SEED)
    classified.write(out, found, scores, summary, {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED})
    classified.say(found, summary, LEVEL, out)
    return EvaluateResult(scores, summary, out)


def summarise(scores: "pd.DataFrame") -> "pd.DataFrame":
    """Mean with interval, median and counts of every class and metric, and of the mean over classes.

    The row "mean" takes each case's mean over its counted classes first, then the mean over cases.

    Args:
        scores: As `EvaluateResult.scores`.

    Returns:
        As `EvaluateResult.summary`.
    """
    import pandas as pd

    flagged = scores.assign(
        one_empty=scores["empty"].isin(["prediction", "reference"]), both_empty=scores["empty"] == "both"
    )
    metrics = [metric for metric in (*METRICS, *LESION_METRICS) if metric in scores]
    per_case = flagged.groupby("case", sort=False).agg(
        subject=("subject", "first"),
        one_empty=("one_empty", "any"),
        both_empty=("both_empty", "all"),
        **{metric: (metric, "mean") for metric in metrics},  # pandas leaves NaN (not counted) out
    )
    parts = [*flagged.groupby("class", sort=False), (MEAN, per_case)]
    return pd.DataFrame(
        [_summary_row(str(name), part, metric) for name, part in parts for metric in metrics if _measured(part, metric)]
    )


def _measured(part: "pd.DataFrame", metric: str) -> bool:
    """False for lesions of classes whose lesions are not counted; false positives are a number wherever they are."""
    return metric not in LESION_METRICS or bool(part["lesion_false_positives"].notna().any())


def _summary_row(name: str, part: "pd.DataFrame", metric: str) -> dict[str, Any]:
    values = part[metric].to_numpy(dtype=np.float64)
    found = bootstrap_mean(values, part["subject"].tolist(), RESAMPLES, SEED, LEVEL)
    return {
        "class": name,
        "metric": metric,
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "median": float(np.nanmedian(values)) if found.cases else float("nan"),
        "cases": found.cases,
        "subjects": found.subjects,
        "one_empty": int(part["one_empty"].sum()),
        "both_empty": int(part["both_empty"].sum()),
    }


def _score_all(cases: Sequence[Case], config: EvaluateConfig) -> "pd.DataFrame":
    """Score every case in a pool of processes; the rows in the order of the cases."""
    import pandas as pd

    rows: dict[str, list[dict[str, Any]]] = {}
    faults: dict[str, DataError | RunError] = {}
    function = partial(score_case, tolerance=config.tolerance, lesions=config.lesions)
    for case, result in run_cases(function, cases, config.workers, lambda case: case.case, "evaluated"):
        if isinstance(result, DataError):
            faults[case.case] = result
        elif isinstance(result, Failure):
            faults[case.case] = RunError(f"case {case.case}: {result.reason}\n{result.traceback}".rstrip())
        else:
            rows[case.case] = result
    if faults:
        _stop([case.case for case in cases if case.case in faults], faults)
    _complete(cases, rows, config.lesions)
    if not any(rows.values()):
        raise DataError(config.references, found="no labelled voxel in any case", expected="masks with labels above 0")
    return pd.DataFrame([row for case in cases for row in rows[case.case]])


def _stop(failed: list[str], faults: dict[str, DataError | RunError]) -> None:
    """Raise the first fault, and say which other cases have one."""
    first = faults[failed[0]]
    if len(failed) > 1:
        for case in failed[1:NAMED]:
            warn(f"also: {faults[case]}")
        warn(f"{len(failed)} cases cannot be scored: {_few(failed)}")
    raise first


def _complete(cases: Sequence[Case], rows: dict[str, list[dict[str, Any]]], lesions: Sequence[str]) -> None:
    """Give cases without named classes a row for every label value that occurs in any of them.

    Raises:
        DataError: If predictions hold a value that no reference has.
    """
    unnamed = [case for case in cases if case.regions is None]
    found = {row["class"]: (case, row) for case in reversed(unnamed) for row in rows[case.case]}
    known = {row["class"] for case in unnamed for row in rows[case.case] if row["reference_ml"] > 0}
    for name, (case, _) in sorted(found.items(), key=lambda item: int(item[0])):
        if name not in known:
            raise DataError(
                f"case {case.case}, prediction {case.prediction}",
                found=f"label value {name}, which no reference has",
                expected=f"label values among {', '.join(sorted(known, key=int))}"
                if known
                else "the same in references",
                remedy=f"If {name} is a class that happens to be absent, name all classes with --regions.",
            )
    names = sorted(found, key=int)
    for case in unnamed:
        own = {row["class"]: row for row in rows[case.case]}
        rows[case.case] = [
            own.get(name) or score_row(case, name, score_of_nothing(name in lesions), 0.0, bool(lesions))
            for name in names
        ]


def _write(
    out: Path, scores: "pd.DataFrame", summary: "pd.DataFrame", matching: Matching, config: EvaluateConfig
) -> None:
    with replacing(out / "scores.parquet") as path:
        scores.to_parquet(path, index=False)
    with replacing(out / "scores.csv") as path:
        scores.to_csv(path, index=False)
    with replacing(out / "cases.csv") as path:
        _files(out, matching.cases).to_csv(path, index=False)
    with replacing(out / "summary.csv") as path:
        summary.to_csv(path, index=False)
    content = {
        "schema": 1,
        "tolerance_mm": config.tolerance,
        "level": LEVEL,
        "resamples": RESAMPLES,
        "cases": len(matching.cases),
        "subjects": int(scores["subject"].nunique()),
        "classes": next((case.regions for case in matching.cases if case.regions), None),
        "one_empty": int(scores["empty"].isin(["prediction", "reference"]).sum()),
        "both_empty": int((scores["empty"] == "both").sum()),
        "failed": matching.failed,
        "not_predicted": matching.not_predicted,
        "without_reference": matching.without_reference,
        "trained_on": matching.trained_on,
        "summary": json.loads(summary.to_json(orient="records", double_precision=15)),  # NaN becomes null
    }
    with replacing(out / "summary.json") as path:
        path.write_text(json.dumps(content, indent=1))


def _files(out: Path, cases: Sequence[Case]) -> "pd.DataFrame":
    """Which files belong to each case; masks beside `out` are named relative to it, so that a run may be moved."""
    import pandas as pd

    def named(path: Path) -> str:
        return os.path.relpath(path, out) if path.is_relative_to(out.absolute().parent) else str(path)

    rows = [(case.case, named(case.prediction), named(case.reference), case.image or "") for case in cases]
    return pd.DataFrame(rows, columns=["case", "prediction", "reference", "image"])


def _say_matching(cases: int, subjects: int, matching: Matching | Classified) -> None:
    unknown = "" if matching.subjects_known else " (none are known: each case counts as its own)"
    console.print(f"{cases} cases of {subjects} subjects{unknown}", markup=False)
    if matching.not_predicted:
        missing = matching.not_predicted
        warn(f"not predicted: {len(missing)} ({_few(missing)}); they are in no mean")
    if matching.without_reference:
        unmatched = matching.without_reference
        warn(f"{len(unmatched)} predictions have no reference: {_few(unmatched)}")


def _say_summary(scores: "pd.DataFrame", summary: "pd.DataFrame", tolerance: float, out: Path) -> None:
    table = Table(caption=escape(f"mean over cases [{LEVEL:.0%} interval over subjects]"))
    columns = {"dice": ("Dice", 3), "hd95": ("HD95 mm", 2), "nsd": (f"NSD@{tolerance:g} mm", 3)}
    if "lesions" in scores:
        columns |= {"lesion_sensitivity": ("lesions found", 3), "lesion_false_positives": ("false lesions", 2)}
    for title in ("class", *(title for title, _ in columns.values()), "cases"):
        table.add_column(title, justify="left" if title == "class" else "right")
    for name, group in summary.groupby("class", sort=False):
        found = group.set_index("metric")
        cells = [_cell(found.reindex([metric]), digits) for metric, (_, digits) in columns.items()]
        table.add_row(escape(str(name)), *cells, str(found.loc["dice", "cases"]))
    console.print(table)
    one, both = scores["empty"].isin(["prediction", "reference"]).sum(), (scores["empty"] == "both").sum()
    console.print(
        f"of {len(scores)} case × class pairs, {one} have only one of prediction and reference empty (Dice 0, NSD 0, "
        f"distance = diagonal of the grid), {both} have both empty (not counted)"
    )
    console.print(f"written: {out}", markup=False)


def _cell(row: "pd.DataFrame", digits: int) -> str:
    mean, low, high = row[["mean", "low", "high"]].to_numpy(dtype=np.float64)[0]
    if np.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if np.isnan(low) else f" \\[{low:.{digits}f}, {high:.{digits}f}]")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (" …" if len(names) > NAMED else "")
