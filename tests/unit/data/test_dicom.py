import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless
from scipy.spatial.transform import Rotation
from tests.unit.data.dicom_files import (
    MR,
    RADIOGRAPH,
    dataset,
    head_size,
    save,
    without_header,
    write_slices,
)

from prevox.config.data import DicomConfig
from prevox.data.layouts import DicomSource, dicom
from prevox.data.layouts.base import Entry
from prevox.data.readers import Image, dicom_header, read_header, read_image, stored_size
from prevox.data.readers import dicom as reader
from prevox.data.readers.dicom_header import read_instance
from prevox.errors import DataError

pytestmark = pytest.mark.unit


def noise(rows: int, columns: int, slices: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-500, 500, (rows, columns, slices)).astype(np.int16)


def recognise(root: Path, out: Path | None = None, **config) -> list[Entry]:
    return dicom.recognise(root, DicomSource((out or root.parent) / "c.parquet", DicomConfig(**config)))


def images(root: Path, out: Path | None = None, **config) -> list[Image]:
    return [read_image(entry.paths[0]) for entry in recognise(root, out, **config)]


def reason(root: Path, **config) -> str:
    """Why the only entry of a folder is refused."""
    (entry,) = recognise(root, **config)
    with pytest.raises(DataError) as error:
        read_image(entry.paths[0])
    return str(error.value)


@settings(max_examples=25, deadline=None)
@given(
    turn=st.integers(0, 2**32 - 1),
    spacing=st.tuples(*[st.floats(0.2, 5)] * 3),
    start=st.tuples(*[st.floats(-300, 300)] * 3),
    order=st.permutations(range(4)),
)
def test_voxels_lie_where_their_file_says(tmp_path_factory, turn, spacing, start, order):
    folder = tmp_path_factory.mktemp("any")
    axes = Rotation.random(random_state=turn).as_matrix()
    voxels = noise(5, 6, 4, turn % 1000)
    for name, k in enumerate(order):  # in any order of names
        position = (np.array(start) + k * spacing[2] * axes[:, 2]).round(6).tolist()
        tags = {
            "ImagePositionPatient": position,
            "ImageOrientationPatient": [*axes[:, 0].round(9).tolist(), *axes[:, 1].round(9).tolist()],
            "PixelSpacing": [float(f"{spacing[0]:.10g}"), float(f"{spacing[1]:.10g}")],
        }
        save(folder / "in" / f"{name}", dataset(np.ascontiguousarray(voxels[:, :, k]), **tags))
    (image,) = images(folder / "in")
    np.testing.assert_array_equal(image.array_CIJK[0], voxels.transpose(1, 0, 2))
    for i, j, k in [(0, 0, 0), (5, 4, 3), (2, 3, 1)]:
        lps = np.array(start) + axes @ [i * spacing[1], j * spacing[0], k * spacing[2]]
        np.testing.assert_allclose(image.header.affine @ [i, j, k, 1], [*(lps * [-1, -1, 1]), 1], atol=1e-4)


def test_a_tilted_stack_is_brought_to_right_angles_exactly_where_values_are_linear(tmp_path):
    step, rows, columns = (0.9, -1.2, 3.0), 20, 18  # both axes are tilted
    j, i, k = np.meshgrid(np.arange(rows), np.arange(columns), np.arange(4), indexing="ij")
    x, y = 1.5 * i + 0.9 * k, 2.0 * j - 1.2 * k
    voxels = np.rint(100 * x + 10 * y + 600 * k).astype(np.int16)  # linear in the world: z = 3 k; whole numbers
    write_slices(tmp_path / "in", voxels, step)
    assert "gantry tilt of 26.6 degrees" in reason(tmp_path / "in")  # atan(1.5 / 3)
    (image,) = images(tmp_path / "in", tilt="resample")
    array, affine = image.array_CIJK[0], image.header.affine
    assert image.header.flags == ("tilt_resampled",)
    # 3 steps: 2.7 mm of columns is 1.8 voxels, -3.6 mm of rows is 1.8 voxels backwards
    assert array.shape == (columns + 2, rows + 2, 4)
    np.testing.assert_allclose(affine, [[-1.5, 0, 0, 0], [0, -2, 0, 4], [0, 0, 3, 0], [0, 0, 0, 1]], atol=1e-9)
    grid = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"))
    world = np.einsum("ab,bijk->aijk", affine[:3, :3], grid) + affine[:3, 3, None, None, None]
    expected = 100 * -world[0] + 10 * -world[1] + 200 * world[2]
    covered = array != array.min()
    assert covered.sum() >= 4 * (columns - 1) * (rows - 1) - 1
    np.testing.assert_allclose(array[covered], expected[covered], atol=0.01)


