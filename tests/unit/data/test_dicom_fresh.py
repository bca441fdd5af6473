"""A second catalogue of DICOM decodes what is new or changed only, and tasks of a job array share lists and salt."""

import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.unit.data.dicom_files import dataset, save, write_slices
from tests.unit.data.test_catalogue_rows import readings, touch
from tests.unit.data.test_dicom_catalogue import noise, run, series

from prevox.config.data import DicomConfig
from prevox.data import pseudonyms
from prevox.data.catalogue import read_catalogue
from prevox.data.pseudonyms import read_salt
from prevox.errors import RunError

pytestmark = pytest.mark.unit


def export(root: Path, count: int = 3) -> Path:
    for number in range(count):
        series(root / f"{number}", number, PatientID=f"p{number}", StudyInstanceUID=f"1.{number}")
    return root


def again(tmp_path: Path, root: Path, seen: list[str], **settings) -> tuple[list[str], pd.DataFrame]:
    """What is decoded by another call, and its table."""
    seen.clear()
    table = run(tmp_path, root, workers=1, **settings).table
    return list(seen), table


def test_nothing_that_is_unchanged_is_decoded(tmp_path, monkeypatch):
    root, seen = export(tmp_path / "export"), readings(monkeypatch)
    first = run(tmp_path, root, workers=1)
    assert sorted(seen) == sorted(first.table["image"])
    whole = first.path.read_bytes()
    decoded, _ = again(tmp_path, root, seen)
    assert decoded == []
    assert first.path.read_bytes() == whole


def test_a_slice_that_is_changed_added_or_removed_is_noticed(tmp_path, monkeypatch):
    root, seen = export(tmp_path / "export"), readings(monkeypatch)
    before = run(tmp_path, root, workers=1).table.set_index("image")
    of = dict(zip(("0", "1", "2"), before.index, strict=True))  # in order of their folders

    # another file of the same name and size takes a slice's place
    path = root / "0" / "IM0004"
    voxels, size = noise(0), path.stat().st_size
    tags = {"SeriesInstanceUID": "1.2.3.0", "PatientID": "p0", "StudyInstanceUID": "1.0", "InstanceNumber": 5}
    other = dataset(voxels[:, :, 4] + 1, ImagePositionPatient=[0.0, 0.0, 12.0], **tags)
    save(tmp_path / "other", other)
    (tmp_path / "other").replace(path)
    assert path.stat().st_size == size
    decoded, table = again(tmp_path, root, seen)
    assert decoded == [of["0"]]
    found = table.set_index("image")
    assert found.loc[of["0"], "mean"] == pytest.approx(voxels.mean() + 1 / 9)
    assert (found["hash"] != before["hash"]).tolist() == [True, False, False]

    tags = {"SeriesInstanceUID": "1.2.3.1", "PatientID": "p1", "StudyInstanceUID": "1.1"}
    save(root / "1" / "more", dataset(voxels[:, :, 0], ImagePositionPatient=[0.0, 0.0, 27.0], **tags))
    (root / "2" / "IM0008").unlink()
    decoded, table = again(tmp_path, root, seen)
    assert sorted(decoded) == sorted([of["1"], of["2"]])
    assert table.set_index("image")["shape_k"].to_dict() == {of["0"]: 9, of["1"]: 10, of["2"]: 8}
    assert again(tmp_path, root, seen)[0] == []


def test_a_touched_series_is_hashed_and_not_decoded(tmp_path, monkeypatch):
    root, seen = export(tmp_path / "export"), readings(monkeypatch)
    whole = run(tmp_path, root, workers=1).path.read_bytes()
    touch(root / "1" / "IM0003")
    hashed = []
    real = pseudonyms.hmac.new
    monkeypatch.setattr(pseudonyms.hmac, "new", lambda *args, **names: hashed.append(names) or real(*args, **names))
    decoded, _ = again(tmp_path, root, seen)
    assert decoded == []
    assert hashed.count({"digestmod": "sha256"}) == 9  # the files of one series
    assert (tmp_path / "out" / "c.parquet").read_bytes() == whole


def test_another_choice_about_tilt_is_another_reading(tmp_path, monkeypatch):
    write_slices(tmp_path / "in", noise(1), (0.0, -1.2, 3.0))
    write_slices(tmp_path / "in", noise(2), SeriesInstanceUID="1.2.3.9", prefix="straight")
    seen = readings(monkeypatch)
    assert len(run(tmp_path, tmp_path / "in", workers=1).table) == 1
    decoded, table = again(tmp_path, tmp_path / "in", seen, dicom=DicomConfig(tilt="resample"))
    assert len(decoded) == len(table) == 2


def test_moved_and_renamed_files_are_no_new_image_and_other_bytes_are(tmp_path):
    root = export(tmp_path / "export")
    before = run(tmp_path, root, workers=1).table
    moved = root.rename(tmp_path / "elsewhere")
    for number, path in enumerate(sorted((moved / "0").iterdir(), reverse=True)):
        path.rename(moved / "0" / f"{number}.dcm")  # in reverse order
    shutil.move(moved / "1" / "IM0000", moved / "IM0000")
    after = run(tmp_path, moved, workers=1).table
    assert dict(zip(after["image"], after["hash"], strict=True)) == dict(
        zip(before["image"], before["hash"], strict=True)
    )


