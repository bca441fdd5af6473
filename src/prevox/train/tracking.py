"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard, PNG files, the terminal."""

import json
import textwrap
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prevox.console import console
from prevox.task import Picture


class Tracker:
    """Writes one row per logged step to metrics.jsonl and TensorBoard, pictures as PNG, progress to the terminal.

    Args:
        run: Run folder.
        steps: Steps of the whole run.
        start: Step from which it goes on; later rows of an interrupted run are dropped.
        label: Shown before the progress bar.
    """

    def __init__(self, run: Path, steps: int, start: int, label: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run, self.steps, self.label = run, steps, label
        self._path = run / "metrics.jsonl"
        self._drop_rows_after(start)
        self._rows = self._path.open("a")
        # at the very start nothing stays, a row of step 0 included
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1 if start else 0)
        self._bar: Progress | None = None
        self._bar_task: TaskID | None = None
        self._printed = 0.0
        if console.is_terminal:
            self._bar = Progress(
                TextColumn(label), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn(), console=console,
            )  # fmt: skip
            self._bar_task = self._bar.add_task(label, total=steps, completed=start, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._rows.close()
        self._board.close()

    def row(self, step: int, values: dict[str, float]) -> None:
        """Log one row of the training; `step` is the number of optimiser steps done."""
        self._write(step, values)
        note = f"loss {values['loss']:.4f}  lr {values['lr']:.2e}  {values['samples_per_s']:.2f} images/s"
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, completed=step, note=note)
        elif perf_counter() - self._printed > 10 or step == self.steps:
            self._printed = perf_counter()
            wait = f"waiting for data {values['data_wait']:.0%}"
            console.print(f"{self.label}  step {step}/{self.steps}  {note}  {wait}")

    def probe(self, step: int, values: dict[str, float]) -> None:
        """Log one row of the probe."""
        self._write(step, values)
        dice, floor = values["probe_dice"], values["probe_floor"]
        console.print(f"{self.label}  step {step}/{self.steps}  probe: Dice {dice:.3f} (raw voxels {floor:.3f})")

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._rows.write(json.dumps({"step": step, **values}) + "\n")
        self._rows.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()  # by itself it keeps rows back for two minutes, which a kill would lose

    def pictures(self, step: int, pictures: dict[str, Picture]) -> None:
        """Write pictures to pictures/step_…/NAME.png."""
        folder = self.run / "pictures" / f"step_{step:08d}"
        for name, picture in pictures.items():
            folder.mkdir(parents=True, exist_ok=True)
            draw(picture, folder / f"{name}.png")

    def _drop_rows_after(self, step: int) -> None:
        if self._path.is_file():
            kept = [line for line in self._path.read_text().splitlines() if step and _step_of(line) <= step]
            partial = self._path.with_name(".metrics.jsonl.partial")
            partial.write_text("".join(f"{line}\n" for line in kept))
            partial.replace(self._path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be torn
        return float("inf")


def draw(picture: Picture, path: Path) -> None:
    """Draw a picture's panels side by side with their titles, and its note below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(picture.panels)
    height = max(array.shape[0] / array.shape[1] for _, array in picture.panels)
    width = 2.2
    figure = Figure(figsize=(width * count, width * min(height, 2) + 0.75), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    scales = picture.scales or tuple(range(count))
    for number, (title, array) in enumerate(picture.panels):
        axes = figure.add_subplot(1, count, number + 1)
        leader = picture.panels[scales.index(scales[number])][1]  # the first panel of a shared scale sets it
        low, high = picture.limits.get(scales[number]) or _percentiles(leader)
        axes.imshow(array, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", interpolation="nearest")
        axes.set_title(textwrap.fill(title, 28), fontsize=7)
        axes.set_axis_off()
    if picture.note:
        figure.supxlabel(picture.note, fontsize=6, wrap=True)
    figure.savefig(path)


def _percentiles(array: np.ndarray) -> tuple[float, float]:
    finite = array[np.isfinite(array)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    return float(low), float(high)
