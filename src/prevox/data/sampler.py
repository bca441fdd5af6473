"""Which image, which crop: pure functions of (seed, global sample number), whatever the number of devices.

So a resumed run equals an uninterrupted one, and reads may complete in any order.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal
from zlib import crc32

import numpy as np

Box = tuple[tuple[int, int], ...]  # (start, stop) along z y x, in voxels; may reach beyond the image


class Sampler:
    """Endless order over images: every pass is a new permutation of all of them.

    Args:
        images: Ids of the images; their order does not matter.
        seed: Seed of the run.
    """

    def __init__(self, images: Sequence[str], seed: int) -> None:
        assert images, "a sampler needs at least one image"
        self.images = sorted(images)
        self.seed = seed
        self._order = lru_cache(maxsize=4)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return generator(self.seed, "epoch", epoch).permutation(len(self.images))

    def image(self, sample: int) -> str:
        """Id of the image that the sample shows."""
        epoch, position = divmod(sample, len(self.images))
        return self.images[self._order(epoch)[position]]


def generator(seed: int, purpose: str, number: int) -> np.random.Generator:
    """An independent stream of random numbers for one purpose and one sample (or batch, or epoch)."""
    return np.random.default_rng([seed, crc32(purpose.encode()), number])


def torch_seed(seed: int, purpose: str, number: int) -> int:
    """A seed for a torch generator, from the same family of streams."""
    return int(generator(seed, purpose, number).integers(2**63))


def crop_box(
    shape: Sequence[int], size: Sequence[int], rng: np.random.Generator, centre: np.ndarray | None = None
) -> Box:
    """Place a view of `size` voxels in an image of `shape`.

    Along an axis where the image is smaller than the view, the image lies in the view's middle and the view reaches
    beyond it on both sides; elsewhere the view lies inside, uniformly, or with `centre` as near to its middle as fits.

    Returns:
        (start, stop) for each axis, with stop - start = size.
    """
    box = []
    for axis, (length, wanted) in enumerate(zip(shape, size, strict=True)):
        room = length - wanted
        drawn = int(rng.integers(0, max(room, 0) + 1))  # always drawn, so that later axes do not depend on this one
        if room <= 0:
            start = -((-room) // 2)
        elif centre is None:
            start = drawn
        else:
            start = min(max(int(centre[axis]) - wanted // 2, 0), room)
        box.append((start, start + wanted))
    return tuple(box)


def scaled_box(
    shape: Sequence[int], scale: tuple[float, float], axes: Literal["joint", "independent"], rng: np.random.Generator
) -> Box:
    """Draw a box whose sides are a random share of the image's, anywhere inside it.

    Args:
        shape: Voxels of the image.
        scale: Range of the share, uniform.
        axes: One share for all axes, or one for each.
        rng: Source of randomness; the number of draws does not depend on what they say.
    """
    shares, places = rng.uniform(*scale, len(shape)), rng.random(len(shape))
    if axes == "joint":
        shares[:] = shares[0]
    box = []
    for length, share, place in zip(shape, shares, places, strict=True):
        side = max(1, round(length * share))
        start = int(place * (length - side + 1))
        box.append((start, start + side))
    return tuple(box)


def foreground_centre(foreground_N4: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Draw a class, then one of its voxels.

    Args:
        foreground_N4: Rows (class value, z, y, x).
        rng: Source of randomness.

    Returns:
        z y x of the voxel, or None where the image has no labelled voxel.
    """
    if len(foreground_N4) == 0:
        return None
    value = rng.choice(np.unique(foreground_N4[:, 0]))
    rows = foreground_N4[foreground_N4[:, 0] == value]
    centre: np.ndarray = rows[rng.integers(len(rows)), 1:]
    return centre