def test_a_tilt_of_nothing_is_none(tmp_path):
    write_slices(tmp_path / "in", noise(8, 8, 5), (0.001, 0.0, 3.0))
    (image,) = images(tmp_path / "in")
    np.testing.assert_allclose(image.header.affine[:3, 2], [-0.001, 0, 3])


@pytest.mark.parametrize(
    "marks",
    [
        [{"TemporalPositionIdentifier": n} for n in (1, 2, 3)],
        [{"EchoTime": n} for n in (2.5, 5.0, 7.5)],
        [{"AcquisitionNumber": n} for n in (7, 9, 12)],
        [{"DiffusionBValue": b} for b in (0.0, 500.0, 1000.0)],
        [{"ImageType": ["ORIGINAL", "PRIMARY", kind]} for kind in ("M", "P", "R")],
        [{"AcquisitionTime": time} for time in ("101500.25", "101501.5", "101503")],
        # only two together tell them apart
        [{"EchoTime": e, "AcquisitionNumber": n} for e, n in ((2, 1), (2, 2), (4, 1))],
    ],
    ids=lambda marks: "-".join(marks[0]),
)
def test_phases_become_images(tmp_path, marks):
    volumes = [noise(6, 5, 4, seed) for seed in range(3)]
    for number, (voxels, tags) in enumerate(zip(volumes, marks, strict=True)):
        write_slices(tmp_path / "in", voxels, prefix=f"{number}-", sop_class=MR, **tags)
    entries = recognise(tmp_path / "in")
    assert len({entry.image for entry in entries}) == 3
    found = [read_image(entry.paths[0]).array_CIJK[0].transpose(1, 0, 2) for entry in entries]
    assert all(any(np.array_equal(voxels, other) for other in found) for voxels in volumes)


def test_phases_by_trigger_times_that_differ_from_slice_to_slice(tmp_path):
    early, late = noise(6, 5, 4, 1), noise(6, 5, 4, 2)
    for k in range(4):
        for name, voxels, time in (("b", late, 300.0 - 7 * k), ("a", early, 100.0 + 11 * k)):
            tags = {"ImagePositionPatient": [0, 0, 3.0 * k], "TriggerTime": time, "InstanceNumber": None}
            save(tmp_path / "in" / f"{name}{k}", dataset(np.ascontiguousarray(voxels[:, :, k]), MR, **tags))
    first, second = (image.array_CIJK[0].transpose(1, 0, 2) for image in images(tmp_path / "in"))
    np.testing.assert_array_equal(first, early)
    np.testing.assert_array_equal(second, late)


def test_places_that_nothing_tells_apart_are_refused(tmp_path):
    for seed in (1, 2):
        write_slices(tmp_path / "in", noise(6, 5, 4, seed), prefix=f"{seed}-", InstanceNumber=None)
    assert "4 of 8 slices at the place of another one" in reason(tmp_path / "in")


def test_one_more_slice_at_one_place_is_refused_not_guessed(tmp_path):
    write_slices(tmp_path / "in", noise(6, 5, 4))
    write_slices(tmp_path / "in", noise(6, 5, 1, 3), prefix="again", InstanceNumber=9)
    assert "1 of 5 slices at the place of another one" in reason(tmp_path / "in")


