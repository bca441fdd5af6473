"""A linear voxel classifier on feature maps, solved in closed form, and the maps that need no network.

Shape suffixes: C features of all maps together, K classes (0 is the background), N voxels, A axes of a view,
B views, D H W voxels along z y x (D is absent in 2D).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own abbreviation
from torch import Tensor

PENALTY = 1e-2  # of the squared weights, beside squared errors whose weights sum to 1, on features of deviation 1
SMOOTHING = (2, 4, 8)  # sides in voxels of the boxes over which intensities are averaged
POOL: dict[int, Any] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
MODES = {2: "bilinear", 3: "trilinear"}


def ridge(x_NC: Tensor, y_N: Tensor, weight_N: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Ridge regression on one-hot labels, with an intercept that is not penalised.

    Features are first shifted and scaled to mean 0 and deviation 1, so that maps of all scales are penalised alike.

    Args:
        x_NC: Features.
        y_N: Class of each row (int64).
        weight_N: What each row's squared error counts.
        classes: Number of classes; one that has no row is never the best.

    Returns:
        weight_KC and bias_K for features as they are, float64.
    """
    x_NC, share_N1 = x_NC.double(), (weight_N.double() / weight_N.double().sum())[:, None]
    target_NK = F.one_hot(y_N, classes).double()
    mean_C, mean_K = (share_N1 * x_NC).sum(0), (share_N1 * target_NK).sum(0)
    x_NC = x_NC - mean_C
    std_C = (share_N1 * x_NC.square()).sum(0).sqrt()
    std_C = torch.where(std_C > 1e-8, std_C, 1.0)  # what is constant gets the weight 0
    x_NC = x_NC / std_C
    gram_CC = x_NC.T @ (share_N1 * x_NC)
    gram_CC.diagonal().add_(PENALTY)
    weight_CK = torch.linalg.solve(gram_CC, x_NC.T @ (share_N1 * (target_NK - mean_K)))
    weight_KC = (weight_CK / std_C[:, None]).T
    return weight_KC, mean_K - weight_KC @ mean_C


def best_offsets(score_NK: Tensor, y_N: Tensor, weight_N: Tensor, passes: int = 3) -> Tensor:
    """What to add to each class's score, so that the best class has a high Dice on these rows.

    Which class wins where scores are close depends on how often each occurs, not on the features. Class by class, the
    offset is the exact one at which the class's Dice is largest while the others stay; the background's is 0.

    Args:
        score_NK: Scores.
        y_N: True class of each row (int64).
        weight_N: How many voxels each row stands for.
        passes: Over all classes, as each moves the others.

    Returns:
        offset_K; -inf for a class that no row has.
    """
    offset_K = torch.zeros_like(score_NK[0])
    for k in list(range(1, score_NK.shape[1])) * passes:
        moved_NK = score_NK + offset_K
        moved_NK[:, k] = -torch.inf
        needed_N, order_N = (moved_NK.amax(1) - score_NK[:, k]).sort(stable=True)  # by offset, who is won last
        weight, hit = weight_N[order_N], (y_N == k)[order_N]
        won_N = weight.cumsum(0)
        dice_N = 2 * (weight * hit).cumsum(0) / (won_N + (weight * hit).sum())
        level_N = torch.cat([needed_N[1:] == needed_N[:-1], torch.zeros_like(hit[:1])])  # with the next one
        best = int(dice_N.masked_fill(level_N, -1).argmax())
        if not hit.any():
            offset_K[k] = -torch.inf
            continue
        following = needed_N[best + 1] if best + 1 < len(needed_N) else needed_N[best] + 1  # a tie would go elsewhere
        offset_K[k] = (needed_N[best] + following) / 2
    return offset_K


def at_voxels(maps: Sequence[Tensor], voxels_NA: Tensor, size: Sequence[int]) -> Tensor:
    """Features of single voxels, interpolated linearly from every map.

    Args:
        maps: (1, C_i, d, h, w) each, of one view, at any resolution.
        voxels_NA: Positions in the view.
        size: Voxels of the view.

    Returns:
        x_NC, the maps' features one after the other; what `F.interpolate` gives there.
    """
    grid_NA = (2 * voxels_NA + 1) / torch.tensor(size, device=voxels_NA.device) - 1
    grid = grid_NA.flip(1).view(1, *(1,) * (len(size) - 1), *grid_NA.shape)  # x first
    sampled = [F.grid_sample(m, grid.to(m), padding_mode="border", align_corners=False) for m in maps]
    return torch.cat([m.flatten(2)[0].T for m in sampled], dim=1)


def classify(maps: Sequence[Tensor], weight_KC: Tensor, bias_K: Tensor, size: Sequence[int]) -> Tensor:
    """The best class of every voxel.

    Interpolation and classifier are both linear, so the few scores of each map are interpolated instead of its many
    features.

    Args:
        maps: (1, C_i, d, h, w) each, of one view.
        weight_KC: Weights for the maps' features one after the other.
        bias_K: Intercepts.
        size: Voxels of the view.

    Returns:
        (D, H, W) int64.
    """
    score = bias_K.to(maps[0]).view(1, -1, *(1,) * len(size))
    for m, part_KC in zip(maps, weight_KC.split([m.shape[1] for m in maps], dim=1), strict=True):
        coarse = torch.einsum("kc,bc...->bk...", part_KC.to(m), m)
        score = score + F.interpolate(coarse, tuple(size), mode=MODES[len(size)], align_corners=False)
    return score[0].argmax(0)


def raw_maps(x_BCDHW: Tensor) -> list[Tensor]:
    """What a network has to beat: intensities, their means over growing boxes, position in the view and its square.

    Args:
        x_BCDHW: Normalised voxels; (B, C, H, W) for 2D.
    """
    size = x_BCDHW.shape[2:]
    lines = [torch.linspace(-1, 1, n, device=x_BCDHW.device, dtype=x_BCDHW.dtype) for n in size]
    place = torch.stack(torch.meshgrid(*lines, indexing="ij")).expand(len(x_BCDHW), -1, *size)
    # boxes that share each axis evenly, since that is where interpolation takes their means to lie
    smooth = [POOL[len(size)](x_BCDHW, [-(-n // side) for n in size]) for side in SMOOTHING]
    return [torch.cat([x_BCDHW, place, place.square()], dim=1), *smooth]
