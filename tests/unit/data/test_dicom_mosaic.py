"""Siemens mosaics: those that nibabel brings with its own tests, against `dicom_expected`, and made ones."""

import gzip
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless, RLELossless
from scipy.spatial.transform import Rotation
from tests.unit.data.dicom_expected import BROKEN_MOSAICS, MOSAICS, OBLIQUE_MOSAIC, Read
from tests.unit.data.dicom_files import csa_header, save, write_mosaic, write_slices

from prevox.config.data import CatalogueConfig, DicomConfig
from prevox.data.catalogue import catalogue
from prevox.data.layouts import DicomSource, dicom
from prevox.data.readers import Image, read_header, read_image
from prevox.errors import DataError

pytestmark = pytest.mark.unit

SIEMENS = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
needs_files = pytest.mark.skipif(
    not all((SIEMENS / name).is_file() for name in MOSAICS), reason="nibabel was installed without its test data"
)


def unpacked(name: str, folder: Path) -> Path:
    """One of nibabel's files, in a folder of its own."""
    content = (SIEMENS / name).read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name.removesuffix(".gz")
    path.write_bytes(gzip.decompress(content) if name.endswith(".gz") else content)
    return path


def with_pixels(name: str, folder: Path, seed: int = 0) -> Path:
    """One of nibabel's files with noise for pixels: in those that it ships all are equal, or there are none."""
    path = unpacked(name, folder)
    made = pydicom.dcmread(path)
    pixels = np.random.default_rng(seed).integers(0, 4000, (made.Rows, made.Columns)).astype(np.uint16)
    made.add_new(0x7FE00010, "OW", pixels.tobytes())
    made.save_as(path)
    return path


def results(root: Path) -> list[Image | str]:
    """The images of a tree, or the reason why one is none."""
    found: list[Image | str] = []
    for entry in dicom.recognise(root, DicomSource(root.parent / "c.parquet", DicomConfig())):
        try:
            found.append(read_image(entry.paths[0]))
            header = read_header(entry.paths[0])
            assert (header.shape_ijk, header.dtype) == (found[-1].header.shape_ijk, found[-1].array_CIJK.dtype.name)
        except DataError as error:
            found.append(str(error))
    return found


def check(image: Image | str, expected: Read) -> None:
    assert isinstance(image, Image), image
    assert image.array_CIJK.shape == (1, *expected.shape)
    np.testing.assert_allclose(image.header.affine[:3], expected.affine, atol=1e-3)
    assert image.header.flags == expected.flags


