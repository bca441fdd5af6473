"""Soft Dice and cross-entropy over the voxels that are inside the image.

The Dice term is SelfMedMAE's: squared denominator, smoothing 0 above and 1e-6 below, per sample and class,
1 − 2 Σpg / (Σp² + Σg² + 1e-6), then the mean. A class that a crop does not contain has Σpg = 0, so its term is 1
whatever is predicted and its gradient is exactly zero: Dice then says nothing, and false positives of that class are
held down by the cross-entropy alone. The constant lifts the loss (towards 1 where few classes are in view), which is
why the fine-tuning task logs the overlap of the classes in view beside it.

Deviation from the public code: it also counts the background's Dice for exclusive classes; here background is excluded.

Shape suffixes: B views, K outputs, D H W voxels (no D in 2D).
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

SMOOTH = 1e-6


def soft_dice_loss(probability_BKDHW: Tensor, target_BKDHW: Tensor, valid_B1DHW: Tensor) -> Tensor:
    """Dice loss of each sample and output, shape (B, K), in [0, 1].

    Args:
        probability_BKDHW: Predicted probabilities.
        target_BKDHW: Reference, 0 or 1.
        valid_B1DHW: True inside the image; the rest counts on neither side.
    """
    p = (probability_BKDHW * valid_B1DHW).flatten(2)
    g = (target_BKDHW * valid_B1DHW).flatten(2)
    return 1 - 2 * (p * g).sum(2) / (p.square().sum(2) + g.square().sum(2) + SMOOTH)


def _mean_valid(x_BKDHW: Tensor, valid_B1DHW: Tensor) -> Tensor:
    count = valid_B1DHW.sum().clamp(min=1) * x_BKDHW.shape[1]
    return (x_BKDHW * valid_B1DHW).sum() / count


def coarser(x_B1DHW: Tensor, size: Sequence[int]) -> Tensor:
    """Targets or validity on a grid of whole fractions of theirs: the nearest voxel's, the upper of two as near.

    Args:
        x_B1DHW: (B, any, D, H, W) of any type.
        size: Of the coarser grid, of as many axes; the very same tensor comes back if it is the same.
    """
    for axis, n in enumerate(size, start=2):
        if (factor := x_B1DHW.shape[axis] // n) > 1:
            x_B1DHW = x_B1DHW[(slice(None),) * axis + (slice(factor // 2, None, factor),)]
    return x_B1DHW


def class_losses(logits_BKDHW: Tensor, index_B1DHW: Tensor, valid_B1DHW: Tensor) -> tuple[Tensor, Tensor]:
    """Losses for exclusive classes, output 0 being the background.

    Args:
        logits_BKDHW: Network output.
        index_B1DHW: Output number of each voxel's class (int64).
        valid_B1DHW: True inside the image.

    Returns:
        Dice loss (B, K - 1), without background, and softmax cross-entropy (scalar).
    """
    logits = logits_BKDHW.float()  # sums over 10^6 voxels overflow or stall in half precision
    target = functional.one_hot(index_B1DHW[:, 0], logits.shape[1]).movedim(-1, 1)
    dice = soft_dice_loss(logits.softmax(1)[:, 1:], target[:, 1:], valid_B1DHW)
    entropy = functional.cross_entropy(logits, index_B1DHW[:, 0], reduction="none")
    return dice, _mean_valid(entropy[:, None], valid_B1DHW)


def region_losses(logits_BKDHW: Tensor, target_BKDHW: Tensor, valid_B1DHW: Tensor) -> tuple[Tensor, Tensor]:
    """Losses for overlapping regions, each a yes-or-no question.

    Args:
        logits_BKDHW: Network output.
        target_BKDHW: 1 where a voxel is in the region, float.
        valid_B1DHW: True inside the image.

    Returns:
        Dice loss (B, K) and binary cross-entropy (scalar), the mean over regions and voxels.
    """
    logits = logits_BKDHW.float()
    dice = soft_dice_loss(logits.sigmoid(), target_BKDHW, valid_B1DHW)
    entropy = functional.binary_cross_entropy_with_logits(logits, target_BKDHW, reduction="none")
    return dice, _mean_valid(entropy, valid_B1DHW)
