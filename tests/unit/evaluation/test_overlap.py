"""Dice against hand values and MONAI; the joint histogram against counting class by class."""

import numpy as np
import pytest

from prevox.evaluation.overlap import Overlap, joint_histogram, overlap

pytestmark = pytest.mark.unit


def dice(prediction, reference):
    """Of two masks, as label maps of one class."""
    return overlap(prediction.astype(np.uint8), reference.astype(np.uint8), {"it": (1,)})["it"].dice


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
        dice(np.ones((2, 2)), np.ones((2, 3)))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_joint_histogram_equals_counting(order, dtype):
    rng = np.random.default_rng(0)
    p, r = (np.asarray(rng.integers(0, 6, (7, 8, 9)), dtype, order=order) for _ in range(2))
    values = [5, 2, 3]
    rows = [np.isin, *values]
    counts = joint_histogram(p, r, values)
    assert counts.sum() == p.size
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            in_p = ~np.isin(p, values) if i == 0 else p == a
            in_r = ~np.isin(r, values) if j == 0 else r == b
            assert counts[i, j] == (in_p & in_r).sum()


def test_histogram_goes_on_over_its_pieces(monkeypatch):
    rng = np.random.default_rng(1)
    p, r = rng.integers(0, 3, (2, 10, 10, 10), dtype=np.uint8)
    whole = joint_histogram(p, r, [1, 2])
    monkeypatch.setattr("prevox.evaluation.overlap.VOXELS_AT_ONCE", 37)
    np.testing.assert_array_equal(joint_histogram(p, r, [1, 2]), whole)


def test_regions_may_overlap_and_mix_memory_orders():
    rng = np.random.default_rng(2)
    p, r = rng.integers(0, 4, (2, 9, 10, 11), dtype=np.uint8)
    regions = {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,), "absent": (9,)}
    for prediction in (p, np.asfortranarray(p)):
        found = overlap(prediction, r, regions)
        assert list(found) == list(regions)
        for name, values in regions.items():
            a, b = np.isin(p, values), np.isin(r, values)
            assert (found[name].prediction, found[name].reference, found[name].both) == (
                a.sum(),
                b.sum(),
                (a & b).sum(),
            )


def test_dice_equals_monai():
    import torch  # takes seconds, with MONAI, so only here
    from monai.metrics import DiceMetric

    rng = np.random.default_rng(3)
    p, r = rng.integers(0, 5, (2, 12, 13, 14), dtype=np.uint8)
    r[r == 4] = 0  # class 4: reference empty
    metric = DiceMetric(include_background=False, reduction="none", num_classes=5)
    peer = metric(torch.from_numpy(p)[None, None].long(), torch.from_numpy(r)[None, None].long())[0].numpy()
    ours = [found.dice for found in overlap(p, r, {str(value): (value,) for value in range(1, 5)}).values()]
    # MONAI leaves a class with an empty reference out (NaN); here a false positive costs its Dice
    np.testing.assert_allclose(ours[:3], peer[:3], atol=1e-6)
    assert ours[3] == 0.0
