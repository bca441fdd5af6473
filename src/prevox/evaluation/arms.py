"""What `prevox compare` compares: the scores of evaluation folders, by name."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from prevox.errors import DataError, RunError
from prevox.evaluation.cases import MEAN
from prevox.evaluation.comparison_tables import LABELS
from prevox.evaluation.named import named_folders
from prevox.evaluation.run_settings import settings_of
from prevox.evaluation.scoring import LESION_METRICS

COLUMNS = ("case", "subject", "class", "reference_ml")
PROBABILITIES = "classification.parquet"


@dataclass(frozen=True)
class Arm:
    """One run of a comparison.

    Attributes:
        name: As it is shown.
        folders: Where its scores were read, as given; several where a method was scored on several datasets.
        scores: One row per case and class: case, subject, dataset, class, reference_ml, the metric's column, and the
            other metrics that were scored.
        failed: Ids of cases that it could not segment.
        not_predicted: Ids of references without its prediction.
        trained_on: Ids of scored cases that it was trained on.
        tolerances: Tolerances of NSD in mm, as far as the evaluations say.
        settings: Dataset → settings of the run that was scored on it, as `settings_of` gives them.
    """

    name: str
    folders: list[str]
    scores: pd.DataFrame
    failed: set[str] = field(default_factory=set)
    not_predicted: set[str] = field(default_factory=set)
    trained_on: set[str] = field(default_factory=set)
    tolerances: set[float] = field(default_factory=set)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_arms(runs: Sequence[str], metric: str) -> list[Arm]:
    """Read the scores of runs given as PATH or NAME=PATH; paths of one name are one arm.

    Args:
        runs: Fine-tuning runs with an evaluation, or evaluation folders.
        metric: Column of the scores.

    Raises:
        RunError: If a folder does not exist or holds no scores.
        DataError: If scores cannot be used; the case is named.
        ConfigError: If fewer than two names are left.
    """
    return [_read_arm(name, paths, metric) for name, paths in named_folders(runs).items()]


def _read_arm(name: str, paths: Sequence[Path], metric: str) -> Arm:
    folders = [_evaluation(path) for path in paths]
    tables = [_scores(folder / "scores.parquet", metric) for folder in folders]
    summaries = [read_summary(folder / "summary.json") for folder in folders]
    seen: dict[str, Path] = {}
    for folder, table in zip(folders, tables, strict=True):
        for case in dict.fromkeys(table["case"]):
            if case in seen:
                raise DataError(
                    f"case {case}",
                    found=f"it twice in run '{name}' ({seen[case]} and {folder})",
                    expected="each case once in the folders of one name",
                    remedy="Give the folders names of their own, or name cases apart.",
                )
            seen[case] = folder

    settings: dict[str, dict[str, Any]] = {}
    for folder, table, summary in zip(folders, tables, summaries, strict=True):
        own = summary.get("settings") or settings_of(folder.parent)
        settings = dict.fromkeys(table["dataset"].unique(), own) | settings

    def ids(key: str) -> set[str]:
        return {str(case) for summary in summaries for case in summary.get(key) or []}

    return Arm(
        name=name,
        folders=[str(path) for path in paths],
        scores=pd.concat(tables, ignore_index=True),
        failed=ids("failed"),
        not_predicted=ids("not_predicted"),
        trained_on=ids("trained_on"),
        tolerances={float(found) for summary in summaries if (found := summary.get("tolerance_mm")) is not None},
        settings=settings,
    )


def _evaluation(path: Path) -> Path:
    """The folder with scores.parquet."""
    if not path.is_dir():
        raise RunError(f"{path}: no such folder. Give fine-tuning runs or folders that `prevox evaluate` wrote.")
    for folder in (path, path / "evaluation"):
        if (folder / "scores.parquet").is_file():
            return folder
        if (folder / PROBABILITIES).is_file():
            raise RunError(f"{folder}: holds probabilities of classes; expected scores of masks, as other runs have.")
    raise RunError(f"{path}: holds no scores. Make them with: prevox evaluate --predictions {path} --references ...")


def _scores(path: Path, metric: str) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            path, found=f"a file that is no table ({reason})", expected="scores", remedy="Evaluate again."
        ) from None
    missing = [column for column in (*COLUMNS, metric) if column not in table]
    again = "Evaluate again" + (" with --lesions CLASS." if metric in LESION_METRICS else ".")
    if metric in LESION_METRICS and metric not in missing:
        table = table[table["lesion_false_positives"].notna()]  # a number wherever lesions were counted
    if missing or table.empty:
        raise DataError(
            path,
            found=f"a table without {', '.join(missing) if missing else 'rows'}",
            expected="scores of `prevox evaluate`",
            remedy=again,
        )
    table = table.astype({"case": str, "subject": str, "class": str})
    table["dataset"] = table["dataset"].fillna("").astype(str) if "dataset" in table else ""
    twice = table[table.duplicated(["case", "class"])]
    if len(twice):
        raise DataError(
            f"case {twice['case'].iloc[0]}",
            found=f"class {twice['class'].iloc[0]} twice in {path}",
            expected="one row for each case and class",
            remedy="Evaluate again.",
        )
    if MEAN in set(table["class"]):
        raise DataError(path, found=f"a class called '{MEAN}'", expected="another name", remedy="Evaluate again.")
    others = [name for name in LABELS if name in table and name != metric]
    return table[[*COLUMNS, "dataset", metric, *others]]


def read_summary(path: Path) -> dict[str, Any]:
    """What an evaluation says of all its cases; empty where it says nothing.

    Raises:
        DataError: If the file is no JSON.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(
            path, found=f"no valid JSON ({error})", expected="what `prevox evaluate` wrote", remedy="Evaluate again."
        ) from None
    return content if isinstance(content, dict) else {}
