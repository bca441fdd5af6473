"""Figures about classifications: ROC curves by class, and how far probabilities can be taken at their word.

Shape suffixes: N cases.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from prevox.evaluation.classification import BINS
from prevox.reporting.drawing import INK, Drawing, Stroke, axes_in, name_below, new_axes, plain

MOST = 16  # classes with a panel; those with the most positives
COLUMNS = 4
LEAST = 10  # cases of a bin that is drawn as a dot; fewer say little


def roc(probabilities: pd.DataFrame, strokes: Mapping[str, Stroke]) -> Drawing | None:
    """One panel for each class that has positives and negatives, one curve for each run.

    Args:
        probabilities: Rows of run, class, probability, reference.
        strokes: Of the runs.
    """
    known = probabilities.dropna(subset=["reference"])
    first = known[known["run"] == next(iter(strokes))]
    counts = first.groupby("class", sort=False)["reference"].agg(["sum", "count"])
    counts = counts[(counts["sum"] > 0) & (counts["sum"] < counts["count"])]
    classes = counts.sort_values("sum", ascending=False, kind="stable").index[:MOST]
    if not len(classes):
        return None
    columns = min(COLUMNS, len(classes))
    rows = -(-len(classes) // columns)
    figure, panels = axes_in((2.0 * columns, 2.15 * rows), rows, columns)
    for axes, name in zip(panels, classes, strict=False):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, alpha=0.4)
        for run, stroke in strokes.items():
            own = known[(known["run"] == run) & (known["class"] == name)]
            x, y = roc_points(own["probability"].to_numpy(), own["reference"].to_numpy() == 1)
            axes.plot(x, y, color=stroke.colour, linestyle=stroke.line, linewidth=1.3)
        axes.set_title(f"{plain(str(name))} ({int(counts.loc[name, 'sum'])})", fontsize=8.5, color=INK)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.set_aspect("equal")
    for axes in panels[len(classes) :]:
        axes.set_visible(False)
    return Drawing("ROC by class", figure)


def roc_points(probability_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of false and of true positives at every threshold, from the highest; cases that tie pass it together."""
    order = np.argsort(-probability_N, kind="stable")
    ordered, positive = probability_N[order], positive_N[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    true, false = np.cumsum(positive)[ends], np.cumsum(~positive)[ends]
    return np.r_[0, false / false[-1]], np.r_[0, true / true[-1]]


def reliability(probabilities: pd.DataFrame, strokes: Mapping[str, Stroke]) -> Drawing | None:
    """Share of positives over mean probability in 15 bins of equal width, all pairs of case and class together.

    Args:
        probabilities: Rows of run, class, probability, reference.
        strokes: Of the runs.
    """
    known = probabilities.dropna(subset=["reference"])
    if known.empty:
        return None
    figure, axes = new_axes((3.8, 3.4))
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, alpha=0.5)
    for run, stroke in strokes.items():
        own = known[known["run"] == run]
        bins = binned(own["probability"].to_numpy(), own["reference"].to_numpy())
        many = bins[bins["cases"] >= LEAST]
        axes.plot(many["probability"], many["positive"], "o", color=stroke.colour, linestyle=stroke.line, markersize=4,
                  linewidth=1.3, label=plain(run))  # fmt: skip
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("mean probability")
    axes.set_ylabel("share of positives", color=INK, fontsize=8.5)
    name_below(figure, axes)
    return Drawing("reliability", figure)


def binned(probability_N: np.ndarray, positive_N: np.ndarray) -> pd.DataFrame:
    """Mean probability, share of positives and number of cases of each bin that has any; bins as the metric's."""
    bins = np.searchsorted(np.arange(1, BINS) / BINS, probability_N, side="right")
    table = pd.DataFrame({"bin": bins, "probability": probability_N, "positive": positive_N})
    found = table.groupby("bin").agg(
        probability=("probability", "mean"), positive=("positive", "mean"), cases=("bin", "size")
    )
    return found.reset_index(drop=True)
