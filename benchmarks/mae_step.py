"""One step of masked autoencoding, ViT-B on 96³ voxels, patch 16, 75 % masked, batch 4, against MONAI's.

    python benchmarks/mae_step.py                 # CPU, float32, about two minutes
    python benchmarks/mae_step.py --device cuda   # bfloat16 autocast on a GPU

Both networks have the same sizes (encoder 768/12/12, decoder 384/8/12), the same weights (ours are copied into MONAI's
`MaskedAutoEncoderViT`), the same mask, and the same loss: mean squared error on the normalised voxels of the masked
patches. A step is forward and backward, from images on the device to gradients. `equal` is the relative difference of
the two losses; the gradients of all shared weights are compared as well.

There are two peers: the class as it is, whose attention is written out, and the same with the fused attention that its
blocks are capable of; each with patches embedded by a convolution or by a linear layer, whichever won a short race.
`matrix_rate` is what a large float32 matrix product reaches in the same run; a step cannot be faster than its
operations at that rate.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from monai.networks.nets import MaskedAutoEncoderViT
from torch import Tensor, nn

from harness import compared, giga_operations, interleaved, matrix_rate, median, show, synchronised
from prevox.config.data import ViewsConfig
from prevox.config.models import ViTConfig
from prevox.masking.tokens import random_token_mask
from prevox.methods.mae.config import MAEConfig
from prevox.methods.mae.method import GROUP, MaskedAutoencoder, build
from prevox.models.transformer import EPS, Block
from prevox.models.vit import patchify
from prevox.task import Batch, StepContext, Views

RATIO, PATCH, WIDTH, DECODER = 0.75, 16, 768, (384, 8, 12)  # decoder: width, depth, heads
Step = Callable[[], Tensor]


def ours(side: int) -> MaskedAutoencoder:
    width, depth, heads = DECODER
    settings = MAEConfig(mask_ratio=RATIO, decoder_width=width, decoder_depth=depth, decoder_heads=heads)
    torch.manual_seed(0)
    return build(settings, ViTConfig(size="B"), ViewsConfig(size=(side,) * 3), channels=1)


def monai(like: MaskedAutoencoder, side: int, proj_type: str, fused: bool) -> MaskedAutoEncoderViT:
    """MONAI's network with our weights."""
    width, depth, heads = DECODER
    net = MaskedAutoEncoderViT(
        in_channels=1,
        img_size=side,
        patch_size=PATCH,
        hidden_size=WIDTH,
        mlp_dim=4 * WIDTH,
        num_layers=12,
        num_heads=12,
        masking_ratio=RATIO,
        decoder_hidden_size=width,
        decoder_mlp_dim=4 * width,
        decoder_num_layers=depth,
        decoder_num_heads=heads,
        proj_type=proj_type,
        qkv_bias=True,
    )
    encoder, decoder = like.encoder, like.decoder
    embedding = net.patch_embedding.patch_embeddings
    embedding = embedding if isinstance(embedding, nn.Conv3d) else embedding[1]
    pairs: list[tuple[Tensor, Tensor]] = [
        (embedding.weight, encoder.patch_embed.weight),
        (embedding.bias, encoder.patch_embed.bias),
        (net.patch_embedding.position_embeddings, encoder.positions),
        (net.cls_token, encoder.class_token),
        (net.mask_tokens, decoder.mask_token),
        (net.decoder_pos_embedding, decoder.positions),
    ]
    pairs += linear(net.decoder_embed, decoder.embed) + linear(net.decoder_pred, decoder.head)
    for stack, blocks, norm in (
        (net.blocks, encoder.blocks, encoder.norm),
        (net.decoder_blocks, decoder.blocks, decoder.norm),
    ):
        for theirs, mine in zip(stack[:-1], blocks, strict=True):
            pairs += block_pairs(theirs, mine)
            theirs.attn.use_flash_attention = fused
        pairs += linear(stack[-1], norm)
    with torch.no_grad():
        for target, source in pairs:
            target.copy_(source.reshape(target.shape))
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = EPS
    return net


def linear(theirs: Any, mine: Any) -> list[tuple[Tensor, Tensor]]:
    return [(theirs.weight, mine.weight), (theirs.bias, mine.bias)]


def block_pairs(theirs: Any, mine: Block) -> list[tuple[Tensor, Tensor]]:
    return (
        linear(theirs.norm1, mine.norm1)
        + linear(theirs.attn.qkv, mine.qkv)
        + linear(theirs.attn.out_proj, mine.projection)
        + linear(theirs.norm2, mine.norm2)
        + linear(theirs.mlp.linear1, mine.expand)
        + linear(theirs.mlp.linear2, mine.contract)
    )


