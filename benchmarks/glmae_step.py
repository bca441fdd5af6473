"""One step of GL-MAE, two global and eight local views, against the ways in which it is written elsewhere.

    python benchmarks/glmae_step.py                        # CPU, float32: ViT-T with patches of 16 and 8, ViT-B
    python benchmarks/glmae_step.py --case T 96 64 8       # size, sides of global and local views, patch
    python benchmarks/glmae_step.py --case B 160 96 16 --batch 4 --device cuda    # bfloat16 autocast on a GPU
    python benchmarks/glmae_step.py --kept                 # what forward passes keep for backward ones, and no times

All ways share the weights, views and masks, teacher and centre. A step is forward and backward, from views on the
device to gradients, with all four terms; 60 % of the patches are masked.

- Peer (a) is what simple public code does: each view goes through encoder, decoder and teacher by itself, attention
  is written out with its matrix of weights, all patches are embedded before masked ones are left out, and all are
  predicted.
- Peer (b) is plain PyTorch as well as we can write it: views batched by size, fused attention, visible patches
  embedded and masked ones predicted only, positions interpolated once and for all.
- Packed: as (b), but tokens of both sizes go through linear layers and norms as one long row, and are split for
  attention alone. Compared with (b), it says what packing is worth.
- Ours checkpointed: ours with `train.checkpoint_activations`.

`equal` is the largest relative difference of the loss or of a gradient, the latter as a share of its tensor's largest
value. Prevox also computes what shows a collapse and the explained shares, and takes padding into account; the peers
do neither.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import compared, giga_operations, gradients, interleaved, matrix_rate, median, show, synchronised
from prevox.config.data import ViewsConfig
from prevox.config.models import ViTConfig
from prevox.masking.tokens import TokenMask, random_token_mask
from prevox.methods.glmae.config import GLMAEConfig
from prevox.methods.glmae.method import KINDS, GlobalLocalAutoencoder, build
from prevox.models.positions import interpolate
from prevox.models.transformer import EPS, checkpoint_activations
from prevox.task import Batch, StepContext, Views
from saved import count_saved

Step = Callable[[], Tensor]
SEED = 0  # of the masks
DECODER = {"T": (192, 4, 3), "S": (384, 8, 12), "B": (576, 8, 16)}  # width, depth, heads
CASES = [["T", "96", "64", "16"], ["T", "96", "64", "8"], ["B", "160", "96", "16"]]
ONE_BY_ONE, BATCHED, PACKED, CHECKPOINTED = "(a) view by view", "(b) batched by size", "packed", "ours checkpointed"


def ours(size: str, sides: tuple[int, int], patch: int, checkpointed: bool = False) -> GlobalLocalAutoencoder:
    """The method with the paper's numbers of views, and a centre as after some steps."""
    width, depth, heads = DECODER[size]
    settings = GLMAEConfig(global_size=(sides[0],) * 3, decoder_width=width, decoder_depth=depth, decoder_heads=heads)
    torch.manual_seed(0)
    method = build(settings, ViTConfig(size=size, patch=(patch,) * 3), ViewsConfig(size=(sides[1],) * 3), channels=1)
    assert method.teacher is not None
    method.teacher.centre_K.normal_(std=0.01)
    if checkpointed:
        checkpoint_activations(method)
    return method


def make_views(method: GlobalLocalAutoencoder, images: int, device: str) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    groups = method.views.items()
    return {kind: torch.randn(images * g.count, 1, *g.size, generator=rng).to(device) for kind, g in groups}


def our_loss(method: GlobalLocalAutoencoder, views: dict[str, Tensor], images: int) -> Step:
    groups = {
        kind: Views(x, torch.ones_like(x, dtype=torch.bool), None, torch.zeros(len(x), 2, 3).long(), padded=False)
        for kind, x in views.items()
    }
    batch = Batch(groups, ["image"] * images, torch.arange(images))
    return lambda: method(batch, StepContext(torch.Generator().manual_seed(SEED))).loss


def our_step(method: GlobalLocalAutoencoder, views: dict[str, Tensor], images: int, autocast: Any) -> Step:
    return whole_step(method, our_loss(method, views, images), autocast)


