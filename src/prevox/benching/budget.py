"""What the missing runs of a bench will take: a dry run of each kind, counted as often as the bench has it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prevox.benching.cells import Cell, Pretraining, Trial
from prevox.benching.folder import Folder, read_lines
from prevox.benching.plan import trials
from prevox.benching.run import CellFailedError, Runner
from prevox.config.base import section
from prevox.config.bench import BenchFile
from prevox.console import console
from prevox.errors import PrevoxError

Run = Cell | Trial | Pretraining


@dataclass(frozen=True)
class Budget:
    """Estimated seconds of training.

    Attributes:
        seconds: Name of a run that is not finished → its seconds.
        unknown: Name of a run → why it could not be estimated.
        scoring: Seconds of predicting and scoring one run, as measured so far; None before the first.
        spent: Seconds of all commands so far.
    """

    seconds: dict[str, float]
    unknown: dict[str, str]
    scoring: float | None
    spent: float


def estimate(bench: BenchFile, cells: Sequence[Cell], runner: Runner) -> Budget:
    """Rehearse each kind of run that is missing; datasets are catalogued and prepared for it.

    Runs of a kind differ in learning rate, seed, division and, where their length is in steps, labels and length.
    """
    folder = runner.folder
    open_runs = [run for run in runs(bench, cells, folder) if not folder.trained(run)]
    kinds: dict[str, list[Run]] = {}
    for run in open_runs:
        kinds.setdefault(_kind(run), []).append(run)
    seconds: dict[str, float] = {}
    unknown: dict[str, str] = {}
    for members in kinds.values():
        longest = max(members, key=lambda run: section(run.settings, "train").get("steps") or 0)
        try:
            found = _rehearsed(runner, longest)
        except (CellFailedError, PrevoxError) as error:
            unknown |= {run.name: str(error) for run in members}
            continue
        for run in members:
            steps = section(run.settings, "train").get("steps") or found["steps"]
            less = (found["steps"] - steps) * found["seconds_per_step"]
            seconds[run.name] = max(found["seconds"] - less, steps * found["seconds_per_step"])
    done = read_lines(folder.out / "steps.jsonl")
    scored = [row["seconds"] for row in done if row["verb"] in ("predict", "evaluate")]
    evaluated = sum(row["verb"] == "evaluate" for row in done)
    scoring = sum(scored) / evaluated if evaluated else None
    return Budget(seconds, unknown, scoring, sum(row["seconds"] for row in done))


def runs(bench: BenchFile, cells: Sequence[Cell], folder: Folder) -> list[Run]:
    """Every run behind the cells that are not done, each once."""
    found: dict[str, Run] = {}
    for cell in cells:
        if folder.state(cell, bench.test_on.get(cell.dataset, ())) in ("missing", "begun"):
            start: list[Run] = [cell.pretraining] if cell.pretraining else []
            found |= {run.name: run for run in [*start, *trials(bench, cell), cell]}
    return list(found.values())


def _kind(run: Run) -> str:
    """Runs of one kind take the same time for a step."""
    own = ("split", "label_seed", "optim", "encoder")  # the network is the backbone's
    settings = {key: value for key, value in run.settings.items() if key not in own}
    train = section(settings, "train")
    ignored = {"seed", "steps"}
    settings["train"] = {key: value for key, value in train.items() if key not in ignored}
    settings["optim"] = {key: value for key, value in section(run.settings, "optim").items() if key != "lr"}
    cell = run.cell if isinstance(run, Trial) else run
    what = [type(run) is Pretraining, cell.dataset, getattr(cell, "backbone", None), settings]
    if train.get("epochs") is not None:
        what.append(getattr(cell, "labels", None))
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _rehearsed(runner: Runner, run: Run) -> dict[str, float]:
    """A dry run. In place of weights that may not be there yet, the same network is taken new."""
    from prevox.cli.main import run as run_verb

    cell = run.cell if isinstance(run, Trial) else run
    data = runner.dataset(cell.dataset)
    settings: dict[str, Any] = {**run.settings, "store": data / "store", "out": runner.folder.out / "estimate"}
    if not isinstance(cell, Pretraining):
        settings = runner.with_labels(settings, cell, data)
        settings["encoder"] = runner.bench.backbones[cell.backbone].model
    console.print(f"dry run: {run.name}", markup=False)
    with console.capture():  # one line for each kind is enough
        result = run_verb("pretrain" if isinstance(run, Pretraining) else "finetune", {**settings, "dry_run": True})
    found: dict[str, float] = result.estimate
    console.print(f"  {found['seconds_per_step']:.3f} s a step, {found['peak_mb']:.0f} MB at most", markup=False)
    return found
