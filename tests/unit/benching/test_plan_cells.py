"""Plans of bench files, counted by hand."""

from collections import Counter

import pytest
from tests.unit.benching.bench_files import RESENC, VIT, content

from prevox.benching.cells import Cell
from prevox.benching.plan import plan, trials
from prevox.config.bench import BenchFile
from prevox.errors import ConfigError

pytestmark = pytest.mark.unit


def planned(**over) -> list[Cell]:
    return plan(BenchFile.parse(content(**over), "file"))


def test_every_combination_is_a_cell_and_a_pretraining_is_shared() -> None:
    cells = planned(labels=[2, 0.5, "all"], seeds=[0, 1], folds=2)
    # 2 datasets × 4 arms (mae.vit, s3d.unet, scratch.vit, scratch.unet) × 3 × 2 seeds × 2 folds
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 4 * 3 * 2 * 2
    assert Counter(cell.arm for cell in cells) == dict.fromkeys(
        ("mae.vit", "s3d.unet", "scratch.vit", "scratch.unet"), 24
    )
    # 2 methods × 2 datasets × 2 folds: neither labels nor seeds are seen in pre-training
    assert len({cell.pretraining.name for cell in cells if cell.pretraining}) == 2 * 2 * 2
    for cell in cells:
        if cell.pretraining:  # no image that a fold holds out is learnt from before
            assert cell.pretraining.settings["split"] == cell.settings["split"] == {"folds": 2, "fold": cell.fold}
    assert [cell.seed for cell in cells] == [0] * 48 + [1] * 48, "a whole round of arms for the first seed comes first"
    assert cells[0].name.startswith("a.mae.vit.labels-2.fold-0.seed-0-")


def test_pretraining_elsewhere_is_done_once_for_all_datasets_and_folds() -> None:
    pool = {"a": {}, "b": {}, "pool": {"role": "pretrain"}}
    cells = planned(datasets=pool, pretrain_on="pool", folds=3)
    assert {cell.dataset for cell in cells} == {"a", "b"}
    assert {cell.pretraining.name.split(".")[0] for cell in cells if cell.pretraining} == {"pool"}
    assert len({cell.pretraining.name for cell in cells if cell.pretraining}) == 2


def test_an_axis_multiplies_only_what_it_changes() -> None:
    cells = planned(vary={"pretrain.train.steps": [10, 20, 30]}, datasets={"a": {}})
    assert Counter(cell.arm for cell in cells) == {
        **{f"{arm} steps-{steps}": 1 for arm in ("mae.vit", "s3d.unet") for steps in (10, 20, 30)},
        "scratch.vit": 1,
        "scratch.unet": 1,
    }
    cells = planned(vary={"finetune.train.steps": [10, 20]}, datasets={"a": {}})
    assert len(cells) == 4 * 2
    assert {cell.settings["train"]["steps"] for cell in cells} == {10, 20}
    assert len({cell.pretraining.name for cell in cells if cell.pretraining}) == 2, "the same pre-training"


def test_arms_that_differ_in_fine_tuning_only_share_a_pretraining() -> None:
    whole = content(datasets={"a": {}})
    mae = whole["methods"]["mae"]
    whole["methods"] = {"mae": mae, "mae-frozen": {**mae, "finetune": {"freeze_encoder": True}}}
    one, other = plan(BenchFile.parse(whole, "file"))
    assert one.pretraining == other.pretraining
    assert one.pretraining.name.startswith("a.mae.vit-")
    assert one.name != other.name


def test_settings_of_a_dataset_hold_for_all_arms_on_it() -> None:
    datasets = {"a": {"finetune": {"loss": {"dice": 2.0}}}, "b": {}}
    for cell in planned(datasets=datasets):
        assert cell.settings["loss"]["dice"] == (2.0 if cell.dataset == "a" else 1.0)


def test_named_values_of_an_axis_are_protocols() -> None:
    protocols = {
        "whole": {},
        "linear": {"finetune": {"freeze_encoder": True, "decoder_first": 0, "train": {"steps": 9}}},
    }
    methods = {"mae": {"pretrain": {"recipe": "mae-vit-cpu"}}}
    backbones = {"vit": content()["backbones"]["vit"]}
    cells = planned(methods=methods, backbones=backbones, datasets={"a": {}}, vary={"protocol": protocols})
    by_arm = {cell.arm: cell.settings for cell in cells}
    assert by_arm.keys() == {"mae.vit protocol-whole", "mae.vit protocol-linear"}
    assert by_arm["mae.vit protocol-linear"]["freeze_encoder"] is True
    assert "freeze_encoder" not in by_arm["mae.vit protocol-whole"]


