"""Read what a run folder holds. Whatever is absent stays empty: an unfinished run gives a page as well."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from prevox.config.base import read_yaml
from prevox.errors import RunError
from prevox.evaluation.arms import short_names


@dataclass
class Run:
    """One run as the report shows it.

    Attributes:
        name: Short name, unique within the report.
        metrics: One row per logged step.
        scores: One row per case and class (case, subject, class, dice, hd95, nsd, asd, reference_ml, prediction_ml)
            with volume_error = prediction_ml - reference_ml; empty if not evaluated.
        scored: Content of evaluation/summary.json.
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
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)
    pictures: list[tuple[int, str, Path]] = field(default_factory=list)

    @property
    def verb(self) -> str:
        """`pretrain` or `finetune`."""
        return str(self.config.get("verb") or self.summary.get("verb") or "run")


def read_runs(paths: tuple[Path, ...]) -> list[Run]:
    """Read run folders; names are the folders' own, with their parents where two are equal.

    Raises:
        RunError: If a folder is missing or is no run, or one of its files cannot be read.
    """
    paths = tuple(path.resolve() for path in paths)
    return [_read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def _read_run(path: Path, name: str) -> Run:
    if not path.is_dir():
        raise RunError(f"{path}: no such folder. Give run folders that `prevox pretrain` or `prevox finetune` wrote.")
    if not (path / "config.yaml").is_file():
        raise RunError(f"{path}: holds no config.yaml, so it is no run folder. Give the folder that --out named.")
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
        scores=_scores(path / "evaluation" / "scores.csv"),
        scored=_json(path / "evaluation" / "summary.json"),
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


def _scores(path: Path) -> pd.DataFrame:
    scores = _table(path, numbers=["dice", "hd95", "nsd", "asd", "reference_ml", "prediction_ml"])
    if not scores.empty:
        scores["volume_error"] = scores["prediction_ml"] - scores["reference_ml"]
    return scores


def _table(path: Path, numbers: list[str]) -> pd.DataFrame:
    """A CSV file whose columns are text (a class may be called NA) except for the named ones."""
    if not path.is_file():
        return pd.DataFrame()
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
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
