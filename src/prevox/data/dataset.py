"""From the store to batches of views, with reads kept in flight in this process.

tensorstore reads and decodes in its own threads, so there are no loader worker processes to die, and no shared
memory to run out of (users of nnU-Net meet both). What happens to a view after it is read happens on the device.

Shape suffixes: B views, C channels, D H W voxels along z y x.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from prevox.config.data import NormaliseConfig
from prevox.data.sampler import Box, Sampler, crop_box, foreground_centre, generator
from prevox.data.store import Store
from prevox.errors import DataError
from prevox.task import Batch, Views, ViewSpec
from prevox.views.normalise import normalise
from prevox.views.pipeline import augment


@dataclass
class RawViews:
    """One group's views as they lie in the store, before the device touches them."""

    voxels_BCDHW: np.ndarray  # int16
    label_BDHW: np.ndarray | None
    boxes: list[Box]
    shapes: list[tuple[int, int, int]]  # of the images, z y x


@dataclass
class RawBatch:
    """What the loader yields; `to_device` makes a `Batch` of it."""

    groups: dict[str, RawViews]
    images: list[str]
    first_sample: int
    number: int  # of the batch, over all devices


class ViewLoader:
    """Endless batches of views.

    Args:
        store: Where the images are.
        images: Ids to draw from.
        spec: What to cut.
        seed: Seed of the run.
        batch: Images per batch.
        reads_ahead: Images whose reads are kept in flight beyond the batch that is waited for; does not change what
            is yielded.
        rank: Number of this device.
        world: Number of devices; batch n goes to device n mod world.

    Attributes:
        waited: Seconds that the caller has waited for reads.

    Raises:
        DataError: If an image is not in the store, has other channels than the store, or lacks a label that is needed.
    """

    def __init__(
        self,
        store: Store,
        images: Sequence[str],
        spec: ViewSpec,
        *,
        seed: int,
        batch: int,
        reads_ahead: int = 16,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.store, self.spec, self.seed, self.batch = store, spec, seed, batch
        self.reads_ahead, self.rank, self.world = reads_ahead, rank, world
        self.sampler = Sampler(images, seed)
        self.waited = 0.0
        for image in sorted(set(self.sampler.images) - set(store.index.index)):
            store.row(image)  # says which name is the nearest
        chosen = store.index.loc[self.sampler.images]
        self._shapes = {image: (int(z), int(y), int(x)) for image, (z, y, x) in chosen["shape"].items()}
        channels = int(store.info["channels"])
        differing = chosen["channels"][chosen["channels"] != channels]
        if len(differing):
            few = ", ".join(f"{image} has {count}" for image, count in differing[:3].items())
            raise DataError(
                store.path,
                found=f"{len(differing)} of {len(chosen)} chosen images with other channels ({few})",
                expected=f"{channels} channel(s) in every image, as most images of the store have",
                remedy="Make one store for each number of channels.",
            )
        needs_labels = any(group.labels for group in spec.values())
        unlabelled = [image for image in self.sampler.images if needs_labels and not store.has_label(image)]
        if unlabelled:
            raise DataError(
                unlabelled[0],
                found="no label map in the store",
                expected=f"labels for all {len(self.sampler.images)} images ({len(unlabelled)} have none)",
            )

    def batches(self, start: int = 0) -> Iterator[RawBatch]:
        """Yield this device's batches, endlessly, from its `start`-th one on."""
        pending: deque[tuple[int, str, dict[str, list[Any]]]] = deque()
        local = start
        following = self._samples(start)

        def fill() -> None:
            while len(pending) < self.reads_ahead + self.batch:
                sample = next(following)
                pending.append((sample, *self._request(sample)))

        fill()
        while True:
            rows = [pending.popleft() for _ in range(self.batch)]
            raw = self._collect(rows, local * self.world + self.rank)
            fill()  # before the caller works on this batch
            yield raw
            local += 1

    def _samples(self, start: int) -> Iterator[int]:
        local = start
        while True:
            first = (local * self.world + self.rank) * self.batch
            yield from range(first, first + self.batch)
            local += 1

    def _request(self, sample: int) -> tuple[str, dict[str, list[Any]]]:
        """Start all reads of one sample."""
        image = self.sampler.image(sample)
        rng = generator(self.seed, "views", sample)
        shape = self._shapes[image]
        reads: dict[str, list[Any]] = {}
        for name, group in self.spec.items():
            size = group.size if len(group.size) == 3 else (1, *group.size)
            for _ in range(group.count):
                wanted = rng.random() < group.foreground
                centre = foreground_centre(self.store.foreground(image), rng) if wanted else None
                box = crop_box(shape, size, rng, centre)
                inside = tuple((max(a, 0), min(b, n)) for (a, b), n in zip(box, shape, strict=True))
                voxels = self.store.read(image, 0, inside)
                label = self.store.read_label(image, 0, inside) if group.labels else None
                reads.setdefault(name, []).append((box, inside, voxels, label))
        return image, reads

    def _collect(self, rows: list[tuple[int, str, dict[str, list[Any]]]], number: int) -> RawBatch:
        """Wait for the reads of one batch and lay them into arrays."""
        groups = {}
        images = [image for _, image, _ in rows]
        channels = int(self.store.info["channels"])
        for name, group in self.spec.items():
            size = group.size if len(group.size) == 3 else (1, *group.size)
            views = [(image, *read) for _, image, reads in rows for read in reads[name]]
            voxels_BCDHW = np.zeros((len(views), channels, *size), np.int16)
            label_BDHW = np.zeros((len(views), *size), np.int32) if group.labels else None
            for row, (_, box, inside, voxels, label) in enumerate(views):
                z, y, x = (slice(a - b, c - b) for (a, c), (b, _) in zip(inside, box, strict=True))
                began = perf_counter()
                voxels_BCDHW[row, :, z, y, x] = voxels.result()
                if label_BDHW is not None:
                    label_BDHW[row, z, y, x] = label.result()
                self.waited += perf_counter() - began
            shapes = [self._shapes[image] for image, *_ in views]
            groups[name] = RawViews(voxels_BCDHW, label_BDHW, [box for _, box, *_ in views], shapes)
        return RawBatch(groups, images, rows[0][0], number)


def to_device(
    raw: RawBatch,
    store: Store,
    spec: ViewSpec,
    settings: NormaliseConfig,
    device: torch.device,
    rng: torch.Generator,
) -> Batch:
    """Move a batch to the device, normalise and augment it there.

    Args:
        raw: From the loader.
        store: For slopes, intercepts and statistics.
        spec: The groups' settings.
        settings: Intensity normalisation.
        device: Where the network is.
        rng: CPU generator; augmentation parameters are drawn from it.

    Returns:
        The batch; views of two-number groups have their z axis dropped.
    """
    views = {}
    for name, group in spec.items():
        part = raw.groups[name]
        owners = [image for image in raw.images for _ in range(group.count)]
        x_BCDHW = torch.from_numpy(part.voxels_BCDHW).to(device, non_blocking=True).float()
        linear_BC2 = torch.from_numpy(np.stack([store.slope_intercept(image) for image in owners])).float().to(device)
        slope_BC111, intercept_BC111 = linear_BC2[:, :, :, None, None, None].unbind(2)
        x_BCDHW = x_BCDHW * slope_BC111 + intercept_BC111
        x_BCDHW = normalise(x_BCDHW, [store.statistics(image) for image in owners], settings)
        valid_B1DHW = _inside(part, x_BCDHW.shape[2:]).to(device, non_blocking=True)
        x_BCDHW = x_BCDHW.masked_fill(~valid_B1DHW, 0.0)
        label = None if part.label_BDHW is None else torch.from_numpy(part.label_BDHW).to(device).long().unsqueeze(1)
        if len(group.size) == 2:
            x_BCDHW, valid_B1DHW = x_BCDHW.squeeze(2), valid_B1DHW.squeeze(2)
            label = None if label is None else label.squeeze(2)
        box_B23 = torch.tensor(part.boxes).transpose(1, 2).contiguous()
        views[name] = augment(Views(x_BCDHW, valid_B1DHW, label, box_B23), group.augment, rng)
    samples = torch.arange(raw.first_sample, raw.first_sample + len(raw.images))
    return Batch(views, raw.images, samples)


def _inside(part: RawViews, size: Sequence[int]) -> torch.Tensor:
    """True where a view lies within its image, (B, 1, D, H, W)."""
    valid_B1DHW = torch.zeros((len(part.boxes), 1, *size), dtype=torch.bool)
    for row, (box, shape) in enumerate(zip(part.boxes, part.shapes, strict=True)):
        z, y, x = (slice(max(0, -a), min(b, n) - a) for (a, b), n in zip(box, shape, strict=True))
        valid_B1DHW[row, 0, z, y, x] = True
    return valid_B1DHW
