"""Rows are read once: a second run takes those that hold, a killed one goes on, and a case that dies costs itself."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tests.unit.data.test_catalogue import mask, noise, pairs, run, save

from prevox.config.data import CatalogueConfig
from prevox.data import catalogue_rows
from prevox.data.catalogue import _row_or_reason, catalogue
from prevox.data.layouts import recognise
from prevox.data.memory import _control_groups, _room, header_bytes, reading_bytes
from prevox.data.readers import Reading
from prevox.data.readers.dicom import write_series

pytestmark = pytest.mark.unit


def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the images that are decoded from now on, in this process."""
    seen: list[str] = []
    real = catalogue_rows.read_task

    def spy(task, row_or_reason):
        def note(entry):
            seen.append(entry.image)
            return row_or_reason(entry)

        return real(task, note)

    monkeypatch.setattr(catalogue_rows, "read_task", spy)
    return seen


def touch(path: Path) -> None:
    """Another time of change, an hour ago."""
    os.utime(path, ns=(time.time_ns() - 3600 * 10**9,) * 2)


def test_second_run_reads_what_is_new_or_changed(tmp_path, monkeypatch):
    root = pairs(tmp_path / "scans", 4)
    seen = readings(monkeypatch)
    first = run(tmp_path, root)
    assert sorted(seen) == [f"case_{n:02d}" for n in range(4)]
    whole = first.path.read_bytes()
    seen.clear()
    run(tmp_path, root)
    assert seen == []
    assert first.path.read_bytes() == whole  # a row from the journal is the row that was read
    touch(root / "images" / "case_00.nii.gz")  # the same bytes: hashed, not decoded
    save(root / "labels" / "case_01.nii.gz", mask(3))
    save(root / "images" / "new.nii.gz", noise(9))
    table = run(tmp_path, root).table.set_index("image")
    assert sorted(seen) == ["case_01", "new"]
    assert table.loc["case_01", "label_values"] == [3]
    assert len(table) == 5
    (root / "images" / "new.nii.gz").unlink()
    run(tmp_path, root)
    lines = (tmp_path / "out" / "c.rows.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)[0]["row"]["image"] for line in lines) == [f"case_{n:02d}" for n in range(4)]


def test_detached_voxels_are_read_again(tmp_path, monkeypatch):
    import SimpleITK as sitk

    (tmp_path / "scans").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(noise()), str(tmp_path / "scans" / "a.mhd"))
    seen = readings(monkeypatch)
    for _ in range(2):
        run(tmp_path, tmp_path / "scans", workers=1)
    assert seen == ["a", "a"]


def test_failures_are_tried_again(tmp_path):
    root = pairs(tmp_path / "scans", 2)
    image = root / "images" / "case_00.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[:200])
    assert [name for name, _ in run(tmp_path, root).failures] == ["case_00"]
    image.write_bytes(whole)
    assert run(tmp_path, root).failures == []


def test_torn_and_foreign_lines_are_passed_over(tmp_path, monkeypatch):
    root = pairs(tmp_path / "scans", 3)
    result = run(tmp_path, root)
    journal = tmp_path / "out" / "c.rows.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(lines[0] + "[1]\n" + lines[1][:50])
    seen = readings(monkeypatch)
    before = result.path.read_bytes()
    run(tmp_path, root)
    assert len(seen) == 2
    assert result.path.read_bytes() == before
    assert len(journal.read_text().splitlines()) == 3


def test_shards_leave_rows_for_the_call_that_writes_the_table(tmp_path, monkeypatch):
    root = pairs(tmp_path / "scans", 5)
    whole = run(tmp_path, root).path.read_bytes()
    for name in ("c.parquet", "c.rows.jsonl"):
        (tmp_path / "out" / name).unlink()
    parts = [run(tmp_path, root, shard=f"{n}/2") for n in (2, 1)]
    assert [list(part.table["image"]) for part in parts] == [["case_01", "case_03"], ["case_00", "case_02", "case_04"]]
    assert not (tmp_path / "out" / "c.parquet").exists()
    seen = readings(monkeypatch)
    assert run(tmp_path, root).path.read_bytes() == whole
    assert seen == []
    assert [path.name for path in (tmp_path / "out").glob("*.jsonl")] == ["c.rows.jsonl"]


