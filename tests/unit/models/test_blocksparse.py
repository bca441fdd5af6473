"""Encoder and decoder on visible blocks against dense layers that are masked again each time."""

import math
from typing import Any

import pytest
import torch
from tests.unit.models.masked_reference import dense_decoder, masked_encoder, masked_norm, site_masks
from torch import Tensor, nn

from prevox.errors import ConfigError
from prevox.models.blocksparse.decoder import FilledMap, decode
from prevox.models.blocksparse.encoder import check_sparse, encode
from prevox.models.blocksparse.layout import Layout, check_block, pyramid, whole
from prevox.models.blocksparse.ops import convolve, normalise, upsample
from prevox.models.blocksparse.upsampled import composing_pays, convolve_upsampled
from prevox.models.resenc.network import ResEncUNet

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
ISO = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
FLAT = [[1, 1, 1], [1, 2, 2], [2, 2, 1]]


def network(strides: list[list[int]] = ISO, **changes: Any) -> ResEncUNet:
    torch.manual_seed(0)
    settings = {
        "channels": 1,
        "classes": 1,
        "features": [3, 4, 5],
        "blocks": [1, 2, 1],
        "strides": strides,
        "kernels": [[3, 3, 3]] * 3,
    }
    made = ResEncUNet(**{**settings, **changes})
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return made


