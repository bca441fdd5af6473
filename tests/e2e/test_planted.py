"""Whatever is planted in a run folder or a store, nothing of it is executed, and the message names the file."""

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prevox.cli.main import main
from tests.e2e.conftest import FINETUNE, PRETRAIN, Chain

pytestmark = pytest.mark.e2e


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.witness),)


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """Folder that an executed bomb makes; the bomb is shown to be a live one."""
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(path)))
    path.rmdir()
    return path


def as_pickle(witness: Path) -> bytes:
    return pickle.dumps(Bomb(witness))


def as_torch(witness: Path) -> bytes:
    """The zip file that torch.save writes, with the pickle in it."""
    file = io.BytesIO()
    torch.save({"optimiser": Bomb(witness)}, file)
    return file.getvalue()


def as_numpy(witness: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Bomb(witness)], dtype=object), allow_pickle=True)
    return file.getvalue()


def as_yaml(witness: Path) -> bytes:
    return f"verb: !!python/object/apply:os.mkdir ['{witness}']\n".encode()


@pytest.fixture
def runs(chain: Chain, tmp_path: Path) -> dict[str, Path]:
    """Copies to plant in; the pre-training looks as if it had been killed after step 3."""
    copies = {name: tmp_path / name for name in ("mae", "seg", "store")}
    for name, path in copies.items():
        shutil.copytree(chain.root / name, path)
    shutil.rmtree(copies["mae"] / "checkpoints" / "step_00000006")
    return copies


def call(verb: str, runs: dict[str, Path], chain: Chain) -> int:
    words: dict[str, list] = {
        "resume": ["pretrain", "--store", runs["store"], "--out", runs["mae"], *PRETRAIN, "--resume"],
        "finetune": ["finetune", "--store", runs["store"], "--pretrained", runs["mae"], *FINETUNE],
        "predict": ["predict", "--run", runs["seg"], "--images", chain.catalogue, "--split", "validation"],
    }
    words["resume"] += ["--train.steps", 6, "--train.checkpoint-every", 3]
    words["finetune"] += ["--train.steps", 1, "--out", runs["mae"].parent / "new", "--views.foreground", 1]
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words[verb]])
    return caught.value.code


@pytest.mark.parametrize(
    ("verb", "place", "planted"),
    [
        ("resume", "mae/checkpoints/step_00000003/optimiser.pt", as_pickle),
        ("resume", "mae/checkpoints/step_00000003/optimiser.pt", as_torch),
        ("resume", "mae/checkpoints/step_00000003/task.safetensors", as_pickle),
        ("resume", "mae/checkpoints/step_00000003/task.safetensors", as_torch),
        ("resume", "mae/checkpoints/step_00000003/progress.json", as_pickle),
        ("resume", "mae/config.yaml", as_yaml),
        ("finetune", "mae/checkpoints/step_00000003/pretrained.safetensors", as_pickle),
        ("finetune", "mae/checkpoints/step_00000003/pretrained.safetensors", as_torch),
        ("finetune", "store/images/*/foreground.npy", as_numpy),
        ("finetune", "store/images/*/foreground.npy", as_pickle),
        ("predict", "seg/checkpoints/step_00000004/task.safetensors", as_torch),
        ("predict", "seg/network.json", as_pickle),
    ],
)
def test_nothing_planted_is_executed(
    verb: str,
    place: str,
    planted: Callable[[Path], bytes],
    chain: Chain,
    runs: dict[str, Path],
    witness: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = list(runs["mae"].parent.glob(place))
    assert files
    for file in files:
        file.write_bytes(planted(witness))
    assert call(verb, runs, chain) == 2
    error = capsys.readouterr().err
    assert any(str(file) in error or str(file.parent) in error for file in files), error
    assert not witness.exists()


def test_what_lies_beside_is_not_opened(chain: Chain, runs: dict[str, Path], witness: Path) -> None:
    for folder in (runs["mae"], runs["mae"] / "checkpoints", runs["mae"] / "checkpoints" / "step_00000003"):
        for name in ("model.pt", "state.pkl", "random_states_0.pkl", "scheduler.bin", "pytorch_model.bin"):
            (folder / name).write_bytes(as_pickle(witness))
    assert call("resume", runs, chain) == 0
    assert not witness.exists()
