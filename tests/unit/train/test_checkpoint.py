import json
import os
import pickle

import pytest
import torch
from torch import nn

from prevox.errors import RunError
from prevox.task import ModelSpec, Pretrained, PretrainMethod, Task
from prevox.train.checkpoint import checkpoint_folders, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.unit


class Toy(PretrainMethod):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, width)
        self.register_buffer("centre", torch.arange(3.0))

    def pretrained(self) -> Pretrained:
        return Pretrained(self.encoder.state_dict(), ModelSpec("linear", {"width": 4}))


class Other(Task):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)


def save(tmp_path, step: int, task: Task | None = None, keep_every: int | None = None):
    return save_checkpoint(
        tmp_path, step, task or Toy(), {"a": torch.ones(2)}, {"window": []}, {"size": [8]}, keep_every
    )


def test_round_trip_restores_weights_and_buffers(tmp_path) -> None:
    saved, fresh = Toy(), Toy()
    saved.centre.fill_(7)
    state, progress = load_checkpoint(save(tmp_path, 5, saved), fresh)
    assert all(torch.equal(a, b) for a, b in zip(saved.state_dict().values(), fresh.state_dict().values(), strict=True))
    assert progress["step"] == 5
    assert torch.equal(state["a"], torch.ones(2))


def test_newest_two_and_multiples_are_kept(tmp_path) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step, keep_every=20)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == [
        "step_00000020", "step_00000040", "step_00000050",
    ]  # fmt: skip


def test_pretrained_file_names_its_model_in_the_header(tmp_path) -> None:
    from safetensors import safe_open

    with safe_open(save(tmp_path, 1) / "pretrained.safetensors", "pt") as file:
        header = file.metadata()
    assert json.loads(header["spec"]) == {"name": "linear", "settings": {"width": 4}}
    assert json.loads(header["size"]) == [8]


def test_a_partial_checkpoint_is_not_seen(tmp_path) -> None:
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / ".step_00000002.partial").mkdir()
    (tmp_path / "checkpoints" / "step_00000003").mkdir()  # killed between mkdir and the last file
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_00000001"]


def test_another_task_is_refused(tmp_path) -> None:
    folder = save(tmp_path, 1)
    with pytest.raises(RunError, match="holds another task's weights"):
        load_checkpoint(folder, Other())


def test_weights_of_another_size_are_refused(tmp_path) -> None:
    with pytest.raises(RunError, match="weights of another size"):
        load_checkpoint(save(tmp_path, 1, Toy(4)), Toy(5))


def test_what_a_killed_run_left_is_cleared_away(tmp_path) -> None:
    stale = tmp_path / "checkpoints" / ".step_00000003.partial"
    stale.mkdir(parents=True)
    (stale / "task.safetensors").write_bytes(b"half")
    save(tmp_path, 7)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000007"]


def test_an_old_checkpoint_loses_its_name_before_its_files(tmp_path, monkeypatch) -> None:
    for step in (1, 2):
        save(tmp_path, step)

    def killed(path, ignore_errors=False):
        if not ignore_errors:  # what clears the way for the new one may be missing; the old one is there
            raise KeyboardInterrupt

    monkeypatch.setattr("prevox.train.checkpoint.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 3)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_00000002", "step_00000003"]


def test_a_planted_pickle_is_not_executed(tmp_path) -> None:
    folder = save(tmp_path, 1)
    witness = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {witness}",))

    (folder / "optimiser.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RunError, match="cannot be read as a checkpoint"):
        load_checkpoint(folder, Toy())
    assert not witness.exists()


def test_truncated_weights_are_refused(tmp_path) -> None:
    folder = save(tmp_path, 1)
    data = (folder / "task.safetensors").read_bytes()
    (folder / "task.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(RunError, match="Delete this folder"):
        load_checkpoint(folder, Toy())
