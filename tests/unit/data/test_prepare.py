import csv
import json
import platform
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation
from tests.unit.data.way_back import to_source

from prevox.config.data import CatalogueConfig, PrepareConfig
from prevox.data.catalogue import catalogue
from prevox.data.geometry import Grid, spacing_of
from prevox.data.group import read_attributes
from prevox.data.place import PrepareSettings, prepare_image
from prevox.data.prepare import prepare
from prevox.data.readers import read_image
from prevox.data.store import SCHEMA, Store
from prevox.errors import ConfigError, DataError, RunError

pytestmark = pytest.mark.unit

DEAD = f"{re.sub(r'[^0-9A-Za-z_]', '-', platform.node())[:40]}-{2**22 + 1}"  # beyond the kernel's largest process id
HIPPOCAMPUS = Path(__file__).parents[3].parent / "shared" / "data" / "Task04_Hippocampus"


def oblique(*spacing, seed=0):
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", rng.uniform(-20, 20, 3), degrees=True).as_matrix()
    affine[:3, :3] = turn[:, rng.permutation(3)] @ np.diag(spacing) @ np.diag(rng.choice([-1, 1], 3))
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def write_scans(folder, count=4, channels=1):
    """An MSD dataset with oblique, flipped and permuted grids, zero borders, and integer or float voxels."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    training = []
    for number in range(count):
        rng = np.random.default_rng(number)
        shape = tuple(rng.integers(9, 14, 3))
        image = np.zeros((*shape, channels), np.int16 if number % 2 == 0 else np.float32)
        image[2:-1, 1:-2, 3:-1] = rng.normal(300, 50, image[2:-1, 1:-2, 3:-1].shape) + 1000
        label = np.zeros(shape, np.uint8)
        label[4:7, 3:6, 4:6] = 1
        label[4:7, 6:8, 4:6] = 2
        affine = oblique(1.5, 1.0, 0.8, seed=number)
        squeezed = image[..., 0] if channels == 1 else image
        nib.save(nib.Nifti1Image(squeezed, affine), folder / f"imagesTr/case_{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / f"labelsTr/case_{number}.nii.gz")
        training.append({"image": f"./imagesTr/case_{number}.nii.gz", "label": f"./labelsTr/case_{number}.nii.gz"})
    names = {"0": "background", "1": "liver", "2": "tumour"}
    modality = {str(channel): "MRI" for channel in range(channels)}
    dataset = {"name": "Toy", "modality": modality, "labels": names, "numTraining": count, "training": training}
    (folder / "dataset.json").write_text(json.dumps({**dataset, "tensorImageSize": "3D", "numTest": 0, "test": []}))


def config(tmp_path, **settings):
    settings = {"spacing": "none", "workers": 1, "out": tmp_path / "store", **settings}
    return PrepareConfig.parse({"catalogue": tmp_path / "catalogue.parquet", **settings})


@pytest.fixture
def scans(tmp_path):
    write_scans(tmp_path / "scans")
    catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "catalogue.parquet"))
    return tmp_path


def whole(store, image):
    z, y, x = store.index.loc[image, "shape"]
    return ((0, z), (0, y), (0, x))


def grids(row):
    prepared = Grid(tuple(row["shape"]), np.reshape(row["affine"], (4, 4)))
    return prepared, Grid(tuple(row["source_shape"]), np.reshape(row["source_affine"], (4, 4)))


def one_hot(label, count):
    return np.stack([label == value for value in range(count)]).astype(np.float32)


def contents(folder):
    return {p.relative_to(folder): (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*")}


def edit(catalogue_file, column, value):
    """Change a cell of the catalogue's first row."""
    table = pd.read_parquet(catalogue_file)
    attributes = dict(table.attrs)
    table.at[0, column] = value
    table.attrs = attributes
    table.to_parquet(catalogue_file, index=False)


