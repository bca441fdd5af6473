"""What the viewer gets: places, greys, what is cut and made coarser, and how large it may become."""

import base64
import gzip
import json

import nibabel as nib
import numpy as np
import pytest

from prevox.reporting import volumes
from prevox.reporting.page import embedded
from prevox.reporting.scans import CaseFiles, Scan

pytestmark = pytest.mark.unit


def unpacked(text, shape):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8).reshape(shape)


def saved(folder, name, array_ZYX):
    """An array in canonical order as a file whose axes run to the right, to the front and up."""
    nib.save(nib.Nifti1Image(array_ZYX.transpose(2, 1, 0), np.diag([1.5, 1.0, 2.0, 1.0])), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def packed(folder, image, reference, prediction, names=None):
    files = {name: saved(folder, name, array) for name, array in locals().items() if name not in ("folder", "names")}
    case = volumes.Case("a", "best", {"run": CaseFiles(files["prediction"], files["reference"], files["image"])}, {})
    data, problems = volumes.pack([case], names or {})
    assert problems == []
    return data


def test_voxels_arrive_at_their_places_from_right_to_left_and_front_to_back(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 5, 6)).astype(np.uint8)
    image[0, 0, :2] = 0, 255  # the whole range
    reference, prediction = np.zeros((2, 4, 5, 6), np.uint8)
    reference[3, 1, 2] = 7
    prediction[2, 4, 0] = 300 % 256
    prediction[1, 1, 1] = 7
    data = packed(tmp_path, image, reference, prediction, {7: "liver"})
    (case,) = data["cases"]
    assert case["shape"] == [4, 5, 6]
    assert case["spacing"] == pytest.approx([2.0, 1.0, 1.5])
    assert case["note"] == ""
    low, high = case["range"]
    grey = low + unpacked(case["image"], (4, 5, 6)) / 255 * (high - low)
    clipped = np.clip(image[:, ::-1, ::-1], low, high)  # the outermost 0.1 % on either side
    assert np.abs(grey - clipped).max() <= 0.51
    assert [label["name"] for label in data["labels"]] == ["liver", "label 44"]
    expected = np.zeros((4, 5, 6))
    expected[3, 3, 3] = 1
    assert np.array_equal(unpacked(case["reference"], (4, 5, 6)), expected)
    expected = np.zeros((4, 5, 6))
    expected[2, 0, 5], expected[1, 3, 4] = 2, 1
    assert np.array_equal(unpacked(case["predictions"][0]["labels"], (4, 5, 6)), expected)


def test_labels_beyond_a_byte_are_one_label(tmp_path):
    reference = np.zeros((1, 20, 20), np.int16)
    reference.flat[:301] = np.arange(301) * 3  # 300 values above 0
    data = packed(tmp_path, np.zeros((1, 20, 20), np.float32), reference, reference)
    assert len(data["labels"]) == 255
    assert data["labels"][-1]["name"] == "other labels"
    flat = unpacked(data["cases"][0]["reference"], (20, 20))[::-1, ::-1].ravel()
    assert list(flat[:256]) == list(range(256))
    assert set(flat[255:301]) == {255}


def scan(shape, spacing, label):
    image, reference = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    reference[label] = 1
    return Scan(image, reference, {"run": reference}, spacing)


def test_a_large_volume_is_cut_around_its_labels_and_then_made_coarser():
    label = (slice(20, 60), slice(100, 200), slice(300, 380))
    small = scan((100, 400, 500), (2.0, 1.0, 1.0), label)
    assert volumes.plan(small, share=10**9) == (tuple(slice(0, size) for size in (100, 400, 500)), (1, 1, 1))
    box, steps = volumes.plan(small, share=10**7)
    # a quarter of 40, 100 and 80 voxels on each side; 12 mm would be 6, 12 and 12 voxels
    assert box == (slice(10, 70), slice(75, 225), slice(280, 400))
    assert steps == (1, 1, 1)
    box, steps = volumes.plan(small, share=60 * 75 * 60)
    assert box == (slice(10, 70), slice(75, 225), slice(280, 400))
    assert steps == (1, 2, 2)  # the in-plane axes are the finer ones


def test_without_labels_the_whole_volume_is_made_coarser():
    empty = scan((64, 64, 64), (1.0, 1.0, 1.0), (slice(0, 0),) * 3)
    box, steps = volumes.plan(empty, share=32**3)
    assert box == (slice(0, 64),) * 3
    assert steps == (2, 2, 2)


def test_coarser_values_are_means_of_blocks():
    image = np.arange(2 * 3 * 5, dtype=np.float64).reshape(2, 3, 5)
    found = volumes.coarser(image, (1, 3, 2))
    # columns 0–1, 2–3 and no third block, whose middle voxel (index 5) does not exist
    expected = np.stack([image[:, :, 0:2].mean(axis=(1, 2)), image[:, :, 2:4].mean(axis=(1, 2))], axis=1)[:, None]
    assert np.allclose(found, expected)
    assert np.array_equal(volumes.coarser(image, (1, 1, 1)), image)


def test_a_case_that_cannot_be_read_is_said(tmp_path):
    missing = CaseFiles(tmp_path / "p.nii.gz", tmp_path / "r.nii.gz", None)
    data, (problem,) = volumes.pack([volumes.Case("x", "best", {"run": missing}, {})], {})
    assert data["cases"] == []
    assert problem.startswith("Case x is not in the viewer.")


def test_without_the_scan_masks_are_shown_on_black(tmp_path):
    reference = np.zeros((3, 4, 5), np.uint8)
    reference[1] = 1
    file = saved(tmp_path, "mask", reference)
    data, problems = volumes.pack([volumes.Case("x", "best", {"run": CaseFiles(file, file, None)}, {})], {})
    assert problems == []
    assert not unpacked(data["cases"][0]["image"], (3, 4, 5)).any()
    assert unpacked(data["cases"][0]["reference"], (3, 4, 5)).sum() == 20


def test_data_in_a_script_element_cannot_end_it():
    hostile = ["</script><b>", "<!--", "a & b", "\u2028"]
    text = embedded({"names": hostile})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"names": hostile}
