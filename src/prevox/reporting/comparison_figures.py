"""Figures about a comparison: strips of cases with boxes, paired differences, ranks under resampling, curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prevox.evaluation.comparison_tables import LABELS
from prevox.evaluation.paired import subject_means
from prevox.reporting.drawing import INK, MARKERS, Drawing, Stroke, name_below, new_axes, plain, run_stroke

Strokes = Mapping[str, Stroke]  # by the name of the run
MAX_DOTS = 250  # of a strip; the quantiles of more would look the same
MAX_TICKS = 8  # that can be read side by side
FAR = 4  # times the smallest number, from where an axis is logarithmic
FEW = 3  # bands that can lie on each other without turning grey
WIDTH = 4.6  # inches


def metric_name(metric: str) -> str:
    """A metric as an axis calls it: "HD95 (mm)"."""
    label = LABELS[metric][0]
    return f"{label.removeprefix('mm ')} (mm)" if label.startswith("mm ") else label


def strips(cases: pd.DataFrame, metric: str, strokes: Strokes) -> Drawing | None:
    """Every case as a dot over a box of the quartiles, one row for each dataset and run.

    Whiskers reach to the furthest case within 1.5 times the box's width; the diamond is the mean.

    Args:
        cases: Rows of the mean over classes: dataset, run and the metric.
        metric: Column.
        strokes: Of the runs, in the order of drawing.
    """
    parts = [
        (dataset, run, rows.loc[rows["run"] == run, metric].dropna().to_numpy())
        for dataset, rows in cases.groupby("dataset", sort=False)
        for run in strokes
    ]
    parts = [part for part in parts if len(part[2])]
    if not parts:
        return None
    figure, axes, heights = _rows([(str(dataset), run) for dataset, run, _ in parts], 0.36)
    for height, (_, run, values) in zip(heights, parts, strict=True):
        colour = strokes[run].colour
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        inside = values[(values >= low - 1.5 * (high - low)) & (values <= high + 1.5 * (high - low))]
        axes.barh(height, high - low, 0.6, left=low, color=colour, alpha=0.22)
        axes.plot([inside.min(), inside.max()], [height, height], color=colour, linewidth=0.8)
        axes.plot([middle, middle], [height - 0.3, height + 0.3], color=colour, linewidth=2)
        dots = np.sort(values)[np.linspace(0, len(values) - 1, min(len(values), MAX_DOTS)).round().astype(int)]
        _dots(axes, dots, height, colour)
        axes.plot(values.mean(), height, "D", color=colour, markersize=4.5, markeredgecolor=INK, markeredgewidth=0.6)
    axes.set_xlabel(metric_name(metric))
    return Drawing(f"cases {metric}", figure)


def differences(
    entries: Sequence[Mapping[str, Any]], cases: pd.DataFrame, metric: str, strokes: Strokes
) -> Drawing | None:
    """Paired differences of the mean over classes: a dot for each subject, the mean and its interval.

    Args:
        entries: Differences of the mean over classes, as in `Comparison.differences`.
        cases: Rows of the mean over classes: dataset, case, subject, run and the metric.
        metric: Column.
        strokes: Of the runs.
    """
    if not entries:
        return None
    figure, axes, heights = _rows([(e["dataset"], f"{e['run']} − {e['other']}") for e in entries], 0.32)
    wide = cases.pivot(index=["dataset", "case", "subject"], columns="run", values=metric)
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
    for height, entry in zip(heights, entries, strict=True):
        colour = strokes[entry["run"]].colour
        own = wide.loc[[entry["dataset"]]].dropna()
        subjects = own.index.get_level_values("subject").tolist()
        dots = np.sort(subject_means((own[entry["run"]] - own[entry["other"]]).to_numpy(), subjects))
        _dots(axes, dots, height, colour)
        if np.isfinite([entry["low"], entry["high"]]).all():
            axes.plot([entry["low"], entry["high"]], [height, height], color=colour, linewidth=2.4)
        axes.plot(entry["mean"], height, "o", color=colour, markersize=5.5, markeredgecolor=INK, markeredgewidth=0.6)
    axes.set_xlabel(f"difference in {metric_name(metric)}")
    return Drawing(f"differences {metric}", figure)


def ranks(entries: Sequence[Mapping[str, Any]], strokes: Strokes, where: str) -> Drawing:
    """How often each run has each place when subjects are drawn anew: areas of circles, with the observed rank.

    In the manner of Wiesenfarth et al. (2021, Scientific Reports 11), Figure 5, with subjects as the unit.

    Args:
        entries: Ranks of one dataset, or of the average over datasets, as in `Comparison.ranks`.
        strokes: Of the runs.
        where: Name of the dataset; part of the drawing's name.
    """
    ordered = sorted(entries, key=lambda entry: entry["rank"])
    figure, axes, heights = _rows([("", entry["run"]) for entry in ordered], 0.42)
    for height, entry in zip(heights, ordered, strict=True):
        colour = strokes[entry["run"]].colour
        shares = np.array(entry["shares"], float)
        places = np.arange(1, len(shares) + 1)
        axes.scatter(places, np.full(len(places), height), s=420 * shares, color=colour, alpha=0.55, linewidths=0)
        axes.plot([entry["low"], entry["high"]], [height, height], color=colour, linewidth=1.2)
        axes.plot(entry["rank"], height, "x", color=INK, markersize=7, markeredgewidth=1.6)
    axes.set_xticks(range(1, len(ordered) + 1))
    axes.set_xlim(0.5, len(ordered) + 0.5)
    axes.set_xlabel("place (1 is best)")
    return Drawing(f"ranks {where}", figure)


def curves(entries: Sequence[Mapping[str, Any]], metric: str) -> list[Drawing]:
    """Means over each setting that runs differ in, one line with its band for each arm; a level is drawn dashed.

    A line joins several runs, so it has a colour of its own, by its place among the lines, and not that of a run.

    Args:
        entries: Points of one dataset, as in `Comparison.curves`.
        metric: Column.
    """
    return [
        _curve([entry for entry in entries if entry["over"] == over], over, metric)
        for over in dict.fromkeys(entry["over"] for entry in entries)
    ]


def _curve(entries: Sequence[Mapping[str, Any]], over: str, metric: str) -> Drawing:
    figure, axes = new_axes((WIDTH, 2.8))
    numbers = sorted({float(entry["x"]) for entry in entries if not _is_level(entry)})
    lines = list(dict.fromkeys(entry["line"] for entry in entries))
    for place, line in enumerate(lines):
        own = [entry for entry in entries if entry["line"] == line]
        stroke, level = run_stroke(place), _is_level(own[0])
        colour = stroke.colour
        x = [numbers[0], numbers[-1]] if level else [float(entry["x"]) for entry in own]
        mean, low, high = (
            np.array([float(entry[key]) for entry in own] * (2 if level else 1)) for key in ("mean", "low", "high")
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.09 if len(lines) <= FEW else 0.05, linewidth=0)
        for edge in (low, high):
            axes.plot(x, edge, color=colour, linewidth=0.6, alpha=0.5)
        axes.plot(
            x,
            mean,
            color=colour,
            linestyle="dashed" if level else stroke.line,
            linewidth=1.6,
            marker=None if level else MARKERS[place % len(MARKERS)],
            markersize=4.5,
            label=plain(line),
        )
    far = numbers[0] > 0 and numbers[-1] >= FAR * numbers[0]
    if far:
        axes.set_xscale("log")
        axes.minorticks_off()
    if len(numbers) <= MAX_TICKS:
        axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
    axes.set_xlabel(over + (" (logarithmic)" if far else ""))
    axes.set_ylabel(metric_name(metric), color=INK, fontsize=8.5)
    name_below(figure, axes)
    return Drawing(f"curve {metric} over {over}", figure)


def _is_level(entry: Mapping[str, Any]) -> bool:
    return entry["x"] is None or bool(np.isnan(entry["x"]))


def _rows(names: Sequence[tuple[str, str]], inches: float) -> tuple[Any, Any, list[float]]:
    """Axes with one named row for each (group, name), groups apart and named where there are several."""
    groups = list(dict.fromkeys(group for group, _ in names))
    heights: list[float] = []
    height = 0.0
    for group in groups:
        height += 0.9 if len(groups) > 1 else 0.0
        for _ in [name for own, name in names if own == group]:
            heights.append(height)
            height += 1
    figure, axes = new_axes((WIDTH, 0.6 + inches * max(height, 1)))
    axes.set_yticks(heights, [plain(name) for _, name in names])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(height - 0.4, -0.6 if len(groups) == 1 else -0.2)
    if len(groups) > 1:
        for group in groups:
            first = heights[[own for own, _ in names].index(group)]
            axes.text(0, first - 0.62, plain(group), transform=axes.get_yaxis_transform(), color=INK, fontsize=8.5,
                      fontweight="bold", va="center")  # fmt: skip
    return figure, axes, heights


def _dot_size(values: np.ndarray) -> float:
    """Points; few dots may be large."""
    return 6.0 if len(values) < 20 else 3.5


def _dots(axes: Any, values: np.ndarray, height: float, colour: str) -> None:
    """Sorted values as dots around a height, close ones apart."""
    axes.plot(
        values,
        height + _jitter(len(values)),
        ".",
        color=colour,
        markersize=_dot_size(values),
        alpha=0.7,
        markeredgewidth=0,
    )


def _jitter(count: int) -> np.ndarray:
    """Heights that keep neighbouring dots apart, the same for equal counts: the golden-ratio sequence."""
    return 0.44 * ((np.arange(count) * 0.6180339887) % 1 - 0.5)