def voxels(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_source_voxel_is_in_the_store_and_labels_come_back(scans):
    result = prepare(config(scans))
    store = Store(scans / "store")
    assert (result.prepared, result.skipped, result.exit_code) == (4, 0, 0)
    assert list(store.index.index) == ["case_0", "case_1", "case_2", "case_3"]
    for image, row in store.index.iterrows():
        source = nib.load(scans / "scans" / row["paths"][0])
        data, label = source.get_fdata(), nib.load(scans / "scans" / row["label_path"]).get_fdata()
        stored = store.read(image, 0, whole(store, image)).result()[0]
        ((slope, intercept),) = store.slope_intercept(image)
        prepared, original = grids(row)
        # by world position: the voxel that lies where each source voxel lies, or nothing but zeros was cut
        index = np.argwhere(data != 0)
        places = nib.affines.apply_affine(np.linalg.inv(prepared.affine) @ source.affine, index)
        assert np.abs(places - np.rint(places)).max() < 1e-3
        found = stored[tuple(np.rint(places).astype(int).T)].astype(np.float64) * slope + intercept
        error = np.abs(found - data[tuple(index.T)]).max()
        (max_error,) = row["max_error"]
        assert error <= max_error
        assert max_error == 0 if int(image[-1]) % 2 == 0 else 0 < max_error < 0.02
        reference = store.read_label(image, 0, whole(store, image)).result()
        assert (to_source(one_hot(reference, 3), prepared, original) == label).all()
        rows = store.foreground(image)
        assert sorted(set(rows[:, 0])) == [1, 2]
        assert (reference[tuple(rows[:, 1:].T)] == rows[:, 0]).all()
        assert prepared.spacing == pytest.approx(tuple(row["spacing"]))


def test_statistics_are_of_the_prepared_voxels(scans):
    prepare(config(scans))
    store = Store(scans / "store")
    stored = store.read("case_1", 0, whole(store, "case_1")).result()[0]
    ((slope, intercept),) = store.slope_intercept("case_1")
    x = stored * slope + intercept
    (found,) = store.statistics("case_1")
    expected = {"mean": x.mean(), "std": x.std(), "minimum": x.min(), "maximum": x.max()}
    expected |= {"p005": np.percentile(x, 0.5), "p995": np.percentile(x, 99.5)}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0.05)
    assert found["mean_nonzero"] == pytest.approx(x[np.abs(x) > 1].mean(), abs=0.05)


def test_index_and_info_say_what_was_done(scans):
    prepare(config(scans, spacing=(2.0, 1.0, 1.25)))
    store = Store(scans / "store")
    assert store.info["schema"] == SCHEMA
    assert store.info["prepare"] == {"spacing": [2.0, 1.0, 1.25], "crop": "nonzero", "order": 3}
    assert store.info["channels"] == 1
    assert {"1": "liver", "2": "tumour"}.items() <= store.info["class_names"].items()
    row = store.row("case_0")
    assert row["collection"] == "Toy"
    assert list(row["label_values"]) == [1, 2]
    prepared, source = grids(row)
    for got, asked, count in zip(prepared.spacing, (2.0, 1.0, 1.25), prepared.shape, strict=True):
        assert abs(got - asked) * count <= asked / 2 + 1e-6  # half a voxel over the whole field of view
    with_settings = PrepareSettings.from_info(store.info)
    image = read_image(scans / "scans" / row["paths"][0])
    again = prepare_image(image.array_CIJK, image.header.affine, None, with_settings)
    assert again.grid.shape == prepared.shape
    assert again.array_CZYX.dtype == np.float32
    assert np.array_equal(again.grid.affine, prepared.affine)
    ((slope, intercept),) = store.slope_intercept("case_0")
    stored = store.read("case_0", 0, whole(store, "case_0")).result() * slope + intercept
    assert np.abs(stored - again.array_CZYX).max() <= row["max_error"][0] + 1e-3
    assert again.source.shape == source.shape


def test_median_spacing_is_taken_in_canonical_order(scans):
    prepare(config(scans, spacing="median"))
    info = Store(scans / "store").info
    spacings = []
    for number in range(4):
        affine = nib.load(scans / "scans" / f"imagesTr/case_{number}.nii.gz").affine
        codes = nib.aff2axcodes(affine)
        spacing = dict(zip(codes, spacing_of(affine), strict=True))
        spacings.append([next(spacing[c] for c in pair if c in spacing) for pair in ("SI", "AP", "RL")])
    assert info["spacing"] == pytest.approx(np.median(spacings, axis=0), abs=1e-5)
    assert info["prepare"]["spacing"] == "median"


def test_second_run_touches_nothing(scans):
    prepare(config(scans))
    before = contents(scans / "store")
    result = prepare(config(scans))
    assert (result.prepared, result.skipped) == (0, 4)
    assert contents(scans / "store") == before


def test_killed_run_goes_on_where_it_was(scans):
    prepare(config(scans))
    complete = voxels(scans / "store")
    images = scans / "store" / "images"
    kept = contents(images / "case_1.zarr")
    half = images / f".case_2.zarr.{DEAD}.tmp"  # as SIGKILL leaves it: half-written, no tables
    half.mkdir()
    (images / "case_2.zarr").rename(half / "case_2.zarr")
    (half / "case_2.zarr" / "0" / "zarr.json").unlink()
    (scans / "store" / "index.parquet").unlink()
    with pytest.raises(DataError, match="run it again"):
        Store(scans / "store")
    result = prepare(config(scans))
    assert (result.prepared, result.skipped) == (1, 3)
    assert voxels(scans / "store") == complete
    assert contents(images / "case_1.zarr") == kept


