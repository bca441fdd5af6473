"""`prevox bench`: everything that a file compares, run once, and compared."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prevox.benching.budget import Budget, estimate
from prevox.benching.cells import Cell
from prevox.benching.commands import Commands
from prevox.benching.folder import Folder
from prevox.benching.gather import average, groups, versions
from prevox.benching.plan import plan, trials
from prevox.benching.run import Runner
from prevox.benching.sources import check_sources, given_paths, needed
from prevox.benching.table import rows_of, show, write_cells
from prevox.config.base import load_recipe, read_yaml, write_yaml
from prevox.config.bench import BenchConfig, BenchFile, read_bench
from prevox.console import console, warn
from prevox.errors import ConfigError
from prevox.signals import stop_signals


@dataclass(frozen=True)
class BenchResult:
    """What `bench` leaves behind.

    Attributes:
        path: Its folder.
        cells: One row per cell, as in cells.csv.
        failures: Name → reason of what failed in this call.
        budget: With --budget: estimated seconds; None without, or where the data were not given.
    """

    path: Path
    cells: list[dict[str, Any]]
    failures: dict[str, str]
    budget: Budget | None = None

    @property
    def exit_code(self) -> int:
        """1 if something failed, or a finished run could not segment some cases, else 0."""
        return int(bool(self.failures) or any(row["failed_cases"] for row in self.cells))


def bench(config: BenchConfig) -> BenchResult:
    """Run what is missing of a bench file, and compare.

    Raises:
        ConfigError: If the file or --data do not fit, or --out holds something else.
        RunError: If the scans have changed, another bench works in the folder, or a signal asked to stop.
    """
    file = read_bench(config.file)
    cells = plan(file)
    paths = given_paths(file, config.data)
    used = needed(file, cells)
    missing = [name for name in used if name not in paths]
    folder = Folder(config.out.absolute())  # commands, and later calls from elsewhere, mean the same
    if config.budget and (missing or not used):
        show(file, cells, folder, None)
        if missing:
            given = " ".join(f"{name}=PATH" for name in missing)
            console.print(f"times need the data: give --data {given}", markup=False)
        return BenchResult(config.out, rows_of(file, cells, folder, {}), {})
    if missing:
        raise ConfigError(f"data: not given for {', '.join(missing)}. Add --data {missing[0]}=PATH.")
    if not used:
        raise ConfigError(f"{config.file}: no cell of it can be run yet; --budget lists them with the reasons.")
    with folder.locked() as lock, stop_signals() as stop:
        check_sources(file, paths, folder.out)
        _say_changes(config, file, cells, folder)
        runner = Runner(file, paths, folder, Commands(folder.out, lock, stop))
        if config.budget:
            budget = estimate(file, cells, runner)
            show(file, cells, folder, budget)
            return BenchResult(config.out, rows_of(file, cells, folder, {}), runner.failures, budget)
        show(file, cells, folder, None)
        for cell in cells:
            if cell.absent is None:
                runner.cell(cell)
                write_cells(config.out, rows_of(file, cells, folder, runner.failures))
        _compare(file, cells, runner)
        _report(cells, runner, title=config.file)
    rows = rows_of(file, cells, folder, runner.failures)
    write_cells(config.out, rows)
    _say_end(rows, runner, config.out)
    return BenchResult(config.out, rows, runner.failures)


def _compare(file: BenchFile, cells: list[Cell], runner: Runner) -> None:
    """Compare the arms of each label fraction, on held-out cases and each unseen dataset; describe them over labels."""
    out = runner.folder.out
    for made in ("averaged", "comparison"):  # none of an earlier call's stays that would be made otherwise now
        shutil.rmtree(out / made, ignore_errors=True)
    over_labels: dict[str, dict[str, list[Path]]] = {}
    for group, members in groups(file, cells).items():
        arms, left_out = average(file, runner.folder, members, group)
        for reason in left_out:
            warn(f"comparison {group}: left out: {reason}")
        labels = f"labels-{members[0][0].labels}"
        of_all = over_labels.setdefault(f"over-labels{group.removeprefix(labels)}", {})
        of_all |= {f"{arm} {labels}": places for arm, places in arms.items()}
        if len(arms) < 2:
            console.print(f"comparison {group}: {len(arms)} arms are finished; two are needed", markup=False)
            continue
        options: list[object] = []
        if file.baseline in arms:
            options = ["--baseline", file.baseline]
        elif file.baseline is not None:
            warn(f"comparison {group}: the baseline '{file.baseline}' is not finished; every pair is compared")
        _compare_arms(arms, options, group, file, runner)
    for name, arms in over_labels.items():
        if len({arm.rpartition(" ")[2] for arm in arms}) > 1:
            _compare_arms(arms, ["--describe"], name, file, runner)


def _compare_arms(
    arms: dict[str, list[Path]], options: list[object], name: str, file: BenchFile, runner: Runner
) -> None:
    """One comparison for each metric."""
    words = ["--runs", *(f"{arm}={place}" for arm, places in arms.items() for place in places), *options]
    for metric in file.metrics:
        target = ["--metric", metric, "--out", runner.folder.out / "comparison" / f"{name}.{metric}"]
        outcome = runner.commands.run(["compare", *words, *target], log="comparison", of=f"{name}.{metric}")
        if outcome.failed:
            runner.failures[f"comparison {name}.{metric}"] = outcome.reason


def _report(cells: list[Cell], runner: Runner, title: str) -> None:
    """One page with every scored run and what it was pre-trained with."""
    folder = runner.folder
    scored = [cell for cell in cells if (folder.run(cell) / "evaluation" / "summary.json").is_file()]
    pretrained = {cell.pretraining.name: folder.run(cell.pretraining) for cell in scored if cell.pretraining}
    made = versions([*map(folder.run, scored), *pretrained.values()])
    if len(made) > 1:
        warn(
            f"the runs were made by different versions of Prevox ({', '.join(made)}); a method may have changed between"
        )
    if scored:
        words = ["--runs", *map(folder.run, scored), *pretrained.values(), "--out", folder.out / "report.html"]
        outcome = runner.commands.run(["report", *words, "--title", title], log="report", of="report.html")
        if outcome.failed:
            runner.failures["report"] = outcome.reason


def _say_changes(config: BenchConfig, file: BenchFile, cells: list[Cell], folder: Folder) -> None:
    """Say which finished runs no longer belong to the file, and keep a copy of the file."""
    content, copy = load_recipe("bench", config.file), config.out / "bench.yaml"
    planned = {
        "cells": [cell.name for cell in cells],
        "trials": [trial.name for cell in cells for trial in trials(file, cell)],
        "pretrain": [cell.pretraining.name for cell in cells if cell.pretraining],
    }
    for kind, names in planned.items():
        left = folder.left_over(kind, names)
        if left:
            warn(
                f"{len(left)} of the runs in {folder.out / kind} were made from other settings than the file's now and "
                f"are not used: {', '.join(left[:3])}{' …' if len(left) > 3 else ''}"
            )
    if not copy.is_file() or read_yaml(copy) != content:
        write_yaml(copy, content, header=f"the bench file {config.file} as it was at the last call")


def _say_end(rows: list[dict[str, Any]], runner: Runner, out: Path) -> None:
    for message in runner.warnings:
        warn(message)
    for name, reason in runner.failures.items():
        console.print(f"failed: {name}: {reason}", markup=False, style="red")
    states = Counter(row["state"] for row in rows)
    console.print(
        f"bench: {', '.join(f'{number} {state}' for state, number in states.items())}; {out / 'cells.csv'}, "
        f"{out / 'comparison'}, {out / 'report.html'}",
        markup=False,
    )
