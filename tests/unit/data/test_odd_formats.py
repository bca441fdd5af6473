"""Formats beside NIfTI and NRRD, headers that cannot be true, and choices for 4D, colour and complex files."""

import gzip
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow

from prevox.config.data import CatalogueConfig, PrepareConfig
from prevox.config.runs import EvaluateConfig
from prevox.data.catalogue import catalogue
from prevox.data.prepare import prepare
from prevox.data.readers import Reading, files_of, read_header, read_image, size, write_mask
from prevox.data.readers import nib as nib_reader
from prevox.data.store import Store
from prevox.errors import DataError
from prevox.evaluation.evaluate import evaluate
from prevox.inference.cases import find_cases

pytestmark = pytest.mark.unit

ARRAY = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
AFFINE = np.array([[0, 0, 4.0, 7], [2.0, 0, 0, -8], [0, 3.0, 0, 9], [0, 0, 0, 1]])


def nifti(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0]))
    image.set_sform(image.affine, 1)
    nib.save(image, path)
    return path


def prepared(store: Store, image: str) -> np.ndarray:
    """All voxels of an image in its own units."""
    box = tuple((0, length) for length in store.shape(image))
    slope, intercept = store.slope_intercept(image)[0]
    return (store.read(image, 0, box).result() * slope + intercept).round().astype(int).ravel()


@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
def test_mgh_and_its_mask(tmp_path, suffix):
    nib.save(nib.MGHImage(ARRAY, AFFINE), tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(image.array_CIJK[0], ARRAY)
    np.testing.assert_allclose(image.header.affine, AFFINE, atol=1e-5)
    assert (image.header.dtype, image.header.flags) == ("int16", ())
    write_mask(tmp_path / f"m{suffix}", ARRAY.astype(np.uint16), image.header)
    mask = nib.load(tmp_path / f"m{suffix}")
    np.testing.assert_array_equal(mask.get_fdata(), ARRAY)
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)


def test_mgh_without_voxels_is_refused(tmp_path):
    nib.save(nib.MGHImage(ARRAY, AFFINE), tmp_path / "a.mgh")
    content = bytearray((tmp_path / "a.mgh").read_bytes())
    content[4:8] = bytes(4)  # the first axis
    (tmp_path / "a.mgh").write_bytes(content)
    with pytest.raises(DataError, match="should be non-zero"):
        read_image(tmp_path / "a.mgh")


def test_analyze_has_no_orientation_and_is_told_so(tmp_path):
    """By hand from the 348 bytes of the Analyze 7.5 header: axes at 40, type at 70 (4: int16), voxel size at 80."""
    head = bytearray(348)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<5h", head, 40, 3, 2, 3, 4, 1)
    struct.pack_into("<2h", head, 70, 4, 16)
    struct.pack_into("<3f", head, 80, 2.0, 3.0, 4.0)
    (tmp_path / "a.hdr").write_bytes(head)
    with pytest.raises(DataError, match=r"found no file a.img beside it.*Copy both files"):
        read_header(tmp_path / "a.hdr")
    (tmp_path / "a.img").write_bytes(ARRAY.astype("<i2").tobytes(order="F"))
    image = read_image(tmp_path / "a.hdr")
    np.testing.assert_array_equal(image.array_CIJK[0], ARRAY)
    assert "no_geometry" in image.header.flags
    # radiological: the first axis runs to the left, and the centre is the origin
    np.testing.assert_allclose(np.diag(image.header.affine)[:3], [-2, 3, 4])
    np.testing.assert_allclose(image.header.affine @ [0.5, 1, 1.5, 1], [0, 0, 0, 1])
    assert [file.name for file in files_of(tmp_path / "a.hdr")] == ["a.hdr", "a.img"]


def test_nifti_in_two_files_keeps_its_geometry(tmp_path):
    nib.save(nib.Nifti1Pair(ARRAY, AFFINE), tmp_path / "a.hdr")
    image = read_image(tmp_path / "a.hdr")
    np.testing.assert_array_equal(image.array_CIJK[0], ARRAY)
    np.testing.assert_allclose(image.header.affine, AFFINE)


def giant(path: Path) -> None:
    """A file that declares 30000 × 30000 × 30000 voxels of 2 bytes, 54 TB, and holds 2 kB."""
    body, side = bytes(2000), 30000
    nrrd = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {side} {side} {side}\nencoding: raw\nendian: little\n\n"
    meta = f"ObjectType = Image\nNDims = 3\nDimSize = {side} {side} {side}\nElementType = MET_SHORT\n"
    if path.name.endswith((".nii", ".nii.gz")):
        head = nib.Nifti1Header()
        head.set_data_dtype(np.int16)
        head.set_data_shape((side,) * 3)
        head["vox_offset"], head["magic"] = 352, b"n+1"
        content = head.binaryblock + bytes(4) + body
    elif path.suffix in (".mgh", ".mgz"):
        content = struct.pack(">7ih", 1, side, side, side, 1, 4, 0, 0) + bytes(254) + body
    elif path.suffix == ".nrrd":
        content = nrrd.encode() + body
    elif path.suffix == ".mha":
        content = f"{meta}ElementDataFile = LOCAL\n".encode() + body
    else:
        content = f"{meta}ElementDataFile = voxels.raw\n".encode()
        (path.parent / "voxels.raw").write_bytes(body)
    path.write_bytes(gzip.compress(content) if path.suffix in (".gz", ".mgz") else content)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgh", ".mgz", ".nrrd", ".mha", ".mhd"])