def test_changed_image_is_prepared_anew_and_changed_row_is_taken_over(scans):
    prepare(config(scans))
    file = scans / "scans" / "imagesTr" / "case_0.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(7), image.affine), file)
    (scans / "table.csv").write_text("case,person,age\n" + "".join(f"case_{n},p{n // 2},{40 + n}\n" for n in range(4)))
    join = {"table": scans / "table.csv", "group": "person"}
    catalogue(CatalogueConfig(paths=(scans / "scans",), out=scans / "catalogue.parquet", **join))
    result = prepare(config(scans))
    store = Store(scans / "store")
    assert (result.prepared, result.skipped) == (1, 3)
    assert store.index["subject"].tolist() == ["p0", "p0", "p1", "p1"]
    assert store.index["age"].tolist() == [40, 41, 42, 43]
    assert store.statistics("case_0")[0]["minimum"] == 7


def test_broken_file_is_quarantined_and_the_rest_is_prepared(scans):
    (scans / "scans" / "imagesTr" / "case_1.nii.gz").write_bytes(b"not a scan")
    result = prepare(config(scans, workers=2))
    assert (result.exit_code, result.prepared) == (1, 3)
    assert list(Store(scans / "store").index.index) == ["case_0", "case_2", "case_3"]
    with (scans / "store" / "failures.csv").open() as file:
        ((image, reason),) = list(csv.reader(file))[1:]
    assert image == "case_1"
    assert "case_1.nii.gz" in reason
    assert not list((scans / "store" / "images").glob(".*"))
    with pytest.raises(RunError, match=r"case_1.*--strict"):
        prepare(config(scans, strict=True))


def test_nan_is_quarantined_with_its_reason(scans):
    file = scans / "scans" / "imagesTr" / "case_3.nii.gz"
    image = nib.load(file)
    data = image.get_fdata().astype(np.float32)
    data[5, 5, 5] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), file)
    result = prepare(config(scans))
    assert result.failures[0][0] == "case_3"
    assert "1 NaN and 0 infinite" in result.failures[0][1]


def test_other_settings_need_another_store(scans):
    prepare(config(scans))
    with pytest.raises(ConfigError, match=r"--crop none.*--out"):
        prepare(config(scans, crop="none"))
    with pytest.raises(ConfigError, match="--spacing"):
        prepare(config(scans, spacing=(1.0, 1.0, 1.0)))
    with pytest.raises(ConfigError, match="three"):
        prepare(config(scans, spacing=(1.0, 1.0), out=scans / "other"))
    with pytest.raises(ConfigError, match="other files"):
        prepare(config(scans, out=scans / "scans"))


def test_full_disk_and_unwritable_folder_name_the_folder(scans, monkeypatch):
    from prevox.data import volume as module

    write = module.write_image_group

    def disk_is_full(path, *rest):
        if "case_2" in path.name:
            path.mkdir(parents=True)
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write [OS error 28: ENOSPC No space left on device]")
        write(path, *rest)

    monkeypatch.setattr(module, "write_image_group", disk_is_full)
    with pytest.raises(RunError, match=r"store: cannot be written .*No space left"):
        prepare(config(scans))
    assert list(Store(scans / "store").index.index) == ["case_0", "case_1"]
    assert not list((scans / "store" / "images").glob(".*"))
    (scans / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        prepare(config(scans, out=scans / "file" / "store"))


def test_four_channels_are_one_array(tmp_path):
    write_scans(tmp_path / "scans", count=2, channels=4)
    catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "catalogue.parquet"))
    prepare(config(tmp_path))
    store = Store(tmp_path / "store")
    assert store.info["channels"] == 4
    stored = store.read("case_0", 0, whole(store, "case_0")).result()
    source = np.asarray(nib.load(tmp_path / "scans/imagesTr/case_0.nii.gz").dataobj)
    assert stored.shape[0] == 4
    assert [np.sort(c[c != 0]).tolist() for c in stored] == [np.sort(c[c != 0]).tolist() for c in source.T]
    assert len(store.statistics("case_0")) == 4


@pytest.mark.parametrize(("shift", "fits"), [(0.01, True), (0.3, False)])  # mm; voxels are 0.8 mm and larger
def test_channels_must_lie_on_one_grid_to_a_tenth_of_a_voxel(scans, shift, fits):
    image = nib.load(scans / "scans/imagesTr/case_0.nii.gz")
    shifted = image.affine.copy()
    shifted[0, 3] += shift
    nib.save(nib.Nifti1Image(image.dataobj, shifted), scans / "scans/imagesTr/second.nii.gz")
    edit(scans / "catalogue.parquet", "paths", ["imagesTr/case_0.nii.gz", "imagesTr/second.nii.gz"])
    failures = prepare(config(scans)).failures
    if fits:
        assert failures == []
        assert Store(scans / "store").row("case_0")["channels"] == 2
    else:
        ((name, reason),) = failures
        assert name == "case_0"
        assert "second.nii.gz: found a channel on another grid" in reason


