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
from prevox.data.sampler import Box, Sampler, crop_box, foreground_centre, generator, scaled_box
from prevox.data.store import Store, unreadable_voxels
from prevox.errors import DataError
from prevox.task import Batch, ViewGroup, Views, ViewSpec
from prevox.views.normalise import normalise
from prevox.views.pipeline import augment
from prevox.views.resize import resize

Window = tuple[tuple[float, float], ...]  # first and last edge along z y x, in samples of what was read


@dataclass
class _Reads:
    """What is in flight for one view."""

    box: Box
    inside: Box  # the part of the box that lies in the image, at the level that is read
    voxels: Any
    label: Any
    window: Window | None


@dataclass
class RawViews:
    """One group's views as they lie in the store, before the device touches them."""

    voxels_BCDHW: np.ndarray | list[np.ndarray]  # int16; a list (C, d, h, w) where the device resizes what was read
    label_BDHW: np.ndarray | None
    boxes: list[Box]
    shapes: list[tuple[int, int, int]]  # of the images, z y x
    windows: list[Window]  # of each view's box within what was read; empty where nothing is resized


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
        pending: deque[tuple[int, str, dict[str, list[_Reads]]]] = deque()
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

    def _request(self, sample: int) -> tuple[str, dict[str, list[_Reads]]]:
        """Start all reads of one sample."""
        image = self.sampler.image(sample)
        rng = generator(self.seed, "views", sample)
        reads = {}
        for name, group in self.spec.items():
            one = self._native if group.scale is None else self._scaled
            reads[name] = [one(image, group, rng) for _ in range(group.count)]
        return image, reads

    def _native(self, image: str, group: ViewGroup, rng: np.random.Generator) -> _Reads:
        """A view at the store's resolution; it may reach beyond a small image."""
        shape = self._shapes[image]
        wanted = rng.random() < group.foreground
        centre = foreground_centre(self.store.foreground(image), rng) if wanted else None
        box = crop_box(shape, group.size3, rng, centre)
        inside = tuple((max(a, 0), min(b, n)) for (a, b), n in zip(box, shape, strict=True))
        label = self.store.read_label(image, 0, inside) if group.labels else None
        return _Reads(box, inside, self.store.read(image, 0, inside), label, None)

    def _scaled(self, image: str, group: ViewGroup, rng: np.random.Generator) -> _Reads:
        """A view of a larger or smaller box, from the coarsest level that has enough samples for it."""
        assert group.scale is not None
        box = scaled_box(self._shapes[image], group.scale, group.axes, rng)
        if len(group.size) == 2:  # one slice of a volume, scaled in its plane
            z = int(rng.integers(self._shapes[image][0]))
            box = ((z, z + 1), *box[1:])
        inside, level, window = level_window(self.store, image, box, group.size3)
        return _Reads(box, inside, self.store.read(image, level, inside), None, window)

    def _read(self, future: Any, image: str) -> np.ndarray:
        """Wait for one read.

        Raises:
            DataError: If the image's group is damaged.
        """
        try:
            voxels: np.ndarray = future.result()
        except ValueError as error:  # what tensorstore raises
            raise unreadable_voxels(self.store.folder(image), error) from None
        return voxels

    def _collect(self, rows: list[tuple[int, str, dict[str, list[_Reads]]]], number: int) -> RawBatch:
        """Wait for the reads of one batch and lay them into arrays."""
        groups = {}
        images = [image for _, image, _ in rows]
        for name, group in self.spec.items():
            reads = [read for _, _, found in rows for read in found[name]]
            began = perf_counter()
            owners = [image for image in images for _ in range(group.count)]
            shapes = [self._shapes[image] for image in owners]
            voxels = [self._read(read.voxels, image) for read, image in zip(reads, owners, strict=True)]
            labels = (
                [self._read(read.label, image) for read, image in zip(reads, owners, strict=True)]
                if group.labels
                else None
            )
            self.waited += perf_counter() - began
            boxes, windows = [read.box for read in reads], [read.window for read in reads if read.window is not None]
            if windows:
                groups[name] = RawViews(voxels, None, boxes, shapes, windows)
                continue
            voxels_BCDHW = np.zeros((len(reads), len(voxels[0]), *group.size3), np.int16)
            label_BDHW = None if labels is None else np.zeros((len(reads), *group.size3), np.int32)
            for row, read in enumerate(reads):
                z, y, x = (slice(a - b, c - b) for (a, c), (b, _) in zip(read.inside, read.box, strict=True))
                voxels_BCDHW[row, :, z, y, x] = voxels[row]
                if label_BDHW is not None and labels is not None:
                    label_BDHW[row, z, y, x] = labels[row]
            groups[name] = RawViews(voxels_BCDHW, label_BDHW, boxes, shapes, [])
        return RawBatch(groups, images, rows[0][0], number)


