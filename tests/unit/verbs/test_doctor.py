import json
import re
import shutil
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest

from prevox.config.tools import DoctorConfig
from prevox.errors import ConfigError
from prevox.verbs import doctor as module
from prevox.verbs.doctor import CORE, DoctorResult, doctor
from prevox.verbs.machine import cgroup_cores, cgroup_memory, file_system

pytestmark = pytest.mark.unit
PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def look(folder: Path, **more) -> DoctorResult:
    return doctor(DoctorConfig(folder=folder, **more))


def test_every_dependency_is_looked_at() -> None:
    wanted = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    assert set(CORE) == {re.split("[<>=!~]", line)[0] for line in wanted}


def test_a_sound_machine_has_versions_limits_rates_and_no_problem_that_stops(tmp_path: Path) -> None:
    import torch

    found = look(tmp_path)
    facts = {name: value for section in found.facts.values() for name, value in section.items()}
    assert facts["torch"] == torch.__version__
    wanted = {"python", "git revision", "system", "libc", "processor", "cores", "memory", "/dev/shm", "open files"}
    wanted |= {"folder", "free", "file system", "rate", "torch build", "NVIDIA driver", "threads", "matrix rate"}
    assert wanted | {"extra wandb"} <= facts.keys()
    assert not [value for value in facts.values() if value.startswith("MISSING")]
    assert found.exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_secrets_are_not_shown_and_what_is_set_is(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "do-not-tell")
    monkeypatch.setenv("SLURM_JOB_USER", "do-not-tell")
    monkeypatch.setenv("MASTER_ADDR", "node7")
    found = look(tmp_path, out=tmp_path / "doctor.json")
    assert found.facts["environment"]["MASTER_ADDR"] == "node7"
    written = (tmp_path / "doctor.json").read_text()
    assert "do-not-tell" not in written + capsys.readouterr().out
    assert json.loads(written) == {**found.facts, "problems": []}


@pytest.mark.parametrize("package", ["torch", "scipy"])
def test_a_package_that_cannot_be_imported_stops_work(package: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what Python does with it then: ModuleNotFoundError
    found = look(tmp_path)
    assert found.exit_code == 1
    assert f"problem: {package} cannot be imported" in capsys.readouterr().out


@pytest.mark.parametrize(("free", "code"), [(4 << 30, 0), (100 << 20, 1), (9 << 30, 0)])
def test_a_full_disk_is_named_and_stops_when_nothing_fits(free: int, code: int, tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")(10 << 30, (10 << 30) - free, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = look(tmp_path)
    assert found.exit_code == code
    assert any("GB are free" in problem.what for problem in found.problems) == (free < 5 << 30)


def test_a_folder_that_cannot_be_written_stops_work(tmp_path: Path, monkeypatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "disk_rates", refuse)
    found = look(tmp_path)
    assert found.exit_code == 1
    assert "Permission denied" in found.problems[-1].what


@pytest.mark.parametrize(
    ("build", "words"), [(None, "install a CUDA build of torch"), ("12.8", "look at CUDA_VISIBLE_DEVICES")]
)
def test_a_driver_that_torch_does_not_use_is_named(build: str | None, words: str, tmp_path: Path, monkeypatch) -> None:
    import torch

    monkeypatch.setattr(module, "nvidia_driver", lambda: "570.86.15")
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = look(tmp_path)
    assert any(words in problem.what for problem in found.problems)
    assert found.exit_code == 0  # a CPU trains, slowly


def test_store_and_run_are_described(tiny_store: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("verb: finetune\n")
    (tmp_path / "environment.json").write_text('{"prevox": "0.0.1", "packages": {"numpy": "1.26.0"}}')
    facts = look(tmp_path, store=tiny_store, run=tmp_path).facts
    assert facts["store"]["images"] == "6 of 3 subjects, 0 left out"
    assert facts["run"]["verb"] == "finetune"
    assert facts["run"]["newest checkpoint"] == "none"
    assert "was killed" in facts["run"]["finished"]
    assert "prevox 0.0.1 → " in facts["run"]["versions since its start"]
    (tmp_path / "summary.json").write_text('{"finished": fal')
    assert "damaged" in look(tmp_path, run=tmp_path).facts["run"]["summary.json"]


def test_a_store_that_is_none_is_a_problem(tmp_path: Path) -> None:
    found = look(tmp_path, store=tmp_path)
    assert found.exit_code == 1
    assert "without store.json" in found.problems[-1].what


def test_a_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="/no/such/folder"):
        look(Path("/no/such/folder"))


def test_limits_of_control_groups_of_both_versions(tmp_path: Path) -> None:
    new, old, free = (tmp_path / name for name in ("new", "old", "free"))
    for folder in (new, old / "memory", old / "cpu", free):
        folder.mkdir(parents=True)
    (new / "memory.max").write_text("8589934592\n")
    (new / "cpu.max").write_text("150000 100000\n")
    (old / "memory/memory.limit_in_bytes").write_text("4294967296\n")
    (old / "cpu/cpu.cfs_quota_us").write_text("200000\n")
    (old / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (free / "memory.max").write_text("max\n")
    (free / "cpu.max").write_text("max 100000\n")
    assert [(cgroup_memory(root), cgroup_cores(root)) for root in (new, old, free)] == [
        (8 << 30, 1.5), (4 << 30, 2.0), (None, None),
    ]  # fmt: skip


def test_the_file_system_of_a_folder_below_a_mount(monkeypatch) -> None:
    part = namedtuple("part", "mountpoint fstype")
    parts = [part("/", "ext4"), part("/data", "nfs4"), part("/data/fast", "xfs")]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: parts)
    assert file_system(Path("/data/fast/store")) == "xfs"
    assert file_system(Path("/data/faster")) == "nfs4"
    assert file_system(Path("/home")) == "ext4"
