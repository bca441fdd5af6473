"""Runs that are killed or asked to stop, in chains of restarts: what results is the uninterrupted run, bit for bit."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.e2e.conftest import FINETUNE, PRETRAIN, Chain, prevox

pytestmark = pytest.mark.e2e
STEPS, EVERY = 40, 3  # of the run, and between its checkpoints
TIMINGS = ("seconds", "samples_per_s", "data_wait")

# The command, but the second file that torch.save writes is left half-written and announced; then it waits.
HALF_A_CHECKPOINT = """
import sys, time, torch
from prevox.cli.main import main
whole, saved = torch.save, []
def half(state, path):
    whole(state, path)
    saved.append(path)
    if len(saved) == 2:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        print("half a checkpoint", flush=True)
        time.sleep(600)
torch.save = half
main(sys.argv[1:])
"""


def words_of(verb: str, chain: Chain) -> list[str]:
    lengths = ["--train.steps", STEPS, "--train.checkpoint-every", EVERY, "--train.log-every", 1]
    model = PRETRAIN if verb == "pretrain" else [*FINETUNE, "--pretrained", chain.mae]
    return [verb, *map(str, ["--store", chain.store, *model, *lengths])]


def start(words: list[str], *command: str) -> subprocess.Popen:
    command = command or ("-m", "prevox")
    return subprocess.Popen(
        [sys.executable, *command, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def uninterrupted(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """The uninterrupted run of a verb; the first call starts it beside the test, later ones wait for its end."""
    root, started = tmp_path_factory.mktemp("uninterrupted"), {}

    def get(verb: str) -> Path:
        if verb not in started:
            started[verb] = start([*words_of(verb, chain), "--out", str(root / verb)])
        elif started[verb].returncode is None:
            text, _ = started[verb].communicate(timeout=300)
            assert started[verb].returncode == 0, text
        return root / verb

    yield get
    for process in started.values():
        process.kill()
        process.communicate()


def until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Wait, in short steps, for something that a live process does."""
    for _ in range(60_000):
        if condition():
            return
        assert process.poll() is None, f"the process ended before its time:\n{process.stdout.read()}"
        time.sleep(0.002)
    raise AssertionError("it never happened")


def steps_logged(run: Path) -> list[int]:
    """Steps in metrics.jsonl, a torn last line left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line)["step"] for line in lines]


def reaches(process: subprocess.Popen, run: Path, step: int) -> None:
    """Wait until this process, not the one before it, has logged a step."""
    path = run / "metrics.jsonl"
    before = path.stat().st_ino if path.is_file() else None  # a resumed run begins by writing the file anew
    until(process, lambda: path.is_file() and path.stat().st_ino != before)
    until(process, lambda: max(steps_logged(run), default=0) >= step)


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL, "it was killed, and did not end by itself"


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMINGS} for line in lines]


def assert_same_run(whole: Path, other: Path) -> None:
    """Weights, optimiser state, log and TensorBoard of both are equal, bit for bit."""
    newest = [run / "checkpoints" / f"step_{STEPS:08d}" for run in (whole, other)]
    for name in {file.name for file in newest[0].glob("*.safetensors")}:
        left, right = (load_file(folder / name) for folder in newest)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    left, right = (torch.load(folder / "optimiser.pt", weights_only=True)["optimiser"] for folder in newest)
    assert left["param_groups"] == right["param_groups"]
    assert left["state"].keys() == right["state"].keys()
    for key, moments in left["state"].items():
        assert all(torch.equal(value, right["state"][key][name]) for name, value in moments.items())
    assert rows(whole) == rows(other)
    assert [row["step"] for row in rows(other)] == list(range(1, STEPS + 1))
    boards = [EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload() for run in (whole, other)]
    left, right = ([(event.step, event.value) for event in board.Scalars("loss")] for board in boards)
    assert left == right
    assert [step for step, _ in left] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_killed_at_five_moments_and_resumed(
    verb: str, chain: Chain, uninterrupted: Callable[[str], Path], tmp_path: Path
) -> None:
    draw = random.Random(f"moments of {verb}")
    words = words_of(verb, chain)
    uninterrupted(verb)
    run = tmp_path / "killed"
    again = [*words, "--out", str(run), "--resume"]
    moments = sorted(draw.sample(range(1, STEPS - 10), 4))
    in_checkpoint = draw.randrange(5)  # which of the five kills meets a half-written checkpoint
    for attempt in range(5):
        reads = ["--train.reads-ahead", str(draw.choice([1, 2, 5, 16, 40]))]
        if attempt == in_checkpoint:
            script = tmp_path / "half.py"
            script.write_text(HALF_A_CHECKPOINT)
            process = start([*again, *reads], str(script))
            assert any("half a checkpoint" in line for line in process.stdout), "it ended without a second checkpoint"
            assert list((run / "checkpoints").glob(".step_*.partial"))
        else:
            process = start([*again, *reads])
            reaches(process, run, moments.pop(0))
            time.sleep(draw.uniform(0, 0.03))  # anywhere in the step
        kill(process)
        assert not (run / "summary.json").exists(), "a killed run says nothing about its end"
    prevox(*again, "--train.reads-ahead", 7)
    assert json.loads((run / "summary.json").read_text())["finished"] is True
    assert not list((run / "checkpoints").glob(".*"))
    assert_same_run(uninterrupted(verb), run)


def test_killed_while_the_run_folder_is_made(chain: Chain, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["pretrain", "--store", chain.store, *PRETRAIN, "--train.steps", 6, "--train.checkpoint-every", 3]
    process = start([*map(str, words), "--out", str(run)])
    until(process, (run / "config.yaml").is_file)
    kill(process)
    (run / "split.json").unlink(missing_ok=True)  # as if it had come a moment earlier
    (run / ".split.json.partial").write_text('{"train": ["ca')
    prevox(*words, "--out", run, "--resume")
    assert rows(run) == rows(chain.mae)
    assert (run / "split.json").read_text() == (chain.mae / "split.json").read_text()


def listens(process: subprocess.Popen) -> None:
    """Wait until a process has a handler for SIGUSR1, which it has long before it has imported torch."""

    def caught() -> bool:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        mask = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
        return bool(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1)

    until(process, caught)


def test_signals_save_and_leave_with_0(chain: Chain, uninterrupted: Callable[[str], Path], tmp_path: Path) -> None:
    uninterrupted("pretrain")
    run = tmp_path / "run"
    words = [*words_of("pretrain", chain), "--out", str(run), "--resume"]
    for number, step in ((signal.SIGUSR1, None), (signal.SIGTERM, 5), (signal.SIGUSR1, 14)):
        process = start(words)
        if step is None:  # while it is still importing
            listens(process)
        else:
            reaches(process, run, step)
        process.send_signal(number)
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 0, text
        assert "go on with --resume" in text
        summary = json.loads((run / "summary.json").read_text())
        assert summary["finished"] is False
        saved = [int(folder.name.removeprefix("step_")) for folder in sorted((run / "checkpoints").glob("step_*"))]
        assert saved[-1:] == ([] if step is None else [summary["steps"]])
        assert summary["steps"] == 0 if step is None else step <= summary["steps"] < STEPS
    prevox(*words)
    assert_same_run(uninterrupted("pretrain"), run)
