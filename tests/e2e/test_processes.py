"""Two processes train as one does with twice the accumulation, whoever starts them."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prevox.methods.registry import METHODS
from tests.e2e.conftest import FINETUNE, WORDS, Chain, prevox

pytestmark = pytest.mark.e2e
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SHORT = ["--train.steps", "4", "--train.device", "cpu"]


def torchrun(words: list[str]) -> str:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "prevox", *words], capture_output=True, text=True, timeout=300, env=ONE_THREAD
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def srun(words: list[str]) -> str:
    """Start two tasks with the variables that `srun --ntasks=2` sets on one node."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    step = {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0",
        "MASTER_PORT": str(port),  # a free one: another job of that number may run beside the test
    }  # fmt: skip
    tasks = []
    for rank in ("0", "1"):
        environment = {**ONE_THREAD, **step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        command = [sys.executable, "-m", "prevox", *words]
        tasks.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        )
    texts = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], "\n".join(texts)
    return "".join(texts)


def assert_same_weights(one: Path, two: Path, without: tuple[str, ...] = ()) -> None:
    left, right = (load_file(run / "checkpoints/step_00000004/task.safetensors") for run in (one, two))
    for name in set(left) - set(without):
        torch.testing.assert_close(left[name], right[name], atol=1e-5, rtol=0, msg=lambda text, name=name: name + text)


def assert_same_centre(one: Path, two: Path) -> None:
    """Within 0.1 % of its largest value, which may be small."""
    left, right = (
        load_file(run / "checkpoints/step_00000004/task.safetensors")["teacher.centre_K"] for run in (one, two)
    )
    assert left.any()
    torch.testing.assert_close(left, right, atol=1e-3 * left.abs().max().item(), rtol=0)


def losses_of(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_process(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[str], Path]]:
    """Words of a method, and its run in one process with twice the accumulation, made once."""
    made: dict[str, tuple[list[str], Path]] = {}

    def get(method: str) -> tuple[list[str], Path]:
        if method not in made:
            words = ["pretrain", "--store", str(chain.store), *WORDS[method], *SHORT]
            words += [
                "--optim.name",
                "sgd",
            ]  # AdamW moves a weight by the whole rate where its gradient is rounding noise
            made[method] = words, tmp_path_factory.mktemp(method) / "one"
            prevox(*words, "--out", made[method][1], "--train.accumulation", 2)
        return made[method]

    return get


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_of_torchrun(method: str, one_process: Callable, tmp_path: Path) -> None:
    words, one = one_process(method)
    text = torchrun([*words, "--out", str(tmp_path / "two")])
    assert_same_weights(one, tmp_path / "two")
    one_losses, losses = losses_of(one), losses_of(tmp_path / "two")
    assert losses
    assert losses == pytest.approx(one_losses, rel=1e-5)
    if method == "glmae":
        assert_same_centre(one, tmp_path / "two")
    assert text.count("run folder") == 2  # one process speaks: at the start and at the end


def test_two_processes_of_which_one_probes(one_process: Callable, chain: Chain, tmp_path: Path) -> None:
    words, one = one_process("s3d")
    probe = ["--probe.store", str(chain.store), "--probe.every", "1", "--probe.images", "4"]
    text = torchrun([*words, *probe, "--out", str(tmp_path / "two")])
    assert_same_weights(one, tmp_path / "two")
    assert text.count("probe: Dice") == 5  # before the first and after each of four steps


def test_two_tasks_of_srun(one_process: Callable, tmp_path: Path) -> None:
    words, one = one_process("mae")
    text = srun([*words, "--out", str(tmp_path / "two")])
    assert_same_weights(one, tmp_path / "two")
    assert text.count("run folder") == 2


def test_two_processes_fine_tune_with_drop_path_the_decoder_first(chain: Chain, tmp_path: Path) -> None:
    words = ["finetune", "--store", str(chain.store), "--pretrained", str(chain.mae), *FINETUNE, *SHORT]
    words += ["--drop-path", "0.5", "--decoder-first", "0.5"]  # what is summed over processes changes after two steps
    prevox(*words, "--out", tmp_path / "one", "--train.accumulation", 2)
    two = [*words, "--train.checkpoint-every", "1", "--train.keep-every", "1", "--out", str(tmp_path / "two")]
    torchrun(two)
    # what the logged Dice remembers is decayed once a forward pass, and nothing is learnt from it
    assert_same_weights(tmp_path / "one", tmp_path / "two", without=("overlap_2K",))
    whole = load_file(tmp_path / "two/checkpoints/step_00000004/task.safetensors")
    for step in (2, 3, 4):  # as if it had been killed in the first phase: it goes on across the border
        shutil.rmtree(tmp_path / f"two/checkpoints/step_0000000{step}")
    torchrun([*two, "--resume"])
    resumed = load_file(tmp_path / "two/checkpoints/step_00000004/task.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
