"""A disk that fills up: the message says so, and nothing that was done before is lost.

As root a small file system in memory is mounted. Elsewhere, what writes is made to fail as a full disk makes it fail.
"""

import errno
import os
import pkgutil
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from prevox.data.store import Store
from tests.e2e.bad import PRETRAIN, Shell, says

pytestmark = pytest.mark.e2e

FULL = "No space left on device"


class Disk:
    """A folder whose file system can be filled."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
        self.real = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0

    def fill(self, leave_kb: int, writer: str, calls: int) -> None:
        """Leave so much room; where no file system could be mounted, let `writer` fail after so many calls."""
        if self.real:
            free = os.statvfs(self.folder)
            with (self.folder / "filler").open("wb") as file:
                file.write(bytes(free.f_bavail * free.f_bsize - 1024 * leave_kb))
            return
        real: Callable[..., object] = pkgutil.resolve_name(writer)
        done = 0

        def write(*args: object, **settings: object) -> object:
            nonlocal done
            if done == calls:
                raise OSError(errno.ENOSPC, FULL)
            done += 1
            return real(*args, **settings)

        self.patch.setattr(writer, write)

    def free(self) -> None:
        self.patch.undo()
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        if self.real:
            subprocess.run(["umount", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(tmp_path / "disk", patch)
        yield disk
        disk.close()


def test_prepare_keeps_what_is_finished(made: Path, shell: Shell, disk: Disk) -> None:
    words = ["prepare", "--catalogue", made / "c.parquet", "--out", disk.folder / "store", "--workers", 1]
    disk.fill(250, "prevox.data.volume.write_image_group", 2)  # an image takes about 90 kB, the room for the index 68
    text = shell(*words, code=2)
    says(text, "disk/store: cannot be written", FULL, "What is finished stays", "Free space or give another --out")
    images = disk.folder / "store" / "images"
    finished = {path.name: path.stat().st_ino for path in images.iterdir()}
    assert 0 < len(finished) < 4
    usable = Store(disk.folder / "store")  # while the disk is full
    assert {f"{image}.zarr" for image in usable.index.index} == set(finished)
    for image in usable.index.index:
        assert usable.read(image, 0, [(0, size) for size in usable.shape(image)]).result().any()
    assert not [path for path in (disk.folder / "store").rglob("*") if path.name.startswith(".")]
    disk.free()
    says(shell(*words), f"4 images in {made / 'c.parquet'}, {len(finished)} already in")
    assert len(Store(disk.folder / "store").index) == 4
    assert finished.items() <= {path.name: path.stat().st_ino for path in images.iterdir()}.items()


def test_training_keeps_its_checkpoints(made: Path, shell: Shell, disk: Disk) -> None:
    run = disk.folder / "run"
    words = ["pretrain", "--store", made / "store", "--out", run, *PRETRAIN, "--train.steps", 2]
    words += ["--train.checkpoint-every", 1]
    disk.fill(13_000, "prevox.train.checkpoint.save_file", 2)  # a checkpoint takes about 9 MB, in two calls
    text = shell(*words, code=2)
    says(
        text,
        "step_00000002: the checkpoint could not be written",
        FULL,
        "Earlier checkpoints are untouched",
        "make room",
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000001"]
    disk.free()
    says(shell(*words, "--resume"), "pretrain: done")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000001", "step_00000002"]


def test_a_log_or_picture_that_cannot_be_written_is_no_traceback(made: Path, shell: Shell, disk: Disk) -> None:
    disk.fill(40, "prevox.train.tracking.Tracker.row", 0)
    words = ["--store", made / "store", "--out", disk.folder / "run", *PRETRAIN, "--train.steps", 1]
    text = shell("pretrain", *words, code=2)
    says(text, "disk/run: cannot be written", FULL, "checkpoints are untouched", "free space, and repeat", "--resume")


def test_predict_names_what_is_done(made: Path, shell: Shell, disk: Disk) -> None:
    masks = disk.folder / "masks"
    disk.fill(12, "prevox.inference.predict.write_mask", 1)  # predictions.csv, written twice, and one mask
    words = ["predict", "--run", made / "seg", "--images", made / "c.parquet", "--out", masks, "--device", "cpu"]
    text = shell(*words, code=2)
    says(text, "disk/masks", "cannot be written", FULL, "--out")
    named = pd.read_csv(masks / "predictions.csv")["file"].tolist()
    assert all((masks / name).stat().st_size > 0 for name in named)
    assert not [path for path in masks.iterdir() if path.name.startswith(".")]
    disk.free()
    shell(*words)
    assert len(list(masks.glob("*.nii.gz"))) == 4


@pytest.mark.parametrize("verb", ["catalogue", "evaluate", "report"])
def test_results_appear_whole_or_not_at_all(verb: str, made: Path, shell: Shell, disk: Disk, tmp_path: Path) -> None:
    run = shutil.copytree(made / "seg", tmp_path / "seg")
    out = {"catalogue": "c.parquet", "evaluate": "scores", "report": "r.html"}[verb]
    words = {
        "catalogue": ["catalogue", made / "scans"],
        "evaluate": ["evaluate", "--predictions", run, "--references", made / "c.parquet", "--workers", 1],
        "report": ["report", "--runs", run],
    }[verb] + ["--out", disk.folder / out]
    shell(*words)
    before = {path: path.read_bytes() for path in disk.folder.rglob("*") if path.is_file()}
    disk.fill(4, "pathlib.Path.replace", 0)
    says(shell(*words, code=2), "cannot be written", FULL, "Choose another --out")
    assert {path: path.read_bytes() for path in before} == before
    assert not [path for path in disk.folder.rglob(".*") if path.is_file()]
