"""A section of docs/results.md from the folder of a finished `prevox bench`."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd


def bench_section(name: str, out: Path, note: str) -> str:
    """What was run, what came out, and every trial.

    Args:
        name: Of the bench file.
        out: The bench's folder.
        note: What a reader must know beside the numbers.
    """
    steps = _lines(out / "steps.jsonl")
    runs = sorted(out.glob("cells/*/environment.json"))
    environments = [json.loads(path.read_text()) for path in runs]
    revisions = ", ".join(sorted({environment["git"] for environment in environments}))
    training = sum(step["seconds"] for step in steps if step["verb"] in ("pretrain", "finetune")) / 60
    whole = sum(step["seconds"] for step in steps) / 60
    first = environments[0]
    shown = sorted(path.parent for path in out.glob("comparison/*/tables.md"))
    return "\n".join(
        [
            f"## {name}\n",
            f"`prevox bench {name}`, {steps[0]['date'][:10]}, {first['processor']}, {first['cores']} core(s), torch "
            f"{first['packages']['torch']}, revision {revisions}; {whole:.0f} minutes in all steps together, "
            f"{training:.0f} of them training, trials included.\n",
            note,
            _pretrainings(out),
            *(_comparison(folder) for folder in shown if "dice" in folder.name),
            "<details><summary>The same by other metrics</summary>\n",
            *(_comparison(folder) for folder in shown if "dice" not in folder.name),
            "</details>\n",
            _cells(out),
            _trials(out),
            "<details><summary>All steps</summary>\n",
            f"```\n{_commands(steps, out)}\n```\n\n</details>\n",
        ]
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows]) + "\n"


def _pretrainings(out: Path) -> str:
    rows = []
    for path in sorted(out.glob("pretrain/*/summary.json")):
        summary = json.loads(path.read_text())
        run = path.parent.name.rpartition("-")[0]
        losses = [row["loss"] for row in _lines(path.with_name("metrics.jsonl")) if "loss" in row]
        counts = [str(summary[key]) for key in ("images", "subjects", "steps")]
        rows.append([run, *counts, f"{summary['seconds']:.0f}", f"{losses[0]:.3f} to {losses[-1]:.3f}"])
    return _table(["pre-training", "images", "subjects", "steps", "seconds", "loss"], rows)


def _comparison(folder: Path) -> str:
    """The tables of one comparison, their headings two levels lower and named."""
    text = re.sub(r"^(#+) ", r"##\1 ", (folder / "tables.md").read_text(), flags=re.M)
    return re.sub(r"^### .*", f"### {folder.name}", text, count=1, flags=re.M)


def _cells(out: Path) -> str:
    cells = pd.read_csv(out / "cells.csv", dtype={"labels": str})
    columns = ["arm", "labels", "seed", "state", "subjects", "lr", "steps", "seconds", "dice", "failed_cases"]
    formats = {"dice": "{:.3f}", "seconds": "{:.0f}", "lr": "{:g}", "subjects": "{:.0f}", "steps": "{:.0f}"}
    rows = [[formats.get(c, "{}").format(row[c]) for c in columns] for row in cells.to_dict("records")]
    return "Every cell (seconds: of training; Dice: mean over its cases):\n\n" + _table(columns, rows)


def _trials(out: Path) -> str:
    rows = []
    for trial in _lines(out / "trials.jsonl"):
        result = f"failed: {trial['reason']}" if trial["dice"] is None else f"{trial['dice']:.3f}"
        rows.append([trial["arm"], str(trial["labels"]), f"{trial['lr']:g}", str(trial["steps"]), result])
    head = ["arm", "labels", "lr", "steps", "mean Dice, inner validation"]
    return "All learning-rate trials (inner split of the training subjects):\n\n" + _table(head, rows)


def _commands(steps: list[dict[str, Any]], out: Path) -> str:
    """What was called, without the places of this machine."""
    folder = str(out.absolute())
    sources = {word for step in steps if step["verb"] == "catalogue" for word in step["command"].split()[2:3]}
    text = "\n".join(f"{step['seconds']:8.1f} s  {step['command']}" for step in steps)
    for source in sources:
        text = text.replace(source, "DATA")
    return text.replace(folder, "OUT")
