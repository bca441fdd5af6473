import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.train.test_engine import engine

from prevox.errors import RunError
from prevox.signals import stop_signals
from prevox.train import estimate
from prevox.train.estimate import Estimate, rehearse

pytestmark = pytest.mark.unit
MADE = Estimate(0.5, 2, 0, 3, 1, 0, 0, 0, 6, steps=10, held=0, pictures=3, checkpoints=4)


def test_parts_are_counted_as_often_as_the_run_has_them() -> None:
    assert MADE.seconds == 0.5 + 9 * 2 + 2 * 3 + 4 * 1  # the first step has its pictures in it
    assert replace(MADE, steps=1, pictures=1, checkpoints=1).seconds == 1.5
    assert replace(MADE, probes=3, probe=5.0).seconds == MADE.seconds + 2 * 5  # so has the first probe


def test_a_rehearsal_leaves_nothing(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "ENOUGH", 0.0)
    monkeypatch.chdir(tmp_path)
    found = rehearse(engine(tiny_store, log_every=2, picture_every=3, checkpoint_every=5), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert found.timed == 6  # three blocks of two steps
    assert found.peak_mb > 10
    assert found.checkpoint_mb > 0
    # of seven steps: 1, 3, 6 and the last make pictures; there are checkpoints after 5 and the last
    assert (found.steps, found.pictures, found.checkpoints) == (7, 4, 2)


def test_a_signal_ends_a_rehearsal(tiny_store: Path, tmp_path: Path) -> None:
    made = engine(tiny_store)
    with stop_signals():  # as around the whole command
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(RunError, match="stopped by a signal"):
            rehearse(made, tmp_path)
    assert list(tmp_path.iterdir()) == []
