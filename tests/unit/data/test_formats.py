"""Every file of the collection of odd files that is no DICOM: what must come of it.

`READ` are the files in golden/formats.json, whose values `raw_formats` took from the bytes by each format's
specification. `REFUSED` must be refused with that reason unless a choice says how to read them. `BESIDE` and `NO_IMAGE`
are no images by themselves. A file in none of these lists fails the test. DICOM has a table of its own.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.unit.data import raw_formats

from prevox.config.data import CatalogueConfig
from prevox.data.catalogue import catalogue
from prevox.data.layouts import recognise
from prevox.data.readers import Reading, read_header, read_image
from prevox.errors import DataError

pytestmark = pytest.mark.unit

FORMATS = Path(__file__).parents[3].parent / "shared" / "data" / "formats"
READ: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[2] / "golden" / "formats.json").read_text())
ZOO = "niivue_formats/packages/niivue/demos/images"
RGB = "dicom2nifti_tests/tests/data/generic/rgb/001_ground_truth"
REFUSED = {  # file to reason and the choice with which it is read (None: there is none)
    f"{RGB}.nii.gz": ("found colour voxels .*--colour grey", Reading(colour="channels")),
    f"{RGB}_reoriented.nii.gz": ("found colour voxels .*--colour grey", Reading(colour="channels")),
    f"{ZOO}/ct_perfusion.nii.gz": ("found colour voxels .*--colour grey", Reading(colour="channels")),
    f"{ZOO}/complex.nii.gz": ("found complex voxels.*--complex magnitude", Reading(complex="magnitude")),
    f"{ZOO}/afni/DT_FA+orig.HEAD": ("an AFNI file.*3dAFNItoNIFTI", None),
    f"{ZOO}/example4d+orig.HEAD": ("an AFNI file.*3dAFNItoNIFTI", None),
    f"{ZOO}/scaled+tlrc.HEAD": ("an AFNI file.*3dAFNItoNIFTI", None),
    f"{ZOO}/template.mif.gz": ("an MRtrix file.*mrconvert", None),
    f"{ZOO}/trix/mask_1bit.mif": ("an MRtrix file.*mrconvert", None),
}
BESIDE = {  # voxels of the header files above
    f"{ZOO}/ras.img",
    f"{ZOO}/example4d+orig.BRIK.gz",
    f"{ZOO}/scaled+tlrc.BRIK.gz",
}
NO_IMAGE = re.compile(r"(LICENSE|\.txt|\.md|\.csv)$")
# 4D, which the reader gives as channels and the catalogue refuses unless it is told what the 4th axis is
SERIES = {"sct_testing_data/dmri/dmri.nii.gz": 7, "sct_testing_data/fmri/fmri.nii.gz": 30}
NO_GEOMETRY = {f"{ZOO}/minimal.nii.gz"}  # neither qform nor sform

needs_files = pytest.mark.skipif(not FORMATS.is_dir(), reason="real scans are not beside the repository")


def is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return "pydicom_tests" in path.parts or file.read(132)[128:] == b"DICM"


@needs_files
def test_the_table_names_every_file():
    files = [path.relative_to(FORMATS).as_posix() for path in FORMATS.rglob("*") if path.is_file()]
    others = {name for name in files if not is_dicom(FORMATS / name)}
    listed = READ.keys() | REFUSED.keys() | BESIDE
    assert {name for name in others - listed if not NO_IMAGE.search(name)} == set()
    assert listed - others == set()


@needs_files
@pytest.mark.parametrize("name", sorted(READ.keys() - REFUSED.keys()))
def test_is_read_right(name: str):
    check(name, Reading())


@needs_files
@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_unless_chosen(name: str):
    reason, choice = REFUSED[name]
    with pytest.raises(DataError, match=reason):
        read_image(FORMATS / name)
    with pytest.raises(DataError, match=reason):
        read_header(FORMATS / name)
    if choice is not None:
        check(name, choice)


def check(name: str, choice: Reading) -> None:
    """Geometry and all voxels as the specification has them, some of them as the table has them."""
    image = read_image(FORMATS / name, choice)
    header, expected, raw = image.header, READ[name], raw_formats.read(FORMATS / name)
    array_IJKC = np.moveaxis(image.array_CIJK, 0, -1)
    assert list(array_IJKC.shape if array_IJKC.shape[-1] > 1 else array_IJKC.shape[:3]) == expected["shape"]
    assert header.channels == array_IJKC.shape[-1]
    assert header.shape_ijk == array_IJKC.shape[:3]
    assert ("no_geometry" in header.flags) == (name in NO_GEOMETRY)
    if expected["affine"] is not None:
        np.testing.assert_allclose(header.affine[:3], expected["affine"], atol=1e-3)
    found = array_IJKC if array_IJKC.shape[-1] > 1 else array_IJKC[..., 0]
    voxels = raw.array
    if voxels.dtype.names:
        voxels = np.stack([voxels[channel] for channel in "RGB"], -1)  # transparency is dropped
    if choice.complex == "magnitude":
        voxels = np.abs(voxels)
    np.testing.assert_allclose(found, voxels, rtol=1e-6, atol=1e-6)
    for place, value in expected["voxels"]:
        value = np.hypot(*value) if isinstance(value, list) else value
        assert found[tuple(place)] == pytest.approx(value, rel=1e-5, abs=1e-6)
    if expected["mean"] is not None:
        assert found.mean(dtype=np.float64) == pytest.approx(expected["mean"], rel=1e-5, abs=1e-6)
    header_alone = read_header(FORMATS / name, choice)
    assert (header_alone.shape_ijk, header_alone.channels) == (header.shape_ijk, header.channels)
    np.testing.assert_array_equal(header_alone.affine, header.affine)
    assert header_alone.dtype == found.dtype.name


@needs_files
def test_colours_become_grey_by_choice():
    name = f"{ZOO}/ct_perfusion.nii.gz"
    image = read_image(FORMATS / name, Reading(colour="grey"))
    red, green, blue = (raw_formats.read(FORMATS / name).array[channel].astype(float) for channel in "RGB")
    np.testing.assert_allclose(image.array_CIJK, [0.299 * red + 0.587 * green + 0.114 * blue], atol=1e-4)  # Rec. 601


@needs_files
@pytest.mark.parametrize("name", SERIES)
def test_series_are_refused_split_or_channels(name: str, tmp_path: Path):
    out, count = tmp_path / "c.parquet", SERIES[name]
    with pytest.raises(DataError, match=f"{count} volumes on a 4th axis.*--volumes split"):
        catalogue(CatalogueConfig(paths=(FORMATS / name,), out=out))
    table = catalogue(CatalogueConfig(paths=(FORMATS / name,), out=out, volumes="channels")).table
    assert table["channels"].tolist() == [count]
    table = catalogue(CatalogueConfig(paths=(FORMATS / name,), out=out, volumes="split")).table
    assert table["channels"].tolist() == [1] * count
    assert table["subject"].nunique() == 1
    raw = raw_formats.read(FORMATS / name).array
    np.testing.assert_allclose(table["mean"], raw.reshape(-1, count, order="F").mean(0, dtype=np.float64), rtol=1e-9)


@needs_files
def test_the_catalogue_of_the_zoo_leaves_out_what_the_table_says(tmp_path: Path):
    result = catalogue(CatalogueConfig(paths=(FORMATS / ZOO,), out=tmp_path / "c.parquet"))
    reasons = dict(pd.read_csv(tmp_path / "c.failures.csv", dtype=str).itertuples(index=False))
    assert len(reasons) == len(result.failures)
    table = result.table[result.table["layout"] != "dicom"]
    used = {f"{ZOO}/{path}" for paths in table["paths"] for path in paths}
    assert used == {name for name in READ if name.startswith(ZOO)} - REFUSED.keys()
    mine = {name: reason for name, (reason, _) in REFUSED.items() if name.startswith(ZOO)}
    assert len(reasons) == len(mine)
    for name, expected in mine.items():
        assert any(name in reason and re.search(expected, reason) for reason in reasons.values()), name


@needs_files
def test_labels_of_another_grid_and_soft_labels_are_refused(tmp_path: Path):
    pairs = {
        "grid": ("hippocampus_quirks/118_image_without_label", "hippocampus_quirks/281_label_wrong_grid_512x512x94"),
        "soft": ("sct_testing_data/mt/mt1", "sct_testing_data/mt/mt1_gmseg"),
        "fits": ("sct_testing_data/mt/mt0", "sct_testing_data/mt/mt0_seg"),
    }
    for case, files in pairs.items():
        for folder, file in zip(("images", "labels"), files, strict=True):
            (tmp_path / "scans" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "scans" / folder / f"{case}.nii.gz").symlink_to(FORMATS / f"{file}.nii.gz")
    result = catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "c.parquet"))
    assert result.table["image"].tolist() == ["fits"]
    reasons = dict(result.failures)
    assert "a label map on another grid: 512×512×94" in reasons["grid"]
    assert "expected whole numbers from 0" in reasons["soft"]


@needs_files
def test_every_image_of_the_collection_is_recognised():
    """By suffix: so no folder of the collection is read in part without a word."""
    for folder in ("sct_testing_data", "pyradiomics_nrrd", ZOO):
        mine = {name for name in READ.keys() | REFUSED.keys() if name.startswith(folder)}
        entries = [entry for part in subfolders(FORMATS / folder) for entry in recognise(part)]
        assert {path.relative_to(FORMATS).as_posix() for entry in entries for path in entry.paths} == mine


def subfolders(root: Path) -> list[Path]:
    """Folders that can be catalogued on their own: ids must be unique."""
    inner = [path for path in sorted(root.iterdir()) if path.is_dir()]
    return inner if root.name == "sct_testing_data" else [root]
