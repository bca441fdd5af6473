"""S3D's step against dense layers masked after each; what it sees, what it refuses, its recipes."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.models.masked_reference import dense_decoder, masked_encoder, masked_norm, site_masks
from torch import Tensor, nn

from prevox.config.base import load_recipe, recipe_names
from prevox.config.data import AugmentConfig, ViewsConfig
from prevox.config.models import ResEncConfig, ViTConfig
from prevox.config.runs import pretrain_schema
from prevox.errors import ConfigError
from prevox.masking.tokens import TokenMask
from prevox.methods.s3d.config import S3DConfig
from prevox.methods.s3d.method import SparseAutoencoder, build
from prevox.models.resenc.network import ResEncUNet
from prevox.task import Batch, ModelSpec, StepContext, ViewGroup, Views

pytestmark = pytest.mark.unit
SIZE = (16, 16, 24)
ADAPTATIONS = ("base", "sparse", "token", "densify")


def tiny(adaptation: str = "densify", block: tuple[int, ...] = (8, 8, 8), ratio: Any = 0.75, **more: Any) -> Any:
    torch.manual_seed(0)
    settings = {
        "channels": 1,
        "classes": 1,
        "features": [3, 4, 5],
        "blocks": [1, 2, 1],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 1]],
        "kernels": [[3, 3, 3], [3, 3, 3], [3, 3, 1]],
        **more,
    }
    method = SparseAutoencoder(
        ResEncUNet(**settings), ModelSpec("resenc", settings), ViewGroup(SIZE), block, ratio, adaptation
    )
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.4)
    return method


def make_batch(x: Tensor, valid: Tensor | None = None) -> Batch:
    if valid is None:
        valid = torch.ones(len(x), 1, *x.shape[2:], dtype=torch.bool)
    box = torch.zeros(len(x), 2, 3, dtype=torch.int64)
    return Batch({"view": Views(x, valid, None, box)}, [f"image_{i}" for i in range(len(x))], torch.arange(len(x)))


def context(seed: int = 0, pictures: bool = False) -> StepContext:
    return StepContext(torch.Generator().manual_seed(seed), want_pictures=pictures)


def visible_cells(method: Any, batch: int, seed: int = 0) -> Tensor:
    mask: TokenMask = method.draw(batch, torch.Generator().manual_seed(seed))
    return ~mask.mask_BL.view(batch, *method.grid)


def reference(method: Any, x: Tensor, valid: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and loss by dense layers."""
    network, strides = method.network, method.network.strides
    masks = site_masks(cells, method.block, strides, valid)
    hidden = ~site_masks(cells, method.block, strides)[0] & valid
    if method.adaptation == "base":
        everywhere = [torch.ones_like(mask) for mask in masks]
        maps = masked_encoder(network.encoder, torch.where(masks[0], x, 0), everywhere)
    else:
        maps = masked_encoder(network.encoder, x, masks)
    if method.adaptation in ("token", "densify"):
        for s, stage in enumerate(method.densify):
            maps[s] = masked_norm(maps[s], stage.norm, masks[s + 1])
            if stage.mask_token is not None:
                maps[s] = torch.where(masks[s + 1], maps[s], stage.mask_token.view(-1, 1, 1, 1))
            if method.adaptation == "densify" and s > 0:
                maps[s] = stage.conv(maps[s])
    reconstruction = dense_decoder(network.decoder, maps)
    return reconstruction, ((reconstruction - x)[hidden.expand_as(x)] ** 2).mean()


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize(
    ("block", "ratio"),
    [((8, 8, 8), 0.9), ((4, 4, 4), 0.75), ((8, 8, 8), 0.1), ((2, 4, 2), 0.6)],  # the last: the coarsest stage sees all
)
@pytest.mark.parametrize("padded", [False, True])
def test_loss_and_gradients_equal_dense_layers_masked_after_each(
    adaptation: str, block: tuple[int, ...], ratio: float, padded: bool
) -> None:
    valid = torch.ones(2, 1, *SIZE, dtype=torch.bool)
    if padded:
        valid[0, ..., 19:], valid[1, :, 10:], valid[1, :, :, 13:] = False, False, False
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        method = tiny(adaptation, block, ratio).to(dtype)
        x = torch.randn(2, 1, *SIZE, dtype=dtype).masked_fill(~valid, 0)
        got = method(make_batch(x, valid), context(seed=3)).loss
        _, want = reference(method, x, valid, visible_cells(method, 2, seed=3))
        torch.testing.assert_close(got, want, rtol=tolerance, atol=0)
        parameters = {name: p for name, p in method.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(got, list(parameters.values()))
        expected = torch.autograd.grad(want, list(parameters.values()))
        scale = max(float(g.abs().max()) for g in expected)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a / scale, b / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("padded", [False, True])
def test_bfloat16_follows_float32(padded: bool) -> None:
    method, x = tiny(), torch.randn(2, 1, *SIZE)
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[0, ..., 19:] = not padded
    losses, gradients = [], []
    for low in (False, True):
        method.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            losses.append(method(make_batch(x, valid), context()).loss)
        losses[-1].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None]))
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 0.1


