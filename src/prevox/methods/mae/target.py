"""What the masked autoencoder predicts, and its loss.

Where nothing is padded, validity is left out (None): it would be several more passes over all voxels.

Shape suffixes: B views, L patches, M masked ones, P values of a patch (voxels × channels).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from prevox.models.vit import gather_tokens, patchify
from prevox.task import Views

EPS = 1e-6  # added to the variance (MAE, SelfMedMAE)


def views_patches(views: Views, patch: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Cut views into patches (B, L, P), 0 in padding, and say which of their values are valid; None for all."""
    if not views.padded:
        return patchify(views.x_BCDHW, patch), None
    x_BCDHW = views.x_BCDHW.masked_fill(~views.valid_B1DHW, 0)  # whatever padding holds must not be seen
    valid_BLP = patchify(views.valid_B1DHW, patch).repeat_interleave(x_BCDHW.shape[1], dim=-1)
    return patchify(x_BCDHW, patch), valid_BLP


def masked_patches(patches_BLP: Tensor, valid_BLP: Tensor | None, masked_BM: Tensor) -> tuple[Tensor, Tensor | None]:
    """The masked ones of the patches, and of their validity where there is any: both (B, M, P)."""
    valid_BMP = None if valid_BLP is None else gather_tokens(valid_BLP, masked_BM)
    return gather_tokens(patches_BLP, masked_BM), valid_BMP


def normalise_patches(
    patches_BMP: Tensor, valid_BMP: Tensor | None = None, variance: Literal["biased", "unbiased"] = "biased"
) -> tuple[Tensor, Tensor, Tensor]:
    """Standardise each patch by its own mean and deviation, over all its valid voxels and channels together.

    Args:
        patches_BMP: Voxels; finite in padding.
        valid_BMP: False in padding; None where nothing is padded.
        variance: "biased" divides by the number of values N (SelfMedMAE), "unbiased" by N − 1 (MAE).

    Returns:
        (x − mean) / deviation of shape (B, M, P), whose values in padding carry no meaning; the mean (B, M, 1), 0 for a
        patch without a valid voxel; the deviation sqrt(variance + 1e-6) (B, M, 1).
    """
    correction = 1 if variance == "unbiased" else 0
    if valid_BMP is None:
        var, mean = torch.var_mean(patches_BMP, dim=-1, keepdim=True, correction=correction)
    else:
        weight = valid_BMP.to(patches_BMP.dtype)
        count = weight.sum(-1, keepdim=True)
        mean = (patches_BMP * weight).sum(-1, keepdim=True) / count.clamp(min=1)
        var = ((patches_BMP - mean) * weight).square().sum(-1, keepdim=True) / (count - correction).clamp(min=1)
    deviation = (var + EPS).sqrt()
    return (patches_BMP - mean) / deviation, mean, deviation


def masked_loss(
    prediction_BMP: Tensor, target_BMP: Tensor, valid_BMP: Tensor | None = None, kind: Literal["l2", "l1"] = "l2"
) -> Tensor:
    """Mean over masked patches of each patch's mean error.

    Args:
        prediction_BMP: Predictions of the masked patches only.
        target_BMP: What they should be.
        valid_BMP: False in padding: such voxels do not count in their patch's mean, and a patch without a valid
            voxel does not count at all. None where nothing is padded.
        kind: "l2" (squared) or "l1" (absolute) error.

    Returns:
        Scalar, computed in float32; 0 where every masked voxel is padding.
    """
    prediction_BMP, target_BMP = prediction_BMP.float(), target_BMP.float()
    measure = functional.mse_loss if kind == "l2" else functional.l1_loss
    if valid_BMP is None:
        return measure(prediction_BMP, target_BMP)
    error = measure(prediction_BMP, target_BMP, reduction="none")
    count_BM = valid_BMP.sum(-1)
    per_patch_BM = (error * valid_BMP).sum(-1) / count_BM.clamp(min=1)
    return per_patch_BM.sum() / (count_BM > 0).sum().clamp(min=1)


@torch.no_grad()
def explained_share(prediction_BMP: Tensor, target_BMP: Tensor, valid_BMP: Tensor | None) -> Tensor:
    """Share of the target's variance that the prediction explains: 1 is perfect, 0 no better than the best constant."""
    target = target_BMP.float()
    if valid_BMP is None:
        total = target.var(correction=0) * target.numel()
        rest = functional.mse_loss(prediction_BMP.float(), target, reduction="sum")
        return 1 - rest / total.clamp(min=EPS)
    weight = valid_BMP.float()
    count = weight.sum().clamp(min=1)
    mean = (target * weight).sum() / count
    total = ((target - mean).square() * weight).sum()
    rest = ((prediction_BMP.float() - target).square() * weight).sum()
    return 1 - rest / total.clamp(min=EPS)
