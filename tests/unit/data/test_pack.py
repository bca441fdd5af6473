"""Packs of slices: the same as images prepared one by one, in few files, and as safe."""

import json
import os
import pickle
import platform
import re
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow

from prevox.config.data import CatalogueConfig, PrepareConfig
from prevox.data import pack as module
from prevox.data.catalogue import catalogue
from prevox.data.dataset import ViewLoader
from prevox.data.encode import Case, encode_case
from prevox.data.group import image_levels, label_levels, pyramid_factors
from prevox.data.pack import plan_packs
from prevox.data.place import PrepareSettings, prepare_image
from prevox.data.prepare import prepare
from prevox.data.readers import read_image
from prevox.data.store import Store
from prevox.errors import DataError
from prevox.task import ViewGroup

pytestmark = pytest.mark.unit

DEAD = f"{re.sub(r'[^0-9A-Za-z_]', '-', platform.node())[:40]}-{2**22 + 1}"  # beyond the kernel's largest process id


def picture(number: int, shape: tuple[int, int] = (9, 11), low: int = 1) -> np.ndarray:
    return np.random.default_rng(number).integers(low, 255, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(array).save(path)


def prepared(root: Path, **settings):
    """Catalogue and prepare root/scans; prepare's result."""
    catalogue(CatalogueConfig(paths=(root / "scans",), out=root / "c.parquet"))
    return prepare(PrepareConfig(catalogue=root / "c.parquet", out=root / "store", **{"workers": 1} | settings))


def packs(root: Path) -> dict[str, list[str]]:
    """Ids of the images in each pack."""
    found = sorted((root / "store" / "packs").iterdir())
    return {pack.name: [x["row"]["image"] for x in json.loads((pack / "images.json").read_text())] for pack in found}


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")}


def whole(store: Store, image: str, level: int = 0):
    return tuple((0, size) for size in store.shape(image, level))


@pytest.fixture
def six(tmp_path, monkeypatch):
    """Six pictures of one size in packs of at most four."""
    monkeypatch.setattr(module, "_COUNT", 4)
    for number in range(6):
        save(tmp_path / "scans" / f"p{number}.png", picture(number))
    prepared(tmp_path)
    return tmp_path


def test_packed_slices_read_as_if_each_had_its_own_group(tmp_path):
    """Sizes, labels, types and planes are mixed; the reference prepares each file by itself."""
    rng = np.random.default_rng(0)
    for number in range(8):
        shape = tuple(int(size) for size in rng.integers(5, 140, 2))
        array = picture(number, shape, low=0).astype(np.uint16) * (200 if number == 3 else 1)  # beyond int16
        array[:, :2] = 0  # for the crop
        save(tmp_path / "scans" / "images" / f"p{number}.png", array)
        if number % 2:
            save(tmp_path / "scans" / "labels" / f"p{number}.png", (rng.random(shape) > 0.6) * np.uint8(2 + number))
    sagittal = np.array([[0, 0, 3.0, 5], [0, 1.5, 0, 2], [0.4, 0, 0, 1], [0, 0, 0, 1]])
    floats = rng.normal(0, 1e5, (130, 60, 1)).astype(np.float32)
    (tmp_path / "other").mkdir()  # pictures among volumes would be taken for previews
    nib.save(nib.Nifti1Image(floats, sagittal), tmp_path / "other" / "slice.nii.gz")
    catalogue(CatalogueConfig(paths=(tmp_path / "scans", tmp_path / "other"), out=tmp_path / "c.parquet"))
    prepare(PrepareConfig(catalogue=tmp_path / "c.parquet", out=tmp_path / "store", workers=1))
    store = Store(tmp_path / "store")
    assert len(packs(tmp_path)) == 1
    assert not list((tmp_path / "store" / "images").iterdir())
    for image, row in store.index.iterrows():
        source = read_image(Path(row["root"]) / row["paths"][0])
        label = read_image(Path(row["root"]) / row["label_path"]).array_CIJK[0] if store.has_label(image) else None
        expected = prepare_image(source.array_CIJK, source.header.affine, label, PrepareSettings())
        assert store.shape(image) == expected.grid.shape
        assert np.array_equal(np.reshape(row["affine"], (4, 4)), expected.grid.affine)
        ((slope, intercept),) = store.slope_intercept(image)
        stored = store.read(image, 0, whole(store, image)).result()
        assert stored.dtype == np.int16
        assert np.abs(stored * slope + intercept - expected.array_CZYX).max() <= row["max_error"][0] * 1.001
        assert (row["max_error"][0] == 0) == (image != "slice")
        factors = pyramid_factors(expected.grid.shape, expected.grid.spacing)
        assert store.levels(image) == factors
        for level, voxels in enumerate(image_levels(stored, factors)):
            assert (store.read(image, level, whole(store, image, level)).result() == voxels).all()
        z, y, x = store.shape(image)
        part = store.read(image, 0, ((0, z), (1, y - 1), (2, x))).result()
        assert (part == stored[:, :, 1:-1, 2:]).all()
        with pytest.raises(DataError, match="no array"):
            store.read(image, len(factors), ((0, 1),) * 3)
        with pytest.raises(IndexError):  # a neighbour's padding is not this image
            store.read(image, 0, ((0, z), (0, y + 1), (0, x)))
        if label is None:
            assert len(store.foreground(image)) == 0
            with pytest.raises(DataError, match="prepared without a label"):
                store.read_label(image, 0, ((0, 1),) * 3)
            continue
        for level, labels in enumerate(label_levels(expected.label_ZYX, factors)):
            assert (store.read_label(image, level, whole(store, image, level)).result() == labels).all()
        rows = store.foreground(image)
        assert len(rows) == min(1000, int((expected.label_ZYX > 0).sum()))
        assert (expected.label_ZYX[tuple(rows[:, 1:].T)] == rows[:, 0]).all()
        assert list(row["label_values"]) == [2 + int(image[1])]
    again = pickle.loads(pickle.dumps(store))
    assert (again.read(image, 0, whole(store, image)).result() == stored).all()


def test_three_hundred_pictures_are_a_few_files(tmp_path):
    for number in range(300):
        save(tmp_path / "scans" / f"p{number:03d}.png", picture(number, (20 + number % 30, 40)))
    assert prepared(tmp_path).prepared == 300
    assert sum(path.is_file() for path in (tmp_path / "store").rglob("*")) < 20
    store = Store(tmp_path / "store")
    loader = ViewLoader(store, list(store.index.index), {"view": ViewGroup((16, 16))}, seed=0, batch=5)
    raw = next(loader.batches())
    for image, voxels_CDHW, (_, y, x) in zip(
        raw.images, raw.groups["view"].voxels_BCDHW, raw.groups["view"].boxes, strict=True
    ):
        source = np.asarray(Pillow.open(tmp_path / "scans" / f"{image}.png"))[::-1]  # y runs up
        assert (voxels_CDHW[0, 0] == source[slice(*y), slice(*x)]).all()


def test_packs_are_limited_in_bytes_and_number_and_gather_like_sizes(monkeypatch):
    def case(image: str, *shape: int) -> Case:
        return Case({"image": image}, "", shape)

    small = [case(f"s{n:04d}", 1, 64, 64) for n in range(2500)]
    assert [len(pack) for pack in plan_packs(small)] == [1000, 1000, 500]
    large = [case(f"l{n}", 1, 1024, 2048) for n in range(20)]  # 4 MiB of int16 each
    assert [len(pack) for pack in plan_packs(large)] == [16, 4]
    assert [len(pack) for pack in plan_packs([case("huge", 3, 9000, 9000), case("x", 3, 5, 5)])] == [1, 1]
    mixed = plan_packs([*large, *small[:10], *(case(f"c{n}", 3, 64, 64) for n in range(3))])
    assert [{c.slice_CYX[0] for c in pack} for pack in mixed][-1] == {3}
    assert all(len({c.slice_CYX[0] for c in pack}) == 1 for pack in mixed)
    for pack in mixed:
        _, y, x = np.max([c.slice_CYX for c in pack], axis=0)
        assert 2 * len(pack) * pack[0].slice_CYX[0] * y * x <= 64 * 2**20


def test_second_run_touches_nothing_and_a_killed_one_goes_on(six):
    assert sorted(map(len, packs(six).values())) == [2, 4]
    before = contents(six / "store")
    result = prepared(six)
    assert (result.prepared, result.skipped) == (0, 6)
    assert contents(six / "store") == before
    first = next(name for name, images in packs(six).items() if len(images) == 4)
    folder = six / "store" / "packs" / first
    voxels = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    half = folder.rename(folder.with_name(f".{first}.{DEAD}.tmp"))  # as SIGKILL leaves it: half-written, no tables
    (half / "images.json").unlink()
    (six / "store" / "index.parquet").unlink()
    result = prepared(six)
    assert (result.prepared, result.skipped) == (4, 2)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == voxels
    assert not half.exists()
    assert len(Store(six / "store").index) == 6


def test_changed_picture_goes_into_a_new_pack_and_replaced_packs_go(six):
    before = packs(six)
    save(six / "scans" / "p1.png", picture(77))
    result = prepared(six)
    assert (result.prepared, result.skipped) == (1, 5)
    assert {name: images for name, images in packs(six).items() if name not in before} != {}
    assert packs(six).items() >= before.items()  # the others of its pack are there, untouched
    store = Store(six / "store")
    assert (store.read("p1", 0, whole(store, "p1")).result()[0, 0] == picture(77)[::-1]).all()
    assert (store.read("p0", 0, whole(store, "p0")).result()[0, 0] == picture(0)[::-1]).all()
    for number in range(6):
        save(six / "scans" / f"p{number}.png", picture(100 + number))
    assert prepared(six).prepared == 6
    assert not set(packs(six)) & set(before)
    assert sorted(image for images in packs(six).values() for image in images) == [f"p{n}" for n in range(6)]


def test_changed_rows_are_taken_over_without_a_voxel(six):
    voxels = [contents(pack / "0") for pack in sorted((six / "store" / "packs").iterdir())]
    rows = "".join(f"p{n},s{n // 2},{n}\n" for n in range(6))
    (six / "scans" / "t.csv").write_text("name,Patient ID,age\n" + rows)
    assert prepared(six).skipped == 6
    index = Store(six / "store").index
    assert list(index["subject"]) == ["s0", "s0", "s1", "s1", "s2", "s2"]
    assert list(index["age"]) == list(range(6))
    assert [contents(pack / "0") for pack in sorted((six / "store" / "packs").iterdir())] == voxels


def encode_or_die(case, settings):
    """`encode_case`, but one picture kills the process that reads it."""
    if case.image == "p3":
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_case(case, settings)


def test_broken_and_killing_pictures_are_quarantined_alone(tmp_path, monkeypatch):
    for number in range(6):
        save(tmp_path / "scans" / f"p{number}.png", picture(number))
    catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "c.parquet"))
    whole_file = (tmp_path / "scans" / "p2.png").read_bytes()
    (tmp_path / "scans" / "p2.png").write_bytes(whole_file[:70])
    settings = {"catalogue": tmp_path / "c.parquet", "out": tmp_path / "store"}
    with monkeypatch.context() as patch:
        patch.setattr("prevox.data.prepare.encode_case", encode_or_die)
        result = prepare(PrepareConfig(**settings, workers=2))
    reasons = dict(result.failures)
    assert sorted(reasons) == ["p2", "p3"]
    assert "cannot be read" in reasons["p2"]
    assert "died twice" in reasons["p3"]
    assert list(packs(tmp_path).values()) == [["p0", "p1", "p4", "p5"]]
    assert list(Store(tmp_path / "store").index.index) == ["p0", "p1", "p4", "p5"]
    (tmp_path / "scans" / "p2.png").write_bytes(whole_file)
    assert prepare(PrepareConfig(**settings, workers=1)).prepared == 2
    assert len(Store(tmp_path / "store").index) == 6


