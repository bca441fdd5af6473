"""Scans that cannot be used: each is named, with what was found, what was expected and what to do."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from prevox.data.store import Store
from tests.e2e.bad import AFFINE, SIDE, Shell, label, noise, save, says, scans, texts

pytestmark = pytest.mark.e2e

HTML = b"<!DOCTYPE html><html><head><title>Log in</title></head></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


def written(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def truncated(path: Path) -> None:
    whole = save(path, noise()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def without_size(path: Path) -> None:
    """A qform whose voxel size is 0; written by hand, for nibabel repairs what it writes."""
    image = nib.Nifti1Image(noise(), AFFINE)
    image.header.set_data_shape(SIDE)
    image.header["qform_code"], image.header["sform_code"] = 1, 0
    image.header["pixdim"][1:4] = 1.5, 0, 2
    image.header["vox_offset"] = 352
    path.write_bytes(gzip.compress(image.header.binaryblock + bytes(4) + noise().tobytes(order="F")))


def with_label(array: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save(path, noise())
        save(path.parents[1] / "labels" / path.name, array, affine)

    return write


def image_as_label(path: Path) -> None:
    save(path, noise())
    (path.parents[1] / "labels").mkdir(exist_ok=True)
    shutil.copy(path, path.parents[1] / "labels" / path.name)


moved = AFFINE + 4 * np.eye(4, k=3)
AGAIN = "Copy or export it again"
WHOLE = "expected a complete, uncorrupted file"
BROKEN = {  # what lies there: how it is made, and what must be said
    "truncated gzip": (truncated, ("end-of-stream", WHOLE, AGAIN)),
    "zero bytes": (written(b""), ("an empty file (0 bytes)", "expected an image", AGAIN)),
    "text": (written(b"patient 7, see other disk\n" * 9), ("a text file", WHOLE, "Copy or export the image again")),
    "web page": (written(HTML), ("a web page (HTML)", WHOLE, "download the file again")),
    "zipped web page": (written(gzip.compress(HTML)), ("a web page (HTML)", WHOLE, "download the file again")),
    "lfs pointer": (written(LFS), ("a Git LFS pointer", WHOLE, "`git lfs pull`")),
    "only NaN": (
        lambda path: save(path, np.full(SIDE, np.nan, np.float32)),
        ("no finite voxel", "expected numbers", "Export it again"),
    ),
    "time series": (
        lambda path: save(path, np.repeat(noise()[..., None], 200, -1)),
        ("200 volumes on a 4th axis", "expected a 3D image", "one 3D image for each volume with --volumes split"),
    ),
    "five axes": (
        lambda path: save(path, np.zeros((*SIDE, 2, 3), np.int16)),
        ("20×18×22×2×3", "expected 2 or 3 spatial axes", "Split time series"),
    ),
    "no voxel size": (without_size, ("1.5 × 0 × 2 mm", "expected sizes above 0", "pixdim")),
    "label of other shape": (
        with_label(label(shape=(20, 18, 23))),
        ("a label map on another grid: 20×18×23", "expected 20×18×22 as in", "Resample it to the image's grid"),
    ),
    "label elsewhere": (
        with_label(label(), moved),
        ("a label map on another grid: affine", "off by", "expected [-1.5 0 0 0;", "Repair its header"),
    ),
    "4D label": (
        with_label(np.zeros((*SIDE, 3), np.uint8)),
        ("a label map of 3 channels", "expected one channel", "Merge the channels"),
    ),
    "label with NaN": (
        with_label(np.where(label() > 0, np.nan, 0).astype(np.float32)),
        ("label values nan", "expected whole numbers from 0", "Threshold soft"),
    ),
    "negative label": (
        with_label(-label().astype(np.int16)),
        ("label values -1", "expected whole numbers from 0", "Threshold soft"),
    ),
    "image as label": (image_as_label, ("the same file as the image", "expected a label map", "take the file out")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_scan_costs_only_itself_and_says_why(what: str, shell: Shell, tmp_path: Path) -> None:
    make, parts = BROKEN[what]
    scans(tmp_path / "scans", 1)
    make(tmp_path / "scans" / "images" / "odd.nii.gz")
    text = shell("catalogue", tmp_path / "scans", "--out", tmp_path / "c.parquet", code=1)
    says(text, "left out: odd", "1 left out; all reasons:", "1 images in")
    (reason,) = texts(tmp_path / "c.failures.csv")
    says(reason, "odd: ", "odd.nii.gz", *parts)
    assert pd.read_parquet(tmp_path / "c.parquet")["image"].tolist() == ["case_0"]


def test_only_broken_scans_cannot_be_catalogued(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "odd.nii.gz").touch()
    text = shell("catalogue", tmp_path / "scans", "--out", tmp_path / "c.parquet", code=2)
    says(
        text, "none can be used", "odd.nii.gz: found an empty file", "expected at least one usable image", "c.failures"
    )


def other_kinds(folder: Path) -> None:
    for name in ("1.zip", "2.zip", "notes.txt"):
        (folder / name).write_bytes(b"x")


def broken_dicom(folder: Path) -> None:
    for name in ("1.dcm", "2.dcm", "notes.txt"):
        (folder / name).write_bytes(b"x")


def same_name_twice(folder: Path) -> None:
    save(folder / "a.nii.gz", noise())
    save(folder / "a.nii", noise(1))


FOLDERS = {
    "absent": (lambda folder: folder.rmdir(), ("found no such file or folder", "expected a folder of scans", "Check")),
    "empty": (lambda folder: None, ("found no image (no file at all)", "expected files ending in .nii", "Check the")),
    "of other files": (other_kinds, ("no image (2 × .zip, 1 × .txt)", "expected files ending in", "DICOM", "Check")),
    "of broken DICOM": (broken_dicom, ("2 images of which none can be used", "a broken DICOM file", "expected")),
    "with one id twice": (
        same_name_twice,
        ("two images with the id 'a'", "a.nii.gz", "expected a name of its own", "Re"),
    ),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_cannot_be_catalogued(what: str, shell: Shell, tmp_path: Path) -> None:
    make, parts = FOLDERS[what]
    (tmp_path / "scans").mkdir()
    make(tmp_path / "scans")
    says(shell("catalogue", tmp_path / "scans", "--out", tmp_path / "c.parquet", code=2), str(tmp_path), *parts)


def described(folder: Path, modality: dict[str, str]) -> None:
    """An MSD dataset of the scans in a plain folder, with one class."""
    names = sorted(path.name for path in (folder / "images").iterdir())
    training = [{"image": f"./images/{name}", "label": f"./labels/{name}"} for name in names]
    content = {"name": "X", "labels": {"0": "background", "1": "liver"}, "modality": modality, "training": training}
    (folder / "dataset.json").write_text(json.dumps(content))


def test_what_dataset_json_does_not_say(shell: Shell, tmp_path: Path) -> None:
    folder = scans(tmp_path / "scans", 3)
    save(folder / "labels" / "case_1.nii.gz", label(5))
    save(folder / "images" / "case_2.nii.gz", np.stack([noise(), noise(1)], -1))
    described(folder, {"0": "CT"})
    shell("catalogue", folder, "--out", tmp_path / "c.parquet", code=1)
    value, channels = texts(tmp_path / "c.failures.csv")
    says(
        value, "labels/case_1.nii.gz", "label values [5] without a name", "expected values out of {1: 'liver'}", "name"
    )
    says(
        channels, "images/case_2.nii.gz", "2 channel(s)", "expected 1, as dataset.json names them", "Correct `modality`"
    )
    series = {str(number): f"direction {number}" for number in range(20)}  # many channels are well where they are named
    save(folder / "images" / "case_0.nii.gz", np.stack([noise()] * 20, -1))
    described(folder, series)
    shell("catalogue", folder, "--out", tmp_path / "c.parquet", code=1)
    assert pd.read_parquet(tmp_path / "c.parquet")["channels"].tolist() == [20]


def test_what_is_odd_but_usable_is_told_with_advice(shell: Shell, tmp_path: Path) -> None:
    folder = scans(tmp_path / "scans", 1)
    save(folder / "images" / "flat.nii.gz", np.full(SIDE, 7, np.int16))
    save(folder / "images" / "mask.nii.gz", label(2))
    holes = noise().astype(np.float32)
    holes[3, 4, 5] = np.nan
    save(folder / "images" / "holes.nii.gz", holes)
    shear = AFFINE @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    save(folder / "images" / "tilted.nii.gz", noise(8), shear)
    save(folder / "labels" / "tilted.nii.gz", noise(9), shear)
    save(folder / "images" / "twin.nii.gz", noise(7))
    shutil.copy(folder / "labels" / "case_0.nii.gz", folder / "labels" / "twin.nii.gz")
    text = shell("catalogue", folder, "--out", tmp_path / "c.parquet")
    says(text, "constant: 1 image (flat): all voxels are equal", "Take them out")
    says(text, "nan: 1 image (holes): some voxels are NaN", "`prepare` leaves these images out", "background's value")
    says(text, "few_values: 1 image (mask): small whole numbers only", "labels/ beside images/")
    says(text, "sheared: 1 image (tilted): axes that are not at right angles", "Resample to right angles")
    says(text, "many_values: 1 image (tilted): a label map of many values", "not exchanged")
    says(text, "duplicate_label: 2 images (case_0, twin): label maps that are copies", "take the wrong one out")
    text = shell("prepare", "--catalogue", tmp_path / "c.parquet", "--out", tmp_path / "store", "--workers", 1, code=1)
    (reason,) = texts(tmp_path / "store" / "failures.csv")
    says(reason, "holes: ", "holes.nii.gz", "1 NaN and 0 infinite voxels", "expected finite voxels", "Repair the scan")
    assert sorted(Store(tmp_path / "store").index.index) == ["case_0", "flat", "mask", "tilted", "twin"]


def test_files_that_have_gone_since_the_catalogue(shell: Shell, tmp_path: Path) -> None:
    folder = scans(tmp_path / "my scans ü", 3)
    shell("catalogue", folder, "--out", tmp_path / "c.parquet")
    (folder / "images" / "case_1.nii.gz").unlink()
    words = ["prepare", "--catalogue", tmp_path / "c.parquet", "--workers", 1]
    says(shell(*words, "--out", tmp_path / "størage", code=1), "left out: case_1")
    (reason,) = texts(tmp_path / "størage" / "failures.csv")
    says(reason, "my scans ü/images/case_1.nii.gz", "found no such file", "expected an image", "Check the path")
    assert list(Store(tmp_path / "størage").index.index) == ["case_0", "case_2"]
    folder.rename(tmp_path / "moved")
    shell(*words, "--out", tmp_path / "other", code=1)
    for reason in texts(tmp_path / "other" / "failures.csv"):
        says(
            reason,
            "my scans ü does not exist",
            "expected the dataset where it was",
            "run `prevox catalogue` on its new",
        )


def test_hippocampus_quirks(real_data: Path, shell: Shell, tmp_path: Path) -> None:
    """The three faults of the Decathlon's hippocampus, as its own cases: no label, a foreign grid, another's label."""
    quirks, source = real_data / "formats" / "hippocampus_quirks", real_data / "Task04_Hippocampus"
    for part in ("images", "labels"):
        (tmp_path / "scans" / part).mkdir(parents=True)

    def put(part: str, case: str, file: Path) -> None:
        shutil.copy(file, tmp_path / "scans" / part / f"{case}.nii.gz")

    put("images", "118", quirks / "118_image_without_label.nii.gz")
    put("images", "281", source / "imagesTr" / "hippocampus_014.nii.gz")
    put("labels", "281", quirks / "281_label_wrong_grid_512x512x94.nii.gz")
    for part in ("images", "labels"):
        put(part, "011", source / f"{part}Tr" / "hippocampus_011.nii.gz")
    twin = nib.load(source / "imagesTr" / "hippocampus_011.nii.gz")  # 010's image is not at hand: another on its grid
    save(tmp_path / "scans" / "images" / "010.nii.gz", np.asarray(twin.dataobj)[::-1], twin.affine)
    put("labels", "010", quirks / "010_label_identical_to_011.nii.gz")
    put("images", "015", source / "imagesTr" / "hippocampus_015.nii.gz")
    put("labels", "015", quirks / "010_label_identical_to_011.nii.gz")
    small = ["--rules.field-of-view", None, "--rules.file-size", None]
    text = shell("catalogue", tmp_path / "scans", "--out", tmp_path / "c.parquet", *small, code=1)
    reasons = dict(zip(("015", "281"), texts(tmp_path / "c.failures.csv"), strict=True))
    says(
        reasons["281"],
        "labels/281.nii.gz",
        "a label map on another grid: 512×512×94",
        "expected 39×50×40 as in",
        "find",
    )
    says(
        reasons["015"], "labels/015.nii.gz", "a label map on another grid: 36×50×31", "as in", "find the file that belo"
    )
    rows = pd.read_parquet(tmp_path / "c.parquet").set_index("image")
    assert {name: list(flags) for name, flags in rows["flags"].items()} == {
        "010": ["duplicate_label"],
        "011": ["duplicate_label"],
        "118": ["no_label"],
    }
    says(
        text, "duplicate_label: 2 images (010, 011): label maps that are copies of each other", "take the wrong one out"
    )
    shell("prepare", "--catalogue", tmp_path / "c.parquet", "--out", tmp_path / "store", "--workers", 1)
    store = Store(tmp_path / "store")
    assert {image: store.has_label(image) for image in store.index.index} == {"010": True, "011": True, "118": False}
    # prepare looks by itself as well: files may have been exchanged since the catalogue
    put("labels", "011", quirks / "281_label_wrong_grid_512x512x94.nii.gz")
    words = ["--catalogue", tmp_path / "c.parquet", "--out", tmp_path / "again", "--workers", 1]
    shell("prepare", *words, code=1)
    (reason,) = texts(tmp_path / "again" / "failures.csv")
    says(reason, "011: ", "a label map on another grid: 512×512×94", "expected 36×50×31")
    # where labels are needed, an image without one is refused
    lone = tmp_path / "lone.nii.gz"
    shutil.copy(quirks / "118_image_without_label.nii.gz", lone)
    shell("catalogue", lone, "--out", tmp_path / "lone.parquet")
    shell("prepare", "--catalogue", tmp_path / "lone.parquet", "--out", tmp_path / "lone", "--workers", 1)
    words = ["--store", tmp_path / "lone", "--out", tmp_path / "run", "--encoder.size", "T", "--train.steps", 1]
    says(
        shell("finetune", *words, code=2),
        "no labelled image",
        "expected at least one",
        "Catalogue a layout with labels",
    )
