"""UNETR: a convolutional decoder on the feature maps of a vision transformer, for any power-of-two patch.

Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation", WACV 2022, as SelfMedMAE uses it.
For a patch of 16 and a transformer of 12 blocks this is the published network (skips after 0-based blocks 3, 6, 9).

Generalised to n = log2(largest patch side) levels, of which level 1 is the deepest: an axis is doubled at level l only
while l <= log2(its patch side), so thick axes, whose patch is shorter, are upsampled deepest first and the last levels
work in plane. A transformer without 12 blocks hands over its skips in the same proportions.

Shape suffixes: B views, C channels, L levels' width, K outputs, D H W voxels along z y x (no D in 2D).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prevox.errors import ConfigError
from prevox.models.pointwise import pointwise
from prevox.models.vit import ViT

CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def level_strides(patch: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Upsampling factor of each axis at each decoder level, deepest level first.

    A side of 1 is allowed beside longer ones (that axis is never upsampled): (1, 16, 16) for very thick slices.

    Raises:
        ConfigError: If a side is no power of two, or all sides are 1 and nothing is left to decode.
    """
    for axis, side in zip("zyx"[-len(patch) :], patch, strict=True):
        if side < 1 or side & (side - 1):
            raise ConfigError(
                f"patch {tuple(patch)}: side {side} along {axis}; the UNETR decoder doubles its grid level by level "
                "and needs powers of two. Use an encoder with patch 2, 4, 8 or 16 along that axis."
            )
    doublings = [side.bit_length() - 1 for side in patch]
    if max(doublings) == 0:
        raise ConfigError(
            f"patch {tuple(patch)}: a patch of one voxel leaves the UNETR decoder no level to upsample. "
            "Use an encoder whose patch is at least 2 along one axis."
        )
    return [tuple(2 if level <= d else 1 for d in doublings) for level in range(1, max(doublings) + 1)]


def instance_norm(channels: int) -> nn.Module:
    """Instance norm in 2D or 3D; written as a group norm of single channels, which torch does much faster on a CPU."""
    return nn.GroupNorm(channels, channels, affine=False)


class ResidualBlock(nn.Module):
    """Two 3-wide convolutions with instance norm and leaky ReLU, and a shortcut (projected if widths differ)."""

    def __init__(self, inputs: int, outputs: int, dimensions: int) -> None:
        super().__init__()
        conv = CONV[dimensions]
        # Neither bias nor affine parameters, as in the published network: each norm removes a bias before it.
        self.conv1 = conv(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = instance_norm(outputs)
        self.conv2 = conv(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = instance_norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, bias=False), instance_norm(outputs))
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """(B, inputs, *grid) to (B, outputs, *grid)."""
        y = self.activation(self.norm1(self.conv1(x_BCDHW)))
        y = self.norm2(self.conv2(y))
        return self.activation(y + self.shortcut(x_BCDHW))


def upsample(inputs: int, outputs: int, stride: tuple[int, ...]) -> nn.Module:
    """Transposed convolution that enlarges each axis by its stride without overlap."""
    return TRANSPOSED[len(stride)](inputs, outputs, kernel_size=stride, stride=stride, bias=False)


class SkipPath(nn.Sequential):
    """Brings a transformer map to a decoder level's resolution: (B, width, *grid) to (B, outputs, *finer grid)."""

    def __init__(self, width: int, outputs: int, strides: list[tuple[int, ...]]) -> None:
        layers: list[nn.Module] = [upsample(width, outputs, strides[0])]
        for stride in strides[1:]:
            layers += [upsample(outputs, outputs, stride), ResidualBlock(outputs, outputs, len(stride))]
        super().__init__(*layers)


class DecoderLevel(nn.Module):
    """One step up: upsample, join the skip, mix."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.up = upsample(inputs, outputs, stride)
        self.mix = ResidualBlock(2 * outputs, outputs, len(stride))

    def forward(self, x_BCDHW: Tensor, skip_BCDHW: Tensor) -> Tensor:
        """(B, inputs, *grid) and (B, outputs, *finer grid) to (B, outputs, *finer grid)."""
        return self.mix(torch.cat([self.up(x_BCDHW), skip_BCDHW], dim=1))


class UNETR(nn.Module):
    """Vision transformer with a UNETR decoder; the class token, where there is one, is not used.

    Widths are doubled with each coarser level: features, 2·features, 4·features ... (to 8·features for a patch of 16,
    whose decoder then has as many parameters as MONAI's `UNETR`).

    Args:
        encoder: The transformer; its patch fixes the number of levels.
        channels: Channels of the image.
        outputs: Channels of the result (classes with background, or regions).
        features: Width at full resolution.

    Raises:
        ConfigError: If the encoder's patch is not made of powers of two.
    """

    def __init__(self, encoder: ViT, channels: int, outputs: int, features: int) -> None:
        super().__init__()
        strides = level_strides(encoder.patch)
        levels = len(strides)
        widths = [features * 2 ** (levels - level) for level in range(1, levels + 1)]
        self.encoder, self.features = encoder, features
        # n levels have n - 1 skips from the transformer and one from the input; the deepest takes the latest block.
        self.skip_blocks = [encoder.depth * k // levels for k in range(levels - 1, 0, -1)]
        self.skips = nn.ModuleList(
            SkipPath(encoder.width, width, strides[:level]) for level, width in enumerate(widths[:-1], start=1)
        )
        self.input_skip = ResidualBlock(channels, features, len(encoder.patch))
        self.levels = nn.ModuleList(
            DecoderLevel(inputs, width, stride)
            for inputs, width, stride in zip([encoder.width, *widths[:-1]], widths, strides, strict=True)
        )
        self.head = CONV[len(encoder.patch)](features, outputs, 1)

    def parts(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]:
        """What to run on each window, and what may wait until windows are averaged.

        The head is linear and sees one voxel at a time, so the average of its outputs is its output of the average.
        Where it has more outputs than inputs, averaging its inputs is less to add up and to keep.

        Returns:
            `body` and the head as (features, ...) to (outputs, ...) of voxels in any arrangement, or the whole network
            and None.
        """
        if self.head.out_channels > self.head.in_channels:
            return self.body, partial(pointwise, self.head)
        return self, None

    @property
    def depth(self) -> int:
        """Number of blocks of the encoder."""
        return self.encoder.depth

    def layer_index(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning-rate decay: the encoder's own, the decoder depth + 1.

        Args:
            name: As in `named_parameters()`.
        """
        inner = name.removeprefix("encoder.")
        return self.depth + 1 if inner == name else self.encoder.layer_index(inner)

    def forward(self, x_BCDHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits of each voxel.

        Args:
            x_BCDHW: (B, channels, D, H, W); the encoder's patch divides each side.
            generator: Source of drop path's randomness while training (on the CPU); None for torch's default one.

        Returns:
            (B, outputs, D, H, W).
        """
        return self.head(self.body(x_BCDHW, generator))

    def body(self, x_BCDHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What the head takes, (B, features, D, H, W); arguments as for `forward`."""
        blocks = sorted(set(self.skip_blocks))  # a shallow transformer may serve two levels from one block
        *maps, y = self.encoder.forward_features(x_BCDHW, blocks, generator)
        by_block = dict(zip(blocks, maps, strict=True))
        for level, path, block in zip(self.levels, self.skips, self.skip_blocks, strict=False):
            y = level(y, path(by_block[block]))
        return self.levels[-1](y, self.input_skip(x_BCDHW))
