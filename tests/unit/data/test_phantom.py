from itertools import combinations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from prevox.data.layouts import recognise
from prevox.data.phantom import CLASS_NAMES, phantom, write_phantoms
from prevox.errors import ConfigError

pytestmark = pytest.mark.unit

SMALL = (32, 32, 32)


def world(affine: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return (affine[:3, :3] @ indices.T).T + affine[:3, 3]


def test_same_seed_same_case_and_another_seed_another():
    a, b, c = phantom(3, SMALL), phantom(3, SMALL), phantom(4, SMALL)
    np.testing.assert_array_equal(a.array_CZYX, b.array_CZYX)
    np.testing.assert_array_equal(a.label_ZYX, b.label_ZYX)
    np.testing.assert_array_equal(a.affine, b.affine)
    assert (a.label_ZYX != c.label_ZYX).any()


def test_shapes_types_and_classes():
    dtypes, shapes, regimes = set(), set(), []
    for seed in range(6):
        case = phantom(seed)
        assert case.array_CZYX.shape == (1, *case.label_ZYX.shape)
        assert all(48 <= n <= 64 for n in case.label_ZYX.shape)
        assert case.label_ZYX.dtype == np.uint8
        assert set(np.unique(case.label_ZYX)) == {0, *CLASS_NAMES}, f"seed {seed}"
        assert np.isfinite(case.array_CZYX).all()
        dtypes.add(case.array_CZYX.dtype.name)
        shapes.add(case.label_ZYX.shape)
        regimes.append(float(np.percentile(case.array_CZYX, 99)))
    assert dtypes == {"int16", "float32"}
    assert len(shapes) == 6
    assert max(regimes) > 3 * min(regimes)


def test_channels_share_the_body_but_not_the_contrast():
    case = phantom(5, SMALL, channels=3)
    assert case.array_CZYX.shape == (3, *SMALL)
    means = [[float(channel[case.label_ZYX == value].mean()) for value in CLASS_NAMES] for channel in case.array_CZYX]
    assert all(np.abs(np.subtract(a, b)).max() > 1 for a, b in combinations(means, 2))


def test_affine_is_slightly_oblique_with_the_voxel_size_asked_for():
    case = phantom(2, SMALL, spacing=(3.0, 2.0, 2.5))
    np.testing.assert_allclose(np.linalg.norm(case.affine[:3, :3], axis=0), (3.0, 2.0, 2.5))
    directions = case.affine[:3, :3] / (3.0, 2.0, 2.5)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    # array axes z y x run along world axes z y x, up to a tilt of 3 × 8 degrees at most
    assert (np.diag(directions[::-1]) > np.cos(np.radians(24))).all()
    assert np.abs(directions - np.eye(3)[::-1]).max() > 0.01


def test_organs_lie_on_their_sides_in_the_world():
    for seed in range(4):
        case = phantom(seed, (40, 40, 40))
        centre = {v: world(case.affine, np.argwhere(case.label_ZYX == v)).mean(0) for v in (1, 2, 3, 4)}
        assert centre[3][0] - centre[2][0] > 20, "right kidney lies to the right (+x)"
        assert centre[1][2] > centre[3][2], "liver above the kidney"
        assert centre[4][1] < min(centre[1][1], centre[2][1], centre[3][1]), "spine behind"
        around = ndimage.binary_dilation(case.label_ZYX == 5, iterations=2) & (case.label_ZYX != 5)
        assert (case.label_ZYX[around] == 1).mean() > 0.6, "lesions lie in the liver"


def test_no_interval_of_intensity_finds_an_organ():
    """The best of all intervals between 24 quantiles of the smoothed volume stays far from a segmentation."""
    best: dict[int, list[float]] = {value: [] for value in CLASS_NAMES}
    for seed in range(3):
        case = phantom(seed, (40, 40, 40))
        smooth = ndimage.gaussian_filter(case.array_CZYX[0].astype(np.float32), 0.7)
        edges = np.quantile(smooth, np.linspace(0, 1, 24))
        bins = np.digitize(smooth, edges[1:-1])
        for value in CLASS_NAMES:
            inside = np.bincount(bins[case.label_ZYX == value], minlength=23).cumsum()
            size = np.bincount(bins.ravel(), minlength=23).cumsum()
            total = inside[-1]
            dice = [
                2 * (inside[b] - (inside[a - 1] if a else 0)) / (size[b] - (size[a - 1] if a else 0) + total)
                for a in range(23)
                for b in range(a, 23)
            ]
            best[value].append(max(dice))
    assert max(np.mean(found) for found in best.values()) < 0.6, best
    assert np.mean([np.mean(found) for found in best.values()]) < 0.35, best


def test_written_phantoms_read_as_msd_and_keep_their_geometry(tmp_path):
    folder = write_phantoms(tmp_path / "p", 5, seed=7, shape=SMALL, unlabelled=1)
    entries = recognise(folder)
    assert [entry.label is not None for entry in entries] == [True] * 5 + [False]
    assert entries[0].class_names == CLASS_NAMES
    assert {entry.layout for entry in entries} == {"msd"}
    orientations = set()
    for entry in entries[:5]:
        image, label = nib.load(entry.paths[0]), nib.load(entry.label)
        np.testing.assert_array_equal(image.affine, label.affine)
        orientations.add("".join(nib.aff2axcodes(image.affine)))
        values = np.asarray(label.dataobj)
        left, right = (world(image.affine, np.argwhere(values == v)).mean(0)[0] for v in (2, 3))
        assert right - left > 20  # whatever the storage order
    assert len(orientations) > 1
    again = write_phantoms(tmp_path / "q", 1, seed=7, shape=SMALL)
    first, second = (nib.load(f / "imagesTr" / "phantom_000.nii.gz").get_fdata() for f in (folder, again))
    np.testing.assert_array_equal(first, second)


def test_other_layouts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="bids"):
        write_phantoms(tmp_path, 1, layout="bids")
