"""What `prevox catalogue` prints: one block per collection, and how subjects could be joined."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from prevox.config.rules import RulesConfig
from prevox.console import console, warn
from prevox.data.join import describe_table
from prevox.data.quality import ADVICE
from prevox.data.rules import count

_REGIME_GAP = 3.0  # a factor without any image in between separates two regimes of intensity
_SHOWN_FAILURES = 5


def print_catalogue(
    table: pd.DataFrame, failures: Sequence[tuple[str, str]], path: Path, reasons: Path, rules: RulesConfig
) -> None:
    """Print what was recognised, what was found in it, what was left out, and where the rows and all reasons are."""
    grid = Table(show_header=True, header_style="bold")
    grid.add_column("")
    collections = [rows for _, rows in table.groupby("collection", sort=True)]
    for rows in collections:
        grid.add_column(escape(str(rows["collection"].iloc[0])))
    described = [describe(rows) for rows in collections]
    for name in described[0]:
        grid.add_row(name, *(escape(column[name]) for column in described))
    console.print(grid)
    for rows in collections:
        regimes = len(intensity_regimes(rows))
        if regimes > 1:
            name = escape(str(rows["collection"].iloc[0]))
            console.print(
                f"{name}: {regimes} regimes of intensity; normalise each image by itself, not by a fixed window"
            )
    _print_rules(table, rules)
    _print_advice(table)
    print_failures(failures[:_SHOWN_FAILURES])
    if failures:
        more = f", {len(failures) - _SHOWN_FAILURES} more" if len(failures) > _SHOWN_FAILURES else ""
        console.print(f"[red]{len(failures)} left out[/red]{more}; all reasons: {escape(str(reasons))}")
    console.print(f"{len(table)} images in {escape(str(path))}")


def print_failures(failures: Sequence[tuple[str, str]]) -> None:
    """Name images that were left out, with the reasons."""
    for image, reason in failures:
        console.print(f"[red]left out:[/red] {escape(image)}: {escape(reason)}")


def _print_advice(table: pd.DataFrame) -> None:
    """Say for each kind of flag that needs attention which images have it, what it means and what to do."""
    for flag, meaning in ADVICE.items():
        images = [str(image) for image, flags in zip(table["image"], table["flags"], strict=True) if flag in flags]
        if images:
            few = ", ".join(images[:3]) + (", ..." if len(images) > 3 else "")
            warn(f"{flag}: {len(images)} image{'s' * (len(images) > 1)} ({few}): {meaning}")


def _print_rules(table: pd.DataFrame, rules: RulesConfig) -> None:
    """Print which quality rules images break, by how much, and how many of the images are excluded."""
    counts = count(table, rules)
    if not counts:
        return
    grid = Table("rule", "expected", "images", "excluded")
    for found in counts:
        grid.add_row(found.rule, found.expected, str(found.images), str(found.excluded or "–"))
    console.print(grid)
    excluded = int(table["excluded"].map(bool).sum())
    if excluded:
        console.print(f"{excluded} of {len(table)} images are excluded; their rows stay and say why")


def print_hint(root: Path, images: Sequence[str]) -> None:
    """Print how a CSV file in the dataset's folder can be joined, if one describes all of its images."""
    for path in sorted([*root.glob("*.csv"), *root.glob("*.tsv")]):
        hint = describe_table(images, path)
        if hint is not None:
            console.print(f"[cyan]hint:[/cyan] {escape(hint)}", soft_wrap=True)


def describe(rows: pd.DataFrame) -> dict[str, str]:
    """One collection in words: what there is, its geometry, its intensities, its flags."""
    labelled = rows["label_path"].notna()
    classes = rows["class_names"].dropna()
    return {
        "layout": ", ".join(sorted(rows["layout"].unique())),
        "images": str(len(rows)),
        "labelled": f"{labelled.sum()}",
        "subjects": str(rows["subject"].nunique()),
        "modality": ", ".join(sorted(rows["modality"].dropna().unique())) or "not said",
        "channels": _counted(rows["channels"]),
        "classes": str(classes.iloc[0]) if len(classes) else "not named",
        "shape": _median(rows, "shape", 0) + " voxels (median)",
        "spacing": _median(rows, "spacing", 2) + " mm (median)",
        "orientation": _counted(rows["orientation"]),
        "type": _counted(rows["dtype"]),
        "intensity": "\n".join(
            f"{low:.4g} to {high:.4g}: {n} image{'s' * (n > 1)}" for low, high, n in intensity_regimes(rows)
        ),
        "sequence": ", ".join(f"{name} ({n})" for name, n in rows["sequence"].value_counts().items()) or "not known",
    }


def intensity_regimes(rows: pd.DataFrame) -> list[tuple[float, float, int]]:
    """Group images whose largest magnitudes lie close together.

    Returns:
        Minimum, maximum and number of images of each group, by rising magnitude.
    """
    top = rows[["minimum", "maximum"]].abs().max(axis=1).to_numpy(float)
    order = np.argsort(top, kind="stable")
    jumps = np.flatnonzero(top[order][1:] > _REGIME_GAP * np.maximum(top[order][:-1], 1e-12)) + 1
    groups = [rows.iloc[part] for part in np.split(order, jumps)]
    return [(float(group["minimum"].min()), float(group["maximum"].max()), len(group)) for group in groups]


def _median(rows: pd.DataFrame, what: str, digits: int) -> str:
    return " × ".join(f"{rows[f'{what}_{axis}'].median():.{digits}f}" for axis in "ijk")


def _counted(column: pd.Series) -> str:
    counts = column.value_counts()
    return ", ".join(str(v) if len(counts) == 1 else f"{v} ({n})" for v, n in counts.items())