def test_a_picture_that_is_broken_now_leaves_the_store(six):
    catalogue_with = six / "c.parquet"
    save(six / "scans" / "p1.png", picture(50))
    catalogue(CatalogueConfig(paths=(six / "scans",), out=catalogue_with))
    (six / "scans" / "p1.png").write_bytes(b"no picture")
    result = prepare(PrepareConfig(catalogue=catalogue_with, out=six / "store", workers=1))
    assert [image for image, _ in result.failures] == ["p1"]
    assert list(Store(six / "store").index.index) == ["p0", "p2", "p3", "p4", "p5"]  # not its older version


def test_pictures_of_another_catalogue_leave_the_index(six, capsys):
    (six / "scans" / "p3.png").unlink()
    assert prepared(six).skipped == 5
    assert "p3" not in Store(six / "store").index.index
    assert "1 images in the store are not in this catalogue: left out of the index (p3)" in capsys.readouterr().out


def test_slice_that_becomes_a_volume_and_back(tmp_path):
    (tmp_path / "scans").mkdir()
    file = tmp_path / "scans" / "a.nii.gz"
    flat = np.arange(1, 71, dtype=np.int16).reshape(10, 7, 1)
    for array in (flat, np.dstack([flat] * 3), flat, flat + np.int16(1)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), file)
        prepared(tmp_path)
        store = Store(tmp_path / "store")
        assert (store.read("a", 0, whole(store, "a")).result()[0] == array.T).all()


