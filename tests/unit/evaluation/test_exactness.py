"""Whole cases against other packages: DeepMind's surface-distance for NSD, HD95 and ASD, MONAI for Dice.

Label maps go through `score_labels` as files do, so boxes, regions and joint histogram are in the comparison.
"""

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from tests.unit.evaluation.peers import peer_values, random_labels

from prevox.evaluation.scoring import score_labels

pytestmark = pytest.mark.unit
REAL = {  # folder of labels -> how many there are
    "Task04_Hippocampus/labelsTr": 168,
    "nnUNet_raw/Dataset101_STSPET/labelsTr": 27,
    "sts_ct/labels": 4,
    "sts_mr_t1/labels": 9,
}


def monai_dice(prediction, reference, classes):
    """(classes,) Dice; NaN where the reference is empty."""
    import torch  # takes seconds, with MONAI, so only here
    from monai.metrics import compute_dice

    maps = (
        torch.from_numpy(np.stack([labels == value for value in classes])[None]) for labels in (prediction, reference)
    )
    return compute_dice(*maps, include_background=True)[0].numpy()


def assert_equal_the_packages(prediction, reference, spacing, tolerance):
    classes = [int(value) for value in np.unique([prediction, reference]) if value]
    scores = score_labels(prediction, reference, {str(value): (value,) for value in classes}, spacing, tolerance)
    dice = monai_dice(prediction, reference, classes)
    compared = 0
    for value, expected_dice in zip(classes, dice, strict=True):
        found, p, r = scores[str(value)], prediction == value, reference == value
        if p.any() and r.any():  # the packages have rules of their own for empty masks
            expected = (expected_dice, *peer_values(p, r, spacing, tolerance))
            np.testing.assert_allclose((found.dice, found.nsd, found.hd95, found.asd), expected, atol=1e-6)
            compared += 1
    return compared


@pytest.mark.parametrize("seed", range(200))
def test_random_volumes_of_any_spacing(seed):
    rng = np.random.default_rng(seed)
    shape, spacing = rng.integers(4, 26, 3), rng.uniform(0.3, 5, 3)
    maps = [random_labels(rng, shape, classes=int(rng.integers(2, 6))).astype(np.uint8) for _ in range(2)]
    assert assert_equal_the_packages(*maps, spacing, rng.uniform(0, 3)) > 0


def perturbed(labels, rng):
    """Moved by up to two voxels, bent smoothly, and with one voxel in fifty of the border changed."""
    labels = np.roll(labels, rng.integers(-2, 3, 3), axis=(0, 1, 2))
    bend = ndimage.gaussian_filter(rng.normal(size=(3, *labels.shape)), (0, 4, 4, 4))
    bend *= 1.5 / np.abs(bend).max()
    bent = ndimage.map_coordinates(labels, np.indices(labels.shape) + bend, order=0, mode="nearest")
    border = ndimage.grey_dilation(bent, (3, 3, 3)) != ndimage.grey_erosion(bent, (3, 3, 3))
    changed = border & (rng.random(labels.shape) < 0.02)
    return np.where(changed, rng.choice(np.unique(labels), labels.shape), bent).astype(np.uint8)


@pytest.mark.parametrize("folder", REAL)
def test_all_real_labels_against_perturbed_ones(folder, real_data):
    files = sorted((real_data / folder).glob("[!.]*.nii.gz"))
    assert len(files) == REAL[folder]
    rng = np.random.default_rng(0)
    for file in files:
        image = nibabel.load(file)
        labels, spacing = np.asarray(image.dataobj).astype(np.uint8), image.header.get_zooms()
        worse = perturbed(labels, rng)
        assert (worse != labels).any()
        assert assert_equal_the_packages(worse, labels, spacing, 1.0) > 0, file