def test_one_visible_block_and_one_masked_block() -> None:
    for ratio, kept in ((0.9, 1), (0.1, 10)):
        method = tiny(ratio=ratio)
        assert visible_cells(method, 3).flatten(1).sum(1).tolist() == [kept] * 3
    with pytest.raises(ConfigError, match="leaves 0 visible"):
        tiny(ratio=0.95)


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_hidden_voxels_change_nothing_but_the_target(adaptation: str) -> None:
    """Bit for bit: the reconstruction, read off the pictures."""
    method = tiny(adaptation)
    cells = visible_cells(method, 1)
    seen = site_masks(cells, method.block, method.network.strides)[0]
    x = torch.randn(1, 1, *SIZE)
    shown = []
    for image in (x, torch.where(seen, x, torch.randn_like(x) * 9)):
        picture = method(make_batch(image), context(pictures=True)).pictures["reconstruction"]
        shown.append(dict(picture.panels)["reconstruction"])
    np.testing.assert_array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0], x[0, 0, SIZE[0] // 2].numpy())


def test_ratio_is_drawn_for_the_batch_within_its_range() -> None:
    method = tiny(block=(4, 4, 4), ratio=(0.6, 0.9))  # 96 blocks
    kept = [visible_cells(method, 2, seed).flatten(1).sum(1) for seed in range(200)]
    assert all(k[0] == k[1] for k in kept)
    counts = torch.stack(kept)[:, 0]
    assert (int(counts.min()), int(counts.max())) == (9, 38)  # floor(96 · 0.1 + …) and floor(96 · 0.4)
    assert abs(float(counts.float().mean()) - 24) < 1.5  # 96 · 0.25; deviation of the mean of 200: 0.6


def test_a_few_steps_reconstruct_one_image() -> None:
    method = tiny("densify", (8, 8, 8), 0.25)
    method.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    wave = torch.sin(torch.linspace(0, 6, 24)).view(1, 1, 1, 1, 24).expand(2, 1, *SIZE)
    optimiser = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    explained = []
    for step in range(30):
        output = method(make_batch(wave), context(step))
        optimiser.zero_grad()
        output.loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), 12)
        optimiser.step()
        explained.append(output.scalars["explained"].item())
    assert explained[0] < 0.05
    assert explained[-1] > 0.2


def test_pictures_show_what_is_hidden_and_what_is_predicted() -> None:
    method, x = tiny(), torch.randn(1, 1, *SIZE)
    picture = method(make_batch(x), context(pictures=True)).pictures["reconstruction"]
    shown = dict(picture.panels)
    assert list(shown) == ["original", "masked input", "reconstruction"]
    hidden = ~site_masks(visible_cells(method, 1), method.block, method.network.strides)[0][0, 0, 8].numpy()
    original = x[0, 0, 8].numpy()
    np.testing.assert_array_equal(shown["original"], original)
    np.testing.assert_array_equal(shown["masked input"], np.where(hidden, x.min().item(), original))
    np.testing.assert_array_equal(shown["reconstruction"][~hidden], original[~hidden])
    want, _ = reference(method, x, torch.ones_like(x, dtype=torch.bool), visible_cells(method, 1))
    np.testing.assert_allclose(shown["reconstruction"][hidden], want.detach()[0, 0, 8].numpy()[hidden], atol=1e-4)


