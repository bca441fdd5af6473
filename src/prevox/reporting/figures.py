"""Figures about runs: curves, means with intervals; and slices as pixels."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prevox.reporting.drawing import Drawing, Stroke, label_colour, new_axes, plain
from prevox.reporting.overlays import Overlay

MAX_POINTS = 600  # per curve; more cannot be seen and would swell the page


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbours until at most `MAX_POINTS` points are left."""
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    group = -(-len(x) // MAX_POINTS) if len(x) else 1
    edges = np.arange(0, len(x), group)
    return (np.add.reduceat(v, edges) / np.diff([*edges, len(v)]) if len(v) else v for v in (x, y))  # type: ignore[return-value]


def curve(
    series: Sequence[tuple[Stroke, pd.DataFrame]],
    column: str,
    verb: str = "run",
    *,
    logarithmic: bool = False,
    smooth: bool = True,
    floor: str | None = None,
) -> Drawing | None:
    """One quantity over steps, all runs overlaid.

    Args:
        series: (stroke of the run, its logged rows).
        column: Column of the rows.
        verb: What the runs did; part of the drawing's name.
        logarithmic: Whether the vertical axis may be logarithmic (it is where values span more than a factor of 20).
        smooth: Whether long curves get a running mean.
        floor: Column whose last value is drawn as a thin level.

    Returns:
        None if no run logged the quantity.
    """
    figure, axes = new_axes((4.6, 2.5))
    drawn = 0
    for stroke, rows in series:
        if column not in rows or "step" not in rows:
            continue
        x, y = thin(rows["step"].to_numpy(float), pd.to_numeric(rows[column], errors="coerce").to_numpy(float))
        if not len(x):
            continue
        drawn += 1
        if smooth and len(x) > 30:  # the raw values stay visible behind their running mean
            axes.plot(x, y, color=stroke.colour, linewidth=0.7, alpha=0.35)
            y = pd.Series(y).ewm(span=max(5, len(x) // 25)).mean().to_numpy()
        marker = "o" if len(x) < 4 else None
        axes.plot(x, y, color=stroke.colour, linestyle=stroke.line, linewidth=1.6, marker=marker, markersize=3)
        if floor in rows:
            axes.axhline(rows[floor].dropna().iloc[-1], color=stroke.colour, linestyle=stroke.line, linewidth=0.7)
        logarithmic = logarithmic and bool((y > 0).all()) and float(y.max() / y.min()) > 20
    if not drawn:
        return None
    if logarithmic:
        axes.set_yscale("log")
    axes.set_xlabel("optimiser steps")
    axes.margins(x=0.01)
    return Drawing(f"{verb} {column}", figure)


def intervals(rows: Sequence[dict[str, Any]], label: str) -> Drawing | None:
    """Means with their intervals, one line per class and run.

    Args:
        rows: Each {group, stroke, mean, low, high}; rows of one group stand together.
        label: Text of the horizontal axis.
    """
    rows = [row for row in rows if np.isfinite(row["mean"])]
    if not rows:
        return None
    groups = list(dict.fromkeys(row["group"] for row in rows))
    height, ticks = 0.0, []
    figure, axes = new_axes((5.0, 0.75 + 0.24 * len(rows) + 0.16 * len(groups)))
    for group in groups:
        members = [row for row in rows if row["group"] == group]
        ticks.append(height + (len(members) - 1) / 2)
        for row in members:
            stroke, ends = row["stroke"], [row["low"], row["high"]]
            if np.isfinite(ends).all():
                axes.plot(ends, [height, height], color=stroke.colour, linestyle=stroke.line, linewidth=1.8)
            axes.plot(row["mean"], height, "o", color=stroke.colour, markersize=5)
            height += 1
        height += 0.7
    axes.set_yticks(ticks, [plain(group) for group in groups])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(height - 0.9, -0.8)
    axes.set_xlabel(label)
    return Drawing(f"intervals {label}", figure)


def panels(overlay: Overlay) -> list[tuple[str, str]]:
    """The three pictures of an overlay.

    Returns:
        (caption, data URI) of the image alone, with the reference, and with the prediction.
    """
    return [
        ("image", _slice_uri(overlay, None)),
        ("reference", _slice_uri(overlay, overlay.reference_YX)),
        ("prediction", _slice_uri(overlay, overlay.prediction_YX)),
    ]


def png_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _slice_uri(overlay: Overlay, labels_YX: np.ndarray | None) -> str:
    """One slice with the outlines of its labels; anterior is up and the subject's right is on the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    voxels = overlay.image_YX[::-1, ::-1].astype(np.float32)
    finite = voxels[np.isfinite(voxels)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
    ratio = overlay.aspect * voxels.shape[0] / voxels.shape[1]
    width = min(3.0, 3.0 / ratio)
    figure = Figure(figsize=(width, width * ratio), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(voxels, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect="auto", interpolation="bilinear")
    axes.set_axis_off()
    for value in np.unique(labels_YX[labels_YX > 0]) if labels_YX is not None else ():
        inside = (labels_YX == value)[::-1, ::-1].astype(float)
        padded = np.pad(inside, 1)  # so that outlines close at the border
        y, x = np.arange(-1, inside.shape[0] + 1), np.arange(-1, inside.shape[1] + 1)
        axes.contourf(x, y, padded, levels=[0.5, 2], colors=[label_colour(int(value))], alpha=0.18)
        axes.contour(x, y, padded, levels=[0.5], colors=[label_colour(int(value))], linewidths=1.6)
    axes.set_xlim(-0.5, voxels.shape[1] - 0.5)
    axes.set_ylim(voxels.shape[0] - 0.5, -0.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", pil_kwargs={"quality": 85})
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
