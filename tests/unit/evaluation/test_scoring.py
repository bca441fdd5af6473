"""One case: label maps class by class, and every refusal names the case."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from prevox.errors import DataError
from prevox.evaluation.cases import Case
from prevox.evaluation.lesions import Lesions
from prevox.evaluation.scoring import present_values, read_labels, score_case, score_labels
from prevox.evaluation.surface import asd, hd95, nsd, surface_distances

pytestmark = pytest.mark.unit
REGIONS = {"one": (1,), "two": (2,), "whole": (1, 2, 3), "absent": (7,)}


def random_labels(seed, shape=(15, 18, 21), classes=3):
    fields = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(classes + 1, *shape)), (0, 2, 2, 2))
    return fields.argmax(axis=0).astype(np.uint8)


def save(path, labels, spacing=(1.0, 1.0, 1.0), shift=0.0):
    affine = np.diag([*spacing, 1.0])
    affine[0, 3] = shift
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


def case_of(tmp_path, prediction, reference, regions=REGIONS, strict=True, **geometry):
    p = save(tmp_path / "p" / "scan_7.nii.gz", prediction, **geometry)
    r = save(tmp_path / "r" / "scan_7.nii.gz", reference)
    return Case("scan_7", "subject_4", p, r, regions, strict)


@pytest.mark.parametrize("order", ["C", "F"])
def test_every_region_equals_whole_volume_masks(order):
    p, r = (np.asarray(random_labels(seed), order=order) for seed in (0, 1))
    spacing = (0.8, 1.3, 2.2)
    scores = score_labels(p, r, REGIONS, spacing, tolerance=1.5)
    for name in ("one", "two", "whole"):
        a, b = np.isin(p, REGIONS[name]), np.isin(r, REGIONS[name])
        whole = surface_distances(a, b, spacing)
        found = scores[name]
        assert found.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        expected = (hd95(whole), nsd(whole, 1.5), asd(whole))
        np.testing.assert_allclose((found.hd95, found.nsd, found.asd), expected, atol=1e-12)
        assert (found.prediction_voxels, found.reference_voxels, found.empty) == (a.sum(), b.sum(), "")
    assert np.isnan([scores["absent"].dice, scores["absent"].hd95, scores["absent"].nsd, scores["absent"].asd]).all()
    assert scores["absent"].empty == "both"


def test_regions_may_overlap_and_mix_memory_orders():
    p, r = random_labels(2), random_labels(3)
    regions = {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,), "absent": (9,)}
    for prediction in (p, np.asfortranarray(p), p.astype(np.int64)):
        scores = score_labels(prediction, r, regions, (1, 1, 1))
        assert list(scores) == list(regions)
        for name, values in regions.items():
            a, b = np.isin(p, values), np.isin(r, values)
            assert (scores[name].prediction_voxels, scores[name].reference_voxels) == (a.sum(), b.sum())
            np.testing.assert_equal(scores[name].dice, 2 * (a & b).sum() / (a.sum() + b.sum()) if b.any() else np.nan)
    with pytest.raises(ValueError, match=r"\(15, 18, 21\).*\(15, 18, 20\)"):
        score_labels(p, r[..., 1:], regions, (1, 1, 1))


def test_class_order_does_not_matter():
    p, r = random_labels(2), random_labels(3)
    forward = score_labels(p, r, {"one": (1,), "two": (2,)}, (1, 1, 1))
    backward = score_labels(p, r, {"two": (2,), "one": (1,)}, (1, 1, 1))
    assert forward == backward


def test_missed_class_gets_the_whole_grids_diagonal():
    p, r = np.zeros((2, 10, 12, 20), np.uint8)
    r[4:6, 4:6, 4:6] = 1  # a small box within a large grid
    p[0, 0, 0] = 2  # predicted, but not there
    scores = score_labels(p, r, {"missed": (1,), "invented": (2,)}, (3.0, 2.0, 1.0))
    diagonal = np.sqrt(30.0**2 + 24.0**2 + 20.0**2)
    for name, empty in (("missed", "prediction"), ("invented", "reference")):
        found = scores[name]
        assert (found.dice, found.nsd, found.empty) == (0.0, 0.0, empty)
        assert found.hd95 == pytest.approx(diagonal)
        assert found.asd == pytest.approx(diagonal)


@pytest.mark.parametrize(
    ("predicted", "there", "rvd"),
    [(8, 8, 0.0), (4, 8, -0.5), (16, 8, 1.0), (0, 8, -1.0), (8, 0, np.nan), (0, 0, np.nan)],
)
def test_volume_difference_by_hand(predicted, there, rvd):
    """Relative to the reference, so it is not counted where that is empty; nothing predicted is −1."""
    p, r = np.zeros((2, 4, 4, 4), np.uint8)
    p.flat[:predicted], r.flat[:there] = 1, 1
    found = score_labels(p, r, {"it": (1,)}, (1, 2, 3))["it"]
    np.testing.assert_array_equal([found.rvd, found.ravd], [rvd, abs(rvd)])


def test_lesions_of_the_asked_classes_only():
    p, r = np.zeros((2, 10, 12, 20), np.uint8)
    r[1, 1, 1], r[1, 5, 5], r[8, 8, 8] = 1, 1, 2
    p[1, 1, 1:4], p[5, 5, 15] = 1, 1
    regions = {"one": (1,), "two": (2,), "any": (1, 2), "absent": (7,)}
    scores = score_labels(p, r, regions, (1, 1, 1), lesions=("one", "any", "absent"))
    assert scores["one"].lesions == Lesions(2, 1, 1)
    assert scores["two"].lesions is None
    assert scores["any"].lesions == Lesions(3, 1, 1)
    assert scores["absent"].lesions == Lesions(0, 0, 0)


@given(st.permutations(range(3)), st.integers(0, 7), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_scores_know_no_class_order_axis_order_direction_or_empty_margin(order, flips, seed):
    """Not the diagonal that stands in for distances to nothing: it is the grid's, which a margin makes longer."""
    rng = np.random.default_rng(seed)
    p, r = (random_labels(int(rng.integers(2**32)), (7, 9, 8)) for _ in range(2))
    renamed = rng.permutation([1, 2, 3])
    spacing = rng.uniform(0.4, 4, 3)
    names = {"one": (1,), "two": (2,), "three": (3,), "outer": (1, 3)}
    other = {name: tuple(int(renamed[value - 1]) for value in names[name]) for name in reversed(names)}
    expected = score_labels(p, r, names, spacing, 1.2, lesions=names)
    axes = tuple(axis for axis in range(3) if flips >> axis & 1)
    value = np.array([0, *renamed], np.uint8)
    moved = [np.pad(np.flip(value[m].transpose(order), axes), ((0, 5), (3, 1), (2, 0))) for m in (p, r)]
    found = score_labels(*moved, other, spacing[list(order)], 1.2, lesions=names)
    for name, score in expected.items():
        same = found[name]
        assert (same.lesions, same.empty, same.rvd) == (
            score.lesions,
            score.empty,
            pytest.approx(score.rvd, nan_ok=True),
        )
        near = {} if score.empty else {"hd95": score.hd95, "asd": score.asd}
        for metric, expected_value in (near | {"dice": score.dice, "nsd": score.nsd}).items():
            assert getattr(same, metric) == pytest.approx(expected_value, abs=1e-9, nan_ok=True)