def test_trials_are_one_for_each_rate_and_the_same_for_all_seeds() -> None:
    bench = BenchFile.parse(content(rates=[1e-3, 1e-2], trial_steps=7, seeds=[3, 4], labels=[2, "all"]), "file")
    cells = plan(bench)
    found = {trial.name: trial for cell in cells for trial in trials(bench, cell)}
    assert len(found) == 2 * 4 * 2 * 2  # datasets × arms × labels × rates
    for trial in found.values():
        assert trial.settings["train"]["steps"] == 7
        assert "epochs" not in trial.settings["train"]
        assert trial.settings["split"]["inner"] is True
        assert (trial.settings["train"]["seed"], trial.settings["label_seed"]) == (3, 3)
        assert trial.settings["optim"]["lr"] in (1e-3, 1e-2)
    for cell in cells:
        assert "inner" not in cell.settings["split"]
        assert (cell.settings["train"]["seed"], cell.settings["label_seed"]) == (cell.seed, cell.seed)


def test_what_changes_no_result_leaves_the_trials_alone() -> None:
    def names(**train) -> list[str]:
        whole = content(datasets={"a": {}}, rates=[1e-3, 1e-2], trial_steps=7)
        whole["backbones"]["vit"]["finetune"]["train"] = train
        bench = BenchFile.parse(whole, "file")
        return [trial.name for cell in plan(bench) if cell.backbone == "vit" for trial in trials(bench, cell)]

    assert len(names()) == 2 * 2
    assert names(log_every=3, reads_ahead=1) == names()
    assert not set(names(precision="bf16")) & set(names())


def test_all_arms_have_the_datasets_split_whatever_their_recipes_say() -> None:
    recipes = content()
    recipes["methods"] = {"mae": {"pretrain": {"recipe": "selfmedmae-btcv"}}}  # its split holds out 0.4
    recipes["backbones"] = {"vit": {"model": VIT, "finetune": {"recipe": "unetr-btcv"}}}
    recipes["datasets"] = {"a": {"split": {"validation": 0.25, "seed": 5}}}
    (cell,) = plan(BenchFile.parse(recipes, "file"))
    assert cell.settings["split"] == cell.pretraining.settings["split"] == {"validation": 0.25, "seed": 5}


def test_scratch_has_the_network_of_the_pretrained_arm() -> None:
    cells = {cell.arm: cell for cell in planned(datasets={"a": {}})}
    assert cells["scratch.vit"].settings["encoder"] == cells["mae.vit"].pretraining.settings["model"] == VIT
    assert cells["scratch.unet"].settings["encoder"] == cells["s3d.unet"].pretraining.settings["model"] == RESENC


def test_a_cell_is_another_one_if_anything_it_is_made_from_changes() -> None:
    def name(arm: str = "mae.vit", **over) -> str:
        cells = planned(datasets={"a": {}} | over.pop("datasets", {}), **over)
        return next(cell.name for cell in cells if cell.arm == arm)

    def method(**pretrain) -> dict:
        mae = {"backbones": ["vit"], "pretrain": {"recipe": "mae-vit-cpu", **pretrain}}
        return {**content()["methods"], "mae": mae}

    before = name()
    assert name(seeds=[0, 1]) == before, "what is added leaves it alone"
    assert name(methods=method(train={"log_every": 3})) == before, "what changes no result leaves it alone"
    assert name(methods=method(train={"steps": 3000})) == before, "the recipe's own value said once more"
    changed = [
        name(methods=method(train={"steps": 2999})),
        name(datasets={"a": {"spacing": [1, 1, 1]}}),
        name(datasets={"a": {"split": {"seed": 1}}}),
        name(rates=[1e-2]),
        name(rates=[1e-2, 1e-3], trial_steps=5),
        name(rates=[1e-2, 1e-3], trial_steps=6),
    ]
    assert len({before, *changed}) == 1 + len(changed)
    assert {text.rpartition("-")[0] for text in changed} == {before.rpartition("-")[0]}, "the words stay"
    assert name("scratch.vit", methods=method(train={"steps": 2999})) == name("scratch.vit")


