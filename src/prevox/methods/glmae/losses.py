"""Equations of GL-MAE: reconstruction (3, 4), distributions (7), consistency (8–10), and what a collapse shows in.

Everything here is computed in float32 without matrix products, which mixed precision would take down to 16 bits: at a
temperature of 0.04 an error of 1 % in an output is a quarter of a nat.

Shape suffixes: B images, V views in a batch, L patches, P values of a patch, K outputs of a projection head, S
unmasked views of the teacher and T masked views of the student, both of one image; N class tokens, D their width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def reconstruction_loss(prediction_VLP: Tensor, target_VLP: Tensor, valid_VLP: Tensor | None) -> Tensor:
    """Mean over views of the mean over patches of the mean squared error (equations 3 and 4; reading: module `method`).

    Args:
        prediction_VLP: Predictions of the patches that count.
        target_VLP: What they should be.
        valid_VLP: False in padding: such voxels do not count in their patch's mean, a patch without a valid voxel not
            in its view's, and a view without one not at all. None where nothing is padded: then all means are one.

    Returns:
        Scalar float32; 0 where everything is padding.
    """
    if valid_VLP is None:
        return functional.mse_loss(prediction_VLP.float(), target_VLP.float())
    error = (prediction_VLP.float() - target_VLP.float()).square() * valid_VLP
    count_VL = valid_VLP.sum(-1)
    per_patch_VL = error.sum(-1) / count_VL.clamp(min=1)
    patches_V = (count_VL > 0).sum(-1)
    per_view_V = per_patch_VL.sum(-1) / patches_V.clamp(min=1)
    return per_view_V.sum() / (patches_V > 0).sum().clamp(min=1)


def teacher_distribution(e_BSK: Tensor, centre_K: Tensor | None, temperature: float) -> Tensor:
    """Γ of the teacher's outputs (equation 7), which are centred and scaled to unit length where there is a centre.

    The scaling keeps what differs between views from fading: without it, outputs that come closer to their centre give
    ever more uniform distributions, which the student then learns.
    """
    e_BSK = e_BSK.float()
    if centre_K is not None:
        e_BSK = functional.normalize(e_BSK - centre_K, dim=-1)
    return (e_BSK / temperature).softmax(-1)


def consistency_loss(teacher_BSK: Tensor, student_BTK: Tensor, temperature: float) -> Tensor:
    """Mean over images and all S×T pairs of their views of H(teacher, Γ(student)) (equations 8, 9 and 10).

    Args:
        teacher_BSK: Distributions of the unmasked global views.
        student_BTK: Outputs of the student's head for masked views, before the softmax.
        temperature: Of the student's softmax.

    Returns:
        Scalar float32.
    """
    log_BTK = (student_BTK.float() / temperature).log_softmax(-1)
    return -(teacher_BSK.unsqueeze(2) * log_BTK.unsqueeze(1)).sum(-1).mean()


def entropy(p_NK: Tensor) -> Tensor:
    """Entropy of each distribution along the last axis, in nats; between 0 and log K."""
    return torch.special.entr(p_NK).sum(-1)


def effective_rank(z_ND: Tensor) -> Tensor:
    """Number of directions in which tokens differ: (Σλ)² / Σλ² of their covariance's eigenvalues λ.

    The participation ratio needs no decomposition, so the host need not wait for the device. It is 0 where all tokens
    are the same (up to the precision of float32), and at most the smaller of N − 1 and D.
    """
    with torch.autocast(z_ND.device.type, enabled=False):
        z_ND = z_ND.float()
        centred = z_ND - z_ND.mean(0)
        gram_NN = centred @ centred.T  # has the covariance's eigenvalues, and is the smaller one
    noise = (1e-6 * z_ND.square().sum()).square().clamp(min=torch.finfo(torch.float32).tiny)
    return gram_NN.trace().square() / (gram_NN.square().sum() + noise)


def teacher_momentum(progress: float, start: float) -> float:
    """Momentum by a cosine from `start` at progress 0 to 1 at progress 1."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
