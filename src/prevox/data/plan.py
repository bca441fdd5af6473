"""From the geometry of a data set to voxel size, view, U-Net topology and batch, by nnU-Net's rules.

Isensee et al., "nnU-Net" (Nature Methods 2021) and "nnU-Net Revisited" (arXiv:2404.09556); the rules are those of
nnU-Net v2's planner for residual encoder U-Nets, written anew. What is different here:

* Shapes are those of the files: a catalogue does not know what `prepare` will crop.
* Ties between axes go by size and spacing and only then by position, so that a plan does not depend on the axes' order.
* The axis that lacks resolution stays where it is; nnU-Net moves it to the front.
* The batch sees at most 5 % of all voxels at every size, as in nnU-Net's default plans; its presets M, L and XL have
  given that limit up.
* There is no low-resolution stage and no 2D configuration.

Axes are z y x throughout, spacings are in mm. This module knows no network: widths and blocks are passed in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

ANISOTROPY = 3.0  # an axis this much coarser than the others is treated apart
LOW_PERCENTILE = 10  # of the coarse axis's spacings, its target then
START_VOLUME = 256**3  # voxels of the view before it is clipped to the images
SHORTEST = 4  # sites along a halved axis at the coarsest stage
SMALLEST_BATCH = 2  # also the batch for which `Room.elements` is counted
LARGEST_SHARE = 0.05  # of the data set's voxels in one batch
BYTES = 8  # a map's element is kept twice for the backward pass in float32: as the norm's input and as its output


class TooSmallError(ValueError):
    """The images leave no axis that a U-Net could halve once."""


@dataclass(frozen=True)
class Fingerprint:
    """What a plan is made from.

    Args:
        spacings: Of each image, z y x in mm.
        shapes: Voxels of each image, z y x.
        channels: Of every image.
        classes: Outputs of the network, background included.
    """

    spacings: tuple[tuple[float, float, float], ...]
    shapes: tuple[tuple[int, int, int], ...]
    channels: int = 1
    classes: int = 2


@dataclass(frozen=True)
class Room:
    """What the plan may use.

    Args:
        width: Channels of the first stage; doubled at each further one.
        widest: Largest number of channels.
        blocks: Residual blocks of each stage; the last number goes on.
        elements: Elements of all maps of one view (see `map_elements`) that fit in a batch of two.
    """

    width: int
    widest: int
    blocks: tuple[int, ...]
    elements: float

    def features(self, stages: int) -> list[int]:
        """Channels of each stage."""
        return [min(self.width * 2**stage, self.widest) for stage in range(stages)]

    def depth(self, stages: int) -> list[int]:
        """Residual blocks of each stage."""
        return [self.blocks[min(stage, len(self.blocks) - 1)] for stage in range(stages)]


class Topology(NamedTuple):
    """Halvings of a U-Net, and the view padded to them."""

    patch: tuple[int, ...]
    strides: list[tuple[int, ...]]  # of each stage; the first is 1
    kernels: list[tuple[int, ...]]  # of each stage

    @property
    def total(self) -> tuple[int, ...]:
        """Voxels of the view per site of the coarsest stage."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))


@dataclass(frozen=True)
class Plan:
    """A configuration with the numbers that led to it; axes z y x.

    Args:
        spacing: Target voxel size in mm.
        coarse_axis: Axis whose target is a low percentile, or None.
        median_spacing: Of the images, in mm.
        median_shape: Of the images after resampling, in voxels.
        first_patch: View before anything was halved or made to fit.
        patch: View that is trained on.
        strides: Of each stage, per axis.
        kernels: Of each stage, per axis.
        features: Channels of each stage.
        blocks: Residual blocks of each stage.
        batch: Views in a batch.
        elements: Of all maps of one view.
        reductions: How often the view was made smaller to fit.
        largest_batch: What 5 % of the data set's voxels allow.
    """

    spacing: tuple[float, ...]
    coarse_axis: int | None
    median_spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    first_patch: tuple[float, ...]
    patch: tuple[int, ...]
    strides: list[tuple[int, ...]]
    kernels: list[tuple[int, ...]]
    features: list[int]
    blocks: list[int]
    batch: int
    elements: int
    reductions: int
    largest_batch: int

    @property
    def memory(self) -> float:
        """Bytes of the maps that a training step keeps in float32; weights and workspaces come on top."""
        return float(self.elements) * self.batch * BYTES


def make_plan(found: Fingerprint, room: Room) -> Plan:
    """Plan voxel size, view, topology and batch.

    Raises:
        TooSmallError: If the median image has no axis that can be halved, or no view fits into the room.
    """
    spacing, coarse = target_spacing(found)
    shapes = [resampled(shape, old, spacing) for shape, old in zip(found.shapes, found.spacings, strict=True)]
    median = tuple(np.median(shapes, axis=0).tolist())
    first = first_patch(spacing, median)
    chosen = topology(spacing, first)
    if len(chosen.strides) < 2:
        raise TooSmallError("no axis can be halved")
    elements, reductions = _count(chosen, room, found.classes), 0
    while elements > room.elements:
        chosen = _smaller(chosen, spacing, median)
        elements, reductions = _count(chosen, room, found.classes), reductions + 1
    stages = len(chosen.strides)
    largest = round(LARGEST_SHARE * math.prod(median) * len(shapes) / math.prod(chosen.patch))
    batch = max(min(round(room.elements / elements * SMALLEST_BATCH), largest), SMALLEST_BATCH)
    return Plan(
        spacing=spacing,
        coarse_axis=coarse,
        median_spacing=tuple(np.median(found.spacings, axis=0).round(6).tolist()),
        median_shape=median,
        first_patch=first,
        patch=chosen.patch,
        strides=chosen.strides,
        kernels=chosen.kernels,
        features=room.features(stages),
        blocks=room.depth(stages),
        batch=batch,
        elements=elements,
        reductions=reductions,
        largest_batch=largest,
    )


