"""What methods and fine-tuning share with the engine: views, batches, the step, the two protocols.

The engine (`prevox.train`) knows only this module; it owns loop, precision, clipping, logging, checkpoints and
distribution. A method owns its mathematics and nothing else.

Shape suffixes: B views in a batch, C channels, D H W voxels along z y x. For 2D networks D is absent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ViewGroup:
    """One kind of view that the loader cuts from every image of a batch.

    Args:
        size: Voxels of the view along z y x; two numbers (y x) cut one slice.
        count: Views per image.
        labels: Whether the label map is cut as well.
        foreground: Probability that a view is centred on a labelled voxel.
        augment: Settings of the augmentation on the device (`prevox.config.data.AugmentConfig`), None for none.
        scale: Sides of the box that is cut, as a range of shares of the image's sides; the box is resized to `size` and
            never leaves the image. None cuts `size` voxels at the image's own resolution.
        axes: Whether one share is drawn for all axes ("joint") or one for each ("independent").
    """

    size: tuple[int, ...]
    count: int = 1
    labels: bool = False
    foreground: float = 0.0
    augment: Any = None
    scale: tuple[float, float] | None = None
    axes: Literal["joint", "independent"] = "joint"

    def __post_init__(self) -> None:
        assert self.scale is None or not self.labels, "a view that is resized has no labels"

    @property
    def size3(self) -> tuple[int, int, int]:
        """The size along z y x; a slice is one voxel thick."""
        z, y, x = self.size if len(self.size) == 3 else (1, *self.size)
        return z, y, x


ViewSpec = dict[str, ViewGroup]  # name of the group -> what to cut


@dataclass
class Views:
    """One group's views of a batch; view v of image i is row i * count + v.

    Attributes:
        x_BCDHW: Normalised voxels, float32; padding holds 0.
        valid_B1DHW: False where the view reaches beyond its image (padding), to be excluded from losses.
        label_B1DHW: Label values (int64), 0 in padding; None where the group has no labels.
        box_B23: First and last+1 voxel of each view in its image's finest grid, along z y x (int64).
        transforms: Parameters of the augmentation that was applied, by name; each has one row per view.
        padded: False where all voxels are known to be valid without looking at the device, so that methods may leave
            validity out of their sums.
    """

    x_BCDHW: Tensor
    valid_B1DHW: Tensor
    label_B1DHW: Tensor | None
    box_B23: Tensor
    transforms: dict[str, Any] = field(default_factory=dict)
    padded: bool = True


@dataclass
class Batch:
    """What the loader hands to a task.

    Attributes:
        views: By the name of their group.
        images: Ids of the images, in order (for messages and logs).
        samples: Global number of each image's sample (int64): everything random is a function of it and the seed.
    """

    views: dict[str, Views]
    images: list[str]
    samples: Tensor


def _identity(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class StepContext:
    """What the engine gives to a step beside the batch.

    Attributes:
        generator: CPU generator seeded from the run's seed and the batch's number: the only source of randomness.
        progress: Share of the run that is done, in [0, 1).
        want_pictures: Whether `StepOutput.pictures` should be filled this time.
        all_gather: Differentiable concatenation over devices along the first axis; identity on one device.
        all_reduce: Mean over devices (no gradient); identity on one device.
    """

    generator: torch.Generator
    progress: float = 0.0
    want_pictures: bool = False
    all_gather: Callable[[Tensor], Tensor] = _identity
    all_reduce: Callable[[Tensor], Tensor] = _identity


@dataclass(frozen=True)
class Picture:
    """A row of grey-scale panels with titles.

    Attributes:
        panels: Title and (H, W) float array of each.
        note: How to read them.
        scales: One number a panel; panels with the same number share their grey scale, so that a faint prediction looks
            faint beside its target. Empty: each its own.
        limits: Darkest and brightest value of a scale, by its number; others come from the panel's percentiles.
    """

    panels: list[tuple[str, np.ndarray]]
    note: str = ""
    scales: tuple[int, ...] = ()
    limits: dict[int, tuple[float, float]] = field(default_factory=dict)


@dataclass
class StepOutput:
    """Result of a step: the scalar loss with its graph, scalars for the log, pictures on request."""

    loss: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)


class Task(nn.Module):
    """What the engine trains. `state_dict()` must hold everything that a resumed run needs."""

    views: ViewSpec

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """One step: a function of (state, batch, ctx.generator)."""
        raise NotImplementedError

    def after_update(self, progress: float, output: StepOutput) -> None:
        """Called once per optimiser step, after it (momentum teacher, centre, queue)."""

    def layer_scale(self, parameter: str) -> float:
        """Factor on the learning rate of a named parameter (layer-wise decay)."""
        return 1.0

    def waits(self, parameter: str) -> bool:
        """Whether a named parameter is held still while the decoder is trained alone (`Job.decoder_first`)."""
        return False


@dataclass(frozen=True)
class ModelSpec:
    """Name in the model registry and plain keyword arguments: enough to build the network again."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Pretrained:
    """What pre-training hands over: weights of the encoder and how to rebuild it."""

    weights: dict[str, Tensor]
    spec: ModelSpec


class PretrainMethod(Task):
    """A pre-training method: a task that can hand over its network."""

    def pretrained(self) -> Pretrained:
        """Weights and specification from which fine-tuning and export rebuild the network."""
        raise NotImplementedError

    def features(self, x_BCDHW: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        """Feature maps with their stride in voxels, finest first, for probes and embeddings."""
        raise NotImplementedError