def test_slices_that_are_resampled_to_several_are_no_slices(tmp_path):
    (tmp_path / "scans").mkdir()
    array = np.random.default_rng(0).normal(0, 1, (10, 12, 1)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 4, 1])), tmp_path / "scans" / "thick.nii.gz")
    prepared(tmp_path, spacing=(2.0, 1.0, 1.0))
    store = Store(tmp_path / "store")
    assert store.shape("thick") == (2, 12, 10)
    assert not (tmp_path / "store" / "packs").exists()


def test_store_from_before_there_were_packs_goes_on(tmp_path, monkeypatch):
    for number in range(3):
        save(tmp_path / "scans" / f"p{number}.png", picture(number))
    with monkeypatch.context() as patch:
        patch.setattr("prevox.data.prepare.slice_shape", lambda *_: None)
        prepared(tmp_path)
    index = pd.read_parquet(tmp_path / "store" / "index.parquet").drop(columns=["pack", "pack_position"])
    index.to_parquet(tmp_path / "store" / "index.parquet")
    store = Store(tmp_path / "store")
    assert (store.read("p1", 0, whole(store, "p1")).result()[0, 0] == picture(1)[::-1]).all()
    save(tmp_path / "scans" / "p3.png", picture(3))
    result = prepared(tmp_path)
    assert (result.prepared, result.skipped) == (1, 3)
    store = Store(tmp_path / "store")
    for number in range(4):
        image = f"p{number}"
        assert (store.read(image, 0, whole(store, image)).result()[0, 0] == picture(number)[::-1]).all()


