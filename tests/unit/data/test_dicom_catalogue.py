import os
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tests.unit.data.dicom_files import dataset, save, write_slices

from prevox.config.data import CatalogueConfig, DicomConfig, PrepareConfig
from prevox.data.catalogue import CatalogueResult, catalogue, read_catalogue
from prevox.data.layouts import recognise
from prevox.data.prepare import prepare
from prevox.data.store import Store
from prevox.errors import DataError, RunError

pytestmark = pytest.mark.unit


def noise(seed: int = 0, shape=(12, 10, 9)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-500, 500, shape).astype(np.int16)


def run(tmp_path: Path, *paths: Path, out: str = "c", **settings) -> CatalogueResult:
    return catalogue(CatalogueConfig(paths=paths, out=tmp_path / "out" / f"{out}.parquet", **settings))


def series(folder: Path, seed: int, **tags) -> np.ndarray:
    voxels = noise(seed)
    write_slices(folder, voxels, **({"SeriesInstanceUID": f"1.2.3.{seed}"} | tags))
    return voxels


def tree(root: Path) -> Path:
    """Two patients, three studies, four series, of which one misses a slice; a plan, a broken file, a text."""
    series(root / "a", 1, PatientID="one", StudyInstanceUID="1.1", Modality="CT")
    series(root / "b", 2, PatientID="one", StudyInstanceUID="1.2", Modality="PT")
    series(root / "b", 3, PatientID="two", StudyInstanceUID="1.3", prefix="other")
    series(root / "c", 4, PatientID="two", StudyInstanceUID="1.3")
    (root / "c" / "IM0004").unlink()
    save(root / "c" / "plan", dataset(noise()[:, :, 0], "1.2.840.10008.5.1.4.1.1.481.5"))
    (root / "c" / "broken.dcm").write_bytes(b"\0" * 300)
    (root / "c" / "notes.txt").write_text("nothing")
    return root


def test_a_tree_becomes_rows_under_hashed_ids(tmp_path, capsys):
    result = run(tmp_path, tree(tmp_path / "export"))
    table, printed = read_catalogue(result.path), capsys.readouterr().out
    # 9 + 9 + 9 + 8 slices and the broken file, which counts as a series
    assert "36 of 38 files are images, of 5 series in 5 parts; no images: 1 × RT Plan; no DICOM: 1" in printed
    assert (len(table), result.exit_code) == (3, 1)
    assert table["subject"].nunique() == 2
    assert table["session"].nunique() == 3
    assert table["image"].str.fullmatch("[0-9a-f]{16}").all()
    assert sorted(table["modality"]) == ["CT", "CT", "PT"]
    assert set(table["layout"]) == {"dicom"}
    assert table["collection"].str.fullmatch("dicom-[0-9a-f]{6}").all()
    assert table["hash"].nunique() == 3
    failed = pd.read_csv(result.path.with_name("c.failures.csv"))
    broken, missing = sorted(failed["reason"], key=lambda reason: reason.split("found ")[1])
    assert "a broken DICOM file" in broken
    assert "missing slices" in missing
    assert not set(failed["image"]) & set(table["image"])


def test_salt_and_lists_are_the_owners_alone(tmp_path):
    run(tmp_path, tree(tmp_path / "export"))
    assert stat.S_IMODE((tmp_path / "out" / "c.salt").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "out" / "c.series").stat().st_mode) == 0o700
    lists = [path for path in (tmp_path / "out" / "c.series").rglob("*") if path.is_file()]
    assert len(lists) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in lists} == {0o600}


def test_ids_depend_on_the_salt_and_nothing_else(tmp_path):
    root = tree(tmp_path / "export")
    first = run(tmp_path, root).table
    again = run(tmp_path, root).table
    pd.testing.assert_frame_equal(first, again)
    other = run(tmp_path, root, out="other").table
    assert not set(first["image"]) & set(other["image"])
    assert not set(first["subject"]) & set(other["subject"])
    given = run(tmp_path, root, out="given", dicom=DicomConfig(salt=tmp_path / "out" / "c.salt")).table
    assert list(given["image"]) == list(first["image"])
    (tmp_path / "out" / "c.salt").write_text("\n")
    with pytest.raises(RunError, match="the salt is empty"):
        run(tmp_path, root)


def test_lists_of_images_that_are_gone_go_too(tmp_path):
    root = tree(tmp_path / "export")
    run(tmp_path, root)
    for path in (root / "a").iterdir():
        path.unlink()
    table = run(tmp_path, root).table
    assert len(table) == 2
    assert len(list((tmp_path / "out" / "c.series").rglob("*.series"))) == 4


def test_identifiers_are_readable_on_request_and_lead_nowhere(tmp_path):
    series(tmp_path / "export", 1, PatientID="../../one", StudyInstanceUID="1.1")
    (row,) = run(tmp_path, tmp_path / "export", dicom=DicomConfig(identifiers=True)).table.to_dict("records")
    assert (row["image"], row["subject"], row["session"], row["collection"]) == ("1.2.3.1", "one", "1.1", "export")


