"""Whole volumes through a network: Prevox's streaming sliding window against MONAI's, in one process, interleaved.

    python benchmarks/sliding_window.py                              # 96 × 128 × 128, window 32 × 48 × 32: minutes
    python benchmarks/sliding_window.py --shape 192 256 256 --window 64 64 64 --runs 5

From one image (float32) and one network both make a label map (uint8), with windows that overlap by half, the same
weights (MONAI gets ours as its `roi_weight_map`) and the same argmax, under `torch.inference_mode`. Each arm first
chooses its own number of windows per pass and memory layout, the fastest on a small volume. Networks: a UNETR (ViT-T,
patch 8, 8 features), and two plain 3-wide convolutions of 8 channels, beside which the sliding window itself shows;
each with 2 and with 100 classes. The last comparisons are about memory: the same volume three times as deep.

`equal` is the largest deviation of the averaged logits on the small volume; `labels_differ` counts voxels of the whole
one whose label is not the same (nearly level classes of a random network). Multiply-adds are those of convolutions and
matrix products. Ours averages `ours_channels` channels per window and applies the rest of the network once per voxel.
"""

import argparse
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness import compared, interleaved, matrix_rate, measured, median, show
from prevox.config.models import ViTConfig
from prevox.data.geometry import Grid
from prevox.data.restore import WayBack, best_class
from prevox.inference.sliding_window import profile, sliding_window, starts
from prevox.models.pointwise import pointwise
from prevox.models.registry import build_model
from prevox.models.unetr import UNETR
from prevox.models.vit import vit_settings

OVERLAP, FEATURES, CLASSES, BATCHES = 0.5, 8, (2, 100), (1, 2, 4)
LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)
CANONICAL = np.eye(4)[[2, 1, 0, 3]]  # affine of an array whose axes are z y x


