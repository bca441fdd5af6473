"""Dice against hand values; whole cases are compared with MONAI in test_exactness.py."""

import numpy as np
import pytest

from prevox.evaluation.overlap import Overlap, overlap

pytestmark = pytest.mark.unit


def dice(prediction, reference):
    return overlap(prediction, reference).dice


def test_dice_of_hand_made_masks():
    a, b = np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool)
    a[0, 0, :3] = True  # 3 voxels
    b[0, 0, 1:] = True  # 3 voxels, 2 of them shared
    assert dice(a, b) == pytest.approx(2 * 2 / 6)
    assert dice(a, a) == 1.0
    assert dice(a, ~a) == 0.0


def test_dice_of_empty_masks():
    nothing, something = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert np.isnan(dice(nothing, nothing))
    assert dice(nothing, something) == 0.0
    assert dice(something, nothing) == 0.0


def test_empty_says_which_mask_is_empty():
    found = [Overlap(*counts).empty for counts in ((0, 0, 0), (0, 5, 0), (5, 0, 0), (5, 5, 1))]
    assert found == ["both", "prediction", "reference", ""]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        dice(np.ones((2, 2), bool), np.ones((2, 3), bool))
