"""The folder of a bench: where everything lies, what is done, and that only one process works in it.

```
data/NAME-HASH/       catalogue.parquet, store/, source.json
pretrain/NAME-HASH/   run folders, shared by many cells
trials/NAME-HASH/     short runs that choose learning rates
cells/NAME-HASH/      the runs that are compared, each with predictions and evaluation
settings/, logs/      for each run the recipe that it was started with, and what it printed
trials.jsonl          every trial, also one whose loss was not finite
steps.jsonl           every command with its duration and exit code
cells.csv             every cell with its state and score
averaged/, comparison/, report.html
```
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prevox.benching.cells import Cell, Pretraining, Trial
from prevox.errors import ConfigError, RunError
from prevox.output import writable_folder

try:
    import fcntl
except ImportError:  # Windows: two benches in one folder are then the user's business
    fcntl = None  # type: ignore[assignment]

KINDS = ("pretrain", "trials", "cells")
PATIENCE = 10.0  # seconds in which the last command of a killed bench dies


@dataclass(frozen=True)
class Folder:
    """Paths and states below OUT."""

    out: Path

    def run(self, of: Cell | Pretraining | Trial) -> Path:
        """Run folder."""
        kind = "cells" if isinstance(of, Cell) else "trials" if isinstance(of, Trial) else "pretrain"
        return self.out / kind / of.name

    def trained(self, of: Cell | Pretraining | Trial) -> bool:
        """Whether a run has ended by itself."""
        return bool(read_json(self.run(of) / "summary.json").get("finished"))

    def tested(self, cell: Cell, dataset: str) -> Path:
        """Where an unseen dataset's predictions and scores lie."""
        return self.run(cell) / "test_on" / dataset

    def state(self, cell: Cell, tested_on: Sequence[str] = ()) -> str:
        """`cannot run`, `done`, `begun` or `missing`."""
        if cell.absent is not None:
            return "cannot run"
        places = [self.run(cell), *(self.tested(cell, name) for name in tested_on)]
        if self.trained(cell) and all((place / "evaluation" / "summary.json").is_file() for place in places):
            return "done"
        return "begun" if self.run(cell).is_dir() else "missing"

    def left_over(self, kind: str, planned: Sequence[str]) -> list[str]:
        """Names of run folders that the file does not (any longer) ask for."""
        folder = self.out / kind
        return sorted({path.name for path in folder.iterdir()} - set(planned)) if folder.is_dir() else []

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold OUT/.lock, whose descriptor commands inherit: what a killed bench has started holds it until it ends.

        Raises:
            RunError: If another bench works in the folder, or it cannot be written.
            ConfigError: If the folder holds something else.
        """
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / ".lock").is_file():
            raise ConfigError(f"{self.out}: is not empty and no bench. Choose another --out.")
        writable_folder(self.out)
        with (self.out / ".lock").open("w") as lock:
            end = time.monotonic() + PATIENCE
            while fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise RunError(
                            f"{self.out}: another bench works in this folder. Wait for it, or choose another --out."
                        ) from None
                    time.sleep(0.2)
            yield lock.fileno()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON objects, one a line; a torn last line is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append a JSON object; on the disk when this returns."""
    torn = path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * bool(torn) + json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def mean_dice(evaluation: Path) -> float | None:
    """Mean Dice over classes and cases of an evaluation; None where there is none."""
    rows = read_json(evaluation / "summary.json").get("summary", [])
    found = [row["mean"] for row in rows if row["class"] == "mean" and row["metric"] == "dice"]
    return None if not found or found[0] is None else float(found[0])