def test_two_dimensions_and_several_channels() -> None:
    model = ResEncConfig(size="S", stages=3, features=(4, 6, 8), blocks=(1, 1, 1))
    method = build(S3DConfig(mask_ratio=0.5), model, ViewsConfig(size=(16, 24)), channels=2)
    output = method(make_batch(torch.randn(2, 2, 16, 24)), context(pictures=True))
    output.loss.backward()
    assert output.loss.isfinite()
    assert dict(output.pictures["reconstruction"].panels)["original"].shape == (16, 24)
    assert method.features(torch.randn(1, 2, 16, 24))[-1][0].shape == (1, 8, 4, 6)


# build


def test_build_passes_every_setting_on() -> None:
    views = ViewsConfig(size=(32, 32, 64), count=2, augment=AugmentConfig(flip=0.5))
    model = ResEncConfig(size="S", stages=3, decoder_convs=2)
    method = build(S3DConfig(mask_ratio=(0.5, 0.6), block=(8, 16, 8), adaptation="token"), model, views, channels=3)
    assert method.views == {"view": ViewGroup(size=(32, 32, 64), count=2, augment=views.augment)}
    assert (method.block, method.grid, method.mask_ratio) == ((8, 16, 8), (4, 2, 8), (0.5, 0.6))
    assert [stage.conv for stage in method.densify] == [None] * 3
    assert method.spec.settings["decoder_convs"] == 2
    assert (method.spec.settings["channels"], method.spec.settings["classes"]) == (3, 3)
    assert len(build(S3DConfig(adaptation="sparse"), model, views, 1).densify) == 0
    densify = build(S3DConfig(), model, views, 1).densify
    assert [stage.conv is None for stage in densify] == [True, False, False]
    assert [stage.mask_token is None for stage in densify] == [False] * 3
    small = build(S3DConfig(block=(2, 2, 2)), model, views, 1).densify
    assert [stage.mask_token is None for stage in small] == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": [6, 8, 8]}, "does not divide the block of 6|6 voxels along z do not divide"),
        ({"block": [8, 8]}, "method.block has 2 numbers and views.size has 3"),
        ({"mask_ratio": 0.99}, "leaves 0 visible"),
        ({"mask_ratio": [0.9, 0.6]}, "LOW HIGH with LOW <= HIGH"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(S3DConfig.parse(settings), ResEncConfig(size="S"), ViewsConfig(size=(16, 16, 16)), 1)


def test_another_backbone_and_another_norm_are_refused() -> None:
    with pytest.raises(ConfigError, match="found model ViTConfig; expected resenc"):
        build(S3DConfig(), ViTConfig(), ViewsConfig(size=(16, 16, 16)), 1)  # type: ignore[arg-type]
    network = tiny().network
    network.encoder.stem.convs[0].norm = nn.BatchNorm3d(3)
    with pytest.raises(ConfigError, match="found BatchNorm3d; expected an affine instance norm"):
        SparseAutoencoder(network, ModelSpec("resenc", {}), ViewGroup(SIZE), (8, 8, 8), 0.75)


def test_build_says_what_it_ignores(capsys: pytest.CaptureFixture[str]) -> None:
    build(S3DConfig(), ResEncConfig(size="S"), ViewsConfig(size=(16, 16, 24), foreground=0.5), 1)
    assert "views.foreground is ignored" in capsys.readouterr().out


# recipes


def recipe(name: str) -> Any:
    assert name in recipe_names("pretrain")
    return pretrain_schema("s3d", "resenc").parse({**load_recipe("pretrain", name), "store": "s", "out": "r"}, name)


def test_the_papers_recipe_holds_the_papers_numbers() -> None:
    config = recipe("s3d-resenc-l")
    with torch.device("meta"):
        method = build(config.method, config.model, config.views, 1)
    assert (method.grid, method.block, method.mask_ratio) == ((5, 5, 5), (32, 32, 32), (0.6, 0.9))
    optim, train = config.optim, config.train
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 1e-2, 0.99, 3e-5)
    assert (train.steps, train.batch, train.clip, config.schedule.name) == (250_000, 6, 12, "poly")


def test_the_recipe_for_two_cores_has_blocks_of_8() -> None:
    config = recipe("s3d-resenc-s-cpu")
    method = build(config.method, config.model, config.views, 1)
    assert (method.grid, method.block, method.network.depth) == ((4, 6, 4), (8, 8, 8), 4)
