"""Reading the store: random crops, bytes on disk, and views through the pyramid.

    python benchmarks/store.py                      # 160 × 512 × 512, about two minutes
    python benchmarks/store.py --scan ct.nii.gz     # a scan of your own instead of the generated one

Crops: 96³ boxes at random places until float32 tensors, normalised, ready for a network. The peer is blosc2 float32 as
nnU-Net v2 lays it out (zstd level 8, blocks of 16³ in chunks of 64³, memory-mapped, already normalised); the larger
blocks of 32³ in chunks of 96³ are tried as well and the faster of the two counts. Ours are int16 from the store, turned
into float32 and normalised here, so both end in the same tensor; `equal` is their largest difference, in standard
deviations. Each is measured with one thread of the process at work (no reads ahead, one decoding thread) and with two
(the peer: two threads with a handle each; ours: reads in flight, as the loader keeps them).

Pyramid: boxes of the volume resized to views, read from the level that suffices, against the same boxes at full
resolution resized by the same function. The reads of all views are in flight together, as the loader keeps them, and
one thread resizes what has arrived. `equal` is the mean absolute difference of the two, in standard deviations of the
volume: the filters differ a little (a mean of blocks before the triangle). Views of one size, then the ten views that
GL-MAE takes of an image.
"""

import argparse
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import tensorstore as ts
import torch
from scipy import ndimage

from harness import compared, interleaved, median, show
from prevox.config.data import CatalogueConfig, PrepareConfig
from prevox.console import console
from prevox.data.catalogue import catalogue
from prevox.data.dataset import level_window
from prevox.data.prepare import prepare
from prevox.data.sampler import Box, crop_box, scaled_box
from prevox.data.store import Store
from prevox.views.resize import resize

View = tuple[Box, tuple[int, int, int]]  # what it shows, and how many voxels it has
SIZE = (96, 96, 96)
LAYOUTS = {"16 in 64": (16, 64), "32 in 96": (32, 96)}  # sides of blocks and chunks


def ct_like(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A body of soft tissue with organs, bone and lung in air, and the noise of a scanner (sigma 18), int16 HU."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    smooth = ndimage.zoom(rng.normal(size=(6, 10, 10)), np.divide(shape, (6, 10, 10)), order=1).astype(np.float32)
    radius = np.sqrt(((y / shape[1] - 0.5) / 0.36) ** 2 + ((x / shape[2] - 0.5) / 0.45) ** 2) + 0 * z
    body = radius + 0.05 * smooth < 1
    hu = np.where(body, 40 + 25 * smooth, -1000).astype(np.float32)
    hu[body & (smooth > 1.2)] = -800
    hu[body & (smooth < -1.6)] = 600
    hu = ndimage.gaussian_filter(hu, 0.7) + rng.normal(0, 18, shape).astype(np.float32)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def write_stores(hu: np.ndarray, spacing: Sequence[float], folder: Path) -> Store:
    """Prepare the volume by the verbs."""
    nib.save(nib.Nifti1Image(hu.T, np.diag([*reversed(spacing), 1.0])), folder / "ct.nii.gz")
    console.quiet = True
    catalogue(CatalogueConfig(paths=(folder / "ct.nii.gz",), out=folder / "c.parquet"))
    prepare(PrepareConfig(catalogue=folder / "c.parquet", out=folder / "store", crop="none", workers=1))
    console.quiet = False
    return Store(folder / "store")


def write_blosc(hu: np.ndarray, path: Path, block: int, chunk: int) -> int:
    """The normalised volume as nnU-Net v2 keeps it; its size in bytes."""
    voxels = ((hu - hu.mean()) / hu.std()).astype(np.float32)[None]
    blocks, chunks = ((1, *(min(side, n) for n in hu.shape)) for side in (block, chunk))
    cparams = {"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 2}
    blosc2.asarray(voxels, urlpath=str(path), chunks=chunks, blocks=blocks, cparams=cparams, mode="w")
    return path.stat().st_size


def read_blosc(path: Path, boxes: Sequence[Box], threads: int) -> torch.Tensor:
    """Crops by one handle in each thread, decoded by that thread; the last crop."""

    def some(mine: Sequence[Box]) -> torch.Tensor:
        handle = blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, mmap_mode="r")
        for z, y, x in mine:
            crop = torch.from_numpy(handle[:, slice(*z), slice(*y), slice(*x)])
        return crop

    if threads == 1:
        return some(boxes)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(some, (boxes[n::threads] for n in range(threads))))[(len(boxes) - 1) % threads]


