"""Read what a run or an evaluation folder holds. What is absent stays empty: an unfinished run gives a page as well."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from prevox.config.base import read_yaml
from prevox.errors import RunError
from prevox.evaluation.arms import PROBABILITIES
from prevox.evaluation.named import short_names
from prevox.reporting.scans import CaseFiles


@dataclass
class Run:
    """One run, or one evaluation of other masks, as the report shows it.

    Attributes:
        name: Short name, unique within the report.
        metrics: One row per logged step.
        scores: One row per case and class (case, subject, class, dice, hd95, nsd, asd, reference_ml, prediction_ml)
            with volume_error = prediction_ml - reference_ml; empty if not evaluated.
        scored: Content of evaluation/summary.json.
        classified: Of a classification one row per class and metric (classification.csv); else empty.
        probabilities: Its cases: case, subject, class, probability, reference; else empty.
        scored_classes: Content of classification.json.
        files: Where each evaluated case lies.
        predictions: One row per predicted image (image, file, source, label, seconds); empty if nothing was predicted.
        pictures: (step, name, file) in the order of steps.
    """

    path: Path
    name: str
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    split: dict[str, list[str]] = field(default_factory=dict)
    classes: dict[str, list[int]] = field(default_factory=dict)
    transfer: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    scored: dict[str, Any] = field(default_factory=dict)
    classified: pd.DataFrame = field(default_factory=pd.DataFrame)
    probabilities: pd.DataFrame = field(default_factory=pd.DataFrame)
    scored_classes: dict[str, Any] = field(default_factory=dict)
    files: dict[str, CaseFiles] = field(default_factory=dict)
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)
    pictures: list[tuple[int, str, Path]] = field(default_factory=list)

    @property
    def verb(self) -> str:
        """`pretrain` or `finetune`; `evaluate` where masks were only scored."""
        if not self.config:
            return "evaluate"
        return str(self.config.get("verb") or self.summary.get("verb") or "run")


def read_runs(paths: tuple[Path, ...]) -> list[Run]:
    """Read run and evaluation folders; names are the folders' own, with their parents where two are equal.

    Raises:
        RunError: If a folder is missing or is neither, or one of its files cannot be read.
    """
    paths = tuple(path.resolve() for path in paths)
    paths = tuple(path.parent if _is_evaluation(path) else path for path in paths)
    return [read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def _is_evaluation(path: Path) -> bool:
    return path.name == "evaluation" and _scored(path)


def _scored(folder: Path) -> bool:
    """Whether a folder holds scores; those that were put together for a comparison are a Parquet file only."""
    return any((folder / name).is_file() for name in ("scores.csv", "scores.parquet", PROBABILITIES))


def read_run(path: Path, name: str) -> Run:
    """Read one folder under the name that it shall have in the page.

    Raises:
        RunError: As `read_runs`.
    """
    if not path.is_dir():
        raise RunError(f"{path}: no such folder. Give run folders that `prevox pretrain` or `prevox finetune` wrote.")
    evaluation = path if _scored(path) else path / "evaluation"
    if not (path / "config.yaml").is_file():
        if not _scored(evaluation):
            raise RunError(
                f"{path}: holds neither config.yaml nor scores. Give the folder that --out named when training, or one "
                "that `prevox evaluate` wrote."
            )
        return Run(path, name, {}, "", **_evaluated(evaluation))
    return Run(
        path=path,
        name=name,
        config=read_yaml(path / "config.yaml"),
        config_text=(path / "config.yaml").read_text(),
        environment=_json(path / "environment.json"),
        summary=_json(path / "summary.json"),
        split=_json(path / "split.json"),
        classes=_json(path / "classes.json"),
        network=_json(path / "network.json"),
        transfer=_json(path / "transfer.json"),
        metrics=_metrics(path / "metrics.jsonl"),
        **_evaluated(evaluation),
        predictions=_table(path / "predictions" / "predictions.csv", numbers=["seconds"]),
        pictures=_pictures(path / "pictures"),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path}: not valid JSON ({error}). Repeat the verb that writes it.") from None
    return content if isinstance(content, dict) else {}


def _evaluated(folder: Path) -> dict[str, Any]:
    """The parts of a run that `prevox evaluate` wrote."""
    scores, scored = _scores(folder / "scores.csv"), _json(folder / "summary.json")
    own = {"scores": scores, "scored": scored, "files": _files(folder)}
    if not (folder / PROBABILITIES).is_file():
        return own
    try:
        probabilities = pd.read_parquet(folder / PROBABILITIES)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{folder / PROBABILITIES}: no table ({reason}). Repeat prevox evaluate.") from None
    numbers = ["value", "low", "high", "cases", "subjects", "positives"]
    classified = _table(folder / "classification.csv", numbers=numbers, texts=["class", "metric"])
    scored_classes = _json(folder / "classification.json")
    return own | {"classified": classified, "probabilities": probabilities, "scored_classes": scored_classes}


def _files(folder: Path) -> dict[str, CaseFiles]:
    table = _table(folder / "cases.csv", texts=["case", "prediction", "reference", "image"])

    def path(text: str) -> Path:  # relative to the table, else as it was given on the command line
        return folder / text if (folder / text).exists() else Path(text)

    return {
        str(row["case"]): CaseFiles(
            path(row["prediction"]), path(row["reference"]), path(row["image"]) if row["image"] else None
        )
        for row in table.to_dict("records")
    }


def _scores(path: Path) -> pd.DataFrame:
    scores = _table(path, numbers=["dice", "hd95", "nsd", "asd", "reference_ml", "prediction_ml"])
    if not scores.empty:
        scores["volume_error"] = scores["prediction_ml"] - scores["reference_ml"]
    return scores


def _table(path: Path, numbers: Sequence[str] = (), texts: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV file whose columns are text (a class may be called NA) except for `numbers`; named columns must exist."""
    if not path.is_file():
        return pd.DataFrame()
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = table[[*texts, *(name for name in table if name not in texts)]]  # a KeyError where one is missing
        return table.assign(**{name: table[name].where(table[name] != "").astype(float) for name in numbers})
    except (pd.errors.ParserError, pd.errors.EmptyDataError, KeyError, ValueError) as error:
        raise RunError(f"{path}: not the table that is expected ({error}). Repeat the verb that writes it.") from None


def _metrics(path: Path) -> pd.DataFrame:
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a killed run may be torn
            continue
    return pd.DataFrame(rows)


def _pictures(folder: Path) -> list[tuple[int, str, Path]]:
    """PNG files of pictures/step_00000100/."""
    found = []
    for path in folder.glob("step_*/*.png"):
        number = path.parent.name.removeprefix("step_")
        if number.isdigit():
            found.append((int(number), path.stem, path))
    return sorted(found)