def test_the_slower_of_two_runs_yields(tmp_path, monkeypatch):
    for number in range(3):
        save(tmp_path / "scans" / f"p{number}.png", picture(number))
    prepared(tmp_path)
    shutil.copytree(tmp_path / "store" / "packs", tmp_path / "others")
    shutil.rmtree(tmp_path / "store")
    write = module._write

    def overtaken(path, images):
        write(path, images)
        shutil.copytree(tmp_path / "others", path.parent, dirs_exist_ok=True)

    monkeypatch.setattr(module, "_write", overtaken)
    assert prepared(tmp_path).failures == []
    assert len(Store(tmp_path / "store").index) == 3
    assert len(list((tmp_path / "store" / "packs").iterdir())) == 1


def test_missing_pack_is_named_and_written_again(six):
    shutil.rmtree(next((six / "store" / "packs").iterdir()))
    with pytest.raises(DataError, match=r"no folder for \d of 6 images"):
        Store(six / "store")
    prepared(six)
    assert len(Store(six / "store").index) == 6


def test_spacing_in_mm_warns_of_pictures(tmp_path, capsys):
    save(tmp_path / "scans" / "a.png", picture(0, (10, 20)))
    prepared(tmp_path, spacing=(1.0, 2.0, 2.0))
    assert "1 images say nothing of their geometry (no_geometry)" in capsys.readouterr().out
    assert Store(tmp_path / "store").shape("a") == (1, 5, 10)
