import pytest

from prevox.config.base import load_recipe, merge, recipe_names
from prevox.config.runs import finetune_schema

pytestmark = pytest.mark.unit

GIVEN = {"store": "store", "out": "run", "pretrained": "pretraining"}


def recipe(name, **over):
    return finetune_schema().parse(merge(load_recipe("finetune", name), {**GIVEN, **over}), name)


@pytest.mark.parametrize("name", recipe_names("finetune"))
def test_recipes_leave_the_encoder_to_the_pretraining_run(name):
    assert recipe(name).encoder is None
    assert "encoder" not in load_recipe("finetune", name)


@pytest.mark.parametrize(
    ("name", "size", "lr", "epochs", "warmup", "cross_entropy"),
    [
        ("unetr-btcv", (96, 96, 96), 8e-4, 5000, 50, 1.0),
        ("unetr-brats", (128, 128, 128), 4e-4, 400, 10, 0.0),
    ],
)
def test_values_of_the_paper_and_its_code(name, size, lr, epochs, warmup, cross_entropy):
    """methods.md 2.3: AdamW (.9, .95), decay .05, layer decay .75, drop path .1, batch 6, feature 16."""
    config = recipe(name)
    assert (config.views.size, config.optim.lr, config.train.epochs) == (size, lr, epochs)
    assert config.schedule.warmup * epochs == pytest.approx(warmup)
    assert (config.optim.betas, config.optim.weight_decay) == ((0.9, 0.95), 0.05)
    assert (config.layer_decay, config.drop_path, config.train.batch, config.decoder.features) == (0.75, 0.1, 6, 16)
    assert config.loss.cross_entropy == cross_entropy


def test_brats_regions():
    assert recipe("unetr-brats").regions == {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}
