"""Real processes for verbs that need no data; the folder's lock."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prevox.benching import commands as module
from prevox.benching import folder as folder_module
from prevox.benching.commands import WORKER, Commands
from prevox.benching.folder import Folder, append_line, read_lines
from prevox.errors import ConfigError, RunError
from prevox.signals import Stop

pytestmark = pytest.mark.unit


@pytest.fixture
def runs(tmp_path: Path):
    with Folder(tmp_path / "out").locked() as lock:
        yield Commands(tmp_path / "out", lock, Stop())


def test_verbs_run_one_after_the_other_until_one_fails(runs: Commands) -> None:
    outcome = runs.run(["list"], ["lisst"], ["list"], log="log", of="something")
    assert outcome.code == 2
    assert outcome.failed
    assert "no verb 'lisst'. Did you mean 'list'?" in outcome.reason
    rows = read_lines(runs.out / "steps.jsonl")
    assert [(row["verb"], row["of"], row["code"]) for row in rows] == [
        ("list", "something", 0),
        ("lisst", "something", 2),
    ]
    log = (runs.out / "logs" / "log.txt").read_text()
    assert log.startswith("$ prevox list\n")
    assert "mae" in log
    assert runs.run(["list"], log="log", of="again").code == 0
    assert len((runs.out / "logs" / "log.txt").read_text()) > len(log), "logs are added to"


def test_a_killed_process_is_told_by_its_signal(runs: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(module, "WORKER", (sys.executable, "-c", script))
    outcome = runs.run(["finetune"], log="log", of="arm")
    assert outcome.code == -9
    assert "SIGKILL (out of memory, perhaps)" in outcome.reason


def test_a_process_without_its_bench_does_nothing(tmp_path: Path) -> None:
    words = [*WORKER, str(os.getpid() + 1), str(tmp_path / "steps.jsonl"), "of", json.dumps([["list"]])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "is gone" in done.stderr
    assert not (tmp_path / "steps.jsonl").exists()


def test_a_stop_is_passed_on_and_ends_the_bench(runs: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(300)"
    monkeypatch.setattr(module, "WORKER", (sys.executable, "-c", waits))
    runs.stop.asked = True
    with pytest.raises(RunError, match="Repeat the call to go on"):
        runs.run(["finetune"], log="log", of="arm")


def test_one_bench_at_a_time_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "PATIENCE", 0.1)
    folder = Folder(tmp_path / "out")
    with folder.locked(), pytest.raises(RunError, match="another bench works in this folder"), folder.locked():
        pass
    with folder.locked():
        pass
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(ConfigError, match="is not empty and no bench"), Folder(tmp_path / "photos").locked():
        pass


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b')
    append_line(path, {"a": 3})
    assert [row["a"] for row in read_lines(path)] == [1, 3]
