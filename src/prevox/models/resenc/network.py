"""Residual encoder U-Net: mathematics and parameter names of nnU-Net's `ResidualEncoderUNet`, written anew.

Isensee et al., "nnU-Net revisited" (arXiv:2404.09556); package `dynamic-network-architectures` 0.4. A state dict moves
across without renaming; `prevox.models.resenc.aliases` adds or drops the second names under which nnU-Net registers the
same tensors. Without deep supervision only the last output layer is evaluated; the others are kept for the names and
are not trained.

Shape suffixes: B views, C channels, D H W voxels (D is absent in 2D).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prevox.models.pointwise import pointwise
from prevox.models.resenc.settings import total_strides

EPS = 1e-5  # of every instance norm
SLOPE = 0.01  # of every leaky ReLU

CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
POOL: dict[int, Any] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
Axes = Sequence[int]


class ConvNorm(nn.Module):
    """Convolution, instance norm, and a leaky ReLU where asked for."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Axes, stride: Axes | None = None, bias: bool = True, act: bool = True
    ) -> None:
        super().__init__()
        axes = len(kernel)
        padding = tuple((k - 1) // 2 for k in kernel)
        stride = tuple(stride or (1,) * axes)
        self.conv = CONV[axes](inputs, outputs, tuple(kernel), stride, padding, bias=bias)
        self.norm = NORM[axes](outputs, eps=EPS, affine=True)
        self.nonlin = nn.LeakyReLU(SLOPE, inplace=True) if act else nn.Identity()

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """(B, inputs, *n) to (B, outputs, *n / stride)."""
        y_BCDHW: Tensor = self.nonlin(self.norm(self.conv(x_BCDHW)))
        return y_BCDHW


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut that pools and projects where shapes change (ResNet-D)."""

    def __init__(self, inputs: int, outputs: int, kernel: Axes, stride: Axes) -> None:
        super().__init__()
        axes = len(kernel)
        self.conv1 = ConvNorm(inputs, outputs, kernel, stride)
        self.conv2 = ConvNorm(outputs, outputs, kernel, act=False)
        shortcut: list[nn.Module] = []
        if any(t != 1 for t in stride):
            shortcut.append(POOL[axes](tuple(stride), tuple(stride)))
        if inputs != outputs:
            shortcut.append(ConvNorm(inputs, outputs, (1,) * axes, bias=False, act=False))
        self.skip = nn.Sequential(*shortcut)
        self.nonlin2 = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """(B, inputs, *n) to (B, outputs, *n / stride)."""
        y_BCDHW: Tensor = self.nonlin2(self.conv2(self.conv1(x_BCDHW)) + self.skip(x_BCDHW))
        return y_BCDHW


class Convs(nn.Module):
    """Convolutions in a row, the stem and each stage of the decoder."""

    def __init__(self, count: int, inputs: int, outputs: int, kernel: Axes) -> None:
        super().__init__()
        self.convs = nn.Sequential(*[ConvNorm(inputs if i == 0 else outputs, outputs, kernel) for i in range(count)])

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """(B, inputs, *n) to (B, outputs, *n)."""
        y_BCDHW: Tensor = self.convs(x_BCDHW)
        return y_BCDHW


class Stage(nn.Module):
    """Residual blocks of one resolution; the first has the stride."""

    def __init__(self, count: int, inputs: int, outputs: int, kernel: Axes, stride: Axes) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        first = ResidualBlock(inputs, outputs, kernel, stride)
        self.blocks = nn.Sequential(first, *[ResidualBlock(outputs, outputs, kernel, ones) for _ in range(count - 1)])

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """(B, inputs, *n) to (B, outputs, *n / stride)."""
        y_BCDHW: Tensor = self.blocks(x_BCDHW)
        return y_BCDHW


class Encoder(nn.Module):
    """Stem and stages."""

    def __init__(
        self, channels: int, features: Axes, blocks: Axes, strides: Sequence[Axes], kernels: Sequence[Axes]
    ) -> None:
        super().__init__()
        self.stem = Convs(1, channels, features[0], kernels[0])
        inputs = [features[0], *features[:-1]]
        self.stages = nn.Sequential(*map(Stage, blocks, inputs, features, kernels, strides))

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Maps of all stages, finest first."""
        x_BCDHW = self.stem(x_BCDHW)
        maps = []
        for stage in self.stages:
            x_BCDHW = stage(x_BCDHW)
            maps.append(x_BCDHW)
        return maps


class Decoder(nn.Module):
    """Upsample by a transposed convolution, concatenate the encoder's map, convolve; the coarsest stage first."""

    def __init__(
        self,
        classes: int,
        features: Axes,
        strides: Sequence[Axes],
        kernels: Sequence[Axes],
        convs: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        axes = len(strides[0])
        self.deep_supervision = deep_supervision
        self.stages, self.transpconvs, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for fine in reversed(range(len(features) - 1)):  # stage of the encoder whose map is joined
            below, here, stride = features[fine + 1], features[fine], tuple(strides[fine + 1])
            self.transpconvs.append(TRANSPOSED[axes](below, here, stride, stride))
            self.stages.append(Convs(convs, 2 * here, here, kernels[fine]))
            self.seg_layers.append(CONV[axes](here, classes, 1))
        if not deep_supervision:
            self.seg_layers[:-1].requires_grad_(False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Output at full resolution; with deep supervision all outputs, finest first.

        Args:
            maps: Of the encoder, finest first.
        """
        decoded = self.decoded(maps)
        if self.deep_supervision:
            return [layer(x_BCDHW) for layer, x_BCDHW in zip(self.seg_layers, decoded, strict=True)][::-1]
        output: Tensor = self.seg_layers[-1](decoded[-1])
        return output

    def decoded(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of all stages, coarsest first, as the output layers take them."""
        x_BCDHW, decoded = maps[-1], []
        for s, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x_BCDHW = stage(torch.cat([up(x_BCDHW), maps[-2 - s]], dim=1))
            decoded.append(x_BCDHW)
        return decoded


class ResEncUNet(nn.Module):
    """Residual encoder U-Net for 2D images or 3D volumes, by the length of its strides.

    Args:
        channels: Channels of the images.
        classes: Channels of the output.
        features: Channels of each stage.
        blocks: Residual blocks of each stage.
        strides: Stride of each stage's first block, one number per axis.
        kernels: Kernel of each stage, odd, one number per axis.
        decoder_convs: Convolutions of each decoder stage.
        deep_supervision: Whether every stage of the decoder gives an output.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        features: Axes,
        blocks: Axes,
        strides: Sequence[Axes],
        kernels: Sequence[Axes],
        decoder_convs: int = 1,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.features = channels, tuple(features)
        self.strides = total_strides(strides)
        self.encoder = Encoder(channels, features, blocks, strides, kernels)
        self.decoder = Decoder(classes, features, strides, kernels, decoder_convs, deep_supervision)
        self.apply(initialise)

    @property
    def depth(self) -> int:
        """Number of stages of the encoder."""
        return len(self.features)

    def forward(self, x_BCDHW: Tensor, generator: torch.Generator | None = None) -> Tensor | list[Tensor]:
        """Output at full resolution; with deep supervision all outputs, finest first.

        Args:
            x_BCDHW: (B, channels, D, H, W); the total stride divides each side.
            generator: Not used: nothing in this network is random.
        """
        output: Tensor | list[Tensor] = self.decoder(self.encoder(x_BCDHW))
        return output

    def parts(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]:
        """What to run on each window, and what may wait until windows are averaged; as `UNETR.parts`."""
        head: Any = self.decoder.seg_layers[-1]
        if head.out_channels > head.in_channels:
            return self.body, partial(pointwise, head)
        return self, None

    def body(self, x_BCDHW: Tensor) -> Tensor:
        """What the last output layer takes, (B, features of the first stage, D, H, W)."""
        return self.decoder.decoded(self.encoder(x_BCDHW))[-1]

    def forward_features(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Maps of all stages of the encoder, finest first; their strides are `strides`."""
        maps: list[Tensor] = self.encoder(x_BCDHW)
        return maps

    def layer_index(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning-rate decay: stem 0, stage s (from 0) s + 1, decoder depth + 1.

        Args:
            name: As in `named_parameters()`.
        """
        part, kind, number = name.split(".")[:3]
        if part == "decoder":
            return self.depth + 1
        return 0 if kind == "stem" else int(number) + 1


def initialise(module: nn.Module) -> None:
    """nnU-Net's initial weights: Kaiming-normal, zero biases; a residual branch starts at zero. For `Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock):
        nn.init.zeros_(module.conv2.norm.weight)