def test_image_ids_cannot_leave_the_store(scans):
    edit(scans / "catalogue.parquet", "image", "../../escaped")
    result = prepare(config(scans))
    assert "no file name" in result.failures[0][1]
    assert not list(scans.rglob("escaped*"))


def test_images_of_another_catalogue_are_left_out_of_the_index(scans, capsys):
    prepare(config(scans))
    edit(scans / "catalogue.parquet", "image", "renamed")  # the same scan under another id would leak across a split
    result = prepare(config(scans))
    assert (result.prepared, result.skipped) == (1, 3)
    assert sorted(Store(scans / "store").index.index) == ["case_1", "case_2", "case_3", "renamed"]
    said = " ".join(capsys.readouterr().out.split())
    assert "1 images in the store are not in this catalogue: left out of the index (case_0)" in said


def test_the_slower_of_two_runs_on_one_store_yields(scans, monkeypatch):
    prepare(config(scans, out=scans / "other"))
    remove = shutil.rmtree

    def overtaken(folder, **settings):
        remove(folder, **settings)
        if folder == scans / "store" / "images" / "case_0.zarr":  # the other run puts its own there just now
            shutil.copytree(scans / "other" / "images" / "case_0.zarr", folder)

    monkeypatch.setattr("prevox.data.volume.shutil.rmtree", overtaken)
    result = prepare(config(scans))
    assert result.failures == []
    assert len(Store(scans / "store").index) == 4
    assert not list((scans / "store" / "images").glob(".*"))


def test_crop_keeps_labels_and_all_zero_images_stay_whole():
    image = np.zeros((1, 6, 7, 8), np.float32)
    zero = prepare_image(image, np.eye(4), None, PrepareSettings())
    assert zero.grid.shape == (8, 7, 6)
    image[0, 2:4, 3, 4] = 1
    label = np.zeros((6, 7, 8), np.int32)
    label[5, 3, 4] = 3
    cut = prepare_image(image, np.eye(4), label, PrepareSettings())
    assert cut.crop == ((4, 5), (3, 4), (2, 6))
    assert cut.label_ZYX.tolist() == [[[0, 0, 0, 3]]]
    assert cut.label_ZYX.dtype == np.uint8
    assert prepare_image(image, np.eye(4), label, PrepareSettings(crop="none")).grid.shape == (8, 7, 6)


@pytest.mark.parametrize("values", [[0, 0.5], [0, -1], [0, np.nan]])
def test_labels_must_be_whole_numbers(values):
    label = np.resize(values, (3, 4, 5))
    with pytest.raises(DataError):
        prepare_image(np.ones((1, 3, 4, 5)), np.eye(4), label, PrepareSettings())


def test_whole_numbers_beyond_float32_are_exact(tmp_path):
    data = (np.arange(12 * 12 * 12).reshape(12, 12, 12) + 2**28 + 1).astype(np.int32)
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "scans" / "big.nii.gz")
    catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "catalogue.parquet"))
    prepare(config(tmp_path))
    store = Store(tmp_path / "store")
    stored = store.read("big", 0, whole(store, "big")).result()[0]
    ((slope, intercept),) = store.slope_intercept("big")
    assert slope == 1
    assert (stored.astype(np.int64) + int(intercept) == data.T).all()


def test_real_hippocampus(tmp_path):
    if not HIPPOCAMPUS.is_dir():
        pytest.skip("real scans are not beside the repository (../shared/data)")
    (tmp_path / "scans" / "images").mkdir(parents=True)
    (tmp_path / "scans" / "labels").mkdir()
    for file in sorted((HIPPOCAMPUS / "imagesTr").glob("*.nii.gz"))[:6]:
        (tmp_path / "scans" / "images" / file.name).write_bytes(file.read_bytes())
        (tmp_path / "scans" / "labels" / file.name).write_bytes((HIPPOCAMPUS / "labelsTr" / file.name).read_bytes())
    catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "catalogue.parquet"))
    assert prepare(config(tmp_path, spacing=(1.0, 1.0, 1.0))).prepared == 6
    store = Store(tmp_path / "store")
    for image, row in store.index.iterrows():
        label = np.asarray(nib.load(HIPPOCAMPUS / "labelsTr" / f"{image}.nii.gz").dataobj)
        reference = store.read_label(image, 0, whole(store, image)).result()
        assert (to_source(one_hot(reference, 3), *grids(row)) == label).all()
        assert read_attributes(tmp_path / "store" / "images" / f"{image}.zarr")["source_shape"] == list(label.shape)