def whole_step(network: nn.Module, loss_of: Step, autocast: Any) -> Step:
    """Forward and backward."""

    def step() -> Tensor:
        network.zero_grad()
        with autocast():
            loss = loss_of()
        loss.backward()
        return synchronised(loss)

    return step


def linear(x: Tensor, layer: Any) -> Tensor:
    return functional.linear(x, layer.weight, layer.bias)


def norm(x: Tensor, layer: Any) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],), layer.weight, layer.bias, EPS)


def project(x: Tensor, head: Any) -> Tensor:
    first, _, second, _, last = head
    return linear(functional.gelu(linear(functional.gelu(linear(x, first)), second)), last)


def cut(x_VCDHW: Tensor, patch: int) -> Tensor:
    """(V, 1, D, H, W) to (V, L, P)."""
    count, _, *size = x_VCDHW.shape
    z, y, x = (n // patch for n in size)
    return x_VCDHW.view(count, z, patch, y, patch, x, patch).permute(0, 1, 3, 5, 2, 4, 6).reshape(count, z * y * x, -1)


class Peer:
    """The step in plain PyTorch, on the weights of ours."""

    def __init__(self, method: GlobalLocalAutoencoder, views: dict[str, Tensor], images: int, way: str) -> None:
        self.method, self.views, self.images, self.way = method, views, images, way
        self.patch = method.encoder.patch[0]
        self.simple = way == ONE_BY_ONE
        self.places = {
            (module, kind): interpolate(module.positions, method.encoder.grid, self.grid(kind))
            for module in (method.encoder, method.decoder)
            for kind in KINDS
        }

    def grid(self, kind: str) -> list[int]:
        """Patches along each axis."""
        return [n // self.patch for n in self.views[kind].shape[2:]]

    def loss(self) -> Tensor:
        """All four terms."""
        method, generator = self.method, torch.Generator().manual_seed(SEED)
        seeds = torch.randint(2**62, (len(KINDS),), generator=generator).tolist()
        patches = {kind: cut(self.views[kind], self.patch) for kind in KINDS}
        masks = {
            kind: random_token_mask(
                *patches[kind].shape[:2], method.mask_ratio, torch.Generator().manual_seed(seed), patches[kind].device
            )
            for kind, seed in zip(KINDS, seeds, strict=True)
        }
        projected: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        errors: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        for call in self.calls():
            parts = [(kind, patches[kind][rows], TokenMask(masks[kind].order_BL[rows], masks[kind].kept))
                     for kind, rows in call]  # fmt: skip
            tokens = self.encode(parts)
            for (kind, _, _), x_VND, error in zip(parts, tokens, self.errors(parts, tokens), strict=True):
                projected[kind].append(project(x_VND[:, 0], method.head))
                errors[kind].append(error)
        teacher_BSK = self.teacher(patches["global"])
        loss = torch.stack([torch.cat(errors[kind]).mean() for kind in KINDS]).sum()
        for kind in KINDS:
            e_BTK = torch.cat(projected[kind]).float().unflatten(0, (self.images, -1))
            log_BTK = (e_BTK / method.student_temperature).log_softmax(-1)
            loss = loss - (teacher_BSK.unsqueeze(2) * log_BTK.unsqueeze(1)).sum(-1).mean()
        return loss

    def calls(self) -> list[list[tuple[str, slice]]]:
        """Which views go through together."""
        if self.way == ONE_BY_ONE:
            return [[(kind, slice(n, n + 1))] for kind in KINDS for n in range(len(self.views[kind]))]
        whole = [(kind, slice(None)) for kind in KINDS]
        return [whole] if self.way == PACKED else [[part] for part in whole]

    def encode(self, parts: Sequence[tuple[str, Tensor, TokenMask | None]], encoder: Any = None) -> list[Tensor]:
        """Tokens of each part after the last norm; without a mask of all patches."""
        encoder = encoder or self.method.encoder
        embedded = []
        for kind, x_VLP, mask in parts:
            places_LD = self.places[self.method.encoder, kind]
            if mask is None:
                x_VND = linear(x_VLP, encoder.patch_embed) + places_LD
            elif self.simple:
                x_VLD = linear(x_VLP, encoder.patch_embed) + places_LD
                x_VND = x_VLD[rows_of(mask.visible_BK), mask.visible_BK]
            else:
                visible_VKP = x_VLP[rows_of(mask.visible_BK), mask.visible_BK]
                x_VND = linear(visible_VKP, encoder.patch_embed) + places_LD[mask.visible_BK]
            first = encoder.class_token.to(x_VND.dtype).expand(len(x_VND), 1, -1)
            embedded.append(torch.cat([first, x_VND], dim=1))
        x_ND, shapes = rows_together(embedded)
        for block in encoder.blocks:
            x_ND = self.block(x_ND, block, shapes)
        return rows_apart(norm(x_ND, encoder.norm), shapes)

    def errors(self, parts: Sequence[tuple[str, Tensor, TokenMask]], tokens: Sequence[Tensor]) -> list[Tensor]:
        """Mean squared error of each view's masked patches."""
        decoder: Any = self.method.decoder
        on_grid = []
        for (kind, x_VLP, mask), x_VND in zip(parts, tokens, strict=True):
            y_VND = linear(x_VND, decoder.embed)
            hidden = decoder.mask_token.to(y_VND.dtype).expand(len(y_VND), x_VLP.shape[1] - mask.kept, -1)
            y_VLD = torch.cat([y_VND[:, 1:], hidden], dim=1)[rows_of(mask.order_BL), mask.restore_BL]
            on_grid.append(torch.cat([y_VND[:, :1], y_VLD + self.places[decoder, kind]], dim=1))
        y_ND, shapes = rows_together(on_grid)
        for block in decoder.blocks:
            y_ND = self.block(y_ND, block, shapes)
        results = []
        for (_, x_VLP, mask), y_VND in zip(parts, rows_apart(y_ND, shapes), strict=True):
            y_VLD = y_VND[:, 1:]
            if self.simple:
                error_VL = (linear(norm(y_VLD, decoder.norm), decoder.head).float() - x_VLP).square().mean(-1)
                results.append((error_VL * mask.mask_BL).sum(-1) / mask.mask_BL.sum(-1))
            else:
                at = rows_of(mask.masked_BM), mask.masked_BM
                prediction_VMP = linear(norm(y_VLD[at], decoder.norm), decoder.head).float()
                results.append((prediction_VMP - x_VLP[at]).square().flatten(1).mean(-1))
        return results

    @torch.no_grad()
    def teacher(self, patches_VLP: Tensor) -> Tensor:
        """Distributions of the unmasked global views, (B, S, K)."""
        teacher: Any = self.method.teacher
        size = 1 if self.simple else len(patches_VLP)
        tokens = [self.encode([("global", some, None)], teacher.encoder)[0][:, 0] for some in patches_VLP.split(size)]
        e_VK = project(torch.cat(tokens), teacher.head).float()
        apart_VK = functional.normalize(e_VK - teacher.centre_K, dim=-1)
        return (apart_VK / teacher.temperature).softmax(-1).unflatten(0, (self.images, -1))

    def block(self, x_ND: Tensor, block: Any, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """One block on tokens in a row, of views with (count, tokens) each; attention stays within a view."""
        mixed = []
        qkv_ND = linear(norm(x_ND, block.norm1), block.qkv)
        for part_ND, (count, n) in zip(qkv_ND.split([a * b for a, b in shapes]), shapes, strict=True):
            q, k, v = part_ND.view(count, n, 3, block.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            if self.simple:
                weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
                part = weights @ v
            else:
                part = functional.scaled_dot_product_attention(q, k, v)
            mixed.append(part.transpose(1, 2).reshape(count * n, -1))
        x_ND = x_ND + linear(mixed[0] if len(mixed) == 1 else torch.cat(mixed), block.projection)
        return x_ND + linear(functional.gelu(linear(norm(x_ND, block.norm2), block.expand)), block.contract)


def rows_of(index_VK: Tensor) -> Tensor:
    return torch.arange(len(index_VK), device=index_VK.device).unsqueeze(1)


def rows_together(parts: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    shapes = [(len(x), x.shape[1]) for x in parts]
    rows = [x.flatten(0, 1) for x in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows), shapes


def rows_apart(x_ND: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    parts = x_ND.split([a * b for a, b in shapes])
    return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]


def peer_step(peer: Peer, autocast: Any) -> Step:
    return whole_step(peer.method, peer.loss, autocast)


def largest_deviation(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - g).abs().max() / g.abs().max()) for name, g in expected.items())


def compare(args: argparse.Namespace, size: str, sides: tuple[int, int], patch: int) -> None:
    """Run all ways at one size, and print each comparison."""
    autocast = partial(torch.autocast, "cuda", torch.bfloat16, enabled=args.device == "cuda")
    method = ours(size, sides, patch).to(args.device)
    views = make_views(method, args.batch, args.device)
    recomputing = ours(size, sides, patch, checkpointed=True).to(args.device)
    steps = {"ours": our_step(method, views, args.batch, autocast)}
    steps[CHECKPOINTED] = our_step(recomputing, views, args.batch, autocast)
    for way in (ONE_BY_ONE, BATCHED, PACKED):
        steps[way] = peer_step(Peer(method, views, args.batch, way), autocast)
    rates = [matrix_rate()]
    found = interleaved(steps, args.runs)
    rates.append(matrix_rate())
    operations = {way: giga_operations(step) for way, step in steps.items()}
    grads = {way: gradients(recomputing if way == CHECKPOINTED else method, step) for way, step in steps.items()}
    pairs = [("ours", ONE_BY_ONE), ("ours", BATCHED), (CHECKPOINTED, "ours"), (PACKED, BATCHED)]
    for mine, peer in pairs:
        loss, peer_loss = (float(found[way][0].result) for way in (mine, peer))
        row = compared(
            f"{described(args, size, sides, patch)}, {args.device}: {mine} against {peer}",
            found[mine],
            found[peer],
            max(abs(loss - peer_loss) / peer_loss, largest_deviation(grads[mine], grads[peer])),
            ours_gflop=round(operations[mine], 1),
            peer_gflop=round(operations[peer], 1),
            operations_ratio=round(operations[peer] / operations[mine], 3),
            matrix_rate_gflop_s=round(max(rates), 1),
            ours_gflop_s=round(operations[mine] / median(found[mine]), 1),
            peer_gflop_s=round(operations[peer] / median(found[peer]), 1),
        )
        show({**row, "peak_ratio": round(row["ours_peak_mb"] / max(row["peer_peak_mb"], math.ulp(1)), 3)})


def keep(args: argparse.Namespace, size: str, sides: tuple[int, int], patch: int) -> None:
    """Count what each way keeps for its backward pass, weights apart: the same on every machine, and print it."""
    method = ours(size, sides, patch)
    views = make_views(method, args.batch, "cpu")
    recomputing = ours(size, sides, patch, checkpointed=True)
    losses = {"ours": our_loss(method, views, args.batch), CHECKPOINTED: our_loss(recomputing, views, args.batch)}
    losses |= {way: Peer(method, views, args.batch, way).loss for way in (ONE_BY_ONE, BATCHED, PACKED)}
    kept = {}
    for way, loss in losses.items():
        with count_saved(without=[*method.parameters(), *recomputing.parameters()]) as saved:
            loss()
        kept[f"{way}_mb"] = round(saved.bytes / 2**20)
    show({"name": f"kept for the backward pass: {described(args, size, sides, patch)}", **kept})


def described(args: argparse.Namespace, size: str, sides: tuple[int, int], patch: int) -> str:
    return f"GL-MAE step, ViT-{size}, {'2 × {}³ and 8 × {}³'.format(*sides)}, patch {patch}, batch {args.batch}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    metavar = ("SIZE", "GLOBAL", "LOCAL", "PATCH")
    parser.add_argument("--case", nargs=4, action="append", metavar=metavar, help="may be given several times")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--kept", action="store_true", help="count what forward passes keep; no times")
    args = parser.parse_args(words)
    for size, wide, narrow, patch in args.case or CASES:
        (keep if args.kept else compare)(args, size, (int(wide), int(narrow)), int(patch))


if __name__ == "__main__":
    main()