def test_orientations_of_one_series_are_images_each_if_they_are_volumes(tmp_path):
    axial, sagittal = noise(6, 5, 4, 1), noise(6, 5, 3, 2)
    write_slices(tmp_path / "in", axial)
    sideways = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]
    write_slices(tmp_path / "in", sagittal, (-2.0, 0, 0), prefix="s", ImageOrientationPatient=sideways)
    coronal = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]
    write_slices(tmp_path / "in", noise(6, 5, 2, 3), (0, 2.0, 0), prefix="c", ImageOrientationPatient=coronal)
    entries = recognise(tmp_path / "in")
    found, reasons = [], []
    for entry in entries:
        try:
            found.append(read_image(entry.paths[0]).array_CIJK[0].transpose(1, 0, 2))
        except DataError as error:
            reasons.append(str(error))
    assert len(reasons) == 1
    assert "found two slices" in reasons[0]
    found.sort(key=lambda volume: -volume.shape[2])  # their order is that of the UIDs
    np.testing.assert_array_equal(found[0], axial)
    np.testing.assert_array_equal(found[1], sagittal)


@pytest.mark.parametrize("places", [(0, 3, 6.4, 9), (0, 1, 3, 6, 10), (0, 3, 6, 12, 15)])
def test_irregular_and_missing_slices_are_refused(tmp_path, places):
    for k, z in enumerate(places):
        save(tmp_path / "in" / f"{k}", dataset(noise(6, 5, 1)[:, :, 0], ImagePositionPatient=[0, 0, z]))
    found = reason(tmp_path / "in")
    assert ("missing slices" if places == (0, 3, 6, 12, 15) else "slices") in found
    assert "mm" in found


def test_positions_that_are_rounded_are_regular(tmp_path):
    for k in range(40):
        position = [0, 0, round(0.625 * k, 1)]
        save(tmp_path / "in" / f"{k:02d}", dataset(noise(6, 5, 1)[:, :, 0], ImagePositionPatient=position))
    (image,) = images(tmp_path / "in")
    assert image.header.affine[2, 2] == pytest.approx(0.625, abs=0.002)


@pytest.mark.parametrize("spacing", [None, [0.0, 1.0], [-1.0, 1.0]])
def test_no_pixel_size_is_ever_assumed(tmp_path, spacing):
    write_slices(tmp_path / "in", noise(6, 5, 4), PixelSpacing=spacing)
    assert "no pixel spacing" in reason(tmp_path / "in")


def test_a_radiograph_takes_the_spacing_at_its_detector_and_says_so(tmp_path):
    pixels = np.arange(30, dtype=np.uint16).reshape(6, 5)
    tags = {"PixelSpacing": None, "ImagePositionPatient": None, "ImageOrientationPatient": None}
    save(tmp_path / "in" / "a", dataset(pixels, RADIOGRAPH, InstanceNumber=1, ImagerPixelSpacing=[0.2, 0.1], **tags))
    save(
        tmp_path / "in" / "b", dataset(pixels + 1, RADIOGRAPH, InstanceNumber=2, ImagerPixelSpacing=[0.2, 0.1], **tags)
    )
    one, other = images(tmp_path / "in")  # two pictures of a series are two images
    assert one.header.flags == ("no_geometry", "detector_spacing")
    np.testing.assert_allclose(one.header.affine, np.diag([0.1, -0.2, 1, 1]))
    np.testing.assert_array_equal(one.array_CIJK[0, :, :, 0].T, pixels)
    np.testing.assert_array_equal(other.array_CIJK[0, :, :, 0].T, pixels + 1)


def test_only_radiographs_are_inverted(tmp_path):
    pixels = np.arange(30, dtype=np.uint16).reshape(6, 5)
    save(tmp_path / "mr" / "a", dataset(pixels, MR, PhotometricInterpretation="MONOCHROME1", BitsStored=12))
    save(tmp_path / "cr" / "a", dataset(pixels, RADIOGRAPH, PhotometricInterpretation="MONOCHROME1", BitsStored=12))
    (kept,), (turned,) = images(tmp_path / "mr"), images(tmp_path / "cr")
    np.testing.assert_array_equal(kept.array_CIJK[0, :, :, 0].T, pixels)
    np.testing.assert_array_equal(turned.array_CIJK[0, :, :, 0].T, 4095 - pixels)
    assert "inverted" in turned.header.flags


