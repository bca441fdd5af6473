"""Two processes train as one does with twice the accumulation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prevox.methods.registry import METHODS
from tests.e2e.conftest import PRETRAIN, Chain, prevox

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one_with_twice_the_accumulation(method: str, chain: Chain, tmp_path: Path) -> None:
    words = ["--store", chain.store, *PRETRAIN, "--method.name", method, "--train.steps", 4]
    prevox("pretrain", *words, "--out", tmp_path / "one", "--train.accumulation", 2)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["-m", "prevox", "pretrain", *map(str, words), "--out", str(tmp_path / "two"), "--train.device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (load_file(tmp_path / name / "checkpoints/step_00000004/task.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0)
    assert done.stdout.count("run folder") == 2  # one process speaks: at the start and at the end
