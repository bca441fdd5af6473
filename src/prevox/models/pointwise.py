"""A convolution that sees one voxel at a time, on voxels in any arrangement."""

import torch
from torch import Tensor, nn


def pointwise(conv: nn.Conv2d | nn.Conv3d, x_C: Tensor) -> Tensor:
    """A 1-wide convolution of voxels in any arrangement, without batch: (inputs, ...) to (outputs, ...)."""
    assert conv.bias is not None
    result = torch.addmm(conv.bias[:, None], conv.weight.flatten(1), x_C.flatten(1))
    return result.unflatten(1, x_C.shape[1:])