def test_rows_of_a_case_with_volumes_in_ml(tmp_path):
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:3, 1:3, 1:3] = 2
    p = save(tmp_path / "p.nii.gz", labels, spacing=(2.0, 1.0, 5.0))
    rows = score_case(Case("a", "s", p, p, {"two": (2,), "one": (1,)}, True), 1.0)
    assert [row["class"] for row in rows] == ["two", "one"]
    assert rows[0]["reference_ml"] == pytest.approx(8 * 10 / 1000)
    assert (rows[0]["case"], rows[0]["subject"], rows[0]["dice"], rows[0]["hd95"]) == ("a", "s", 1.0, 0.0)
    assert rows[1]["empty"] == "both"


def test_float32_headers_do_not_decide_at_the_tolerance(tmp_path):
    """A rotated grid of 1 mm has columns of 1.0000001 mm; the next voxel is still within 1 mm."""
    angle = 0.3
    affine = np.eye(4)
    affine[:2, :2] = np.float32([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * np.float32(
        1.0000001
    )
    r, p = np.zeros((2, 9, 9, 9), np.uint8)
    r[2:6, 2:6, 2:6], p[3:7, 2:6, 2:6] = 1, 1
    files = []
    for name, labels in (("p", p), ("r", r)):
        files.append(tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), files[-1])
    rows = score_case(Case("a", "a", *files, {"1": (1,)}, True), 1.0)
    assert rows[0]["nsd"] == pytest.approx(1.0)


def test_one_slice_is_an_image_not_a_slab(tmp_path):
    p, r = np.zeros((2, 12, 14, 1), np.uint8)
    p[3:7, 3:9], r[3:7, 5:11] = 1, 1
    case = case_of(tmp_path, p, r, {"1": (1,)})
    row = score_case(case, 1.0)[0]
    contours = surface_distances(p[..., 0] == 1, r[..., 0] == 1, (1, 1))
    assert row["nsd"] == pytest.approx(nsd(contours, 1.0))
    assert row["hd95"] == 2.0


def test_other_shape_is_refused(tmp_path):
    fault = score_case(case_of(tmp_path, random_labels(0, (4, 5, 6)), random_labels(0, (4, 5, 7))), 1.0)
    assert isinstance(fault, DataError)
    assert "scan_7" in str(fault)
    assert "4×5×6" in str(fault)
    assert "4×5×7" in str(fault)


@pytest.mark.parametrize("geometry", [{"shift": 0.5}, {"spacing": (1.0, 1.01, 1.0)}])
def test_other_place_or_spacing_is_refused(tmp_path, geometry):
    labels = random_labels(0)
    fault = score_case(case_of(tmp_path, labels, labels, **geometry), 1.0)
    assert isinstance(fault, DataError)
    assert "scan_7" in str(fault)
    assert "mm off" in str(fault)


def test_rounded_headers_are_accepted(tmp_path):
    labels = random_labels(0)
    rows = score_case(case_of(tmp_path, labels, labels, shift=0.001, spacing=(1.0001, 1.0, 1.0)), 1.0)
    assert rows[0]["dice"] == 1.0


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.full((3, 3, 3), 0.5, np.float32), "0.5"),
        (np.full((3, 3, 3), np.nan, np.float32), "nan"),
        (np.full((3, 3, 3), -1, np.int16), "-1"),
        (np.full((3, 3, 3), 70000, np.int32), "70000"),
        (np.zeros((3, 3, 3, 2), np.uint8), "2 channels"),
    ],
)
def test_values_that_are_no_labels_are_refused(tmp_path, labels, found):
    path = save(tmp_path / "scan.nii.gz", labels)
    with pytest.raises(DataError, match=found) as caught:
        read_labels(path, "scan_7", "reference")
    assert "case scan_7, reference" in str(caught.value)