def test_sizes_that_cannot_be_true_take_no_memory(tmp_path, suffix):
    giant(tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match=r"declares 30000×30000×30000.* voxels of 2 bytes \(54 TB\)"):
        read_image(tmp_path / f"a{suffix}")


def test_more_than_the_free_memory_is_refused_before_it_is_taken(tmp_path, monkeypatch):
    path = nifti(tmp_path / "a.nii.gz", np.zeros((64, 64, 64), np.int16))
    monkeypatch.setattr(size, "free_memory", lambda: 100_000)
    with pytest.raises(
        DataError, match="64×64×64 voxels of 2 bytes, which need 524 kB of memory; expected at most 100"
    ):
        read_image(path)


def test_voxels_that_are_not_beside_their_header(tmp_path):
    giant(tmp_path / "a.mhd")
    (tmp_path / "voxels.raw").unlink()
    with pytest.raises(DataError, match=r"voxels are in 'voxels.raw', which is no file.*Copy both files"):
        read_image(tmp_path / "a.mhd")


def series(root: Path) -> np.ndarray:
    """Two subjects of three volumes each; `one` has one label map for all, `three` one for each volume."""
    values = np.random.default_rng(0).integers(1, 900, (2, 12, 12, 12, 3)).astype(np.int16)
    label = np.zeros((12, 12, 12, 3), np.uint8)
    for volume in range(3):
        label[3 : 5 + volume, 3:9, 3:9, volume] = volume + 1
    for name, array in zip(("one", "three"), values, strict=True):
        nifti(root / "images" / f"{name}.nii.gz", array)
    nifti(root / "labels" / "one.nii.gz", label[..., 0])
    nifti(root / "labels" / "three.nii.gz", label)
    return values


def test_split_volumes_reach_the_store_and_prediction(tmp_path):
    values = series(tmp_path / "in")
    out = tmp_path / "c.parquet"
    table = catalogue(CatalogueConfig(paths=(tmp_path / "in",), out=out, volumes="split")).table.set_index("image")
    assert table["label_values"].to_dict() == {f"one_v00{n}": [1] for n in range(3)} | {
        f"three_v00{n}": [n + 1] for n in range(3)
    }
    flagged = {name for name, flags in table["flags"].items() if "duplicate_label" in flags}
    assert flagged == {"one_v000", "one_v001", "one_v002", "three_v000"}  # these are the same voxels
    assert table["subject"].to_dict() == {name: name.split("_")[0] for name in table.index}
    prepare(PrepareConfig(catalogue=out, out=tmp_path / "s", workers=1))
    store = Store(tmp_path / "s")
    for number in range(3):
        assert sorted(prepared(store, f"one_v00{number}")) == sorted(values[0, ..., number].ravel())
    readings = {case.image: case.reading for case in find_cases(out)}
    assert readings["three_v002"] == Reading(volume=2)
    label = read_image(tmp_path / "in" / "labels" / "three.nii.gz", Reading(volume=2))
    write_mask(tmp_path / "p" / "three_v002.nii.gz", label.array_CIJK[0], label.header)
    scores = evaluate(EvaluateConfig(predictions=tmp_path / "p", references=out, out=tmp_path / "e")).scores
    assert scores[["case", "class", "dice"]].to_numpy().tolist() == [["three_v002", "3", 1.0]]


