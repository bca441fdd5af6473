"""Every DICOM file of the collection of odd files against `dicom_expected`."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from tests.unit.data.dicom_expected import FILES, SERIES, TILTED, TILTED_SHAPE, TILTED_SPACING, Outcome, Read

from prevox.config.data import DicomConfig
from prevox.data.layouts import DicomSource
from prevox.data.layouts.dicom import recognise
from prevox.data.readers import Image, read_header, read_image
from prevox.data.readers.dicom_file import is_dicom
from prevox.errors import DataError

pytestmark = pytest.mark.unit

FORMATS = Path(__file__).parents[3].parent / "shared" / "data" / "formats"
needs_files = pytest.mark.skipif(not FORMATS.is_dir(), reason="real scans are not beside the repository")
TABLE = SERIES | FILES


@needs_files
def test_the_table_names_every_dicom_file():
    listed = [FORMATS / name for name in TABLE]
    for path in FORMATS.rglob("*"):
        if path.is_file() and (path.suffix == ".dcm" or is_dicom(path)):
            assert any(path == one or one in path.parents for one in listed), path


@needs_files
@pytest.mark.parametrize("name", TABLE)
def test_outcome(name: str, tmp_path: Path):
    outcome = TABLE[name]
    source = DicomSource(tmp_path / "c.parquet", DicomConfig())
    entries = recognise(FORMATS / name, source)
    images, reasons = [], []
    for entry in entries:
        assert entry.problem is None
        try:
            images.append(read_image(entry.paths[0]))
        except DataError as error:
            reasons.append(str(error))
    check_refused(reasons, outcome)
    assert source.met == Counter(outcome.skipped)
    assert len(images) == len(outcome.read)
    for expected in outcome.read:
        assert any(check(image, expected, FORMATS / name) for image in images)
    for image in images:
        header = read_header(image.header.path)
        assert (header.shape_ijk, header.dtype) == (image.header.shape_ijk, image.array_CIJK.dtype.name)
        np.testing.assert_array_equal(header.affine, image.header.affine)


def check_refused(reasons: Iterable[str], outcome: Outcome) -> None:
    left = list(reasons)
    for pattern in outcome.refused:
        found = [reason for reason in left if re.search(pattern, reason)]
        assert found, f"'{pattern}' not in {left}"
        left.remove(found[0])
    assert left == []


def check(image: Image, expected: Read, source: Path) -> bool:
    """Whether geometry and voxels are as expected; voxels of another image of the same grid give False."""
    header = image.header
    assert header.shape_ijk == expected.shape
    assert header.channels == 1
    assert set(expected.flags) == set(header.flags)
    values = image.array_CIJK[0]
    for reference in filter(None, (expected.nifti, expected.grid)):
        ours = nib.as_closest_canonical(nib.Nifti1Image(values.astype(np.float64), header.affine))
        other = nib.as_closest_canonical(nib.load(FORMATS / reference))
        np.testing.assert_allclose(ours.affine, other.affine, atol=1e-3)
        assert ours.shape == other.shape
        if reference == expected.nifti and not np.allclose(ours.get_fdata(), other.get_fdata(), rtol=1e-6, atol=0):
            return False
    if expected.affine is not None:
        np.testing.assert_allclose(header.affine[:3], expected.affine, atol=1e-3)
    if expected.nifti is None and expected.gdcm:
        others = [other.astype(np.float64) for other in by_gdcm(source, values.shape)]
        return any(np.allclose(values.astype(np.float64), other, 1e-6, expected.tolerance) for other in others)
    return True


def by_gdcm(source: Path, shape: tuple[int, ...]) -> Iterable[np.ndarray]:
    """What GDCM makes of the files: volumes (I, J, K), slices in order along their normal."""
    if source.name == "no_meta.dcm":
        source = source.with_name("CT_small.dcm")
    paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    if shape[2] == 1 or len(paths) == 1:
        for path in paths:
            yield decoded(path)
        return
    heads = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    row, column = np.split(np.array(heads[0].ImageOrientationPatient, float), 2)
    places = [np.array(head.ImagePositionPatient, float) @ np.cross(row, column) for head in heads]
    yield np.concatenate([decoded(paths[index]) for index in np.argsort(places)], axis=2)


def decoded(path: Path) -> np.ndarray:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return sitk.GetArrayFromImage(reader.Execute()).T


@needs_files
@pytest.mark.parametrize(("number", "file"), [(1, "6154"), (2, "6247"), (3, "6278")])
def test_radiographs_are_inverted_and_rescaled(number: int, file: str, tmp_path: Path):
    path = FORMATS / f"pydicom_tests/src/pydicom/data/test_files/dicomdirtests/77654033/CR{number}/{file}"
    stored = np.frombuffer(pydicom.dcmread(path).PixelData, "<u2").reshape(16, 16)
    (entry,) = recognise(path, DicomSource(tmp_path / "c.parquet", DicomConfig()))
    expected = 0.684 * (4095 - stored.astype(float)) + 200  # 12 bits, slope and intercept of the header
    np.testing.assert_allclose(read_image(entry.paths[0]).array_CIJK[0, :, :, 0].T, expected, rtol=1e-6)


@needs_files
def test_gantry_tilt_is_resampled_on_request(tmp_path: Path):
    (entry,) = recognise(FORMATS / TILTED, DicomSource(tmp_path / "c.parquet", DicomConfig(tilt="resample")))
    image = read_image(entry.paths[0])
    header = image.header
    assert header.shape_ijk == TILTED_SHAPE == image.array_CIJK.shape[1:]
    axes = header.affine[:3, :3]
    np.testing.assert_allclose(np.linalg.norm(axes, axis=0), TILTED_SPACING, atol=1e-5)
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.square(TILTED_SPACING)), rtol=1e-6, atol=1e-9)
    assert header.flags == ("tilt_resampled",)
    # a voxel of each slice, found at its own place in the world
    for k, file in enumerate(sorted((FORMATS / TILTED).iterdir())):
        dataset = pydicom.dcmread(file)
        stored = np.frombuffer(dataset.PixelData, "<u2").reshape(512, 512)
        corner = np.array(dataset.ImagePositionPatient, float)
        row, column = np.split(np.array(dataset.ImageOrientationPatient, float), 2)
        for i, j in [(250, 200), (100, 300), (300, 255)]:
            world = corner + 0.41796875 * (i * row + j * column)
            at = np.linalg.solve(header.affine, [-world[0], -world[1], world[2], 1])[:3]
            assert at[2] == pytest.approx(k, abs=1e-6)
            assert at[0] == pytest.approx(i, abs=1e-6)
            low = int(np.floor(at[1]))
            around = stored[j - 1 : j + 2, i].astype(float) - 1024  # each new row lies between two of these
            assert around.min() <= image.array_CIJK[0, i, low : low + 2, k].min()
            assert image.array_CIJK[0, i, low : low + 2, k].max() <= around.max()
