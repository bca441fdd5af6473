import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from prevox.task import Picture
from prevox.train.tracking import Tracker, draw

pytestmark = pytest.mark.unit
ROW = {"loss": 1.0, "lr": 0.1, "samples_per_s": 2.0, "data_wait": 0.0}


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_rows_after_the_checkpoint_and_torn_lines_are_dropped(tmp_path) -> None:
    lines = [json.dumps({"step": step, **ROW}) for step in (10, 20, 30)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4')
    with Tracker(tmp_path, 40, 20, "run") as tracker:
        tracker.row(30, {**ROW, "loss": 5.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 5.0)]


def board(run: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload().Scalars("loss")
    return [(event.step, event.value) for event in events]


@pytest.mark.parametrize(("start", "kept"), [(0, []), (2, [(1, 1.0), (2, 2.0)])])
def test_tensorboard_shows_each_step_once_and_nothing_waits_in_memory(tmp_path, start, kept) -> None:
    killed = Tracker(tmp_path, 9, 0, "run")
    for step in (1, 2, 3):
        killed.row(step, {**ROW, "loss": float(step)})
    assert board(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]  # without closing: a kill leaves no time for that
    with Tracker(tmp_path, 9, start, "run") as resumed:
        resumed.row(start + 1, {**ROW, "loss": 8.0})
    assert board(tmp_path) == [*kept, (start + 1, 8.0)]


def shades(path, panels: int) -> list[float]:
    """Mean brightness in the middle of each panel."""
    image = imread(path)[..., 0]
    height, width = image.shape
    centres = [int(width * (number + 0.5) / panels) for number in range(panels)]
    return [float(image[int(height * 0.4) : int(height * 0.5), c - 5 : c + 5].mean()) for c in centres]


def test_a_faint_prediction_looks_faint_beside_its_target(tmp_path) -> None:
    ramp = np.tile(np.linspace(-1, 1, 64), (64, 1))
    pair = [("target", ramp), ("prediction", np.full((64, 64), 0.0))]
    draw(Picture(pair, scales=(0, 0)), tmp_path / "shared.png")
    assert shades(tmp_path / "shared.png", 2)[1] == pytest.approx(0.5, abs=0.05)


def test_empty_and_constant_panels_can_be_drawn(tmp_path) -> None:
    draw(Picture([("nan", np.full((4, 4), np.nan)), ("constant", np.ones((4, 4)))], "a note"), tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 0
