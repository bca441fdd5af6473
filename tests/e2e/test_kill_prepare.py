"""`prepare`, killed again and again at random: the store that results is that of an undisturbed run, byte for byte."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prevox.data.phantom import write_phantoms
from tests.e2e.conftest import prevox

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("phantoms", "kills", "side"),
    [pytest.param(30, 3, 20, id="few"), pytest.param(500, 20, 24, id="many", marks=pytest.mark.slow)],
)
@pytest.mark.timeout(3000)
def test_killed_at_random_and_run_again(phantoms: int, kills: int, side: int, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "scans", phantoms, seed=5, shape=(side, side + 2, side - 1))
    prevox("catalogue", tmp_path / "scans", "--out", tmp_path / "c.parquet")
    words = ["prepare", "--catalogue", tmp_path / "c.parquet", "--workers", 2, "--spacing", 4, 4, 4]
    prevox(*words, "--out", tmp_path / "whole")
    store = tmp_path / "killed"
    draw = random.Random(f"kills of {phantoms}")
    again = [sys.executable, "-m", "prevox", *map(str, words), "--out", str(store)]
    for count in sorted(draw.sample(range(phantoms - phantoms // 10), kills)):
        process = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        # the first as early as may be: while the folder is made
        while process.poll() is None and (finished(store) < count if count else not store.exists()):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        assert process.poll() is None, "it ended before it was killed"
        if draw.random() < 0.5:  # all its processes, as a cluster does
            os.killpg(process.pid, signal.SIGKILL)
        else:  # or the one that leads them
            process.send_signal(signal.SIGKILL)
        process.wait()
    prevox(*words, "--out", store)
    assert contents(store) == contents(tmp_path / "whole")
    assert not [path for path in store.rglob("*") if path.name.startswith(".")]


def finished(store: Path) -> int:
    """Images that have their name."""
    return len(list((store / "images").glob("[!.]*.zarr")))


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}
