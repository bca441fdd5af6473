"""The cells of a bench as a table: on the screen with states and times, in cells.csv with scores."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from prevox.benching.budget import Budget
from prevox.benching.cells import Cell, Pretraining, Trial
from prevox.benching.folder import Folder, mean_dice, read_json
from prevox.benching.plan import trials
from prevox.config.base import read_yaml
from prevox.config.bench import BenchFile
from prevox.console import console, warn
from prevox.output import replacing


def rows_of(file: BenchFile, cells: Sequence[Cell], folder: Folder, failures: dict[str, str]) -> list[dict[str, Any]]:
    """One row per cell: what it is, its state, and of a finished one rate, length, time and mean Dice."""
    rows = []
    for cell in cells:
        run = folder.run(cell)
        state = folder.state(cell, file.test_on.get(cell.dataset, ()))
        row = {
            "dataset": cell.dataset,
            "arm": cell.arm,
            "labels": cell.labels,
            "fold": cell.fold,
            "seed": cell.seed,
            "state": "failed" if cell.name in failures else state,
            "subjects": None,
            "lr": None,
            "steps": None,
            "seconds": None,
            "dice": mean_dice(run / "evaluation"),
            "failed_cases": len(read_json(run / "evaluation" / "summary.json").get("failed") or ()),
            "reason": failures.get(cell.name) or cell.absent or "",
            "folder": f"cells/{cell.name}",
        }
        summary = read_json(run / "summary.json")
        if summary:
            row |= {key: summary.get(key) for key in ("subjects", "steps", "seconds")}
            row["lr"] = read_yaml(run / "config.yaml")["optim"]["lr"]
        for name in file.test_on.get(cell.dataset, ()):
            row[f"dice on {name}"] = mean_dice(folder.tested(cell, name) / "evaluation")
        rows.append(row)
    return rows


def write_cells(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write cells.csv."""
    import pandas as pd

    with replacing(out / "cells.csv") as path:
        pd.DataFrame(rows).to_csv(path, index=False)


def show(file: BenchFile, cells: list[Cell], folder: Folder, budget: Budget | None) -> None:
    """Every cell with its state, the trials and pre-trainings behind them, and times where they are known."""
    table = Table(title=f"{len(cells)} cells")
    columns = ["dataset", "arm", "labels", *(["fold"] if file.folds else []), "seed", "state"]
    for column in [*columns, *(["training"] if budget else [])]:
        table.add_column(column)
    states: Counter[str] = Counter()
    for cell in cells:
        state = folder.state(cell, file.test_on.get(cell.dataset, ()))
        states[state] += 1
        values = [cell.dataset, cell.arm, cell.labels, *([cell.fold] if file.folds else []), cell.seed, state]
        time = [_time(budget, cell.name)] if budget else []
        table.add_row(*map(str, values), *time)
    console.print(table)
    for reason in dict.fromkeys(f"{cell.arm} cannot be run: {cell.absent}" for cell in cells if cell.absent):
        console.print(reason, markup=False)
    tried = {trial.name: trial for cell in cells for trial in trials(file, cell)}
    shared = {cell.pretraining.name: cell.pretraining for cell in cells if cell.pretraining}
    behind: list[Pretraining | Trial] = [*shared.values(), *tried.values()]
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    open_runs = [run for run in behind if not folder.trained(run)]
    console.print(
        f"{counts}; behind them {len(shared)} pre-trainings and {len(tried)} learning-rate trials, {len(open_runs)} of "
        "these not done",
        markup=False,
    )
    if budget:
        _show_budget(budget, [run.name for run in behind])


def _show_budget(budget: Budget, behind: list[str]) -> None:
    rows = {name: budget.seconds[name] for name in behind if name in budget.seconds}
    for name, seconds in rows.items():
        console.print(f"  {minutes(seconds):>9}  {name}", markup=False)
    for reason in dict.fromkeys(budget.unknown.values()):
        warn(f"no estimate: {reason}")
    training = sum(budget.seconds.values())
    scoring = "" if budget.scoring is None else f" and {minutes(budget.scoring * _scored(budget))} of scoring"
    note = "; scoring is not in it until a first run has been scored" if budget.scoring is None else ""
    unknown = f", without {len(budget.unknown)} runs that could not be estimated" if budget.unknown else ""
    console.print(
        f"still to do: {minutes(training)} of training{scoring} on this machine as busy as it is now{unknown}{note}; "
        f"{minutes(budget.spent)} spent so far",
        markup=False,
    )


def _scored(budget: Budget) -> int:
    """Runs that are scored once trained: all but pre-trainings, whose names have no labels."""
    return sum(".labels-" in name for name in budget.seconds)


def _time(budget: Budget, name: str) -> str:
    return minutes(budget.seconds[name]) if name in budget.seconds else "?" if name in budget.unknown else "–"


def minutes(seconds: float) -> str:
    """Seconds as minutes, or as hours from two on."""
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"