def test_folders_named_in_latin_1_are_read(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/export/M\xfcller"))
    series(folder, 1, PatientID=None, StudyInstanceUID=None, SeriesInstanceUID=None)  # the folder tells series apart
    (row,) = run(tmp_path, tmp_path / "export").table.to_dict("records")
    assert "ller" not in str(row)


def test_without_patient_the_study_is_the_subject_and_the_series_after_it(tmp_path):
    for number, study in enumerate(("1.1", "1.1", "1.2", None), 1):
        series(tmp_path / "export" / str(number), number, PatientID=None, StudyInstanceUID=study)
    table = run(tmp_path, tmp_path / "export").table
    assert table["subject"].nunique() == 3
    assert table["session"].isna().sum() == 1


def test_a_patient_in_two_trees_is_one_subject(tmp_path):
    series(tmp_path / "one" / "x", 1)
    series(tmp_path / "two" / "x", 2)
    table = run(tmp_path, tmp_path / "one", tmp_path / "two").table
    assert table["collection"].nunique() == 2
    assert table["subject"].nunique() == 1


def test_one_file_is_enough_if_it_is_dicom(tmp_path):
    write_slices(tmp_path / "in", noise(shape=(12, 10, 1)))
    assert len(run(tmp_path, tmp_path / "in" / "IM0000").table) == 1
    (tmp_path / "in" / "text").write_text("no image")
    with pytest.raises(DataError, match="a file of unknown kind"):
        run(tmp_path, tmp_path / "in" / "text")


def test_fewer_slices_than_wanted_are_left_out(tmp_path):
    series(tmp_path / "in", 1)
    save(tmp_path / "in" / "single", dataset(noise()[:, :, 0], SeriesInstanceUID="1.2.3.9"))
    save(tmp_path / "in" / "colour", dataset(noise()[:, :, 0], SeriesInstanceUID="1.2.3.8", SamplesPerPixel=3))
    assert len(run(tmp_path, tmp_path / "in").table) == 2
    result = run(tmp_path, tmp_path / "in", dicom=DicomConfig(slices=3))
    assert list(result.table["shape_k"]) == [9]
    few, colour = sorted((reason for _, reason in result.failures), key=lambda reason: "colour" in reason)
    assert "found 1 slice; expected at least 3, as --dicom.slices says" in few
    assert "colour pixels" in colour


def nifti(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(noise(seed), np.eye(4)), path)


def test_a_stray_dicom_file_hides_no_nifti(tmp_path, capsys):
    for number in range(3):
        nifti(tmp_path / "scans" / f"case_{number}.nii.gz", number)
    save(tmp_path / "scans" / "stray.dcm", dataset(noise()[:, :, 0], PixelSpacing=None))
    result = run(tmp_path, tmp_path / "scans")
    assert list(result.table["image"]) == ["case_0", "case_1", "case_2"]
    assert len(result.failures) == 1
    assert "3 images of other kinds beside DICOM" in capsys.readouterr().out


def test_a_dataset_json_speaks_for_its_folder(tmp_path):
    nifti(tmp_path / "scans" / "imagesTr" / "a_0000.nii.gz", 1)
    (tmp_path / "scans" / "dataset.json").write_text('{"channel_names": {"0": "CT"}, "labels": {}}')
    series(tmp_path / "scans" / "source", 1)
    assert list(run(tmp_path, tmp_path / "scans").table["layout"]) == ["nnunet"]


def test_a_stray_nifti_hides_no_dicom_and_previews_are_none(tmp_path, capsys):
    from PIL import Image

    series(tmp_path / "scans", 1)
    Image.new("L", (4, 4)).save(tmp_path / "scans" / "preview.png")
    assert list(run(tmp_path, tmp_path / "scans").table["layout"]) == ["dicom"]
    assert "1 PNG, JPEG or TIFF files beside DICOM are left out" in capsys.readouterr().out
    nifti(tmp_path / "scans" / "a.nii", 1)
    assert sorted(run(tmp_path, tmp_path / "scans").table["layout"]) == ["dicom", "folder"]


def test_nothing_but_other_objects_is_an_error_that_counts_them(tmp_path):
    save(tmp_path / "in" / "plan", dataset(noise()[:, :, 0], "1.2.840.10008.5.1.4.1.1.481.5"))
    with pytest.raises(DataError, match="DICOM: found no image, but 1 × RT Plan") as error:
        run(tmp_path, tmp_path / "in")
    assert str(tmp_path) not in str(error.value)


def test_where_no_catalogue_is_made_dicom_is_not_looked_for(tmp_path):
    series(tmp_path / "in", 1)
    with pytest.raises(DataError, match="DICOM must be catalogued first"):
        recognise(tmp_path / "in")


def test_lists_are_no_images_for_others(tmp_path):
    run(tmp_path, tree(tmp_path / "export"))
    nifti(tmp_path / "out" / "a.nii", 1)
    assert [entry.image for entry in recognise(tmp_path / "out")] == ["a"]


def test_prepared_voxels_are_the_series(tmp_path):
    voxels = series(tmp_path / "in", 5, RescaleSlope=1, RescaleIntercept=-1024)
    result = run(tmp_path, tmp_path / "in")
    prepare(PrepareConfig(catalogue=result.path, out=tmp_path / "store", workers=1, crop="none"))
    store = Store(tmp_path / "store")
    index = pd.read_parquet(tmp_path / "store" / "index.parquet")
    (image,) = index["image"]
    # columns run to the left, rows to the back, slices upwards; canonical order is S, A, R
    expected = voxels.transpose(2, 0, 1)[:, ::-1, ::-1].astype(float) - 1024
    ((slope, intercept),) = store.slope_intercept(image)
    stored = store.read(image, 0, tuple((0, side) for side in expected.shape)).result()
    np.testing.assert_array_equal(stored[0] * slope + intercept, expected)
    assert index["source_bytes"].iloc[0] == sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    again = prepare(PrepareConfig(catalogue=result.path, out=tmp_path / "store", workers=1, crop="none"))
    assert (again.prepared, again.skipped) == (0, 1)