def test_workers_and_this_process_find_the_same(tmp_path):
    root = pairs(tmp_path / "scans", 4)
    (root / "images" / "case_02.nii.gz").write_bytes(b"no image")
    here = run(tmp_path, root, workers=1)
    table = here.path.read_bytes()
    (tmp_path / "out" / "c.rows.jsonl").unlink()
    there = run(tmp_path, root, workers=2)
    assert there.path.read_bytes() == table
    assert there.failures == here.failures
    assert [name for name, _ in there.failures] == ["case_02"]


def test_killed_and_run_again(tmp_path):
    root = pairs(tmp_path / "scans", 150)
    out = tmp_path / "out" / "c.parquet"
    words = [sys.executable, "-m", "prevox", "catalogue", str(root), "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    journal = out.with_suffix(".rows.jsonl")
    for _ in range(30_000):
        if journal.is_file() and journal.read_bytes().count(b"\n") > 20:
            break
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    kept = journal.read_bytes().count(b"\n")
    again = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert f"{kept} of 150 images are as c.rows.jsonl says" in again.stdout
    fresh = catalogue(CatalogueConfig(paths=(root,), out=tmp_path / "fresh.parquet"))
    assert out.read_bytes() == fresh.path.read_bytes()


def test_memory_estimates(tmp_path):
    large = save(tmp_path / "large.nii", noise(shape=(200, 150, 100)))  # 6 MB of int16: 12 + 2 bytes for each voxel
    assert header_bytes(large, Reading()) == reading_bytes([large], Reading()) == 14 * 3_000_000
    series = save(tmp_path / "series.nii", noise(shape=(20, 30, 40, 9)))
    assert [header_bytes(series, reading) for reading in (Reading(), Reading(volume=4))] == [14 * 216_000, 14 * 24_000]
    colours = np.zeros((20, 30, 40), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii")
    assert header_bytes(tmp_path / "rgb.nii", Reading(colour="channels")) == 3 * 13 * 24_000
    other = tmp_path / "a.nrrd"
    other.write_bytes(bytes(1000))
    assert reading_bytes([other, tmp_path / "absent.nii"], Reading()) == 16_000
    (tmp_path / "stack").mkdir()
    for number in range(3):
        (tmp_path / "stack" / f"{number}.png").write_bytes(bytes(500))
    assert reading_bytes([tmp_path / "stack"], Reading()) == 16 * 1500
    series = tmp_path / "CT.series"  # as a list of slices, of which a case is known by its list
    write_series(series, [(other, None), (other, None)], "refuse", "0" * 64)
    assert reading_bytes([series], Reading()) == 16 * 2000


def test_control_groups(tmp_path):
    proc, root = tmp_path / "cgroup", tmp_path / "sys"
    job = root / "slurm" / "job_1"
    job.mkdir(parents=True)
    proc.write_text("0::/slurm/job_1\n")
    assert _control_groups(proc, root) == [job, root / "slurm", root]
    for name, text in (
        ("memory.max", "1000"),
        ("memory.current", "900"),
        ("memory.stat", "anon 1\ninactive_file 300\n"),
    ):
        (job / name).write_text(text)
    assert _room(job) == 400
    assert _room(root) is None
    (job / "memory.max").write_text("max")
    assert _room(job) is None
    proc.write_text("4:cpu,memory:/slurm/job_1\n")
    assert _control_groups(proc, root)[0] == root / "memory" / "slurm" / "job_1"


def crashes_or_hangs(entry):
    """As a decoder in compiled code may."""
    if entry.image == "case_01":
        os.kill(os.getpid(), signal.SIGSEGV)
    if entry.image == "case_02":
        time.sleep(600)
    return _row_or_reason(entry)


def test_a_file_that_crashes_or_hangs_its_decoder_costs_itself(tmp_path):
    entries = recognise(pairs(tmp_path / "scans", 4))
    config = CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "c.parquet", workers=2, timeout=20)
    rows, failures = catalogue_rows.read_rows(entries, config, crashes_or_hangs)
    assert [row["image"] for row in rows] == ["case_00", "case_03"]
    (crashed, how), (hung, why) = failures
    assert (crashed, hung) == ("case_01", "case_02")
    assert "died twice on it (SIGSEGV" in how
    assert "not finished after 20 s" in why
