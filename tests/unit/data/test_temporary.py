import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from prevox.data.temporary import remove_stale, temporary_path

pytestmark = pytest.mark.unit


def left_by_a_dead_process(path):
    code = "import sys, pathlib, prevox.data.temporary as t; print(t.temporary_path(pathlib.Path(sys.argv[1])))"
    run = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
    return Path(run.stdout.strip())


def test_only_what_nobody_writes_any_more_is_removed(tmp_path):
    dead = left_by_a_dead_process(tmp_path / "case.1.zarr")
    (dead / "case.1.zarr").mkdir(parents=True)
    dead_file = left_by_a_dead_process(tmp_path / "index.parquet")
    dead_file.touch()
    mine = temporary_path(tmp_path / "case.1.zarr")
    foreign = tmp_path / dead.name.replace(dead.name.split(".")[-2], "node7-123")  # another host's processes: unknown
    old = tmp_path / ".case.zarr.node7-124.tmp"
    for folder in (mine, foreign, old):
        folder.mkdir()
    yesterday = time.time() - 90000
    os.utime(old, (yesterday, yesterday))
    kept = tmp_path / "case.zarr"
    kept.mkdir()
    remove_stale(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, foreign, kept])


def test_a_process_that_has_ended_and_was_not_asked_how_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    mine = temporary_path(tmp_path / "a")
    left = tmp_path / mine.name.replace(f"-{os.getpid()}.", f"-{process.pid}.")
    left.touch()
    remove_stale(tmp_path)
    assert not left.exists()
    process.wait()


def test_names_are_hidden_and_differ_between_processes(tmp_path):
    mine = temporary_path(tmp_path / "a")
    assert mine.parent == tmp_path
    assert mine.name.startswith(".a.")
    assert mine != left_by_a_dead_process(tmp_path / "a")
