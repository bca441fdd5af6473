"""One step of S3D, ResEnc-L, 32³ blocks, 75 % and 90 % masked, against dense layers re-masked and the plain network.

    python benchmarks/s3d_step.py                        # CPU, float32, views of 64³ and 96³
    python benchmarks/s3d_step.py --sides 64 96 128
    python benchmarks/s3d_step.py --device cuda --sides 160 --batch 6    # bfloat16 autocast on a GPU

All ways share one set of weights and one mask. A step is forward and backward, from images on the device to gradients.

- Peer (a) does what public code does: dense convolutions, each multiplied by the mask, norms over gathered active
  sites, dense densifying convolutions and decoder. Masks and indices are made once a step, not once a layer. `equal` is
  the relative difference of the losses; `gradients_equal` the largest difference of a gradient, as a share of the
  largest gradient.
- Peer (b) is the plain U-Net on the unmasked view, without densifying convolutions. `equal` is the deviation of our
  output from its output when everything is visible, as a share of the largest value.

Each peer runs in the layout, channels first or last, that won a short race. `operations_ratio` is the bound that the
multiply-adds of convolutions and matrix products set if all ran at one rate. `matrix_rate` is what a large float32
matrix product reaches in the same run.
"""

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import compared, giga_operations, gradients, interleaved, matrix_rate, median, show, synchronised
from prevox.config.data import ViewsConfig
from prevox.config.models import ResEncConfig
from prevox.methods.s3d.config import S3DConfig
from prevox.methods.s3d.method import GROUP, SparseAutoencoder, build
from prevox.models.blocksparse.decoder import FilledMap, decode
from prevox.models.blocksparse.encoder import encode
from prevox.models.blocksparse.layout import pyramid
from prevox.models.resenc.network import ConvNorm
from prevox.task import Batch, StepContext, Views

Step = Callable[[], Tensor]
LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last_3d}
SEED = 0  # of the mask


