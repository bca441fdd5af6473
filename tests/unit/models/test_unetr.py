import pytest
import torch
from torch import nn

from prevox.errors import ConfigError
from prevox.models.unetr import UNETR, level_strides
from prevox.models.vit import ViT

pytestmark = pytest.mark.unit


def tiny(patch, grid=None, channels=1, outputs=3, features=4, depth=12, class_token=True):
    grid = grid or (1,) * len(patch)
    torch.manual_seed(0)
    encoder = ViT(grid, patch, channels, width=12, depth=depth, heads=2, class_token=class_token)
    return UNETR(encoder, channels, outputs, features)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


class MonaiDecoder(nn.Module):
    """MONAI's UNETR without its transformer, which needs a package that is not installed: its own blocks, wired as in
    monai.networks.nets.UNETR."""

    def __init__(self, channels, outputs, f, width):
        from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock

        super().__init__()
        common = {"kernel_size": 3, "norm_name": "instance", "res_block": True}
        up = {**common, "upsample_kernel_size": 2}
        self.encoder1 = UnetrBasicBlock(3, channels, f, stride=1, **common)
        self.encoder2 = UnetrPrUpBlock(3, width, 2 * f, num_layer=2, stride=1, conv_block=True, **up)
        self.encoder3 = UnetrPrUpBlock(3, width, 4 * f, num_layer=1, stride=1, conv_block=True, **up)
        self.encoder4 = UnetrPrUpBlock(3, width, 8 * f, num_layer=0, stride=1, conv_block=True, **up)
        self.decoder5 = UnetrUpBlock(3, width, 8 * f, **up)
        self.decoder4 = UnetrUpBlock(3, 8 * f, 4 * f, **up)
        self.decoder3 = UnetrUpBlock(3, 4 * f, 2 * f, **up)
        self.decoder2 = UnetrUpBlock(3, 2 * f, f, **up)
        self.out = UnetOutBlock(3, f, outputs)

    def forward(self, x, skips, bottleneck):
        y = self.decoder5(bottleneck, self.encoder4(skips[9]))
        y = self.decoder4(y, self.encoder3(skips[6]))
        y = self.decoder3(y, self.encoder2(skips[3]))
        return self.out(self.decoder2(y, self.encoder1(x)))


def monai_order(peer):
    """Modules of the peer in the order in which ours register their parameters."""
    skips = [peer.encoder4, peer.encoder3, peer.encoder2]
    return [*skips, peer.encoder1, peer.decoder5, peer.decoder4, peer.decoder3, peer.decoder2, peer.out]


@pytest.mark.parametrize("channels", [1, 4])
def test_patch_16_is_monais_decoder(channels):
    network = tiny((16, 16, 16), grid=(2, 1, 2), channels=channels, outputs=5).eval()
    peer = MonaiDecoder(channels, 5, 4, 12).eval()
    ours = [p for name, p in network.named_parameters() if not name.startswith("encoder.")]
    theirs = [p for module in monai_order(peer) for p in module.parameters()]
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            other.copy_(mine)
        x = torch.randn(2, channels, 32, 16, 32)
        *skips, bottleneck = network.encoder.forward_features(x, [3, 6, 9])
        expected = peer(x, dict(zip([3, 6, 9], skips, strict=True)), bottleneck)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_number_of_parameters_is_monais():
    network = tiny((16, 16, 16), channels=4, outputs=3, features=8)
    assert parameters(network) - parameters(network.encoder) == parameters(MonaiDecoder(4, 3, 8, 12))


@pytest.mark.parametrize(
    ("depth", "patch", "blocks"),
    [
        (12, (16, 16, 16), [9, 6, 3]),
        (12, (8, 8, 8), [8, 4]),
        (12, (4, 4, 4), [6]),
        (12, (2, 2, 2), []),
        (24, (16, 16, 16), [18, 12, 6]),
        (2, (16, 16, 16), [1, 1, 0]),
    ],
)
def test_skips_come_from_these_blocks_latest_first(depth, patch, blocks):
    assert tiny(patch, depth=depth).skip_blocks == blocks


def test_thick_axes_are_upsampled_deepest_first():
    assert level_strides((4, 16, 16)) == [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]
    assert level_strides((1, 8, 8)) == [(1, 2, 2)] * 3


@pytest.mark.parametrize(
    ("patch", "size", "class_token"),
    [
        ((16, 16, 16), (16, 32, 16), True),
        ((8, 8, 8), (8, 16, 24), False),
        ((2, 8, 8), (4, 16, 8), True),
        ((1, 4, 4), (3, 8, 8), True),
        ((2, 2, 2), (4, 4, 6), False),
        ((16, 16), (32, 16), True),
        ((4, 8), (8, 16), False),
    ],
)
def test_output_has_the_grid_of_the_input_and_all_weights_take_part(patch, size, class_token):
    grid = tuple(n // p for n, p in zip(size, patch, strict=True))
    network = tiny(patch, grid, channels=2, depth=3, class_token=class_token)
    logits = network(torch.randn(2, 2, *size))
    assert logits.shape == (2, 3, *size)
    (logits * torch.randn_like(logits)).sum().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_everything_is_seen_from_everywhere():
    """Through attention (and instance norm) the logits of one corner depend on the other corner."""
    network = tiny((8, 8, 8), (2, 2, 2), depth=3).eval()
    x = torch.randn(1, 1, 16, 16, 16, requires_grad=True)
    network(x)[0, 0, 0, 0, 0].backward()
    assert x.grad[0, 0, -1, -1, -1] != 0


@pytest.mark.parametrize(("patch", "size"), [((8, 8, 8), (16, 8, 8)), ((8, 8), (16, 8))])
def test_a_head_that_widens_is_a_part_of_its_own(patch, size):
    grid = tuple(n // p for n, p in zip(size, patch, strict=True))
    network = tiny(patch, grid, outputs=7, features=4, depth=3).eval()
    body, head = network.parts()
    x = torch.randn(2, 1, *size)
    with torch.no_grad():
        features, logits = body(x), network(x)
        assert features.shape == (2, 4, *size)
        for one, expected in zip(features, logits, strict=True):
            torch.testing.assert_close(head(one), expected, rtol=1e-5, atol=1e-5)
            flat = head(one.flatten(1))  # voxels in any arrangement
            torch.testing.assert_close(flat, expected.flatten(1), rtol=1e-5, atol=1e-5)
    narrow = tiny(patch, grid, outputs=4, features=4)
    assert narrow.parts() == (narrow, None)


def test_drop_path_draws_from_the_given_generator():
    network = UNETR(ViT((2, 2, 2), (2, 2, 2), 1, 12, 4, 2, drop_path=0.9), 1, 2, 4).train()
    x = torch.randn(4, 1, 4, 4, 4)
    first, again, other = (network(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ((12, 16, 16), "side 12 along z"),
        ((16, 16, 6), "side 6 along x"),
        ((10, 8), "side 10 along y"),
        ((1, 1, 1), "one"),
    ],
)
def test_patches_that_cannot_be_decoded_are_refused(patch, words):
    with pytest.raises(ConfigError, match=words):
        level_strides(patch)