def test_a_series_is_unpacked_once_for_all_its_volumes(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(nib_reader.ArrayProxy, "__init__", counted(nib_reader.ArrayProxy.__init__, opened))
    rng = np.random.default_rng(1)
    first, second = (rng.integers(0, 500, (5, 6, 7, 9), dtype=np.int16) for _ in range(2))
    path = tmp_path / "series.nii.gz"
    nib.save(nib.Nifti1Image(first, np.eye(4)), path)
    opened.clear()
    for volume in (0, 1, 2, 5, 8, 3):  # the last one lies behind
        np.testing.assert_array_equal(read_image(path, Reading(volume=volume)).array_CIJK[0], first[..., volume])
    assert len([kept for kept in opened if kept]) == 1
    nib.save(nib.Nifti1Image(second, np.eye(4)), path)  # another file of that name
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(read_image(path, Reading(volume=4)).array_CIJK[0], second[..., 4])
    path.write_bytes(path.read_bytes()[:-600])
    for _ in range(2):
        with pytest.raises(DataError, match=r"series\.nii\.gz"):
            read_image(path, Reading(volume=8))
    np.testing.assert_array_equal(read_image(path, Reading(volume=0)).array_CIJK[0], second[..., 0])


def counted(real, opened):
    def init(self, *args, keep_file_open=None, **settings):
        opened.append(keep_file_open)
        real(self, *args, keep_file_open=keep_file_open, **settings)

    return init


def test_volumes_are_channels_by_choice_only(tmp_path):
    nifti(tmp_path / "in" / "a.nii.gz", np.random.default_rng(0).integers(1, 9, (12, 12, 12, 2)).astype(np.int16))
    out = tmp_path / "c.parquet"
    with pytest.raises(DataError, match=r"found 2 volumes on a 4th axis.*--volumes split.*--volumes channels"):
        catalogue(CatalogueConfig(paths=(tmp_path / "in",), out=out))
    assert catalogue(CatalogueConfig(paths=(tmp_path / "in",), out=out, volumes="channels")).table["channels"][0] == 2


def test_a_file_that_has_lost_volumes_since(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", np.zeros((4, 4, 4, 2), np.int16))
    with pytest.raises(DataError, match=r"2 volumes on a 4th axis.*volume 5 \(counted from 0\).*catalogue` again"):
        read_image(path, Reading(volume=5))


def test_complex_and_colour_reach_the_catalogue_by_choice(tmp_path):
    real = np.random.default_rng(0).normal(size=(12, 12, 12))
    nifti(tmp_path / "in" / "complex.nii.gz", (real + 1j * real).astype(np.complex64))
    colours = np.zeros((12, 12, 12), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"], colours["G"] = 200, np.arange(12)
    nifti(tmp_path / "in" / "rgb.nii.gz", colours)
    out = tmp_path / "c.parquet"
    with pytest.raises(DataError, match="2 images of which none can be used"):
        catalogue(CatalogueConfig(paths=(tmp_path / "in",), out=out))
    reasons = pd.read_csv(tmp_path / "c.failures.csv").set_index("image")["reason"]
    assert "--complex magnitude" in reasons["complex"]
    assert "--colour grey" in reasons["rgb"]
    config = CatalogueConfig(paths=(tmp_path / "in",), out=out, colour="channels", complex="magnitude")
    table = catalogue(config).table.set_index("image")
    assert table["channels"].to_dict() == {"complex": 1, "rgb": 3}
    assert table.loc["complex", "maximum"] == pytest.approx(np.sqrt(2) * np.abs(real).max(), rel=1e-6)
    grey = catalogue(config.model_copy(update={"colour": "grey"})).table.set_index("image")
    assert grey.loc["rgb", "maximum"] == pytest.approx(0.299 * 200 + 0.587 * 11, rel=1e-6)


def test_pictures_of_a_folder_are_slices_in_the_order_of_their_numbers(tmp_path):
    slices = np.random.default_rng(0).integers(0, 255, (11, 20, 15), dtype=np.uint8)
    for part, array in (("images", slices), ("labels", (slices > 99).astype(np.uint8))):
        (tmp_path / "in" / part / "case").mkdir(parents=True)
        for number, picture in enumerate(array, 1):  # as text, 10 comes before 2
            Pillow.fromarray(picture).save(tmp_path / "in" / part / "case" / f"s{number}.png")
    out = tmp_path / "c.parquet"
    table = catalogue(CatalogueConfig(paths=(tmp_path / "in",), out=out, stack="folders")).table
    assert table[["image", "shape_i", "shape_j", "shape_k"]].to_numpy().tolist() == [["case", 15, 20, 11]]
    assert table["label_values"].tolist() == [[1]]
    image = read_image(tmp_path / "in" / "images" / "case").array_CIJK[0]
    np.testing.assert_array_equal(image, slices.transpose(2, 1, 0))
    prepare(PrepareConfig(catalogue=out, out=tmp_path / "s", workers=1))
    assert sorted(prepared(Store(tmp_path / "s"), "case")) == sorted(slices.ravel())
    (tmp_path / "in" / "labels" / "case" / "s11.png").unlink()
    with pytest.raises(DataError, match=r"10 slices of a label map; expected 11"):
        catalogue(CatalogueConfig(paths=(tmp_path / "in",), out=out, stack="folders"))


def test_pages_of_a_tiff_are_refused_or_slices(tmp_path):
    pages = np.random.default_rng(0).integers(0, 60000, (4, 20, 15), dtype=np.uint16)
    first, *others = [Pillow.fromarray(page) for page in pages]
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    with pytest.raises(DataError, match=r"found 4 pages; expected one picture.*--stack pages"):
        read_image(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif", Reading(pages=True))
    np.testing.assert_array_equal(image.array_CIJK[0], pages.transpose(2, 1, 0))
