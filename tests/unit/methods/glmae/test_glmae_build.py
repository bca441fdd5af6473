"""Building GL-MAE from its settings, what is refused, and its recipes."""

from typing import Any

import pytest
import torch
from tests.unit.methods.glmae.tiny import TERMS, TINY, step, tiny

from prevox.config.base import load_recipe, recipe_names
from prevox.config.data import AugmentConfig, ViewsConfig
from prevox.config.models import ResEncConfig, ViTConfig
from prevox.config.runs import pretrain_schema
from prevox.errors import ConfigError
from prevox.masking.tokens import kept_tokens
from prevox.methods.glmae.config import GLMAEConfig
from prevox.methods.glmae.method import build
from prevox.task import ViewGroup

pytestmark = pytest.mark.unit

# build


def test_build_passes_every_setting_on() -> None:
    settings = GLMAEConfig.parse(
        {**TINY, "global_count": 3, "global_scale": (0.6, 0.9), "local_scale": None, "mask_ratio": 0.5, "momentum": 0.9}
    )
    augment = AugmentConfig(flip=0.5)
    views = ViewsConfig(size=(8, 12), axes="independent", augment=augment)
    method = build(settings, ViTConfig(size="T", patch=(4, 4), depth=2), views, 3)
    assert method.views == {
        "global": ViewGroup((24, 16), 3, augment=augment, scale=(0.6, 0.9), axes="independent"),
        "local": ViewGroup((8, 12), 3, augment=augment, scale=None, axes="independent"),
    }
    assert (method.mask_ratio, method.momentum) == (0.5, 0.9)
    assert method.spec.settings["grid"] == [2, 3]
    assert method.head is not None
    assert [layer.out_features for layer in method.head if isinstance(layer, torch.nn.Linear)] == [24, 24, 16]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"global_count": 0},
            "global_count is 0, and global_reconstruction, global_consistency, local_consistency need",
        ),
        ({"local_count": 0}, "local_count is 0, and local_reconstruction, local_consistency need"),
        ({"global_count": -1}, "global_count"),
        ({"mask_ratio": 0}, "mask_ratio"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_ratio": -0.6}, "mask_ratio"),
        ({"mask_ratio": 1.6}, "mask_ratio"),
        ({"global_scale": (1.0, 0.5)}, "'global_scale'.*LOW HIGH with LOW <= HIGH"),
        ({"local_scale": (0.5, 0.25)}, "'local_scale'.*LOW HIGH with LOW <= HIGH"),
        ({"local_scale": (0.5, 1.5)}, "local_scale"),
        ({"decoder_heads": 5}, "decoder_heads 5 must divide decoder_width 576"),
        (dict.fromkeys(TERMS, 0), "nothing would be learnt"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GLMAEConfig.parse(wrong)


def test_no_local_views_are_needed_where_their_terms_are_off() -> None:
    method = tiny(local_count=0, local_reconstruction=0, local_consistency=0)
    assert set(method.views) == {"global"}
    assert step(method).loss.isfinite()


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"global_size": (22, 16)}, (8, 12), "method.global_size is 22 along y, which model.patch 4 does not divide"),
        ({}, (8, 10), "views.size is 10 along x, which model.patch 4 does not divide"),
        ({"global_size": (16, 16, 16)}, (8, 12), "method.global_size has 3 numbers"),
        ({"mask_ratio": 0.95}, (8, 12), "leaves 0 visible"),
    ],
)
def test_views_that_do_not_fit_are_refused(settings: dict[str, Any], size: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(GLMAEConfig.parse({**TINY, **settings}), ViTConfig(size="T", patch=(4, 4)), ViewsConfig(size=size), 1)


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected vit"):
        build(GLMAEConfig.parse(TINY), ResEncConfig(), ViewsConfig(size=(8, 12)), 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="class_token is false"):
        build(GLMAEConfig.parse(TINY), ViTConfig(patch=(4, 4), class_token=False), ViewsConfig(size=(8, 12)), 1)


def test_build_says_what_it_ignores(capsys: pytest.CaptureFixture[str]) -> None:
    views = ViewsConfig(size=(8, 12), foreground=0.5, scale=(0.5, 1), count=2)
    build(GLMAEConfig.parse({**TINY, "literal": True}), ViTConfig(size="T", patch=(4, 4), depth=1), views, 1)
    said = capsys.readouterr().out
    for word in ("views.foreground is ignored", "views.scale is ignored", "views.count is ignored", "method.literal"):
        assert word in said


# recipes

RECIPES = {
    # recipe: encoder width, decoder, lr, epochs
    "glmae-vit-b": (768, (576, 8, 16), 1e-2, 1600),
    "glmae-vit-t": (192, (192, 4, 3), 1e-2, 1600),
    "glmae-vit-t-cpu": (192, (96, 2, 3), 5e-4, None),
}


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipes_build_and_hold_the_papers_numbers(recipe: str) -> None:
    assert recipe in recipe_names("pretrain")
    plain = {**load_recipe("pretrain", recipe), "store": "store", "out": "run"}
    config: Any = pretrain_schema("glmae").parse(plain, recipe)
    with torch.device("meta"):
        method = build(config.method, config.model, config.views, 1)
    width, decoder, lr, epochs = RECIPES[recipe]
    assert method.encoder.width == width
    assert (config.method.decoder_width, config.method.decoder_depth, config.method.decoder_heads) == decoder
    assert (config.optim.lr, config.train.epochs) == (lr, epochs)
    if epochs is not None:
        assert method.views["global"] == ViewGroup(
            (160, 160, 160), 2, scale=(0.5, 1.0), augment=config.views.augment, axes="joint"
        )
        assert method.views["local"] == ViewGroup(
            (96, 96, 96), 8, scale=(0.25, 0.5), augment=config.views.augment, axes="joint"
        )
        assert [kept_tokens(n, config.method.mask_ratio) for n in (1000, 216)] == [400, 86]
        assert config.normalise.window == (-1000, 1000)
        assert config.train.batch * config.train.accumulation == 256
