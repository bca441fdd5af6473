"""From the settings of a residual encoder U-Net to plain keyword arguments."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from prevox.config.models import ResEncConfig
from prevox.errors import ConfigError

T = TypeVar("T")
WIDEST = 320  # nnU-Net's cap on 3D features


class Preset(NamedTuple):
    """What a size stands for."""

    stages: int
    width: int  # of the first stage; doubled at each further one
    blocks: tuple[int, ...]  # of each stage; the last number goes on


# nnU-Net's presets M, L and XL share blocks and widths; its planner gives them 8, 24 and 40 GB for patch and batch.
# Six stages are what it picks for patches from 128³ to 192³.
_PLANNED = Preset(6, 32, (1, 3, 4, 6, 6, 6))
PRESETS = {"S": Preset(4, 16, (1, 2, 2, 2)), "M": _PLANNED, "L": _PLANNED, "XL": _PLANNED}


def resenc_settings(config: ResEncConfig, size: Sequence[int], channels: int, classes: int) -> dict[str, Any]:
    """Plain keyword arguments of `ResEncUNet`; JSON-able, so that they fit a `ModelSpec`.

    Args:
        config: Settings of the network.
        size: Voxels of the view, z y x (2D: y x).
        channels: Channels of the images.
        classes: Channels of the output.

    Raises:
        ConfigError: If a list has not one entry per stage (or per axis), a kernel is even, or the strides do not
            divide the view.
    """
    preset = PRESETS[config.size]
    axes, stages = len(size), config.stages or preset.stages
    blocks = [preset.blocks[min(s, len(preset.blocks) - 1)] for s in range(stages)]
    strides = _per_stage("strides", config.strides or ("1", *("2",) * (stages - 1)), stages)
    kernels = _per_stage("kernels", config.kernels or ("3",) * stages, stages)
    settings: dict[str, Any] = {
        "channels": channels,
        "classes": classes,
        "features": _per_stage(
            "features", config.features or [min(preset.width * 2**s, WIDEST) for s in range(stages)], stages
        ),
        "blocks": _per_stage("blocks", config.blocks or blocks, stages),
        "strides": [_per_axis("strides", word, axes) for word in strides],
        "kernels": [_per_axis("kernels", word, axes) for word in kernels],
        "decoder_convs": config.decoder_convs,
    }
    for kernel in settings["kernels"]:
        if any(k % 2 == 0 for k in kernel):
            raise ConfigError(f"kernels: found {kernel}; expected odd numbers, which keep the size of a map.")
    check_size(size, settings["strides"])
    return settings


def check_size(size: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
    """Refuse a view that the strides do not divide, or of which they leave a single site.

    Args:
        size: Voxels of the view, z y x (2D: y x).
        strides: Of each stage, one number per axis.

    Raises:
        ConfigError: If it is one; for a stride that does not divide, the axis and the nearest sizes are named.
    """
    total = total_strides(strides)[-1]
    if len(size) != len(total):
        raise ConfigError(
            f"views.size has {len(size)} numbers and the network {len(total)} axes; give one for each axis."
        )
    for axis, n, stride in zip("zyx"[-len(size) :], size, total, strict=True):
        if n % stride:
            fitting = [str(m) for m in (n // stride * stride, n // stride * stride + stride) if m > 0]
            raise ConfigError(
                f"views.size is {n} along {axis}, which the network's total stride of {stride} does not divide. The "
                f"nearest sizes that fit are {' and '.join(fitting)}; or use a network of other stages or strides."
            )
    if tuple(size) == total:
        raise ConfigError(
            f"views.size is {list(size)}, of which the network's total stride {list(total)} leaves a single site; its "
            "norms need two. Take a larger view, or a network of fewer stages."
        )


def total_strides(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Voxels of the image per site of each stage, along each axis."""
    return [tuple(math.prod(axis) for axis in zip(*strides[: s + 1], strict=True)) for s in range(len(strides))]


def _per_stage(key: str, values: Sequence[T], stages: int) -> list[T]:
    if len(values) != stages:
        raise ConfigError(
            f"{key} has {len(values)} entries and the network {stages} stages; give one entry for each stage, or "
            "change stages."
        )
    return list(values)


def _per_axis(key: str, word: str, axes: int) -> list[int]:
    numbers = [int(number) for number in word.split("x")]
    if len(numbers) == 1:
        return numbers * axes
    if len(numbers) != axes:
        raise ConfigError(
            f"{key}: '{word}' has {len(numbers)} numbers and the views have {axes} axes; give one for each axis."
        )
    return numbers
