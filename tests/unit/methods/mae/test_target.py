"""Normalised target and masked loss against loops written by hand."""

import math

import numpy as np
import pytest
import torch

from prevox.methods.mae.target import explained_share, masked_loss, normalise_patches

pytestmark = pytest.mark.unit


def loop(patches: np.ndarray, valid: np.ndarray, unbiased: bool) -> np.ndarray:
    """Standardise every patch over its valid values, one value at a time; NaN where not valid."""
    result = np.full(patches.shape, np.nan)
    for b in range(patches.shape[0]):
        for m in range(patches.shape[1]):
            values = [float(v) for v, ok in zip(patches[b, m], valid[b, m], strict=True) if ok]
            if not values:
                continue
            mean = sum(values) / len(values)
            total = sum((v - mean) ** 2 for v in values)
            variance = total / max(len(values) - (1 if unbiased else 0), 1)
            for p in range(patches.shape[2]):
                if valid[b, m, p]:
                    result[b, m, p] = (float(patches[b, m, p]) - mean) / math.sqrt(variance + 1e-6)
    return result


@pytest.mark.parametrize("variance", ["biased", "unbiased"])
@pytest.mark.parametrize("padded", [False, True])
def test_target_equals_the_loop(variance: str, padded: bool) -> None:
    rng = np.random.default_rng(0)
    patches = rng.normal(3, 2, (2, 4, 10))
    valid = rng.random((2, 4, 10)) < (0.6 if padded else 2)
    if padded:
        valid[0, 1], valid[1, 2], valid[1, 2, 4] = False, False, True  # no valid value at all, and a single one
    want = loop(patches, valid, variance == "unbiased")
    got, mean, deviation = normalise_patches(torch.from_numpy(patches), torch.from_numpy(valid), variance)
    np.testing.assert_allclose(got.numpy()[valid], want[valid], atol=1e-12)
    np.testing.assert_allclose((got * deviation + mean).numpy()[valid], patches[valid], atol=1e-12)
    assert got.isfinite().all()
    if not padded:
        np.testing.assert_allclose(normalise_patches(torch.from_numpy(patches), None, variance)[0], want, atol=1e-12)


def test_the_two_variances_differ_by_n_minus_one_over_n() -> None:
    # error of predicting zero: mean of the squared target, which is (N - 1) / N as large with the unbiased variance
    patches = torch.randn(1, 3, 4096, dtype=torch.float64) * 50
    zero = torch.zeros_like(patches)
    biased = masked_loss(zero, normalise_patches(patches, None, "biased")[0])
    unbiased = masked_loss(zero, normalise_patches(patches, None, "unbiased")[0])
    assert biased.item() == pytest.approx(1, abs=1e-6)
    assert (1 - unbiased / biased).item() == pytest.approx(1 / 4096, rel=1e-2)  # 2.4e-4; the loss is float32


@pytest.mark.parametrize(("kind", "want"), [("l2", (1 + 4 + 9 + 16) / 4), ("l1", (1 + 2 + 3 + 4) / 4)])
def test_loss_by_hand(kind: str, want: float) -> None:
    prediction = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert masked_loss(prediction, torch.zeros(1, 2, 2), None, kind).item() == want
    assert masked_loss(prediction, torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool), kind).item() == want


def test_padded_voxels_and_patches_do_not_count() -> None:
    prediction = torch.tensor([[[1.0, 9.0], [3.0, 4.0], [7.0, 7.0]]], requires_grad=True)
    valid = torch.tensor([[[True, False], [True, True], [False, False]]])
    loss = masked_loss(prediction, torch.zeros(1, 3, 2), valid)
    assert loss.item() == pytest.approx((1 + (9 + 16) / 2) / 2)  # two patches with something to predict
    loss.backward()
    assert torch.equal(prediction.grad != 0, valid)


def test_nothing_valid_gives_zero_with_a_graph() -> None:
    prediction = torch.randn(1, 2, 3, requires_grad=True)
    loss = masked_loss(prediction, torch.randn(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not prediction.grad.any()


def test_loss_is_computed_in_float32() -> None:
    loss = masked_loss(torch.full((1, 1, 4), 300.0, dtype=torch.float16), torch.zeros(1, 1, 4))
    assert loss.item() == 90000  # beyond float16's 65504


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_leaving_validity_out_where_nothing_is_padded_changes_nothing(kind: str) -> None:
    prediction, target = torch.randn(3, 4, 10), torch.randn(3, 4, 10) + 5
    everywhere = torch.ones(3, 4, 10, dtype=torch.bool)
    for measure in (lambda valid: masked_loss(prediction, target, valid, kind),
                    lambda valid: explained_share(prediction, target, valid)):  # fmt: skip
        torch.testing.assert_close(measure(None), measure(everywhere), rtol=1e-5, atol=0)


def test_explained_share_by_hand() -> None:
    target = torch.tensor([[[1.0, 3.0, 100.0]]])
    valid = torch.tensor([[[True, True, False]]])
    assert explained_share(target, target, valid).item() == 1
    assert explained_share(torch.full((1, 1, 3), 2.0), target, valid).item() == 0  # the best constant
    assert explained_share(torch.tensor([[[1.0, 2.0, 0.0]]]), target, valid).item() == 0.5
