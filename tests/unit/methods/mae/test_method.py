"""The step of the masked autoencoder: what goes in, what the loss sees, what the pictures show."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prevox.config.base import load_recipe, recipe_names
from prevox.config.data import AugmentConfig, ViewsConfig
from prevox.config.models import ViTConfig
from prevox.config.runs import pretrain_schema
from prevox.errors import ConfigError
from prevox.masking.tokens import random_token_mask
from prevox.methods.mae.config import MAEConfig
from prevox.methods.mae.method import MaskedAutoencoder, build
from prevox.models.mae_decoder import MAEDecoder
from prevox.models.vit import ViT, patchify, unpatchify
from prevox.task import Batch, ModelSpec, StepContext, ViewGroup, Views

pytestmark = pytest.mark.unit

MAE3D = {"target": "raw", "loss": "l1", "positions": "learnable", "class_token": False, "final_norm": False}


def tiny(size: tuple[int, ...] = (8, 12, 8), channels: int = 1, **changes: Any) -> MaskedAutoencoder:
    torch.manual_seed(0)
    axes = len(size)
    network = {
        "grid": [n // 4 for n in size],
        "patch": [4] * axes,
        "channels": channels,
        "width": 24,
        "depth": 2,
        "heads": 2,
        "class_token": changes.pop("class_token", True),
        "positions": changes.pop("positions", "sincos"),
        "final_norm": changes.pop("final_norm", True),
    }
    decoder = MAEDecoder(
        grid=network["grid"],
        patch=network["patch"],
        channels=channels,
        encoder_width=24,
        width=12,
        depth=1,
        heads=2,
        positions=network["positions"],
        class_token=network["class_token"],
    )
    return MaskedAutoencoder(ViT(**network), decoder, ModelSpec("vit", network), ViewGroup(size=size), **changes)


def make_batch(x: Tensor, valid: Tensor | None = None) -> Batch:
    if valid is None:
        valid = torch.ones(len(x), 1, *x.shape[2:], dtype=torch.bool)
    box = torch.zeros(len(x), 2, 3, dtype=torch.int64)
    return Batch({"view": Views(x, valid, None, box)}, [f"image_{i}" for i in range(len(x))], torch.arange(len(x)))


def context(seed: int = 0, pictures: bool = False) -> StepContext:
    return StepContext(torch.Generator().manual_seed(seed), want_pictures=pictures)


@pytest.mark.parametrize("changes", [{}, {"variance": "unbiased"}, MAE3D, {"target": "raw"}, {"mask_ratio": 0.3}])
@pytest.mark.parametrize(("size", "channels"), [((8, 12, 8), 2), ((16, 12), 1)])
def test_loss_equals_the_plain_formula(size: tuple[int, ...], channels: int, changes: dict[str, Any]) -> None:
    method = tiny(size, channels, **dict(changes))
    x = torch.randn(3, channels, *size) * 4 + 1
    got = method(make_batch(x), context(seed=5)).loss

    patches = patchify(x, method.encoder.patch)
    mask = random_token_mask(*patches.shape[:2], method.mask_ratio, torch.Generator().manual_seed(5))
    prediction = method.decoder(method.encoder(x, mask.visible_BK), mask.order_BL, everywhere=True)
    target = patches
    if method.target == "normalised":
        variance = patches.var(-1, keepdim=True, unbiased=method.variance == "unbiased")
        target = (patches - patches.mean(-1, keepdim=True)) / (variance + 1e-6) ** 0.5
    error = (prediction - target).abs() if method.loss == "l1" else (prediction - target) ** 2
    torch.testing.assert_close(got, error.mean(-1)[mask.mask_BL].mean())


def test_visible_voxels_are_no_part_of_the_loss() -> None:
    """An encoder that is deaf (all its weights 0) leaves a loss that only the masked voxels can change."""
    method = tiny()
    nn.init.zeros_(method.encoder.patch_embed.weight)
    x = torch.randn(2, 1, 8, 12, 8)
    mask = random_token_mask(2, 12, 0.75, torch.Generator().manual_seed(0))
    changed = {}
    for name, places in (("visible", mask.visible_BK), ("masked", mask.masked_BM)):
        voxels = torch.zeros(2, 12, 64, dtype=torch.bool)
        voxels[torch.arange(2)[:, None], places] = True
        other = torch.where(unpatchify(voxels, (2, 3, 2), (4, 4, 4)), torch.randn(x.shape), x)
        changed[name] = method(make_batch(other), context()).loss
    before = method(make_batch(x), context()).loss
    assert torch.equal(changed["visible"], before)
    assert not torch.equal(changed["masked"], before)


def test_masked_voxels_give_no_gradient_to_the_patch_embedding() -> None:
    """With visible patches all zero, weights of the patch embedding get no gradient; its bias does."""
    method = tiny()
    mask = random_token_mask(2, 12, 0.75, torch.Generator().manual_seed(0))
    patches = torch.randn(2, 12, 64)
    patches[~mask.mask_BL] = 0
    method(make_batch(unpatchify(patches, (2, 3, 2), (4, 4, 4))), context()).loss.backward()
    assert not method.encoder.patch_embed.weight.grad.any()
    assert method.encoder.patch_embed.bias.grad.any()


@pytest.mark.parametrize("channels", [1, 2])
def test_padding_counts_neither_in_statistics_nor_in_the_loss(channels: int) -> None:
    method = tiny(channels=channels)
    x = torch.randn(2, channels, 8, 12, 8)
    valid = torch.ones(2, 1, 8, 12, 8, dtype=torch.bool)
    valid[0, :, 6:] = False  # cuts through patches
    valid[1, :, :, 4:] = False  # whole patches
    got = method(make_batch(x, valid), context(seed=2)).loss

    x = torch.where(valid, x, 0.0)
    patches, known = patchify(x, (4, 4, 4)), patchify(valid.expand(-1, channels, -1, -1, -1), (4, 4, 4))
    mask = random_token_mask(2, 12, 0.75, torch.Generator().manual_seed(2))
    prediction = method.decoder(method.encoder(x, mask.visible_BK), mask.order_BL, everywhere=True)
    errors = []
    for b, place in mask.mask_BL.nonzero().tolist():
        ok = known[b, place]
        if ok.any():
            values = patches[b, place][ok]
            target = (values - values.mean()) / (values.var(unbiased=False) + 1e-6).sqrt()
            errors.append(((prediction[b, place][ok] - target) ** 2).mean())
    assert len(errors) < mask.mask_BL.sum()
    torch.testing.assert_close(got, torch.stack(errors).mean())


def test_a_few_steps_on_one_image_explain_it() -> None:
    method = tiny(mask_ratio=0.5)
    ramp = torch.linspace(-1, 1, 12).view(1, 1, 1, 12, 1).expand(4, 1, 8, 12, 8)  # every patch is the same ramp
    optimiser = torch.optim.AdamW(method.parameters(), lr=3e-3)
    explained = []
    for step in range(60):
        output = method(make_batch(ramp), context(step))
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        explained.append(output.scalars["explained"].item())
    assert explained[0] < 0.1
    assert explained[-1] > 0.9


# pictures


def panels(method: MaskedAutoencoder, x: Tensor) -> tuple[dict[str, np.ndarray], str]:
    output = method(make_batch(x), context(pictures=True))
    picture = output.pictures["reconstruction"]
    return dict(picture.panels), picture.note


def slice_mask(length: int, ratio: float) -> Tensor:
    return random_token_mask(1, length, ratio, torch.Generator().manual_seed(0)).mask_BL[0]


def test_pictures_of_a_normalised_target_say_what_is_not_predicted() -> None:
    method, x = tiny((8, 12, 8), mask_ratio=0.5), torch.randn(1, 1, 8, 12, 8)
    shown, note = panels(method, x)
    assert list(shown) == [
        "original",
        "masked input",
        "target of the loss",
        "prediction",
        "prediction with the true patch mean and deviation",
    ]
    assert "does not predict" in note
    masked = slice_mask(12, 0.5).view(2, 3, 2)[1].repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
    assert masked.any()
    assert not masked.all()
    original = x[0, 0, 4].numpy()
    np.testing.assert_array_equal(shown["original"], original)
    np.testing.assert_array_equal(shown["masked input"][~masked], original[~masked])
    assert (shown["masked input"][masked] == x.min().item()).all()
    assert not shown["target of the loss"][~masked].any()
    assert not shown["prediction"][~masked].any()
    last = shown["prediction with the true patch mean and deviation"]
    np.testing.assert_array_equal(last[~masked], original[~masked])
    # by hand for one masked patch of the slice
    place = next(i for i in range(6, 12) if slice_mask(12, 0.5)[i])
    patch = patchify(x, (4, 4, 4))[0, place]
    y, z = divmod(place - 6, 2)
    part = np.s_[4 * y : 4 * y + 4, 4 * z : 4 * z + 4]
    target = ((patch - patch.mean()) / (patch.var(unbiased=False) + 1e-6).sqrt()).view(4, 4, 4)[0]
    np.testing.assert_allclose(shown["target of the loss"][part], target, atol=1e-5)
    undone = shown["prediction"][part] * patch.std(unbiased=False).item() + patch.mean().item()
    np.testing.assert_allclose(last[part], undone, atol=1e-4)


def test_pictures_of_a_raw_target_in_2d() -> None:
    method, x = tiny((16, 12), target="raw"), torch.randn(1, 1, 16, 12)
    shown, note = panels(method, x)
    assert list(shown) == ["original", "masked input", "target", "prediction"]
    assert "visible ones are shown as they are" in note
    masked = slice_mask(12, 0.75).view(4, 3).repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
    np.testing.assert_array_equal(shown["prediction"][~masked], x[0, 0].numpy()[~masked])
    np.testing.assert_array_equal(shown["target"], x[0, 0].numpy())


# build


def test_build_passes_every_setting_on() -> None:
    settings = MAEConfig(
        mask_ratio=0.5,
        target="raw",
        variance="unbiased",
        loss="l1",
        decoder_width=48,
        decoder_depth=3,
        decoder_heads=4,
    )
    model = ViTConfig(size="T", patch=(8, 8), depth=2, class_token=False, positions="learnable", final_norm=False)
    views = ViewsConfig(size=(16, 24), count=3, augment=AugmentConfig(flip=0.5))
    method = build(settings, model, views, channels=4)
    assert (method.mask_ratio, method.target, method.variance, method.loss) == (0.5, "raw", "unbiased", "l1")
    assert method.views == {"view": ViewGroup(size=(16, 24), count=3, augment=views.augment)}
    assert method.encoder.patch_embed.in_features == 8 * 8 * 4
    assert method.encoder.class_token is None
    assert isinstance(method.encoder.norm, nn.Identity)
    assert (len(method.decoder.blocks), method.decoder.blocks[0].heads) == (3, 4)
    assert method.decoder.positions.shape == (6, 48)
    assert method.decoder.prefix == 0
    assert {"encoder.positions", "decoder.positions"} <= dict(method.named_parameters()).keys()
    assert method.spec.settings["patch"] == [8, 8]


def test_build_refuses_what_does_not_fit() -> None:
    model, views = ViTConfig(size="T", patch=(8, 8, 8), depth=1), ViewsConfig(size=(16, 16, 16))
    with pytest.raises(ConfigError, match="leaves 0 visible"):
        build(MAEConfig(mask_ratio=0.95), model, views, 1)
    with pytest.raises(ConfigError, match="decoder_heads 5 must divide decoder_width 24"):
        MAEConfig.parse({"decoder_width": 24, "decoder_heads": 5})


def test_build_says_that_it_ignores_foreground(capsys: pytest.CaptureFixture[str]) -> None:
    views = ViewsConfig(size=(16, 16, 16), foreground=0.5)
    build(MAEConfig(), ViTConfig(size="T", patch=(8, 8, 8), depth=1), views, 1)
    assert "views.foreground is ignored" in capsys.readouterr().out


# recipes

PAPER = {
    # recipe: channels, tokens, kept, lr, epochs, batch, crops
    "selfmedmae-btcv": (1, 216, 189, 1.5e-4, 10000, 6, 4),
    "selfmedmae-brats": (4, 512, 448, 1.5e-4, 500, 6, 4),
    "selfmedmae-cxr14": (1, 196, 49, 1.5e-4, 800, 256, 1),
    "mae3d-btcv": (1, 216, 54, 3e-4, 3000, 4, 4),
    "mae-vit-cpu": (1, 96, 24, None, None, 8, 1),  # ours, not a paper's
}


@pytest.mark.parametrize("recipe", sorted(PAPER))
def test_recipes_build_and_hold_the_papers_numbers(recipe: str) -> None:
    assert recipe in recipe_names("pretrain")
    config: Any = pretrain_schema().parse({**load_recipe("pretrain", recipe), "store": "store", "out": "run"}, recipe)
    channels, tokens, kept, lr, epochs, batch, crops = PAPER[recipe]
    with torch.device("meta"):
        method = build(config.method, config.model, config.views, channels)
    assert method.encoder.positions.shape[0] == tokens
    assert random_token_mask(1, tokens, config.method.mask_ratio, torch.Generator()).kept == kept
    assert (config.train.batch, config.views.count) == (batch, crops)
    if lr is not None:
        assert (config.optim.lr, config.optim.weight_decay, config.train.epochs) == (lr, 0.05, epochs)


def test_the_lowest_learning_rate_of_mae3d_is_1e_4() -> None:
    recipe = load_recipe("pretrain", "mae3d-btcv")
    assert float(recipe["optim"]["lr"]) * recipe["schedule"]["floor"] == pytest.approx(1e-4, rel=1e-3)