def level_window(store: Store, image: str, box: Box, size: tuple[int, int, int]) -> tuple[Box, int, Window]:
    """What to read for a box that will have `size` samples.

    Args:
        store: Where the image is.
        image: Its id.
        box: In voxels of the finest level, along z y x.
        size: Samples along z y x that the box will be resized to.

    Returns:
        The box to read, in the level's own voxels; the level; and where the wanted box lies in what is read.
    """
    level = store.level_for(image, tuple(stop - start for start, stop in box), size)
    factors = store.levels(image)[level]
    inside = tuple((start // f, -(-stop // f)) for (start, stop), f in zip(box, factors, strict=True))
    window = tuple(
        (start / f - low, stop / f - low) for (start, stop), (low, _), f in zip(box, inside, factors, strict=True)
    )
    return inside, level, window


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
        x_BCDHW = _on_device(part, group, device)
        linear_BC2 = torch.from_numpy(np.stack([store.slope_intercept(image) for image in owners])).float().to(device)
        slope_BC111, intercept_BC111 = linear_BC2[:, :, :, None, None, None].unbind(2)
        x_BCDHW.mul_(slope_BC111).add_(intercept_BC111)
        x_BCDHW = normalise(x_BCDHW, [store.statistics(image) for image in owners], settings)
        inside_B1DHW = _inside(part, x_BCDHW.shape[2:])
        padded, valid_B1DHW = not inside_B1DHW.all(), inside_B1DHW.to(device, non_blocking=True)
        if padded:
            x_BCDHW = x_BCDHW.masked_fill(~valid_B1DHW, 0.0)
        label = None if part.label_BDHW is None else torch.from_numpy(part.label_BDHW).to(device).long().unsqueeze(1)
        if len(group.size) == 2:
            x_BCDHW, valid_B1DHW = x_BCDHW.squeeze(2), valid_B1DHW.squeeze(2)
            label = None if label is None else label.squeeze(2)
        box_B23 = torch.tensor(part.boxes).transpose(1, 2).contiguous()
        views[name] = augment(Views(x_BCDHW, valid_B1DHW, label, box_B23, padded=padded), group.augment, rng)
    samples = torch.arange(raw.first_sample, raw.first_sample + len(raw.images))
    return Batch(views, raw.images, samples)


def _on_device(part: RawViews, group: ViewGroup, device: torch.device) -> torch.Tensor:
    """Stored numbers of all views, float32 (B, C, *size); what was read in another size is resized here."""
    if not part.windows:
        assert isinstance(part.voxels_BCDHW, np.ndarray)
        return torch.from_numpy(part.voxels_BCDHW).to(device, non_blocking=True).float()
    read = (torch.from_numpy(voxels).to(device, non_blocking=True) for voxels in part.voxels_BCDHW)
    return torch.stack([resize(x, window, group.size3) for x, window in zip(read, part.windows, strict=True)])


def _inside(part: RawViews, size: Sequence[int]) -> torch.Tensor:
    """True where a view lies within its image, (B, 1, D, H, W)."""
    if part.windows:  # a resized box lies within its image
        return torch.ones((len(part.boxes), 1, *size), dtype=torch.bool)
    valid_B1DHW = torch.zeros((len(part.boxes), 1, *size), dtype=torch.bool)
    for row, (box, shape) in enumerate(zip(part.boxes, part.shapes, strict=True)):
        z, y, x = (slice(max(0, -a), min(b, n) - a) for (a, b), n in zip(box, shape, strict=True))
        valid_B1DHW[row, 0, z, y, x] = True
    return valid_B1DHW