def test_what_prevox_lacks_is_planned_and_not_run() -> None:
    methods = {**content()["methods"], "voco": {"absent": "VoCo is no method of Prevox"}}
    cells = [cell for cell in planned(methods=methods, datasets={"a": {}}) if cell.absent]
    assert [cell.arm for cell in cells] == ["voco.vit", "voco.unet"]
    assert cells[0].absent == "VoCo is no method of Prevox"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"labels": [1.5]}, "A fraction of the labelled training subjects is at most 1"),
        ({"labels": [0]}, "whole number of labelled subjects"),
        ({"labels": [True]}, "whole number of labelled subjects"),
        ({"labels": ["al"]}, "Give 'all'"),
        ({"labels": []}, "give one at least"),
        ({"folds": 1}, "'folds' is 1"),
        ({"sedes": [1]}, "Did you mean 'seeds'"),
        ({"test_on": {"a": ["c"]}}, "test_on names 'c', which is no dataset; known: a, b"),
        ({"test_on": {"a": ["a"]}}, "tested on itself"),
        ({"pretrain_on": "pool"}, "pretrain_on names 'pool', which is no dataset"),
        ({"datasets": {"a": {"role": "test"}}}, "no dataset has the role finetune"),
        ({"datasets": {"a b": {}}}, "a b"),
        ({"baseline": "mae"}, "'mae' is no arm; expected one of mae.vit"),
        ({"rates": [1e-3, 1e-2]}, "need trial_steps"),
        ({"vary": {"mask_ratio": [0.5]}}, "it must be a setting such as pretrain.method.mask_ratio"),
        ({"vary": {"pretrain.method.mask_ratio": [0.5, 2]}}, "'method.mask_ratio' is 2"),
        ({"vary": {"pretrain.method.mask_ration": [0.5]}}, "Did you mean 'method.mask_ratio'"),
        ({"vary": {"finetune.train.steps": [1], "pretrain.train.steps": [1]}}, "two axes are called 'steps'"),
        ({"vary": {"finetune.labels": [1]}}, "'labels' is the bench's own"),
        ({"vary": {"finetune.optim.lr": [1.0]}, "rates": [1.0, 2.0], "trial_steps": 1}, "optim.lr is given, and rates"),
        ({"vary": {"finetune.optim.lr": [1.0, 2.0]}, "rates": [1.0]}, "optim.lr is given, and rates [1.0] too"),
        ({"datasets": {"a": {"split": {"column": "fold"}}}, "folds": 2}, "divides already"),
        ({"datasets": {"a": {"split": {"inner": True}}}}, "split: inner is the bench's own"),
        ({"datasets": {"a": {"split": {"folds": 2}}}}, "split: folds is the bench's own"),
        ({"test_on": {"a": ["b"]}, "pretrain_on": "b"}, "pre-trained on, so it would not be unseen"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(over: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(**over)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("part", "name", "settings", "message"),
    [
        ("methods", "mae", {"pretrain": {"recipe": "mae-vit-cpuu"}}, "Did you mean 'mae-vit-cpu'?"),
        ("methods", "mae", {"pretrain": {"method": {"name": "maee"}, "train": {"steps": 1}}}, "Did you mean 'mae'?"),
        ("methods", "mae", {"backbones": ["vitt"]}, "which is no backbone; known: vit, unet"),
        ("methods", "mae", {"bakcbones": ["vit"]}, "backbones'?"),
        ("methods", "mae", {"pretrain": {"recipe": "mae-vit-cpu", "use": "all"}}, "the images of a that are held out"),
        ("methods", "mae", {"pretrain": {"recipe": "mae-vit-cpu"}, "finetune": {"train": {"steps": 3}}}, "unequally"),
        ("methods", "scratch", {"rates": [1e-3, 1e-2]}, "need trial_steps"),
        ("backbones", "vit", {"model": {"name": "vitt"}}, "Did you mean 'vit'?"),
        ("backbones", "vit", {"model": {"name": "vit", "szie": "T"}}, "Did you mean"),
        ("backbones", "vit", {"model": VIT, "finetune": {}}, "the run has no length"),
    ],
)
def test_what_is_wrong_with_an_arm_is_said(part: str, name: str, settings: dict, message: str) -> None:
    whole = content()
    whole[part][name] = settings
    with pytest.raises(ConfigError) as caught:
        plan(BenchFile.parse(whole, "file"))
    assert message in str(caught.value)


def test_unequal_trials_and_intensities_are_refused() -> None:
    whole = content(rates=[1e-3], trial_steps=3)
    whole["methods"]["scratch"]["rates"] = [1e-3, 1e-2]
    with pytest.raises(ConfigError, match="have learning rates to try: 1 and 2"):
        plan(BenchFile.parse(whole, "file"))
    whole = content()
    window = {"name": "window", "window": [0, 1]}
    whole["methods"]["mae"]["pretrain"]["normalise"] = window
    with pytest.raises(ConfigError, match=r"'mae.vit' and 'scratch.vit'.*backbones.vit.finetune"):
        plan(BenchFile.parse(whole, "file"))
    whole["backbones"]["vit"]["finetune"]["normalise"] = window
    plan(BenchFile.parse(whole, "file"))
    whole["methods"]["mae"]["finetune"] = {"train": {"accumulation": 2}}
    with pytest.raises(ConfigError, match="views in a step: 4 and 2"):  # the recipe's batch is 2
        plan(BenchFile.parse(whole, "file"))