def random_cells(batch: int, grid: tuple[int, ...], kept: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Visible places (B, K) in random order, and the same as booleans on the grid."""
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(batch, math.prod(grid), generator=generator).argsort(1)[:, :kept]
    cells = torch.zeros(batch, math.prod(grid), dtype=torch.bool).scatter_(1, visible, True)
    return visible, cells.view(batch, *grid)


def last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous()


def first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


def same(got: Tensor, want: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def gradients(module: nn.Module, *outputs: Tensor) -> dict[str, Tensor]:
    """Gradients of a sum of all outputs with fixed random weights."""
    torch.manual_seed(9)
    loss = sum((o * torch.randn(o.shape).to(o)).sum() for o in outputs)
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


# the encoder

CASES = [  # strides, size, block, visible
    (ISO, (16, 16, 16), (4, 4, 4), 1),
    (ISO, (16, 16, 16), (4, 4, 4), 16),
    (ISO, (8, 16, 12), (4, 4, 4), 23),  # all but one
    (ISO, (16, 24, 16), (8, 8, 8), 4),
    (ISO, (8, 8, 16), (2, 2, 2), 40),  # smaller than the last stage's stride: everything is visible there
    (ISO, (8, 8, 8), (4, 4, 4), 8),  # everything
    (FLAT, (4, 16, 16), (2, 4, 4), 9),
    (FLAT, (4, 16, 8), (2, 8, 2), 5),  # no axis of the last stage exceeds the block
]


@pytest.mark.parametrize(("strides", "size", "block", "kept"), CASES)
def test_encoder_equals_the_dense_one_masked_after_every_layer(
    strides: list[list[int]], size: tuple[int, ...], block: tuple[int, ...], kept: int
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        net = network(strides).to(dtype)
        grid = tuple(n // b for n, b in zip(size, block, strict=True))
        visible, cells = random_cells(3, grid, kept)
        x = torch.randn(3, 1, *size, dtype=dtype)
        layouts = pyramid(visible, block, size, net.strides)
        rows = encode(net.encoder, last(x), layouts)
        got = [first(layout.scatter(r)) for layout, r in zip(layouts[1:], rows, strict=True)]
        masks = site_masks(cells, block, net.strides)
        want = masked_encoder(net.encoder, x, masks)
        for g, w, mask in zip(got, want, masks[1:], strict=True):
            same(g, w, tolerance)
            assert not g[~mask.expand_as(g)].any(), "inactive sites are exactly zero"
        found, expected = gradients(net.encoder, *got), gradients(net.encoder, *want)
        assert found.keys() == expected.keys() == dict(net.encoder.named_parameters()).keys()
        scale = max(float(g.abs().max()) for g in expected.values())
        for name, gradient in found.items():
            same(gradient / scale, expected[name] / scale, tolerance)


def test_everything_visible_is_the_ordinary_network() -> None:
    net, x = network().double(), torch.randn(2, 1, 16, 8, 16).double()
    visible = torch.stack([torch.randperm(16), torch.randperm(16)])
    layouts = pyramid(visible, (4, 4, 8), (16, 8, 16), net.strides)
    rows = encode(net.encoder, last(x), layouts)
    for layout, got, want in zip(layouts[1:], rows, net.encoder(x), strict=True):
        same(first(layout.scatter(got)), want)
    maps = [FilledMap(r, layout) for r, layout in zip(rows, layouts[1:], strict=True)]
    same(first(decode(net.decoder, maps)), net(x))


def test_masked_voxels_are_never_seen() -> None:
    net, (visible, cells) = network(), random_cells(2, (4, 4, 2), 12)
    layouts = pyramid(visible, (4, 4, 4), (16, 16, 8), net.strides)
    x = torch.randn(2, 1, 16, 16, 8)
    seen = site_masks(cells, (4, 4, 4), net.strides)[0]
    for filler in (7.0, float("nan")):
        other = torch.where(seen, x, filler)
        for a, b in zip(encode(net.encoder, last(x), layouts), encode(net.encoder, last(other), layouts), strict=True):
            assert torch.equal(a, b)


def test_padding_takes_no_part() -> None:
    net, (visible, cells) = network().double(), random_cells(2, (4, 4, 4), 30)
    valid = torch.ones(2, 1, 16, 16, 16, dtype=torch.bool)
    valid[0, ..., 9:], valid[1, :, 3:, :, :] = False, False
    x = torch.randn(2, 1, 16, 16, 16).double()
    layouts = pyramid(visible, (4, 4, 4), (16, 16, 16), net.strides, last(valid))
    rows = encode(net.encoder, last(x.masked_fill(~valid, float("nan"))), layouts)
    masks = site_masks(cells, (4, 4, 4), net.strides, valid)
    for layout, r, want, mask in zip(layouts[1:], rows, masked_encoder(net.encoder, x, masks), masks[1:], strict=True):
        got = first(layout.scatter(r))
        same(got, want)
        assert not got[~mask.expand_as(got)].any()


def test_an_image_of_odd_size_equals_its_padded_view() -> None:
    """Padding behaves like the end of the image: 13 voxels in a view of 16 give the features of 13 voxels."""
    net, x = network().double(), torch.randn(1, 1, 16, 16, 13).double()
    valid = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
    valid[..., :13] = True
    layouts = pyramid(torch.arange(64)[None], (4, 4, 4), (16, 16, 16), net.strides, last(valid))
    rows = encode(net.encoder, last(nn.functional.pad(x, (0, 3))), layouts)
    want = net.encoder.stages[0](net.encoder.stem(x))  # later stages refuse 13: pooling halves it to 6, stride 2 to 7
    same(first(layouts[1].scatter(rows[0]))[..., :13], want)


# single operations


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 5), (7, 1, 3)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 2), (1, 2, 4)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("kept", "outputs"), [(3, 6), (12, 6), (1, 128), (2, 128)])  # few sites, many outputs: product
def test_convolution_of_any_kernel_stride_and_group(
    kernel: tuple[int, ...], stride: tuple[int, ...], groups: int, kept: int, outputs: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(4, outputs, kernel, stride, [k // 2 for k in kernel], groups=groups).double()
    visible, _ = random_cells(2, (3, 2, 4), kept)
    layout = Layout(visible, (3, 2, 4), (2, 2, 4), CPU)
    rows = torch.randn(2 * kept, 2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    after = Layout(visible, layout.grid, tuple(b // t for b, t in zip(layout.side, stride, strict=True)), CPU)
    got, want = convolve(rows, conv, layout), after.gather(last(conv(first(layout.scatter(rows)))))
    same(got, want)
    weights = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), [rows, conv.weight, conv.bias]),
        torch.autograd.grad((want * weights).sum(), [rows, conv.weight, conv.bias]),
        strict=True,
    ):
        same(a, b)


def test_blocks_come_back_from_where_they_were_put() -> None:
    visible, cells = random_cells(2, (2, 3), 4)
    layout = Layout(visible, (2, 3), (2, 2), CPU)
    x = torch.randn(2, 4, 6, 5)
    image = layout.scatter(layout.gather(x), torch.arange(5.0))
    seen = cells.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(image[seen], x[seen])
    assert torch.equal(image[~seen], torch.arange(5.0).expand(int((~seen).sum()), 5))


def test_norm_of_sites_that_differ_between_images() -> None:
    norm = nn.InstanceNorm3d(3, affine=True).double()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x, active = torch.randn(2, 3, 4, 4, 4).double(), torch.rand(2, 1, 4, 4, 4) < 0.4
    active[1] = False  # an image of nothing but padding
    layout = whole(2, (4, 4, 4), CPU, last(active).float())
    same(first(normalise(last(x * active), norm, layout)), masked_norm(x * active, norm, active))


def test_norm_is_exact_where_the_mean_is_many_deviations() -> None:
    torch.manual_seed(0)
    norm, x = nn.InstanceNorm3d(2, affine=True), torch.randn(1, 2, 64, 64, 32) + 100
    layout = whole(1, (64, 64, 32), CPU)
    got = first(normalise(last(x), norm, layout)).detach().double()
    same(got, norm.double()(x.double()).detach(), 1e-4)
    assert float(got.abs().max()) > 3


# the decoder


class Filling(nn.Module):
    """Tokens and densifying convolutions of a U-Net, for tests."""

    def __init__(self, net: ResEncUNet, token: bool, conv: bool) -> None:
        super().__init__()
        self.net = net
        self.tokens = nn.ParameterList(torch.randn(c) for c in net.features) if token else None
        self.convs = nn.ModuleList(nn.Conv3d(c, c, 3, padding=1) for c in net.features[1:]) if conv else None

    def fill(self, s: int) -> Any:
        return None if self.tokens is None else self.tokens[s]

    def conv(self, s: int) -> Any:
        return None if self.convs is None or s == 0 else self.convs[s - 1]


@pytest.mark.parametrize(("token", "conv"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("strides", "size", "block", "kept"),
    [
        (ISO, (24, 24, 24), (8, 8, 8), 2),  # blocks with margins pay at two stages
        (ISO, (16, 16, 32), (16, 8, 8), 1),
        (ISO, (16, 16, 16), (4, 4, 4), 30),  # and here at none
        (FLAT, (8, 24, 24), (8, 8, 8), 1),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_decoder_equals_the_dense_one_on_filled_maps(
    token: bool, conv: bool, strides: Any, size: Any, block: Any, kept: int, padded: bool
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        net = Filling(network(strides), token, conv).to(dtype)
        grid = tuple(n // b for n, b in zip(size, block, strict=True))
        visible, cells = random_cells(2, grid, kept)
        valid = torch.ones(2, 1, *size, dtype=torch.bool)
        valid[0, ..., 13:] = not padded
        layouts = pyramid(visible, block, size, net.net.strides, last(valid) if padded else None)
        masks = site_masks(cells, block, net.net.strides, valid)
        x = torch.randn(2, 1, *size, dtype=dtype)
        maps, want = [], masked_encoder(net.net.encoder, x, masks)
        for s, rows in enumerate(encode(net.net.encoder, last(x), layouts)):
            maps.append(FilledMap(rows, layouts[s + 1], net.fill(s), net.conv(s)))
            if token:
                want[s] = torch.where(masks[s + 1], want[s], net.fill(s).view(-1, 1, 1, 1))
            if net.conv(s) is not None:
                want[s] = net.conv(s)(want[s])
        got, expected = first(decode(net.net.decoder, maps)), dense_decoder(net.net.decoder, want)
        same(got, expected, tolerance)
        a, b = gradients(net, got), gradients(net, expected)
        assert a.keys() == b.keys()
        scale = max(float(g.abs().max()) for g in b.values())
        for name, gradient in a.items():
            same(gradient / scale, b[name] / scale, tolerance)


def test_blocks_with_margins_are_used_where_they_are_fewer_multiply_adds() -> None:
    conv = nn.Conv3d(8, 4, 3, padding=1)
    for kept, pays in ((13, True), (14, False)):  # of blocks of 8³ with margins 10³; 27 · 8³ = 13824
        visible, _ = random_cells(1, (3, 3, 3), kept)
        layout = Layout(visible, (3, 3, 3), (8, 8, 8), CPU)
        assert FilledMap(torch.zeros(1), layout)._blocks_pay(conv) is pays


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 5), (7, 1, 3)])
@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 4), (3, 1, 2)])
def test_convolution_before_upsampling_equals_the_one_behind_it(
    kernel: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose3d(5, 3, stride, stride, bias=False).double()
    conv = nn.Conv3d(3, 4, kernel, padding=[k // 2 for k in kernel], bias=False).double()
    x = torch.randn(2, 3, 4, 2, 5, dtype=torch.float64, requires_grad=True)
    got, want = convolve_upsampled(x, up, conv.weight), last(conv(up(first(x))))
    same(got, want)
    same(last(up(first(x))), upsample(x, up))
    weights = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), [x, up.weight, conv.weight]),
        torch.autograd.grad((want * weights).sum(), [x, up.weight, conv.weight]),
        strict=True,
    ):
        same(a, b)


def test_convolution_before_upsampling_of_slices() -> None:
    torch.manual_seed(0)
    up, conv = nn.ConvTranspose2d(4, 2, 2, 2, bias=False).double(), nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    x = torch.randn(1, 3, 5, 4, dtype=torch.float64)
    same(convolve_upsampled(x, up, conv.weight), last(conv(up(first(x)))))


def test_convolution_before_upsampling_is_used_where_it_takes_fewer_multiply_adds() -> None:
    """Two: n³ · 8 · (4 + 27 · 2) · 2. One: (n + 1)³ · 8 · 4 · 8 · 2, and 27 · 8 · 2 · 2 · 4 for its weights."""
    up = nn.ConvTranspose3d(4, 2, 2, 2)
    for n, pays in ((4, False), (5, True)):
        assert ((n + 1) ** 3 * 512 + 3456 < n**3 * 928) is pays
        assert composing_pays(1, (n, n, n), up, (3, 3, 3)) is pays


# what is refused


@pytest.mark.parametrize(
    ("block", "size", "message"),
    [
        ((6, 4, 4), (12, 8, 8), "stage 2 has a stride of 4 along z, which does not divide the block of 6"),
        ((8, 8, 8), (16, 16, 12), "8 voxels along x do not divide the view of 12"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(block: Any, size: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_block(block, size, network().strides)


def test_an_image_without_a_visible_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="no block is visible"):
        pyramid(torch.zeros(2, 0, dtype=torch.int64), (4, 4, 4), (8, 8, 8), network().strides)


def test_batch_norm_is_refused() -> None:
    net = network()
    net.encoder.stages[1].blocks[0].conv1.norm = nn.BatchNorm3d(4)
    with pytest.raises(ConfigError, match="found BatchNorm3d; expected an affine instance norm"):
        check_sparse(net.encoder)
