"""Patches, visible tokens, parameter counts, positions, drop path and layer indices of the vision transformer."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.saved import count_saved
from torch import nn

from prevox.config.models import ViTConfig
from prevox.errors import ConfigError
from prevox.models.positions import sincos
from prevox.models.transformer import EVERY, Block, Rows, checkpoint_activations, run_blocks
from prevox.models.vit import ViT, gather_tokens, patchify, unpatchify, vit_settings

pytestmark = pytest.mark.unit


def tiny(**changes: Any) -> ViT:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "grid": (2, 3, 2),
        "patch": (4, 2, 4),
        "channels": 1,
        "width": 24,
        "depth": 2,
        "heads": 3,
    }
    return ViT(**{**settings, **changes}).eval()


# patches


def test_patch_voxel_order_is_z_y_x_channel() -> None:
    x = torch.arange(2 * 3 * 4 * 6 * 4.0).reshape(2, 3, 4, 6, 4)
    patches = patchify(x, (2, 3, 2))
    assert patches.shape == (2, 2 * 2 * 2, 12 * 3)
    patch = x[1, :, 2:4, 0:3, 2:4]  # grid place (1, 0, 1), number 1 * 4 + 0 * 2 + 1
    assert torch.equal(patches[1, 5], patch.permute(1, 2, 3, 0).flatten())


@pytest.mark.parametrize(("shape", "patch"), [((2, 2, 4, 6, 8), (2, 3, 4)), ((2, 3, 6, 8), (3, 2))])
def test_unpatchify_inverts_patchify(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    grid = [n // p for n, p in zip(shape[2:], patch, strict=True)]
    assert torch.equal(unpatchify(patchify(x, patch), grid, patch), x)


def test_an_image_that_the_patch_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[5, 4, 4\].*multiple of the patch \[2, 2, 2\]"):
        patchify(torch.zeros(1, 1, 5, 4, 4), (2, 2, 2))


def test_gather_takes_each_samples_own_tokens() -> None:
    tokens = torch.arange(2 * 4 * 3).reshape(2, 4, 3)
    got = gather_tokens(tokens, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(got, torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]]))


# settings


@pytest.mark.parametrize(("size", "total"), [("T", 6_125_568), ("B", 88_203_264)])
def test_parameter_counts(size: str, total: int) -> None:
    settings = vit_settings(ViTConfig(size=size), (96, 96, 96), 1)
    with torch.device("meta"):
        vit = ViT(**settings)
    d, n = settings["width"], settings["depth"]
    block = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 2 * 2 * d
    closed = (16**3 * d + d) + d + n * block + 2 * d  # patch embedding, class token, blocks, final norm
    assert closed == total
    assert sum(p.numel() for p in vit.parameters()) == total


def test_presets() -> None:
    presets = {s: vit_settings(ViTConfig(size=s, patch=(8, 8)), (16, 24), 2) for s in "TSBL"}
    assert {s: (v["width"], v["depth"], v["heads"]) for s, v in presets.items()} == {
        "T": (192, 12, 3),
        "S": (384, 12, 6),
        "B": (768, 12, 12),
        "L": (1024, 24, 16),
    }
    assert presets["T"]["grid"] == [2, 3]
    assert vit_settings(ViTConfig(depth=3), (16, 16, 16), 1)["depth"] == 3


def test_settings_survive_json() -> None:
    settings = vit_settings(ViTConfig(size="T", patch=(8, 8, 8), depth=1), (16, 8, 8), 4)
    assert json.loads(json.dumps(settings)) == settings
    assert ViT(**settings).patch_embed.in_features == 8**3 * 4


def test_a_patch_that_does_not_divide_the_view_names_axis_and_fitting_sizes() -> None:
    with pytest.raises(ConfigError, match=r"views\.size is 50 along y.*patch 16.*48 and 64"):
        vit_settings(ViTConfig(), (96, 50, 96), 1)
    with pytest.raises(ConfigError, match=r"views\.size is 10 along x.*sizes that fit are 16"):
        vit_settings(ViTConfig(patch=(16, 16)), (32, 10), 1)


def test_two_and_three_axes_do_not_mix() -> None:
    with pytest.raises(ConfigError, match=r"model\.patch has 3 numbers.*views\.size has 2"):
        vit_settings(ViTConfig(), (96, 96), 1)
    with pytest.raises(ConfigError, match="same axes"):
        tiny(patch=(4, 4))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="width 24 and 5 heads"):
        tiny(heads=5)


# blocks


def test_block_equals_attention_written_out() -> None:
    torch.manual_seed(1)
    block = Block(12, 3).double()
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 5, 12, dtype=torch.float64)

    def norm(v: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
        mean, var = v.mean(-1, keepdims=True), v.var(-1, keepdims=True)
        return (v - mean) / np.sqrt(var + 1e-6) * layer.weight.detach().numpy() + layer.bias.detach().numpy()

    def linear(v: np.ndarray, layer: nn.Linear) -> np.ndarray:
        return v @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()

    v = x.numpy()
    q, k, value = np.split(linear(norm(v, block.norm1), block.qkv), 3, axis=-1)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(0, 2, 1) / np.sqrt(4)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads.append(weights @ value[..., part])
    v = v + linear(np.concatenate(heads, -1), block.projection)
    hidden = torch.from_numpy(linear(norm(v, block.norm2), block.expand))
    hidden = (hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))).numpy()
    v = v + linear(hidden, block.contract)
    got = block(x.flatten(0, 1), [Rows(2, 5)]).unflatten(0, (2, 5))
    np.testing.assert_allclose(got.detach().numpy(), v, atol=1e-12)


@pytest.mark.parametrize("asked", [slice(3, None), slice(0, 1)])
def test_a_block_asked_for_some_tokens_gives_those_of_the_whole_and_their_gradients(asked: slice) -> None:
    torch.manual_seed(0)
    block, x = Block(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(2, 2, dtype=torch.float64)
    sources = [x, *block.parameters()]
    whole, part = (block(x.flatten(0, 1), [Rows(2, 5, which)], scale).unflatten(0, (2, -1)) for which in (EVERY, asked))
    whole = whole[:, asked]
    torch.testing.assert_close(part, whole, atol=1e-12, rtol=0)
    weight = torch.randn_like(whole)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), sources) for y in (whole, part)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def sizes_and_blocks() -> tuple[list[torch.Tensor], list[Block]]:
    torch.manual_seed(0)
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 5, 12), (3, 4, 12))]
    return parts, [Block(12, 3).double() for _ in range(2)]


@pytest.mark.parametrize("asked", [[EVERY, EVERY], [slice(0, 1), slice(2, None)], [slice(3, None), EVERY]])
def test_views_of_several_sizes_packed_equal_each_size_by_itself_and_so_do_gradients(asked: list[slice]) -> None:
    parts, blocks = sizes_and_blocks()
    scales = [[torch.rand(2, len(part), dtype=torch.float64) for _ in blocks] for part in parts]
    rows: list[int] = []
    blocks[0].register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    packed = run_blocks(blocks, parts, asked, scales)
    each = zip(parts, asked, scales, strict=True)
    apart = [run_blocks(blocks, [part], [which], [scale])[0] for part, which, scale in each]
    assert rows == [2 * 5 + 3 * 4, 2 * 5, 3 * 4]
    sources = [*parts, *(p for block in blocks for p in block.parameters())]
    for a, b in zip(packed, apart, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    weights = [torch.randn_like(x) for x in apart]
    grads = [
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(found, weights, strict=True)), sources)
        for found in (packed, apart)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("views", "calls"), [(36, 1), (37, 2)])  # 36 · 4 tokens of 12 values are 12 · 12² weights
def test_views_are_packed_only_where_a_block_has_more_weights_than_the_tokens_values(views: int, calls: int) -> None:
    _, blocks = sizes_and_blocks()
    rows: list[int] = []
    blocks[0].register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    parts = [torch.randn(views - 1, 4, 12, dtype=torch.float64), torch.randn(1, 4, 12, dtype=torch.float64)]
    found = run_blocks(blocks, parts, [EVERY, EVERY], [[None, None]] * 2)
    assert len(rows) == calls
    assert [x.shape for x in found] == [x.shape for x in parts]


def test_initial_weights() -> None:
    vit = tiny(width=48)
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5  # xavier uniform
            assert 0.9 * bound < module.weight.abs().max() <= bound
            assert not module.bias.any()


# activation checkpointing


def test_checkpointing_changes_no_bit_with_drop_path_and_keeps_only_the_blocks_inputs() -> None:
    """A block of width D and hidden width 4 D keeps many times its input of (2, 13, 24) float32."""
    vit, x = tiny(depth=6, drop_path=0.5).train(), torch.randn(2, 1, 8, 6, 8)

    def step() -> tuple[torch.Tensor, int]:
        vit.zero_grad()
        with count_saved() as saved:
            y = vit(x, generator=torch.Generator().manual_seed(3))
        y.square().sum().backward()
        return torch.cat([y.detach().flatten(), *(p.grad.flatten() for p in vit.parameters())]), saved.bytes

    plain, much = step()
    assert checkpoint_activations(vit)
    again, little = step()
    assert torch.equal(plain, again)
    inputs = 6 * 2 * 13 * 24 * 4
    assert much > 20 * inputs
    assert little < 3 * inputs  # beside the blocks there are embedding and last norm


def test_checkpointing_computes_nothing_twice_where_there_is_no_backward_pass() -> None:
    vit, x, calls = tiny(), torch.randn(2, 1, 8, 6, 8), []
    checkpoint_activations(vit)
    vit.blocks[0].expand.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        vit(x)
    assert len(calls) == 1
    vit(x).sum().backward()
    assert len(calls) == 3


def test_networks_without_transformer_blocks_have_nothing_to_checkpoint() -> None:
    assert not checkpoint_activations(nn.Conv3d(1, 1, 3))


# tokens


def test_tokens_and_maps_have_the_right_shapes() -> None:
    x = torch.randn(2, 1, 8, 6, 8)
    assert tiny()(x).shape == (2, 13, 24)
    assert tiny(class_token=False)(x).shape == (2, 12, 24)
    assert [tuple(m.shape) for m in tiny().forward_features(x, [0, 1])] == [(2, 24, 2, 3, 2)] * 3
    flat = tiny(grid=(3, 2), patch=(2, 4))
    assert flat(torch.randn(2, 1, 6, 8)).shape == (2, 7, 24)
    assert flat.forward_features(torch.randn(2, 1, 6, 8))[0].shape == (2, 24, 3, 2)


def test_maps_are_the_blocks_outputs_without_class_token() -> None:
    vit, x = tiny(), torch.randn(2, 1, 8, 6, 8)
    outputs: list[torch.Tensor] = []
    for block in vit.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    first, last = vit.forward_features(x, [0])
    assert torch.equal(first[1, :, 1, 2, 0], outputs[0][1 * 13 + 1 + 1 * 6 + 2 * 2 + 0])
    assert torch.equal(last.flatten(2).transpose(1, 2), vit(x)[:, 1:])


def test_only_the_last_map_is_normed() -> None:
    x = torch.randn(1, 1, 8, 6, 8)
    normed, plain = tiny(), tiny(final_norm=False)
    raw, last = normed.forward_features(x, [1])
    assert torch.equal(raw, plain.forward_features(x)[0])
    mean = last.mean(1)  # a fresh norm has weight 1 and bias 0
    assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-6)
    assert not torch.allclose(raw.mean(1), torch.zeros_like(mean), atol=1e-2)


def test_changing_masked_voxels_changes_no_output_bit() -> None:
    vit = tiny()
    visible = torch.tensor([[7, 0, 4], [2, 11, 3]])
    x = torch.randn(2, 1, 8, 6, 8)
    patches = patchify(x, vit.patch)
    masked = torch.ones(2, 12, dtype=torch.bool).scatter(1, visible, False)
    patches[masked] = 1e6
    other = unpatchify(patches, vit.grid, vit.patch)
    assert not torch.equal(other, x)
    assert torch.equal(vit(x, visible), vit(other, visible))


def test_visible_tokens_come_in_the_given_order_with_their_own_positions() -> None:
    vit, x = tiny(depth=1), torch.randn(2, 1, 8, 6, 8)
    everything = torch.stack([torch.randperm(12), torch.randperm(12)])
    shuffled = vit(x, everything)
    assert torch.allclose(gather_tokens(vit(x)[:, 1:], everything), shuffled[:, 1:], atol=1e-6)
    assert torch.allclose(vit(x)[:, 0], shuffled[:, 0], atol=1e-6)


def test_the_class_token_has_no_position() -> None:
    vit = tiny()
    assert vit.positions.shape == (12, 24)
    seen: list[torch.Tensor] = []
    vit.blocks[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    vit(torch.zeros(1, 1, 8, 6, 8))
    assert torch.equal(seen[0][0], vit.class_token)
    assert torch.equal(seen[0][1:], sincos((2, 3, 2), 24))  # a zero image is embedded as the zero bias


# positions


def test_a_larger_view_takes_interpolated_positions() -> None:
    vit = tiny(class_token=False)
    seen: list[torch.Tensor] = []
    vit.blocks[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    assert vit(torch.zeros(1, 1, 16, 6, 12)).shape == (1, 4 * 3 * 3, 24)
    want = nn.functional.interpolate(
        sincos((2, 3, 2), 24).reshape(1, 2, 3, 2, 24).permute(0, 4, 1, 2, 3), size=(4, 3, 3), mode="trilinear"
    )
    assert torch.equal(seen[0], want[0].flatten(1).T)


def test_fixed_positions_become_learnable_and_keep_key_and_values() -> None:
    vit, x = tiny(), torch.randn(1, 1, 8, 6, 8)
    before, keys = vit(x), list(vit.state_dict())
    assert "positions" not in dict(vit.named_parameters())
    vit.make_positions_learnable()
    vit.make_positions_learnable()  # a second call changes nothing
    assert isinstance(vit.positions, nn.Parameter)
    assert set(vit.state_dict()) == set(keys)
    assert torch.equal(vit(x), before)
    vit(x).square().sum().backward()
    assert vit.positions.grad is not None
    assert tiny().load_state_dict(vit.state_dict(), strict=True)


def test_learnable_positions_start_from_small_noise() -> None:
    table = tiny(grid=(10, 10, 10), positions="learnable").positions
    assert isinstance(table, nn.Parameter)
    assert table.std().item() == pytest.approx(0.02, rel=0.05)


def test_an_unknown_kind_of_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'rotary'.*'sincos' or 'learnable'"):
        tiny(positions="rotary")


def test_vit_l_has_positions_in_3d() -> None:
    with torch.device("meta"):
        vit = ViT(**vit_settings(ViTConfig(size="L"), (96, 96, 96), 1))
    assert vit.positions.shape == (216, 1024)


# drop path and layer decay


def test_drop_path_is_off_in_evaluation_and_random_in_training() -> None:
    vit, x = tiny(drop_path=0.9), torch.randn(4, 1, 8, 6, 8)
    assert torch.equal(vit(x), tiny()(x))
    vit.train()
    draws = [vit(x, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_drop_path_rates_grow_linearly_and_keep_the_expectation() -> None:
    vit = tiny(depth=3, drop_path=0.4).train()
    x = torch.zeros(50_000, 1, 24)
    scales = [s for s in vit._drop_scales(x, torch.Generator().manual_seed(0)) if s is not None]
    dropped = [(s == 0).float().mean().item() for s in scales]
    assert dropped == pytest.approx([0.0, 0.2, 0.4], abs=0.01)  # standard error below 0.0016
    assert [s.mean().item() for s in scales] == pytest.approx([1.0, 1.0, 1.0], abs=0.02)
    assert scales[2].max().item() == pytest.approx(1 / 0.6)


def test_a_dropped_sample_passes_through_unchanged() -> None:
    block, x = Block(12, 3), torch.randn(2, 5, 12)
    scale, size = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), [Rows(2, 5)]
    out = block(x.flatten(0, 1), size, scale)
    assert torch.equal(out[:5], x[0])
    assert torch.allclose(out[5:], block(x.flatten(0, 1), size)[5:])


def test_layer_indices_and_decay_scales() -> None:
    vit = tiny(depth=3, positions="learnable")
    want = {
        "patch_embed.weight": 0,
        "patch_embed.bias": 0,
        "class_token": 0,
        "positions": 0,
        "norm.weight": 4,
        "norm.bias": 4,
    }
    for name, _ in vit.named_parameters():
        expected = want[name] if name in want else int(name.split(".")[1]) + 1
        assert vit.layer_index(name) == expected, name
    # lr * γ^(n + 1 - i), γ = 0.75, n = 3: patch embedding 0.75^4, first block 0.75^3, last block 0.75, norm 1
    scales = [
        0.75 ** (vit.depth + 1 - vit.layer_index(n))
        for n in ("class_token", "blocks.0.qkv.bias", "blocks.2.qkv.bias", "norm.bias")
    ]
    assert scales == [0.31640625, 0.421875, 0.75, 1.0]