def ours(size: str, side: int, ratio: float) -> SparseAutoencoder:
    """The method with at least two visible blocks, as the peer's norms need two sites at the bottleneck.

    Residual branches are switched on, as after some training.
    """
    model, views = ResEncConfig(size=size), ViewsConfig(size=(side,) * 3)
    total = 2 ** ((4 if size == "S" else 6) - 1)
    blocks = (side // total) ** 3
    kept = max(2, int(blocks * (1 - ratio) + 1e-6))
    torch.manual_seed(0)
    method = build(S3DConfig(mask_ratio=1 - kept / blocks), model, views, channels=1)
    for name, parameter in method.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return method


def our_step(method: SparseAutoencoder, x_BCDHW: Tensor, autocast: Any) -> Step:
    box = torch.zeros(len(x_BCDHW), 2, 3, dtype=torch.long)
    views = Views(x_BCDHW, torch.ones_like(x_BCDHW, dtype=torch.bool), None, box)
    batch = Batch({GROUP: views}, ["image"] * len(x_BCDHW), torch.arange(len(x_BCDHW)))

    def step() -> Tensor:
        method.zero_grad()
        with autocast():
            loss = method(batch, StepContext(torch.Generator().manual_seed(SEED))).loss
        loss.backward()
        return synchronised(loss)

    return step


class Remasked:
    """Peer (a): dense layers, the mask after each, norms over gathered sites."""

    def __init__(self, method: SparseAutoencoder, x_BCDHW: Tensor, layout: str) -> None:
        self.method, self.last = method, layout == "channels last"
        self.x_BCDHW = x_BCDHW.contiguous(memory_format=LAYOUTS[layout])

    def loss(self) -> Tensor:
        """Mean squared error on hidden voxels."""
        method, x_BCDHW = self.method, self.x_BCDHW
        hidden_B1DHW = ~self.masks()
        maps = self.encode(x_BCDHW * ~hidden_B1DHW)
        for s, stage in enumerate(method.densify):
            mask_B1DHW, index_BN = self.at[s + 1]
            filled = self.norm(maps[s], stage.norm, index_BN)
            if stage.mask_token is not None:
                filled = torch.where(mask_B1DHW > 0, filled, stage.mask_token.view(-1, 1, 1, 1).to(filled))
            maps[s] = filled if stage.conv is None else stage.conv(filled)
        error = (method.network.decoder(maps) - x_BCDHW).square()
        return (error * hidden_B1DHW).sum() / hidden_B1DHW.sum()

    def masks(self) -> Tensor:
        """Mask and indices of active sites of each stage, once a step; the mask of the voxels."""
        method, device = self.method, self.x_BCDHW.device
        mask = method.draw(len(self.x_BCDHW), torch.Generator().manual_seed(SEED))
        visible_B1DHW = ~method._hidden(mask).movedim(-1, 1).to(device)
        self.at: list[tuple[Tensor, Tensor]] = []
        for stride in ((1, 1, 1), *method.network.strides):
            seen = visible_B1DHW[(..., *(slice(None, None, t) for t in stride))]
            index_BN = torch.stack([image.flatten().nonzero().squeeze(1) for image in seen])
            self.at.append((seen.float(), index_BN))
        return visible_B1DHW

    def encode(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Maps of all stages, finest first."""
        encoder, maps = self.method.network.encoder, []
        x_BCDHW = self.unit(encoder.stem.convs[0], x_BCDHW, self.at[0])
        for stage, at in zip(encoder.stages, self.at[1:], strict=True):
            for block in stage.blocks:
                short = x_BCDHW
                for part in block.skip:
                    short = self.unit(part, short, at) if isinstance(part, ConvNorm) else part(short)
                x_BCDHW = self.unit(block.conv2, self.unit(block.conv1, x_BCDHW, at), at)
                x_BCDHW = functional.leaky_relu(x_BCDHW + short, 0.01, inplace=True)
            maps.append(x_BCDHW)
        return maps

    def unit(self, unit: ConvNorm, x_BCDHW: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        """Convolution, mask, norm of active sites, activation."""
        mask_B1DHW, index_BN = at
        y_BCDHW = unit.conv(x_BCDHW)
        return unit.nonlin(self.norm(y_BCDHW * mask_B1DHW.to(y_BCDHW.dtype), unit.norm, index_BN))

    def norm(self, x_BCDHW: Tensor, norm: Any, index_BN: Tensor) -> Tensor:
        """Gather active sites, instance norm, put them back into zeros."""
        batch, channels, *size = x_BCDHW.shape
        weights, done = (norm.weight, norm.bias, True, 0.0, norm.eps), []
        for image, index_N in zip(x_BCDHW, index_BN, strict=True):
            if self.last:  # sites are rows
                rows_NC = image.movedim(0, -1).reshape(-1, channels).index_select(0, index_N)
                rows_NC = functional.batch_norm(rows_NC, None, None, *weights)
                empty = rows_NC.new_zeros(math.prod(size), channels)
                done.append(empty.index_copy(0, index_N, rows_NC).view(*size, channels).movedim(-1, 0))
            else:
                rows_1CN = image.flatten(1).index_select(1, index_N).unsqueeze(0)
                rows_1CN = functional.batch_norm(rows_1CN, None, None, *weights)
                empty = rows_1CN.new_zeros(channels, math.prod(size))
                done.append(empty.index_copy(1, index_N, rows_1CN[0]).view(channels, *size))
        return done[0].unsqueeze(0) if batch == 1 else torch.stack(done)


def remasked_step(method: SparseAutoencoder, x_BCDHW: Tensor, autocast: Any, layout: str) -> Step:
    peer = Remasked(method, x_BCDHW, layout)

    def step() -> Tensor:
        method.zero_grad()
        with autocast():
            loss = peer.loss()
        loss.backward()
        return synchronised(loss)

    return step


def plain_step(method: SparseAutoencoder, x_BCDHW: Tensor, autocast: Any, layout: str) -> Step:
    """Peer (b): the U-Net as it is, on the whole view."""
    x_BCDHW = x_BCDHW.contiguous(memory_format=LAYOUTS[layout])

    def step() -> Tensor:
        method.zero_grad()
        with autocast():
            loss = (method.network(x_BCDHW) - x_BCDHW).square().mean()
        loss.backward()
        return synchronised(loss)

    return step


def largest_deviation(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    scale = max(float(g.abs().max()) for g in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / scale


@torch.no_grad()
def all_visible_deviation(method: SparseAutoencoder, x_BCDHW: Tensor) -> float:
    """Of our output from the plain network's, when nothing is masked."""
    network, size = method.network, x_BCDHW.shape[2:]
    everything = torch.arange(math.prod(method.grid)).expand(len(x_BCDHW), -1)
    layouts = pyramid(everything, method.block, size, network.strides, device=x_BCDHW.device)
    rows = encode(network.encoder, x_BCDHW.movedim(1, -1).contiguous(), layouts)
    maps = [FilledMap(*pair) for pair in zip(rows, layouts[1:], strict=True)]
    got, want = decode(network.decoder, maps).movedim(-1, 1), network(x_BCDHW)
    return float((got - want).abs().max() / want.abs().max())


def compare(args: argparse.Namespace, side: int, ratio: float) -> None:
    """Run all ways at one size and ratio, and print both comparisons."""
    device = torch.device(args.device)
    autocast = partial(torch.autocast, "cuda", torch.bfloat16, enabled=args.device == "cuda")
    method = ours(args.size, side, ratio).to(device)
    x_BCDHW = torch.randn(args.batch, 1, *(side,) * 3, generator=torch.Generator().manual_seed(1)).to(device)
    step = our_step(method, x_BCDHW, autocast)
    makers = {"(a) re-masked dense layers": remasked_step, "(b) plain network": plain_step}
    twins = {lay: copy.deepcopy(method).to(memory_format=layout) for lay, layout in LAYOUTS.items()}
    peers = {(p, lay): make(twins[lay], x_BCDHW, autocast, lay) for p, make in makers.items() for lay in LAYOUTS}
    race = {way: median(runs) for way, runs in interleaved(peers, args.race).items()}
    best = {p: min((way for way in race if way[0] == p), key=lambda way: race[way]) for p in makers}

    rates = [matrix_rate()]
    steps = {"ours": step, **{p: peers[way] for p, way in best.items()}}
    found = interleaved(steps, args.runs)
    rates.append(matrix_rate())
    work = {arm: giga_operations(one) / 2 for arm, one in steps.items()}  # multiply-adds
    mine, loss = gradients(method, step), float(found["ours"][0].result)
    for peer, way in best.items():
        more: dict[str, Any] = {}
        if peer.startswith("(a)"):
            peer_loss = float(found[peer][0].result)
            equal = abs(loss - peer_loss) / peer_loss
            more["gradients_equal"] = largest_deviation(mine, gradients(twins[way[1]], peers[way]))
        else:
            equal = all_visible_deviation(method, x_BCDHW)
        seconds, masked = median(found["ours"]), method.mask_ratio[0]
        show(
            compared(
                f"S3D step, ResEnc-{args.size}, {side}³, {method.block[0]}³ blocks, {masked:.0%} masked, batch "
                f"{args.batch}, {args.device}, against {peer}",
                found["ours"],
                found[peer],
                equal,
                **more,
                peer_layout=way[1],
                peer_ways_s={f"{p}, {lay}": round(s, 3) for (p, lay), s in race.items() if p == peer},
                ours_gmac=round(work["ours"], 2),
                peer_gmac=round(work[peer], 2),
                all_gmac={way: round(gmac, 2) for way, gmac in work.items()},
                operations_ratio=round(work[peer] / work["ours"], 3),
                matrix_rate_gflop_s=round(max(rates), 1),
                ours_gflop_s=round(2 * work["ours"] / seconds, 1),
                peer_gflop_s=round(2 * work[peer] / median(found[peer]), 1),
            )
        )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["S", "M", "L", "XL"], default="L")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 96])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.9])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--race", type=int, default=2, help="runs of each layout of a peer before the comparison")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args(words)
    for side in args.sides:
        for ratio in args.ratios:
            compare(args, side, ratio)


if __name__ == "__main__":
    main()