def test_hashes_of_contents_need_the_salt(tmp_path):
    """Who has a scan without its names could else try names until the file has the hash."""
    root = export(tmp_path / "export", 1)
    one, other = run(tmp_path, root, workers=1).table, run(tmp_path, root, out="other", workers=1).table
    assert set(one["hash"]).isdisjoint(other["hash"])
    same = run(tmp_path, root, out="same", workers=1, dicom=DicomConfig(salt=tmp_path / "out" / "c.salt")).table
    assert list(same["hash"]) == list(one["hash"])


def test_lists_that_say_the_same_stay_and_nothing_else_does(tmp_path):
    root = export(tmp_path / "export")
    run(tmp_path, root, workers=1)
    folder = tmp_path / "out" / "c.series"
    lists = {path: path.stat().st_mtime_ns for path in folder.rglob("*.series") if path.is_file()}
    assert len(lists) == 3
    stale = next(iter(lists)).with_name(".x.series.gone-1.tmp")  # of a task that was killed a week ago
    stale.touch()
    os.utime(stale, (time.time() - 7 * 86400,) * 2)
    (root / "2" / "IM0008").unlink()
    run(tmp_path, root, workers=1)
    found = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert found.keys() == lists.keys()
    assert sum(found[path] == lists[path] for path in lists) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}


def test_shards_leave_rows_for_the_call_that_writes_the_table(tmp_path, monkeypatch):
    root = export(tmp_path / "export", 5)
    whole = run(tmp_path, root, workers=1).path.read_bytes()
    for name in ("c.parquet", "c.rows.jsonl"):
        (tmp_path / "out" / name).unlink()
    seen = readings(monkeypatch)
    parts = [run(tmp_path, root, shard=f"{n}/2", workers=1).table for n in (2, 1)]
    assert [len(part) for part in parts] == [2, 3]
    assert len(seen) == len(set(seen)) == 5
    decoded, _ = again(tmp_path, root, seen)
    assert decoded == []
    assert (tmp_path / "out" / "c.parquet").read_bytes() == whole


def test_shards_at_once_agree_on_salt_and_lists(tmp_path):
    root, out = export(tmp_path / "export", 5), tmp_path / "out" / "c.parquet"
    words = [sys.executable, "-m", "prevox", "catalogue", str(root), "--out", str(out), "--workers", "1"]
    tasks = [
        subprocess.Popen([*words, "--shard", f"{n}/3"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for n in (1, 2, 3)
    ]
    for task in tasks:
        said, _ = task.communicate(timeout=300)
        assert task.returncode == 0, said
    assert not [path for path in out.parent.rglob("*") if path.name.startswith(".")]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "5 of 5 images are as c.rows.jsonl says" in result.stdout
    alone = run(tmp_path / "alone", root, workers=1, dicom=DicomConfig(salt=out.with_suffix(".salt"))).table
    pd.testing.assert_frame_equal(read_catalogue(out).drop(columns="root"), alone.drop(columns="root"))


def test_a_salt_that_many_draw_at_once_is_one(tmp_path):
    for number in range(30):
        path, ready = tmp_path / f"{number}.salt", threading.Barrier(8)

        def draw(_: int, path: Path = path, ready: threading.Barrier = ready) -> bytes:
            ready.wait()
            return read_salt(path)

        with ThreadPoolExecutor(8) as pool:
            salts = set(pool.map(draw, range(8)))
        assert salts == {path.read_bytes().strip()}
        assert len(salts.pop()) == 64
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_salt_is_waited_for_and_not_for_ever(tmp_path, monkeypatch):
    path = tmp_path / "a.salt"
    path.touch()
    writer = threading.Timer(0.3, lambda: path.write_text("secret\n"))
    writer.start()
    assert read_salt(path) == b"secret"
    writer.join()
    monkeypatch.setattr(pseudonyms, "_WAIT", 0.2)
    path.write_text("")  # its writer was killed
    with pytest.raises(RunError, match="the salt is empty"):
        read_salt(path)


def test_what_others_could_read_is_private_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_slices(tmp_path / "in", np.random.default_rng(0).integers(0, 9, (12, 10, 9)).astype(np.int16))
    run(tmp_path, tmp_path / "in", workers=1)
    salt, series = tmp_path / "out" / "c.salt", tmp_path / "out" / "c.series"
    assert "others could use" not in capsys.readouterr().out
    found = [salt, series, *series.rglob("*")]
    assert len(found) == 4
    for path in found:
        path.chmod(0o755 if path.is_dir() else 0o644)
    run(tmp_path, tmp_path / "in", workers=1)
    assert {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_file()} == {0o600}
    assert "others could use this salt" in " ".join(capsys.readouterr().out.split())