def read_ours(store: Store, boxes: Sequence[Box], ahead: int, mean: float, deviation: float) -> torch.Tensor:
    """Crops with reads in flight, turned into the same float32 tensors; the last crop."""
    slope, intercept = store.slope_intercept("ct")[0]
    crop = torch.empty(1, *(stop - start for start, stop in boxes[0]))  # the view's place in a batch
    pending: deque[Any] = deque()
    waiting = iter(boxes)
    for _ in boxes:
        while len(pending) < ahead and (box := next(waiting, None)) is not None:
            pending.append(store.read("ct", 0, box))
        crop.copy_(torch.from_numpy(pending.popleft().result()))
        crop.mul_(float(slope / deviation)).add_(float((intercept - mean) / deviation))
    return crop


def uncached(store: Store, **limits: Any) -> Store:
    """The store without a cache, so that no run lives off what an earlier one has decoded."""
    fresh = Store(store.path)
    fresh._context = ts.Context({"cache_pool": {"total_bytes_limit": 0}, **limits})
    return fresh


def crops(store: Store, hu: np.ndarray, folder: Path, runs: int, count: int) -> None:
    rng = np.random.default_rng(1)
    size = tuple(min(side, n) for side, n in zip(SIZE, hu.shape, strict=True))
    boxes = [crop_box(hu.shape, size, rng) for _ in range(count)]
    mean, deviation = float(hu.mean()), float(hu.std())
    files = {name: folder / f"{name.replace(' ', '-')}.b2nd" for name in LAYOUTS}
    sizes = {name: write_blosc(hu, files[name], *sides) for name, sides in LAYOUTS.items()}
    level_0 = sum(f.stat().st_size for f in (store.path / "images" / "ct.zarr" / "0").rglob("*") if f.is_file())
    one = {"limit": 1}
    torch.set_num_threads(1)  # two threads that wait for each other slow down a process whose cores decode
    alone = uncached(store, data_copy_concurrency=one, file_io_concurrency=one)
    for threads, ahead, reader in ((1, 1, alone), (2, 16, uncached(store))):
        arms: dict[str, Callable[[], Any]] = {
            "ours": lambda ahead=ahead, reader=reader: read_ours(reader, boxes, ahead, mean, deviation)
        }
        for name, path in files.items():
            arms[name] = lambda path=path, threads=threads: read_blosc(path, boxes, threads)
        found = interleaved(arms, runs)
        best = min(LAYOUTS, key=lambda name: median(found[name]))
        show(
            compared(
                f"{count} random crops of {'×'.join(map(str, size))}, {threads} thread(s), against blosc2 ({best})",
                found["ours"],
                found[best],
                float((found["ours"][0].result - found[best][0].result).abs().max()),
                ours_crops_per_s=round(count / median(found["ours"]), 1),
                peer_crops_per_s=round(count / median(found[best]), 1),
                other_layouts_s={name: round(median(found[name]), 3) for name in LAYOUTS if name != best},
                ours_mb=round(level_0 / 1e6, 1),
                peer_mb=round(sizes[best] / 1e6, 1),
                bytes_ratio=round(level_0 / sizes[best], 3),
            )
        )


def views_of(store: Store, views: Sequence[View], level: int | None) -> Iterator[torch.Tensor]:
    """Boxes resized to their sizes, from the level that suffices (None) or from the finest (0).

    All reads of an image are in flight together, and each is resized as soon as it and those before it are there, as
    the loader does it.
    """
    reads = deque()
    for box, size in views:
        if level is None:
            inside, at, window = level_window(store, "ct", box, size)
        else:
            inside, at, window = box, level, tuple((0.0, float(stop - start)) for start, stop in box)
        reads.append((store.read("ct", at, inside), window, size))
    while reads:
        future, window, size = reads.popleft()
        yield resize(torch.from_numpy(future.result()), window, size)


