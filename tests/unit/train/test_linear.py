import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation

from prevox.train.linear import PENALTY, at_voxels, best_offsets, classify, raw_maps, ridge

pytestmark = pytest.mark.unit


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_closed_form_is_the_least_squares_solution_of_the_penalised_problem() -> None:
    x, y, weight = drawn(60, 5) * 7 + 3, torch.arange(60) % 3, drawn(60, seed=1).abs() + 0.1
    x[:, 2] *= 1e-3  # maps may have any scale
    weight_KC, bias_K = ridge(x, y, weight, 3)

    X, w = x.double().numpy(), weight.double().numpy() / weight.double().sum().item()
    mean, Y = w @ X, np.eye(3)[y.numpy()]
    std = np.sqrt(w @ (X - mean) ** 2)
    rows = np.column_stack([(X - mean) / std, np.ones(60)]) * np.sqrt(w)[:, None]
    penalty = np.column_stack([np.sqrt(PENALTY) * np.eye(5), np.zeros(5)])  # the intercept is free
    target = np.vstack([Y * np.sqrt(w)[:, None], np.zeros((5, 3))])
    solution = np.linalg.lstsq(np.vstack([rows, penalty]), target, rcond=None)[0]
    expected = ((X - mean) / std) @ solution[:5] + solution[5]
    np.testing.assert_allclose(X @ weight_KC.numpy().T + bias_K.numpy(), expected, atol=1e-9)


def test_a_constant_feature_and_a_class_without_rows_do_no_harm() -> None:
    x = torch.cat([drawn(20, 2), torch.full((20, 1), 0.1)], dim=1)
    weight_KC, bias_K = ridge(x, (x[:, 0] > 0).long(), torch.ones(20), 3)
    assert weight_KC[:, 2].abs().max() < 1e-6
    assert weight_KC[2].abs().max() < 1e-12
    assert bias_K[2].abs() < 1e-12


def test_the_offset_of_two_classes_is_the_best_of_all_thresholds() -> None:
    score, weight = drawn(50, 2).double(), drawn(50, seed=1).abs().double()
    y = (score[:, 1] - score[:, 0] + drawn(50, seed=2) > 1.2).long()

    def dice(offset: float) -> float:
        won = score[:, 1] + offset > score[:, 0]
        return float(2 * weight[won & (y == 1)].sum() / (weight[won].sum() + weight[y == 1].sum()))

    margins = (score[:, 0] - score[:, 1]).sort().values
    best = max(dice(float(a + b) / 2) for a, b in itertools.pairwise(margins))
    offset = best_offsets(score, y, weight)
    assert offset[0] == 0
    assert dice(float(offset[1])) == pytest.approx(best, abs=1e-12)
    assert best > dice(0.0) + 0.02  # or it would show nothing


def test_a_class_that_no_row_has_never_wins() -> None:
    offset = best_offsets(drawn(9, 3).double(), torch.tensor([0, 1, 0] * 3), torch.ones(9).double())
    assert offset[2] == -torch.inf


@pytest.mark.parametrize("size", [(8, 12, 6), (8, 12)])
def test_single_voxels_are_what_interpolation_gives_there(size: tuple[int, ...]) -> None:
    maps = [drawn(1, 2, *size), drawn(1, 3, *(n // 2 for n in size)), drawn(1, 4, *(1 for _ in size))]
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    whole = torch.cat([F.interpolate(m, size, mode=mode, align_corners=False) for m in maps], dim=1)
    voxels = torch.ones(size).nonzero()
    torch.testing.assert_close(at_voxels(maps, voxels, size), whole[0].flatten(1).T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 12, 6), (8, 12)])
def test_scores_are_interpolated_as_features_would_be(size: tuple[int, ...]) -> None:
    maps = [drawn(1, 2, *size), drawn(1, 3, *(n // 2 for n in size))]
    weight_KC, bias_K = drawn(4, 5, seed=1).double(), drawn(4, seed=2).double()
    x_NC = at_voxels(maps, torch.ones(size).nonzero(), size).double()
    expected = (x_NC @ weight_KC.T + bias_K).argmax(1).view(size)
    assert (classify(maps, weight_KC, bias_K, size) == expected).float().mean() > 0.99  # but for rounding
    assert len(expected.unique()) > 2


def test_raw_maps_hold_intensities_means_and_place() -> None:
    x = drawn(1, 2, 5, 8, 1)
    finest, *smooth = raw_maps(x)
    assert torch.equal(finest[:, :2], x)
    assert torch.equal(finest[0, 3, 0, :, 0], torch.linspace(-1, 1, 8))
    assert torch.equal(finest[0, 6], finest[0, 3] ** 2)
    assert finest.shape[1] == 2 + 3 + 3
    assert [tuple(m.shape[2:]) for m in smooth] == [(3, 4, 1), (2, 2, 1), (1, 1, 1)]
    torch.testing.assert_close(smooth[2].flatten(), x.flatten(2).mean(2).flatten())


@pytest.mark.parametrize("n", [5, 7, 9, 12, 17])
def test_means_over_boxes_lie_where_interpolation_takes_them_to_be(n: int) -> None:
    """Sides that no box divides: a ramp stays centred, and its mirror image gives mirrored means."""
    ramp = torch.arange(float(n)).expand(1, 1, 4, 4, n)
    for m, back in zip(raw_maps(ramp)[1:], raw_maps(ramp.flip(-1))[1:], strict=True):
        line = m[0, 0, 0, 0]
        torch.testing.assert_close(back[0, 0, 0, 0], line.flip(0))
        centres = (torch.arange(len(line)) + 0.5) * n / len(line) - 0.5
        assert (line - centres).abs().max() <= 0.5  # boxes end at whole voxels


def test_an_offset_that_wins_every_row_wins_the_last_one_too() -> None:
    score_NK, y_N = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 1])
    offset_K = best_offsets(score_NK, y_N, torch.ones(2))
    assert (score_NK + offset_K).argmax(1).tolist() == [1, 1]