def our_step(net: MaskedAutoencoder, x: Tensor, autocast: Any) -> Step:
    box = torch.zeros(len(x), 2, 3, dtype=torch.long)
    views = Views(x, torch.ones_like(x, dtype=torch.bool), None, box, padded=False)
    batch = Batch({GROUP: views}, ["image"] * len(x), torch.arange(len(x)))

    def step() -> Tensor:
        net.zero_grad()
        with autocast():
            loss = net(batch, StepContext(torch.Generator().manual_seed(0))).loss
        loss.backward()
        return synchronised(loss)

    return step


def monai_step(net: MaskedAutoEncoderViT, x: Tensor, autocast: Any) -> Step:
    length = (x.shape[-1] // PATCH) ** 3
    chosen = random_token_mask(len(x), length, RATIO, torch.Generator().manual_seed(0), x.device)

    def masking(tokens: Tensor, masking_ratio: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The peer's own masking with the mask of ours in place of a drawn one."""
        rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.int, device=tokens.device)
        mask[rows, chosen.visible_BK] = 0
        return tokens[rows, chosen.visible_BK], chosen.visible_BK, mask

    net._masking = masking

    def step() -> Tensor:
        net.zero_grad()
        with autocast():
            prediction, mask = net(x)
        target = patchify(x, (PATCH,) * 3)
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True, correction=0)
        error = (prediction.float() - (target - mean) * (variance + EPS).rsqrt()).square().mean(-1)
        loss = (error * mask).sum() / mask.sum()
        loss.backward()
        return synchronised(loss)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)

    def autocast() -> Any:
        return torch.autocast("cuda", torch.bfloat16, enabled=args.device == "cuda")

    x = torch.randn(args.batch, 1, *(args.side,) * 3, generator=torch.Generator().manual_seed(1)).to(device)
    mine = ours(args.side).to(device)
    step = our_step(mine, x, autocast)
    kinds = {"written-out attention": False, "fused attention": True}
    nets, peers, race = {}, {}, {}
    rates = [matrix_rate()]
    for attention, fused in kinds.items():  # the class as it is, then what its blocks can do
        for embedding in ("conv", "perceptron"):
            net = monai(mine, args.side, embedding, fused).to(device)
            nets[attention, embedding], peers[attention, embedding] = net, monai_step(net, x, autocast)
        mine_only = {key: peer for key, peer in peers.items() if key[0] == attention}
        race |= {key: median(runs) for key, runs in interleaved(mine_only, 2).items()}
    best = {
        attention: min((key for key in race if key[0] == attention), key=lambda key: race[key]) for attention in kinds
    }
    found = interleaved({"ours": step, **{attention: peers[key] for attention, key in best.items()}}, args.runs)
    rates.append(matrix_rate())
    operations, rate = giga_operations(step), max(rates)
    for attention, key in best.items():
        loss, peer_loss = float(found["ours"][0].result), float(found[attention][0].result)
        peer_operations = giga_operations(peers[key])
        show(
            compared(
                f"MAE step, ViT-B, {args.side}³, patch {PATCH}, {RATIO:.0%} masked, batch {args.batch}, {args.device}, "
                f"against MONAI with {attention}",
                found["ours"],
                found[attention],
                abs(loss - peer_loss) / peer_loss,
                gradients_equal=largest_deviation(nets[key], mine),
                peer_ways_s={", ".join(way): round(seconds, 3) for way, seconds in race.items()},
                ours_gflop=round(operations, 1),
                peer_gflop=round(peer_operations, 1),
                operations_ratio=round(peer_operations / operations, 3),
                matrix_rate_gflop_s=round(rate, 1),
                ours_gflop_s=round(operations / median(found["ours"]), 1),
                share_of_matrix_rate=round(operations / median(found["ours"]) / rate, 3),
                peer_share_of_matrix_rate=round(peer_operations / median(found[attention]) / rate, 3),
            )
        )


def largest_deviation(net: MaskedAutoEncoderViT, mine: MaskedAutoencoder) -> float:
    """Of the gradients of all blocks' first attention weights, as a share of the largest entry."""
    pairs = zip([*net.blocks[:-1], *net.decoder_blocks[:-1]], [*mine.encoder.blocks, *mine.decoder.blocks], strict=True)
    gradients = [(theirs.attn.qkv.weight.grad, my.qkv.weight.grad) for theirs, my in pairs]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in gradients)


if __name__ == "__main__":
    main()
