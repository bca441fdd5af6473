import pytest

from prevox.config.base import RECIPES, load_recipe, over_recipe, read_yaml, recipe_names, write_yaml
from prevox.config.data import NormaliseConfig, ViewsConfig
from prevox.config.runs import finetune_schema, pretrain_schema
from prevox.config.train import TrainConfig
from prevox.errors import ConfigError

pytestmark = pytest.mark.unit
NEEDED = {"store": "s", "out": "o", "train": {"steps": 3}}


@pytest.mark.parametrize(
    ("settings", "wrong", "right"),
    [
        ({"train": {"step": 3}}, "train.step", "train.steps"),
        ({"method": {"mask_ration": 0.5}}, "method.mask_ration", "method.mask_ratio"),
        ({"view": {"size": [8, 8, 8]}}, "view", "views"),
        ({"views": {"augment": {"flipp": 0.5}}}, "views.augment.flipp", "views.augment.flip"),
    ],
)
def test_misspelt_key_names_the_nearest(settings: dict, wrong: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pretrain_schema().parse({**NEEDED, **settings})
    assert f"unknown key '{wrong}'" in str(caught.value)
    assert f"Did you mean '{right}'?" in str(caught.value)


def test_value_out_of_range_names_key_value_and_bound() -> None:
    with pytest.raises(ConfigError, match=r"'method.mask_ratio' is 1.5.*less than 1"):
        pretrain_schema().parse({**NEEDED, "method": {"mask_ratio": 1.5}})


def test_a_rule_between_keys_does_not_print_the_whole_config() -> None:
    with pytest.raises(ConfigError) as caught:
        pretrain_schema().parse({"store": "s", "out": "o"})
    assert "no length" in str(caught.value)
    assert "weight_decay" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give --pretrained RUN, or a network"),
        ({"pretrained": "r", "encoder": {"size": "T"}}, "not both"),
        ({"encoder": {"size": "T"}, "scratch": True}, "--scratch needs --pretrained"),
    ],
)
def test_finetune_needs_exactly_one_start(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune_schema().parse({**NEEDED, **settings})


def test_regions_as_words_and_as_mapping_are_the_same() -> None:
    base = {**NEEDED, "encoder": {"size": "T"}}
    words = finetune_schema().parse({**base, "regions": ["WT=1,2,3", "ET=3"]})
    mapping = finetune_schema().parse({**base, "regions": {"WT": [1, 2, 3], "ET": [3]}})
    assert words == mapping
    assert words.regions == {"WT": (1, 2, 3), "ET": (3,)}
    with pytest.raises(ConfigError, match="NAME=1,2,3"):
        finetune_schema().parse({**base, "regions": ["WT"]})


def test_window_belongs_to_one_normalisation_only() -> None:
    assert NormaliseConfig.parse({"name": "window", "window": [-175, 250]}).window == (-175, 250)
    for wrong in ({"name": "window"}, {"window": [0, 1]}, {"name": "window", "window": [3, 1]}):
        with pytest.raises(ConfigError):
            NormaliseConfig.parse(wrong)


def test_lengths_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="not both"):
        TrainConfig.parse({"steps": 3, "epochs": 2})
    recipe = {"train": {"epochs": 100, "batch": 6}}
    assert over_recipe(recipe, {"train": {"steps": 5}})["train"] == {"steps": 5, "batch": 6}
    assert over_recipe(recipe, {"train": {"batch": 2}})["train"] == {"epochs": 100, "batch": 2}


def test_views_take_two_or_three_numbers() -> None:
    with pytest.raises(ConfigError, match="two numbers"):
        ViewsConfig.parse({"size": [8]})


def test_settings_survive_yaml(tmp_path) -> None:
    config = pretrain_schema().parse({**NEEDED, "views": {"size": [8, 16, 24]}})
    write_yaml(tmp_path / "c.yaml", config.plain(), header="a comment")
    assert pretrain_schema().parse(read_yaml(tmp_path / "c.yaml")) == config


def test_bad_yaml_files_are_named(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("a: [1,")
    (tmp_path / "b.yaml").write_text("- 1")
    for name in ("a.yaml", "b.yaml", "missing.yaml"):
        with pytest.raises(ConfigError, match=name):
            read_yaml(tmp_path / name)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'selfmedmae-btcv'"):
        load_recipe("pretrain", "selfmedmae-btvc")


@pytest.mark.parametrize(
    ("verb", "name"), [(verb, name) for verb in ("pretrain", "finetune") for name in recipe_names(verb)]
)
def test_every_shipped_recipe_parses(verb: str, name: str) -> None:
    recipe = load_recipe(verb, name)
    assert not {"store", "out", "recipe"} & recipe.keys(), "a recipe holds no paths"
    if verb == "pretrain":
        schema = pretrain_schema(recipe["method"]["name"], recipe["model"]["name"])
        config = schema.parse({**recipe, "store": "s", "out": "o"})
        assert config.method.name == recipe["method"]["name"]
    else:
        start = {} if "encoder" in recipe else {"pretrained": "r"}
        schema = finetune_schema(recipe.get("encoder", {}).get("name", "vit"))
        schema.parse({**recipe, **start, "store": "s", "out": "o"})
    assert (RECIPES / verb / f"{name}.yaml").read_text().startswith("#"), "a recipe begins with what it is"


def test_the_recipes_that_the_issue_names_exist() -> None:
    wanted = {"selfmedmae-btcv", "selfmedmae-brats", "selfmedmae-cxr14", "mae3d-btcv", "mae-vit-cpu"}
    assert wanted <= set(recipe_names("pretrain"))


def test_two_phases_must_leave_a_decay() -> None:
    with pytest.raises(ConfigError, match="together they must leave some of it"):
        finetune_schema().parse(
            {"store": "s", "out": "o", "pretrained": "r", "train": {"steps": 9}, "decoder_first": 0.6}
            | {"schedule": {"warmup": 0.4}}
        )