def test_whole_floats_are_labels(tmp_path):
    labels = np.asarray(random_labels(0), np.float64)
    read, _ = read_labels(save(tmp_path / "scan.nii.gz", labels), "scan_7", "reference")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels)
    high, _ = read_labels(save(tmp_path / "high.nii.gz", labels * 300), "scan_7", "reference")
    np.testing.assert_array_equal(high, labels * 300)


@pytest.mark.parametrize("role", ["prediction", "reference"])
def test_unknown_label_values_are_refused(tmp_path, role):
    maps = {"prediction": random_labels(0), "reference": random_labels(1)}
    maps[role] = np.where(maps[role] == 3, 9, maps[role]).astype(np.uint8)
    fault = score_case(case_of(tmp_path, **maps), 1.0)
    assert isinstance(fault, DataError)
    assert f"case scan_7, {role}" in str(fault)
    assert "[9]" in str(fault)
    lenient = score_case(case_of(tmp_path, **maps, strict=False), 1.0)
    assert [row["class"] for row in lenient] == list(REGIONS)


def test_without_named_classes_every_value_is_one(tmp_path):
    p, r = np.zeros((2, 5, 5, 5), np.uint8)
    p[1:3, 1:3, 1:3], r[1:3, 1:3, 1:3], r[4, 4, 4] = 12, 12, 3
    rows = score_case(case_of(tmp_path, p, r, None), 1.0)
    assert [(row["class"], row["dice"]) for row in rows] == [("3", 0.0), ("12", 1.0)]


def test_present_values():
    assert present_values(np.array([[0, 3], [7, 3]], np.uint16)) == {3, 7}
    assert present_values(np.zeros((2, 2), np.uint8)) == set()