class Plain(nn.Module):
    """Two 3-wide convolutions and a head: as little network as can be."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers = [nn.Conv3d(1, FEATURES, 3, padding=1), nn.LeakyReLU(0.01, inplace=True)]
        layers += [nn.Conv3d(FEATURES, FEATURES, 3, padding=1), nn.LeakyReLU(0.01, inplace=True)]
        self.body, self.head = nn.Sequential(*layers), nn.Conv3d(FEATURES, outputs, 1)

    def parts(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]:
        """As `UNETR.parts`: what runs on each window, and the head if it may wait."""
        wide = self.head.out_channels > FEATURES
        return (self.body, partial(pointwise, self.head)) if wide else (self, None)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """(B, 1, D, H, W) to (B, outputs, D, H, W)."""
        return self.head(self.body(x_BCDHW))


def unetr(outputs: int, window: tuple[int, ...], features: int = FEATURES) -> UNETR:
    encoder = build_model("vit", vit_settings(ViTConfig(size="T", patch=(8, 8, 8)), window, 1))
    return UNETR(encoder, 1, outputs, features)


@dataclass(frozen=True)
class Choice:
    """How an arm runs its network."""

    network: Any
    layout: torch.memory_format
    batch: int


def our_logits(choice: Choice, x: Tensor, window: tuple[int, ...]) -> Any:
    """Windows of the volume and their logits, block by block."""
    body, head = choice.network.parts()
    planes = sliding_window(body, x, window, OVERLAP, choice.batch, "cpu")
    grid = Grid(tuple(x.shape[2:]), CANONICAL)
    return WayBack.between(grid, grid).blocks(planes, head or (lambda logits: logits))


def ours(choice: Choice, x: Tensor, window: tuple[int, ...]) -> np.ndarray:
    labels = np.zeros(tuple(x.shape[2:]), np.uint8)
    for box, logits in our_logits(choice, x, window):
        labels[box] = best_class(logits)
    return labels


def peer_logits(choice: Choice, x: Tensor, window: tuple[int, ...]) -> Tensor:
    weights = torch.einsum("z,y,x->zyx", *map(profile, window))
    with torch.inference_mode():
        return sliding_window_inference(x, window, choice.batch, choice.network, OVERLAP, roi_weight_map=weights)[0]


def peer(choice: Choice, x: Tensor, window: tuple[int, ...]) -> np.ndarray:
    return best_class(peer_logits(choice, x, window))


def choices_of(network: nn.Module) -> list[Choice]:
    """Every layout with every number of windows per pass."""
    laid_out = {layout: copy.deepcopy(network).to(memory_format=layout) for layout in LAYOUTS}
    return [Choice(net, layout, batch) for layout, net in laid_out.items() for batch in BATCHES]


def fastest(arm: Callable[..., np.ndarray], network: nn.Module, x: Tensor, window: tuple[int, ...]) -> Choice:
    """The layout and number of windows per pass with which this arm takes least time on a small volume."""
    choices = choices_of(network)
    found = interleaved({str(n): partial(arm, choice, x, window) for n, choice in enumerate(choices)}, runs=2)
    return choices[min(range(len(choices)), key=lambda n: min(run.seconds for run in found[str(n)]))]


def multiply_adds(network: nn.Module, voxels: int, window: tuple[int, ...], windows: int) -> tuple[int, int]:
    """For ours, whose head runs once per voxel if it is apart, and for the peer, which runs all on every window."""
    body, head = network.parts()
    found = []
    for callable_, repeats in ((body, windows), (network, windows)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            callable_(torch.zeros(2, 1, *window))
        found.append(counter.get_total_flops() // 4 * repeats)
    return found[0] + (voxels * network.head.weight.numel() if head else 0), found[1]


def layout_name(choice: Choice) -> str:
    return f"{str(choice.layout).removeprefix('torch.')}, {choice.batch} per pass"


def compare(name: str, network: nn.Module, shape: tuple[int, ...], window: tuple[int, ...], runs: int) -> None:
    """Tune both arms on a small volume, compare their logits there, then time them on the whole one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, *shape, generator=generator)
    small = torch.randn(1, 1, *(side + side // 2 for side in window), generator=generator)
    mine, theirs = (fastest(arm, network, small, window) for arm in (ours, peer))
    expected = peer_logits(theirs, small, window)
    equal = max(float((expected[:, *box] - logits).abs().max()) for box, logits in our_logits(mine, small, window))
    del expected
    found = interleaved({"ours": partial(ours, mine, x, window), "peer": partial(peer, theirs, x, window)}, runs)
    windows = math.prod(len(starts(*sides, OVERLAP)) for sides in zip(shape, window, strict=True))
    adds = multiply_adds(network, math.prod(shape), window, windows)
    rates = [2 * n / median(found[arm]) / 1e9 for n, arm in zip(adds, ("ours", "peer"), strict=True)]
    outputs = network.head.out_channels
    show(
        compared(
            f"{name}, {outputs} classes, {'×'.join(map(str, shape))} voxels in windows of "
            f"{'×'.join(map(str, window))}, against MONAI's sliding_window_inference",
            found["ours"],
            found["peer"],
            equal,
            labels_differ=int((found["ours"][0].result != found["peer"][0].result).sum()),
            windows=windows,
            ours_multiply_adds=adds[0],
            peer_multiply_adds=adds[1],
            ours_gflops=round(rates[0], 1),
            peer_gflops=round(rates[1], 1),
            matrix_gflops=round(matrix_rate(), 1),
            ours_channels=outputs if network.parts()[1] is None else FEATURES,
            peer_channels=outputs,
            ours_layout=layout_name(mine),
            peer_layout=layout_name(theirs),
            threads=torch.get_num_threads(),
        )
    )


def compare_memory(shape: tuple[int, ...], window: tuple[int, ...], outputs: int) -> None:
    """Peaks at a depth and at three times that depth; one run each, whose time does not count."""
    network = Plain(outputs).eval()
    choice = Choice(network, torch.contiguous_format, 2)
    for factor in (1, 3):
        deep = (factor * shape[0], *shape[1:])
        x = torch.randn(1, 1, *deep, generator=torch.Generator().manual_seed(0))
        mine, theirs = (measured(partial(arm, choice, x, window)) for arm in (ours, peer))
        differ = int((mine.result != theirs.result).sum())
        name = f"peak memory, plain convolutions, {outputs} classes, {'×'.join(map(str, deep))} voxels"
        show(compared(name, [mine], [theirs], differ / mine.result.size, label_map_mb=mine.result.nbytes / 2**20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[96, 128, 128], help="voxels along z y x")
    parser.add_argument("--window", type=int, nargs=3, default=[32, 48, 32], help="multiples of 8 along z y x")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    shape, window = tuple(args.shape), tuple(args.window)
    torch.manual_seed(0)
    for outputs in CLASSES:
        compare("plain convolutions", Plain(outputs).eval(), shape, window, args.runs)
    for outputs in CLASSES:
        compare("UNETR", unetr(outputs, window).eval(), shape, window, args.runs)
    for outputs in CLASSES:
        compare_memory(shape, window, outputs)


if __name__ == "__main__":
    main()
