"""Equations of GL-MAE against slow loops written from the paper."""

import math

import pytest
import torch

from prevox.methods.glmae.losses import (
    consistency_loss,
    effective_rank,
    entropy,
    reconstruction_loss,
    teacher_distribution,
    teacher_momentum,
)

pytestmark = pytest.mark.unit


def gamma(e: list[float], t: float) -> list[float]:
    """Equation 7."""
    total = sum(math.exp(value / t) for value in e)
    return [math.exp(value / t) / total for value in e]


def unit(e: torch.Tensor) -> list[float]:
    """What is left of an output behind the centre, at length 1."""
    length = math.sqrt(sum(value**2 for value in e.tolist()))
    return [value / length for value in e.tolist()]


def cross_entropy(x: list[float], y: list[float]) -> float:
    """H of equation 8."""
    return -sum(a * math.log(b) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("p", "masked"), [(2, 2), (2, 8), (1, 3), (3, 1)])
def test_consistency_equals_a_loop_over_all_pairs(p: int, masked: int) -> None:
    """Equation 9 with masked global views (same-view pairs included), 10 with local ones."""
    teacher, student = torch.randn(3, p, 6), torch.randn(3, masked, 6)
    centre = torch.randn(6)
    pairs = [
        cross_entropy(gamma(unit(e_c - centre), 0.4), gamma(e_v.tolist(), 0.7))
        for image in range(3)
        for e_c in teacher[image].double()
        for e_v in student[image].double()
    ]
    assert len(pairs) == 3 * p * masked
    got = consistency_loss(teacher_distribution(teacher, centre, 0.4), student, 0.7)
    torch.testing.assert_close(got.item(), sum(pairs) / len(pairs), rtol=1e-5, atol=0)


@pytest.mark.parametrize("outputs", [2, 16, 512])
def test_uniform_outputs_give_log_k(outputs: int) -> None:
    same = torch.full((2, 2, outputs), 3.0)
    got = consistency_loss(teacher_distribution(same, None, 0.04), same, 0.1)
    assert got.item() == pytest.approx(math.log(outputs), rel=1e-6)
    assert entropy(same.softmax(-1)).mean().item() == pytest.approx(math.log(outputs), rel=1e-6)


def test_how_much_the_teachers_outputs_differ_from_their_centre_does_not_matter() -> None:
    e, centre = torch.randn(2, 2, 16), torch.randn(16)
    near = teacher_distribution(centre + 1e-3 * (e - centre), centre, 0.04)
    torch.testing.assert_close(near, teacher_distribution(e, centre, 0.04), rtol=1e-3, atol=1e-5)
    assert teacher_distribution(centre.expand(1, 1, 16), centre, 0.04).tolist() == [[[1 / 16] * 16]]


def test_the_teachers_distribution_comes_first() -> None:
    teacher = torch.tensor([[[1.0, 0.0]]])
    student = torch.tensor([[[0.0, 2.0]]])
    expected = -math.log(1 / (1 + math.exp(2.0)))
    assert consistency_loss(teacher, student, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_reconstruction_equals_a_loop_over_views_patches_and_voxels() -> None:
    y, v = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    valid = torch.rand(3, 4, 5) > 0.3
    valid[0, 1] = False  # a patch that is all padding
    valid[2] = False  # a view whose hidden patches are all padding
    views = []
    for view in range(2):
        patches = []
        for patch in range(4):
            voxels = [
                (y[view, patch, i] - v[view, patch, i]).item() ** 2 for i in range(5) if valid[view, patch, i].item()
            ]
            if voxels:
                patches.append(sum(voxels) / len(voxels))
        views.append(sum(patches) / len(patches))
    assert reconstruction_loss(y, v, valid).item() == pytest.approx(sum(views) / len(views), rel=1e-6)
    assert reconstruction_loss(y, v, torch.ones_like(valid)).item() == pytest.approx(
        ((y - v) ** 2).mean().item(), rel=1e-6
    )
    assert reconstruction_loss(y, v, torch.zeros_like(valid)).item() == 0


def test_16_bit_outputs_are_compared_in_32_bits() -> None:
    """At a temperature of 0.04 a softmax in bfloat16 would be off by far more than the rounding of its input."""
    e = torch.randn(4, 2, 512)
    rounded = e.bfloat16()
    exact = consistency_loss(teacher_distribution(rounded.double().float(), None, 0.04), rounded.float(), 0.1)
    got = consistency_loss(teacher_distribution(rounded, None, 0.04), rounded, 0.1)
    assert got.dtype == torch.float32
    assert torch.equal(got, exact)


def test_momentum_rises_by_a_cosine_to_one() -> None:
    assert teacher_momentum(0.0, 0.996) == pytest.approx(0.996, abs=1e-12)
    assert teacher_momentum(1.0, 0.996) == 1.0
    assert teacher_momentum(0.5, 0.996) == pytest.approx(0.998, abs=1e-12)
    values = [teacher_momentum(step / 50, 0.9) for step in range(51)]
    assert values == sorted(values)


def test_rank_counts_the_directions_in_which_tokens_differ() -> None:
    assert effective_rank(torch.eye(5)).item() == pytest.approx(4, rel=1e-5)  # five corners span four directions
    line = torch.linspace(-1, 1, 6).unsqueeze(1) * torch.randn(8) + 3
    assert effective_rank(line).item() == pytest.approx(1, rel=1e-4)
    assert effective_rank(torch.randn(8).expand(6, 8)).item() < 1e-3
    assert effective_rank(torch.zeros(6, 8)).item() == 0
    z = torch.randn(6, 4)
    lam = torch.linalg.svdvals((z - z.mean(0)).double()) ** 2
    assert effective_rank(z).item() == pytest.approx((lam.sum() ** 2 / (lam**2).sum()).item(), rel=1e-4)