def tiled(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Voxels (I, J, K) by hand: bytes of the uncompressed picture, tile after tile, row by row."""
    made = pydicom.dcmread(path)
    picture = np.frombuffer(made.PixelData, "<u2").reshape(made.Rows, made.Columns)
    voxels, tiles = np.empty(shape, np.uint16), made.Columns // shape[0]
    for k in range(shape[2]):
        for j in range(shape[1]):
            start = k % tiles * shape[0]
            voxels[:, j, k] = picture[k // tiles * shape[1] + j, start : start + shape[0]]
    return voxels


def by_nibabel(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (I, J, K) and affine to RAS as nibabel's wrapper has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom import dicomwrappers
    wrapper = dicomwrappers.wrapper_from_file(path)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return np.asarray(wrapper.get_data()).transpose(1, 0, 2), to_ras @ wrapper.affine[:, [1, 0, 2, 3]]


@needs_files
@pytest.mark.parametrize("name", MOSAICS)
def test_outcome(name: str, tmp_path: Path):
    outcome = MOSAICS[name]
    path = with_pixels(name, tmp_path / "in") if outcome.read else unpacked(name, tmp_path / "in")
    (found,) = results(tmp_path / "in")
    for words in outcome.refused:
        assert isinstance(found, str)
        assert words in found
    for expected in outcome.read:
        check(found, expected)
        np.testing.assert_array_equal(found.array_CIJK[0], tiled(path, expected.shape))
        voxels, affine = by_nibabel(path)
        np.testing.assert_array_equal(found.array_CIJK[0], voxels)
        np.testing.assert_allclose(found.header.affine, affine, atol=1e-3)


@needs_files
def test_volumes_of_a_series_are_images(tmp_path: Path):
    names = ("siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz")
    paths = [with_pixels(name, tmp_path / "in", seed) for seed, name in enumerate(names)]
    result = catalogue(CatalogueConfig(paths=(tmp_path / "in",), out=tmp_path / "c.parquet", workers=1))
    first, second = result.table["image"]
    assert first.split("-")[0] == second.split("-")[0]
    assert first != second
    assert list(result.table["shape_k"]) == [48, 48]
    expected = sorted(tiled(path, (128, 128, 48)).mean() for path in paths)
    np.testing.assert_allclose(sorted(result.table["mean"]), expected)


@pytest.mark.parametrize("identifiers", [False, True])
def test_ids_of_volumes_stay_when_files_are_renamed_removed_or_added(identifiers: bool, tmp_path: Path):
    volumes = [noise(4, 6, 5, seed) for seed in range(3)]
    for number, voxels in enumerate(volumes):
        write_mosaic(tmp_path / "in" / f"{number}", voxels, InstanceNumber=number + 1)

    def ids() -> dict[float, str]:
        settings = DicomConfig(identifiers=identifiers)
        config = CatalogueConfig(paths=(tmp_path / "in",), out=tmp_path / "c.parquet", workers=1, dicom=settings)
        table = catalogue(config).table
        return dict(zip(table["mean"].round(6), table["image"], strict=True))

    before = ids()
    assert set(before) == {round(float(voxels.mean()), 6) for voxels in volumes}
    assert len(set(before.values())) == 3
    (tmp_path / "in" / "0").rename(tmp_path / "in" / "z")
    assert ids() == before
    (tmp_path / "in" / "1").rename(tmp_path / "away")
    fewer = ids()
    assert len(fewer) == 2
    assert fewer.items() <= before.items()
    (tmp_path / "in" / "2").unlink()
    assert ids().items() <= fewer.items()
    (tmp_path / "away").rename(tmp_path / "in" / "a")
    assert ids().items() <= before.items()


@needs_files
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_a_compressed_mosaic_has_the_same_voxels(syntax: str, tmp_path: Path):
    path = with_pixels("siemens_dwi_1000.dcm.gz", tmp_path / "in")
    expected = tiled(path, (128, 128, 48))
    made = pydicom.dcmread(path)
    made.compress(syntax)
    made.save_as(path)
    (image,) = results(tmp_path / "in")
    check(image, MOSAICS["siemens_dwi_1000.dcm.gz"].read[0])
    np.testing.assert_array_equal(image.array_CIJK[0], expected)


@needs_files
def test_an_oblique_mosaic(tmp_path: Path):
    path = with_pixels("csa_slice_norm.dcm", tmp_path / "in")
    (image,) = results(tmp_path / "in")
    check(image, OBLIQUE_MOSAIC)
    np.testing.assert_array_equal(image.array_CIJK[0], tiled(path, OBLIQUE_MOSAIC.shape))
    np.testing.assert_allclose(image.header.affine, by_nibabel(path)[1], atol=1e-3)


def noise(rows: int, columns: int, slices: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, (rows, columns, slices)).astype(np.uint16)


@settings(max_examples=40, deadline=None)
@given(
    turn=st.integers(0, 2**32 - 1),
    spacing=st.tuples(*[st.floats(0.5, 5)] * 3),
    start=st.tuples(*[st.floats(-300, 300)] * 3),
    size=st.tuples(st.integers(2, 7), st.integers(2, 7), st.integers(3, 17)),
    side=st.sampled_from([1, -1]),
)
def test_voxels_lie_where_the_same_volume_in_slices_has_them(tmp_path_factory, turn, spacing, start, size, side):
    """The mosaic and single slices of one volume give one image, on whichever side of a slice the next one lies."""
    folder = tmp_path_factory.mktemp("any")
    axes = Rotation.random(random_state=turn).as_matrix().round(9)
    row, column, normal = axes[:, 0], axes[:, 1], side * np.cross(axes[:, 0], axes[:, 1])
    voxels = noise(*size, seed=turn % 1000)
    tags: dict[str, Any] = {
        "ImageOrientationPatient": [*row.tolist(), *column.tolist()],
        "PixelSpacing": [float(f"{one:.8g}") for one in spacing[:2]],
        "SpacingBetweenSlices": float(f"{spacing[2]:.8g}"),
    }
    step = tuple((spacing[2] * normal).tolist())
    write_slices(folder / "slices", voxels, step, start, SeriesInstanceUID="1.2.3.5", **tags)
    # the picture is as many times larger than a slice as it has tiles, and is centred where the slice is
    tiles = int(np.ceil(np.sqrt(size[2])))
    more = [(tiles - 1) * side / 2 for side in size[:2]]
    corner = np.array(start) - more[1] * spacing[1] * row - more[0] * spacing[0] * column
    csa = {"SliceNormalVector": ("FD", [f"{one:.8f}" for one in normal])}
    place = {"ImagePositionPatient": [float(f"{one:.10g}") for one in corner]}
    write_mosaic(folder / "mosaic" / "a", voxels, csa, **tags, **place)
    (expected,), (image,) = results(folder / "slices"), results(folder / "mosaic")
    assert isinstance(image, Image), image
    np.testing.assert_array_equal(image.array_CIJK, expected.array_CIJK)
    np.testing.assert_allclose(image.header.affine, expected.header.affine, atol=1e-3)


def test_a_mosaic_by_hand(tmp_path: Path):
    voxels = noise(4, 6, 5)
    write_mosaic(tmp_path / "in" / "a", voxels, {"SliceNormalVector": ("FD", ["0.0", "0.0", "-1.0"])})
    (image,) = results(tmp_path / "in")
    # 3 × 3 tiles: 12 rows of 2 mm, 18 columns of 1.5 mm; the first voxel is 6 columns and 4 rows from the corner (0, 0)
    # and 4 mm above the second slice, so that the last one, at -16 mm, is the first along rows × columns
    check(image, Read((6, 4, 5), ((-1.5, 0, 0, -9), (0, -2, 0, -8), (0, 0, 4, -16))))
    np.testing.assert_array_equal(image.array_CIJK[0].transpose(1, 0, 2), voxels[:, :, ::-1])


def test_without_a_distance_slices_are_as_far_apart_as_they_are_thick(tmp_path: Path):
    write_mosaic(tmp_path / "in" / "a", noise(4, 6, 5), SpacingBetweenSlices=None)
    (image,) = results(tmp_path / "in")
    assert image.header.affine[2, 2] == pytest.approx(3.0)


def test_time_points_are_images_in_order_of_their_instance_numbers(tmp_path: Path):
    volumes = [noise(4, 6, 5, seed) for seed in range(3)]
    for number, voxels in enumerate(volumes, 1):
        write_mosaic(tmp_path / "in" / f"{number}", voxels, InstanceNumber=number)
    found = [image.array_CIJK[0].transpose(1, 0, 2) for image in results(tmp_path / "in")]
    np.testing.assert_array_equal(found, volumes)


def test_a_count_beside_the_csa_header_is_enough(tmp_path: Path):
    voxels = noise(4, 6, 5)
    made = write_mosaic(tmp_path / "in" / "a", voxels, {"NumberOfImagesInMosaic": ("US", [])})
    made.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 5)
    save(tmp_path / "in" / "a", made)
    (image,) = results(tmp_path / "in")
    np.testing.assert_array_equal(image.array_CIJK[0].transpose(1, 0, 2), voxels)


def test_a_private_block_may_lie_elsewhere(tmp_path: Path):
    voxels = noise(4, 6, 5)
    made = write_mosaic(tmp_path / "in" / "a", voxels)
    header = made.private_block(0x0029, "SIEMENS CSA HEADER")[0x10].value
    del made[0x00290010], made[0x00291010]
    made.add_new(0x00290010, "LO", "AN ARCHIVE")
    made.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", header)
    assert 0x00291110 in made
    save(tmp_path / "in" / "a", made)
    (image,) = results(tmp_path / "in")
    np.testing.assert_array_equal(image.array_CIJK[0].transpose(1, 0, 2), voxels)


def _broken(what: str, path: Path) -> None:
    csa: dict[str, tuple[str, list[Any]]] = {}
    tags: dict[str, Any] = {}
    if what == "no normal in the CSA header":
        csa = {"SliceNormalVector": ("FD", [])}
    elif what == "a normal that is not that of the rows and columns":
        csa = {"SliceNormalVector": ("FD", ["0.0", "0.6", "0.8"])}
    elif what == "no count in the CSA header nor in 0019,100A":
        csa = {"NumberOfImagesInMosaic": ("US", [])}
    elif what == "count 0":
        csa = {"NumberOfImagesInMosaic": ("US", [0])}
    elif what == "count 17, 5 × 5 tiles of a picture of 12 × 18":
        csa = {"NumberOfImagesInMosaic": ("US", [17])}
    elif what == "slices in reverse order":
        csa = {"ProtocolSliceNumber": ("IS", [4])}
    elif what == "no distance of slices, no thickness":
        tags = {"SpacingBetweenSlices": None, "SliceThickness": None}
    made = write_mosaic(path, noise(4, 6, 5), csa, **tags)
    if what == "no CSA header":
        del made[0x00291010]
    elif what == "a CSA header of random bytes":
        made[0x00291010].value = np.random.default_rng(0).bytes(2000)
    elif what == "another count in 0019,100A":
        made.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 7)
    save(path, made)


@pytest.mark.parametrize("what", BROKEN_MOSAICS)
def test_what_cannot_be_split_is_refused_with_the_reason(what: str, tmp_path: Path):
    _broken(what, tmp_path / "in" / "a")
    (reason,) = results(tmp_path / "in")
    assert isinstance(reason, str), "it was read"
    assert BROKEN_MOSAICS[what] in reason
    assert "Export it again with its private elements" in reason


def test_the_made_header_is_one_for_nibabel():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom import csareader
    header = csareader.read(csa_header(A=("US", [5]), B=("FD", ["0.5", "1.0"])))
    assert [header["tags"][name]["items"] for name in "AB"] == [[5], [0.5, 1.0]]