@pytest.mark.parametrize(
    ("kind", "bits", "slope", "intercept", "dtype"),
    [
        ("u2", 12, 1, -1024, "int16"),
        ("u2", 16, 1, -1024, "int32"),
        ("i2", 16, 1, 0, "int16"),
        ("u2", 16, 1, 0, "uint16"),
        ("u1", 8, 2, 0, "float32"),
        ("i2", 12, 1, 0.5, "float32"),
        ("u4", 32, 1, 5, "float64"),
    ],
)
def test_values_are_rescaled_in_the_smallest_type_that_holds_them(tmp_path, kind, bits, slope, intercept, dtype):
    pixels = np.random.default_rng(0).integers(0, 100, (6, 5)).astype(kind)
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept, "BitsStored": bits, "HighBit": bits - 1}
    save(tmp_path / "in" / "a", dataset(pixels, **tags))
    (image,) = images(tmp_path / "in")
    assert image.array_CIJK.dtype == image.header.dtype == dtype
    np.testing.assert_array_equal(image.array_CIJK[0, :, :, 0].T, pixels.astype(float) * slope + intercept)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "a Siemens mosaic without a CSA header.*single slices"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localiser"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour pixels.*grey"),
        ({"BitsAllocated": 64}, "values of 16 bits in 64"),
        ({"Rows": 0}, "no rows and columns"),
        ({"Rows": 65000, "Columns": 65000}, r"8\.4 GB of pixels in 0\.00"),
        ({"Rows": 7}, "cannot be decoded"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no position or no orientation"),
        ({"ImageOrientationPatient": None, "Modality": "OT"}, "no position or no orientation"),
        ({"ImageOrientationPatient": None, "ImagePositionPatient": None}, "no position or no orientation"),
    ],
)
def test_objects_that_are_no_image(tmp_path, tags, words):
    made = dataset(noise(6, 5, 1)[:, :, 0], **tags)
    save(tmp_path / "in" / "a", made)
    assert re.search(words, reason(tmp_path / "in"))


def test_a_film_without_positions_is_refused(tmp_path):
    made = dataset(noise(12, 5, 1)[:, :, 0], MR, ImagePositionPatient=None, Rows=6, NumberOfFrames=2)
    made.ImageOrientationPatient, made.Modality = None, "US"
    save(tmp_path / "in" / "a", made)
    assert "frames without positions" in reason(tmp_path / "in")


def test_a_missing_decoder_names_what_to_install(tmp_path, monkeypatch):
    made = dataset(noise(6, 5, 1)[:, :, 0])
    made.compress(RLELossless)
    save(tmp_path / "in" / "a", made)
    (image,) = images(tmp_path / "in")
    np.testing.assert_array_equal(image.array_CIJK[0, :, :, 0].T, noise(6, 5, 1)[:, :, 0])
    absent = type("Absent", (), {"is_available": False})()
    monkeypatch.setattr(reader, "get_decoder", lambda syntax: absent)
    assert "prevox[dicom]" in reason(tmp_path / "in")


def test_a_decoder_that_panics_costs_its_image_only(tmp_path):
    made = dataset(noise(6, 5, 1)[:, :, 0])
    made.compress(RLELossless)
    data = bytearray(made.PixelData)
    data[-10:] = b"\x7f" + bytes(9)  # a run longer than the image
    made.PixelData = bytes(data)
    save(tmp_path / "in" / "a", made)
    assert "cannot be decoded" in reason(tmp_path / "in")


def test_a_code_stream_of_another_size_is_never_decoded(tmp_path):
    made = dataset(noise(6, 5, 1)[:, :, 0])
    made.file_meta.TransferSyntaxUID = JPEG2000Lossless
    size = struct.pack(">HHIIII", 47, 0, 1 << 30, 1 << 30, 0, 0)  # of 10^18 pixels
    made.PixelData = encapsulate([b"\xff\x4f\xff\x51" + size + bytes(100)])
    save(tmp_path / "in" / "a", made)
    assert "1073741824×1073741824 coded, 5×6 in the header" in reason(tmp_path / "in")