def target_spacing(found: Fingerprint) -> tuple[tuple[float, ...], int | None]:
    """The median of each axis; a low percentile for one that is far coarser and shorter than the others.

    With the median, the images of finer slices would lose much on an axis that has few voxels anyway.

    Returns:
        Spacing in mm, rounded to what the command line gets; the axis that got the percentile, or None.
    """
    spacings = np.array(found.spacings, float)
    target, size = np.median(spacings, axis=0), np.median(found.shapes, axis=0)
    worst = int(target.argmax())
    others = np.arange(3) != worst
    finest = target[others].max()
    coarse = target[worst] > ANISOTROPY * finest and size[worst] * ANISOTROPY < size[others].min()
    if coarse:
        target[worst] = max(np.percentile(spacings[:, worst], LOW_PERCENTILE), finest + 1e-5)
    return tuple(target.round(6).tolist()), worst if coarse else None


def resampled(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Voxels after resampling, as `prepare` will find them."""
    return tuple(max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, target, strict=True))


def first_patch(spacing: Sequence[float], median_shape: Sequence[float]) -> tuple[float, ...]:
    """A cube in mm of 256³ voxels, clipped to the median image."""
    scale = (START_VOLUME * math.prod(spacing)) ** (1 / len(spacing))
    return tuple(float(min(round(scale / s), n)) for s, n in zip(spacing, median_shape, strict=True))


def topology(spacing: Sequence[float], patch: Sequence[float]) -> Topology:
    """Halve axes until the maps are as small as they may get, the fine axes first.

    An axis is halved while it has twice `SHORTEST` sites and its spacing is below twice the finest among those; one
    that would be halved alone needs three times `SHORTEST`. Kernels are 1 along an axis until its spacing comes below
    twice the finest one, and 3 at the coarsest stage.

    Args:
        spacing: In mm.
        patch: Voxels; need not fit the strides, the result's does.
    """
    axes = range(len(patch))
    now, size = list(spacing), [float(n) for n in patch]
    strides, kernels, kernel = [(1,) * len(patch)], [], [1] * len(patch)
    while True:
        long = [a for a in axes if size[a] >= 2 * SHORTEST]
        halved = [a for a in long if now[a] / min(now[b] for b in long) < 2]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * SHORTEST):
            break
        kernel = [3 if kernel[a] == 3 or now[a] / min(now) < 2 else 1 for a in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if a in halved else 1 for a in axes))
        for a in halved:
            now[a], size[a] = 2 * now[a], math.ceil(size[a] / 2)
    kernels.append((3,) * len(patch))
    made = Topology((), strides, kernels)
    return made._replace(patch=tuple(math.ceil(n / t) * t for n, t in zip(patch, made.total, strict=True)))


def map_elements(
    patch: Sequence[int],
    strides: Sequence[Sequence[int]],
    features: Sequence[int],
    blocks: Sequence[int],
    classes: int,
    deep_supervision: bool = False,
) -> int:
    """Elements of what the convolutions of a residual encoder U-Net put out for one view.

    These maps, not the weights, fill the memory in training; nnU-Net counts the same ones. The stem and each decoder
    stage have one convolution, a block has two, and a third where its shortcut changes shape.
    """
    voxels: list[int] = []
    for stride in strides:
        patch = [n // s for n, s in zip(patch, stride, strict=True)]
        voxels.append(math.prod(patch))
    total = features[0] * voxels[0]
    for stage, (width, count) in enumerate(zip(features, blocks, strict=True)):
        changes = max(strides[stage]) > 1 or (stage > 0 and width != features[stage - 1])
        total += (2 * count + changes) * width * voxels[stage]
    for stage, (width, _) in enumerate(pairwise(features)):
        outputs = classes if stage == 0 or deep_supervision else 0
        total += (2 * width + outputs) * voxels[stage]  # upsampling and convolution
    return total


def _count(chosen: Topology, room: Room, classes: int) -> int:
    stages = len(chosen.strides)
    return map_elements(chosen.patch, chosen.strides, room.features(stages), room.depth(stages), classes)


def _smaller(chosen: Topology, spacing: Sequence[float], median_shape: Sequence[float]) -> Topology:
    """One step shorter along the axis that is longest in relation to the images.

    The step is the divisor of a view that is one divisor shorter: 256 with six stages goes to 224, which five stages
    divide, not to 192.

    Raises:
        TooSmallError: If that axis cannot get shorter.
    """
    patch = list(chosen.patch)
    axis = max(range(len(patch)), key=lambda a: (patch[a] / median_shape[a], patch[a], -spacing[a], a))
    probe = patch.copy()
    probe[axis] -= chosen.total[axis]
    patch[axis] -= topology(spacing, probe).total[axis]
    smaller = topology(spacing, patch)
    if probe[axis] < 1 or len(smaller.strides) < 2:
        raise TooSmallError("no view fits into the memory")
    return smaller
