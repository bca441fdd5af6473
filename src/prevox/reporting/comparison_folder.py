"""Read what `prevox compare` wrote, and what is still there of the runs that it compared."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prevox.errors import RunError
from prevox.evaluation.comparison import Comparison
from prevox.reporting.folders import Run, read_run


@dataclass(frozen=True)
class Compared:
    """What `prevox compare` wrote.

    Attributes:
        found: Content of comparison.json.
        cases: cases.parquet: dataset, case, subject, class, run and metrics.
        runs: Of each name the folders that are still there.
        gone: One sentence for every folder that cannot be read.
    """

    found: Comparison
    cases: pd.DataFrame
    runs: dict[str, list[Run]]
    gone: list[str]


def read_comparison(folder: Path) -> Compared:
    """Read a comparison's folder, and of the runs what is still where it was.

    Raises:
        RunError: If the folder is no comparison, or a file in it cannot be read.
    """
    for name in ("comparison.json", "cases.parquet"):
        if not (folder / name).is_file():
            raise RunError(f"{folder}: holds no {name}, so it is no comparison. Give the --out of prevox compare.")
    try:
        content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        content.setdefault("curves", [])  # of a version that had none
        found = Comparison(**{field.name: _numbers(content[field.name]) for field in fields(Comparison)})
        cases = pd.read_parquet(folder / "cases.parquet")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder}: cannot be read as a comparison ({error!r}). Repeat prevox compare.") from None
    runs: dict[str, list[Run]] = {name: [] for name in found.runs}
    gone = []
    for name, folders in found.runs.items():
        for path in map(Path, folders):
            own = path.parent if path.name == "evaluation" and (path.parent / "config.yaml").is_file() else path
            try:
                runs[name].append(read_run(own, name))
            except RunError as error:
                gone.append(f"{name} cannot be shown. {error}")
    return Compared(found, cases, runs, gone)


def _numbers(value: Any) -> Any:
    """JSON's null as NaN where a number is meant: within the entries of lists."""
    if isinstance(value, list):
        return [
            {key: np.nan if item is None and key != "dataset" else item for key, item in entry.items()}
            if isinstance(entry, dict)
            else entry
            for entry in value
        ]
    return value