def test_a_film_coding_is_refused(tmp_path):
    made = dataset(noise(6, 5, 1)[:, :, 0])
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    made.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0" + b"\xfe\xff\x00\xe0\x04\0\0\0abcd"
    made["PixelData"].is_undefined_length = True
    save(tmp_path / "in" / "a", made)
    assert "pixels coded as MPEG2" in reason(tmp_path / "in")


def test_files_without_header_are_read_and_other_files_are_not(tmp_path):
    (path,) = write_slices(tmp_path / "in", noise(6, 5, 1))
    bare = without_header(path)
    path.unlink()
    (tmp_path / "in" / "bare").write_bytes(bare)
    (tmp_path / "in" / "README").write_text("no image " * 40)
    (tmp_path / "in" / "zeros").write_bytes(bytes(1000))
    (image,) = images(tmp_path / "in")
    np.testing.assert_array_equal(image.array_CIJK[0, :, :, 0].T, noise(6, 5, 1)[:, :, 0])


def test_what_is_called_dicom_and_is_not_is_broken(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(b"nothing of the kind" * 20)
    assert "a broken DICOM file (bytes that do not begin as DICOM does)" in reason(tmp_path / "in")
    (tmp_path / "in" / "a.dcm").write_bytes(b"")
    assert "a broken DICOM file (an empty file)" in reason(tmp_path / "in")


@settings(max_examples=150, deadline=None)
@given(share=st.floats(0, 1))
def test_a_file_cut_short_is_broken_wherever_it_is_cut(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("cut")
    (path,) = write_slices(folder / "in", noise(6, 5, 1))
    whole, head = path.read_bytes(), head_size(path)
    cut = int(share * (len(whole) - 1))
    path.write_bytes(whole[:cut])
    path.rename(path.with_suffix(".dcm"))
    found = reason(folder / "in")
    assert "broken DICOM" in found if cut < head else "broken DICOM" in found or "cannot be decoded" in found


def test_an_instance_counts_once_and_a_sound_copy_wins(tmp_path):
    paths = write_slices(tmp_path / "in" / "b", noise(6, 5, 4))
    (tmp_path / "in" / "a").mkdir()
    for path in paths:
        data = path.read_bytes()
        (tmp_path / "in" / "a" / path.name).write_bytes(data[: head_size(path)] if path == paths[1] else data)
    (image,) = images(tmp_path / "in")
    np.testing.assert_array_equal(image.array_CIJK[0].transpose(1, 0, 2), noise(6, 5, 4))


def test_what_anonymisers_make_equal_is_not_mixed(tmp_path):
    volumes = [noise(6, 5, 4, seed) for seed in range(2)]
    for number, voxels in enumerate(volumes):  # one series and one instance for all patients
        write_slices(tmp_path / "in", voxels, prefix=f"{number}-", PatientID=f"{number}", SOPInstanceUID="1.2.3.9")
    found = [image.array_CIJK[0].transpose(1, 0, 2) for image in images(tmp_path / "in")]
    np.testing.assert_array_equal(found, volumes)


def enhanced(volumes: list[np.ndarray], frames: int | None = None) -> FileDataset:
    """Time points of one volume (rows, columns, slices) in one file, slice by slice; values are doubled, plus 5."""
    stored = [np.ascontiguousarray(v[:, :, k]) for k in range(volumes[0].shape[2]) for v in volumes]
    groups = []
    for number in range(len(stored)):
        k, time = divmod(number, len(volumes))
        content, position, group = Dataset(), Dataset(), Dataset()
        content.DimensionIndexValues, content.TemporalPositionIndex = [k + 1, time + 1], time + 1
        position.ImagePositionPatient = [0, 0, -4.0 * k]
        group.FrameContentSequence, group.PlanePositionSequence = [content], [position]
        groups.append(group)
    measures, orientation, values, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [2.0, 1.5], 9.0
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    values.RescaleSlope, values.RescaleIntercept = 2, 5
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [values]
    none = {"PixelSpacing": None, "ImagePositionPatient": None, "ImageOrientationPatient": None, "SliceThickness": None}
    made = dataset(stored[0], "1.2.840.10008.5.1.4.1.1.4.1", NumberOfFrames=frames or len(stored), **none)
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], groups
    made.PixelData = np.stack(stored).tobytes()
    return made


def test_time_points_of_an_enhanced_object_become_images(tmp_path):
    volumes = [noise(6, 5, 4, seed) for seed in range(3)]
    save(tmp_path / "in" / "a", enhanced(volumes))
    found = images(tmp_path / "in")
    for image, voxels in zip(found, volumes, strict=True):  # the last slice of the file is the lowest
        np.testing.assert_array_equal(image.array_CIJK[0].transpose(1, 0, 2), 2.0 * voxels[:, :, ::-1] + 5)
        np.testing.assert_allclose(image.header.affine, [[-1.5, 0, 0, 0], [0, -2, 0, 0], [0, 0, 4, -12], [0, 0, 0, 1]])


def test_frames_of_which_one_has_no_place_are_refused(tmp_path):
    made = enhanced([noise(6, 5, 4)])
    del made.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    save(tmp_path / "in" / "a", made)
    assert "no position or no orientation" in reason(tmp_path / "in")


def test_an_enhanced_object_that_describes_other_frames_is_broken(tmp_path):
    save(tmp_path / "in" / "a", enhanced([noise(6, 5, 4)], frames=7))
    assert "broken DICOM" in reason(tmp_path / "in")


def test_many_files_are_read_by_processes(tmp_path, monkeypatch):
    write_slices(tmp_path / "in", noise(6, 5, 7))
    monkeypatch.setattr(dicom, "_FEW", 3)
    monkeypatch.setattr(dicom, "_AT_ONCE", 2)
    (image,) = images(tmp_path / "in")
    np.testing.assert_array_equal(image.array_CIJK[0].transpose(1, 0, 2), noise(6, 5, 7))


def _read_or_die(files):
    if any(path.name == "killer.dcm" for path in files):
        os._exit(9)
    return [read_instance(path) for path in files]


def test_a_file_that_ends_its_process_costs_no_other(tmp_path, monkeypatch):
    write_slices(tmp_path / "in", noise(6, 5, 7))
    (tmp_path / "in" / "killer.dcm").write_bytes(b"any")
    files = sorted((tmp_path / "in").iterdir())
    monkeypatch.setattr(dicom, "_FEW", 3)
    monkeypatch.setattr(dicom, "_read", _read_or_die)
    found = {one.path.name: one.problem for one in dicom._instances(files)}
    assert len(found) == 8
    assert "ended the process" in found.pop("killer.dcm")
    assert set(found.values()) == {None}


def test_a_deflated_bomb_is_refused(tmp_path, monkeypatch):
    from prevox.data.readers import dicom_file

    made = dataset(noise(6, 5, 1)[:, :, 0])
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    save(tmp_path / "in" / "a", made)
    (image,) = images(tmp_path / "in")
    assert image.header.shape_ijk == (5, 6, 1)
    monkeypatch.setattr(dicom_file, "_INFLATED", 100)
    assert "broken DICOM" in reason(tmp_path / "in")


@pytest.mark.parametrize(("name", "told"), [("a.dcm", True), ("1.2.840.17", True), ("a", True), ("a.txt", False)])
def test_what_cannot_be_opened_is_told_if_it_may_be_dicom(tmp_path, monkeypatch, name, told):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path / name))

    (tmp_path / name).touch()
    monkeypatch.setattr(dicom_header, "open_dicom", refuse)
    found = dicom_header.read_instance(tmp_path / name)
    assert (found is not None) == told
    assert found is None or found.problem == "a file that cannot be read (Permission denied)"


def test_files_that_have_moved_are_told_without_their_path(tmp_path):
    (path,) = write_slices(tmp_path / "in", noise(6, 5, 1))
    (entry,) = recognise(tmp_path / "in")
    size = path.stat().st_size
    assert stored_size(entry.paths[0]) == size
    path.unlink()
    with pytest.raises(DataError, match=r"cannot be read.*run `prevox catalogue`") as error:
        read_image(entry.paths[0])
    assert str(path) not in str(error.value)
    entry.paths[0].write_text("{}")
    with pytest.raises(DataError, match="something else than a list"):
        read_header(entry.paths[0])