def pyramid(store: Store, hu: np.ndarray, runs: int, count: int) -> None:
    """Views of one size, and the views of one image that GL-MAE takes."""
    torch.set_num_threads(1)  # as for crops
    rng = np.random.default_rng(2)
    volume = "×".join(map(str, hu.shape))
    for axes in ("joint", "independent"):
        boxes = spread_boxes(hu.shape, (0.5, 1.0), count, axes, rng)
        name = f"{count} 160³ views of 50–100 % of {volume} voxels, {axes} axes"
        compare_views(name, store, hu, [(box, (160, 160, 160)) for box in boxes], runs)
    views = [(box, (160, 160, 160)) for box in spread_boxes(hu.shape, (0.5, 1.0), 2, "joint", rng)]
    views += [(box, SIZE) for box in spread_boxes(hu.shape, (0.25, 0.5), 8, "joint", rng)]
    name = f"GL-MAE's 2 160³ views of 50–100 % and 8 96³ views of 25–50 % of {volume} voxels"
    compare_views(name, store, hu, views, runs)


def spread_boxes(
    shape: Sequence[int], scale: tuple[float, float], count: int, axes: str, rng: np.random.Generator
) -> list[Box]:
    """Boxes whose shares are evenly spaced over the range, so that few stand for many; their places are random."""
    low, high = scale
    shares = low + (high - low) * (np.arange(count) + 0.5) / count
    drawn = np.stack([shares if axes == "joint" else rng.permutation(shares) for _ in range(3)], axis=1)
    return [
        tuple(scaled_box((n,), (u, u), "joint", rng)[0] for n, u in zip(shape, of_view, strict=True))
        for of_view in drawn
    ]


def compare_views(name: str, store: Store, hu: np.ndarray, views: list[View], runs: int) -> None:
    fresh = uncached(store)

    def each(level: int | None) -> None:
        for _ in views_of(fresh, views, level):
            pass

    found = interleaved({"ours": lambda: each(None), "peer": lambda: each(0)}, runs)
    pairs = zip(views_of(fresh, views, None), views_of(fresh, views, 0), strict=True)
    apart = [float((ours - peer).abs().mean()) for ours, peer in pairs]
    levels = [level_window(store, "ct", *one)[1] for one in views]
    read = [np.prod([b - a for a, b in level_window(store, "ct", *one)[0]]) for one in views]
    full = [np.prod([b - a for a, b in box]) for box, _ in views]
    show(
        compared(
            f"{name}, pyramid against full resolution",
            found["ours"],
            found["peer"],
            float(np.mean(apart) / hu.std()),
            levels={str(level): levels.count(level) for level in sorted(set(levels))},
            voxels_ratio=round(float(np.sum(full) / np.sum(read)), 2),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 512, 512], help="voxels along z y x")
    parser.add_argument("--scan", type=Path, help="NIfTI file to take instead of the generated volume")
    parser.add_argument("--crops", type=int, default=100)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    if args.scan:
        source = nib.as_closest_canonical(nib.load(args.scan))
        hu = np.rint(np.asarray(source.dataobj)).astype(np.int16).T
        spacing = [float(n) for n in reversed(source.header.get_zooms()[:3])]
    else:
        hu, spacing = ct_like(tuple(args.shape)), [2.5, 0.8, 0.8]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = write_stores(hu, spacing, folder)
        crops(store, hu, folder, args.runs, args.crops)
        pyramid(store, hu, args.runs, args.views)
    if args.scan:
        return
    with tempfile.TemporaryDirectory() as name:
        cube = ct_like((384, 384, 384))
        store = write_stores(cube, [1.0, 1.0, 1.0], Path(name))
        whole: Box = ((0, 384),) * 3
        compare_views("the whole of 384³ as a 96³ view", store, cube, [(whole, SIZE)], args.runs)


if __name__ == "__main__":
    main()
