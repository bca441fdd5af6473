import json

import pytest
import torch
from benchmarks.saved import count_saved
from safetensors.torch import save_file

from prevox.config.runs import finetune_schema
from prevox.errors import ConfigError, DataError
from prevox.finetuning.segmentation import build
from prevox.models.positions import interpolate
from prevox.models.transformer import checkpoint_activations
from prevox.models.vit import ViT
from prevox.task import Batch, StepContext, Views

pytestmark = pytest.mark.unit

NAMES = {"1": "anterior", "3": "posterior"}
REGIONS = {"WT": [1, 2, 3], "TC": [2, 3], "ET": [3]}
VIT = {"grid": [2, 2, 2], "patch": [4, 4, 4], "channels": 1, "width": 12, "depth": 2, "heads": 2}


def config(**over):
    settings = {
        "store": "store",
        "out": "run",
        "train": {"steps": 1},
        "views": {"size": [8, 8, 8]},
        "decoder": {"features": 4},
        **over,
    }
    if "pretrained" not in settings:
        settings.setdefault("encoder", {"size": "T", "patch": [4, 4, 4], "depth": 2})
    return finetune_schema().parse(settings)


def made(label_values=(0, 1, 3), channels=1, **over):
    names = {} if "regions" in over else NAMES
    return build(config(**over), channels=channels, class_names=names, label_values=label_values)


def example(values=(0, 1, 3), channels=1, size=(8, 8, 8), seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(2, channels, *size, generator=rng)
    label = torch.tensor(values)[torch.randint(0, len(values), (2, 1, *size), generator=rng)]
    valid = torch.ones(2, 1, *size, dtype=torch.bool)
    views = Views(x, valid, label, torch.zeros(2, 2, 3, dtype=torch.int64))
    return Batch({"view": views}, ["a", "b"], torch.arange(2))


def context(pictures=False):
    return StepContext(torch.Generator().manual_seed(0), want_pictures=pictures)


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    torch.manual_seed(5)
    weights = ViT(**VIT).state_dict()
    header = {"spec": json.dumps({"name": "vit", "settings": VIT}), "normalise": '{"name": "percentile"}'}
    save_file(weights, folder / "pretrained.safetensors", header)
    return folder, weights


def test_one_batch_is_learned():
    task = made().task
    batch = example()
    batch.views["view"].x_BCDHW += 3 * batch.views["view"].label_B1DHW  # something to see
    optimiser = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        output = task(batch, context())
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert set(output.scalars) == {"dice_loss", "cross_entropy", "dice/anterior", "dice/posterior"}


def test_activation_checkpointing_keeps_less_and_changes_no_bit():
    """Drop path on: 0.5."""

    def step(recompute):
        torch.manual_seed(0)
        task = made(drop_path=0.5).task.train()
        if recompute:
            assert checkpoint_activations(task)
        with count_saved() as saved:
            loss = task(example(), context()).loss
        loss.backward()
        gradients = [p.grad for p in task.parameters() if p.grad is not None]
        return torch.cat([loss.detach().view(1), *(g.flatten() for g in gradients)]), saved.bytes

    (plain, much), (again, less) = step(False), step(True)
    assert torch.equal(plain, again)
    assert less < 0.8 * much


def test_loss_is_the_weighted_sum_of_both_terms():
    task = made(loss={"dice": 0.5, "cross_entropy": 2.0}).task.eval()
    output = task(example(), context())
    expected = 0.5 * output.scalars["dice_loss"] + 2 * output.scalars["cross_entropy"]
    torch.testing.assert_close(output.loss.detach(), expected)


def test_logged_dice_by_hand():
    task = made().task.eval()
    for logits, expected in (([0.0, 9, 0], [2 * 1 / (4 + 1), 0]), ([0.0, 0, 9], [0, 2 * 2 / (4 + 2)])):
        task.network.forward = lambda x, generator, row=logits: torch.tensor(row).view(1, 3, 1, 1).expand(1, 3, 1, 4)
        label = torch.tensor([0, 1, 3, 3]).view(1, 1, 1, 4)
        valid = torch.ones_like(label, dtype=torch.bool)
        views = Views(torch.zeros(1, 1, 1, 4), valid, label, torch.zeros(1, 2, 3))
        scalars = task(Batch({"view": views}, ["a"], torch.arange(1)), context()).scalars
        assert [scalars["dice/anterior"].item(), scalars["dice/posterior"].item()] == pytest.approx(expected)


def test_padding_changes_neither_loss_nor_gradient():
    task = made().task.eval()
    batch = example()
    batch.views["view"].valid_B1DHW[:, :, 5:] = False
    first = task(batch, context()).loss
    batch.views["view"].label_B1DHW[:, :, 5:] = 3
    assert torch.equal(task(batch, context()).loss, first)


def test_regions_train_with_one_sigmoid_each():
    task = made(label_values=(0, 1, 2, 3), regions=REGIONS).task
    output = task(example((0, 1, 2, 3)), context(pictures=True))
    output.loss.backward()
    assert task.network.head.out_channels == 3
    assert {"dice/WT", "dice/TC", "dice/ET"} < set(output.scalars)


def test_a_label_that_is_no_class_names_the_images():
    with pytest.raises(DataError, match=r"one of a, b: found label value\(s\) 2"):
        made().task(example((0, 1, 2, 3)), context())


def test_layer_decay_by_hand_for_two_blocks():
    task = made(layer_decay=0.75).task
    scales = {name: task.layer_scale(name) for name, _ in task.named_parameters()}
    assert scales["network.encoder.patch_embed.weight"] == 0.421875  # 0.75 ** 3
    assert scales["network.encoder.positions"] == 0.421875
    assert scales["network.encoder.class_token"] == 0.421875
    assert scales["network.encoder.blocks.0.qkv.weight"] == 0.5625  # 0.75 ** 2
    assert scales["network.encoder.blocks.1.expand.bias"] == 0.75
    assert scales["network.encoder.norm.weight"] == 1
    rest = {value for name, value in scales.items() if ".encoder." not in name}
    assert rest == {1.0}


def test_positions_learn_from_their_sine_cosine_values():
    task = made().task
    before = task.network.encoder.positions
    assert isinstance(before, torch.nn.Parameter)
    task(example(), context()).loss.backward()
    assert before.grad.abs().sum() > 0


def test_a_frozen_encoder_neither_learns_nor_drops_paths():
    task = made(freeze_encoder=True, drop_path=0.9).task.train()
    task(example(), context()).loss.backward()
    assert all(p.grad is None for p in task.network.encoder.parameters())
    assert all(p.grad is not None for name, p in task.named_parameters() if ".encoder." not in name)
    x = example().views["view"].x_BCDHW
    assert torch.equal(task.network(x), task.network(x))


def test_drop_path_is_drawn_from_the_step_alone():
    task = made(drop_path=0.9).task.train()
    first = task(example(), context()).loss
    torch.manual_seed(99)
    assert torch.equal(task(example(), context()).loss, first)


def test_pictures_show_the_slice_with_most_labels():
    task = made().task.eval()
    batch = example((0,))
    label = batch.views["view"].label_B1DHW
    label[1, 0, 6, :4] = 3
    label[0, 0, 2, 0] = 1
    panels = dict(task(batch, context(pictures=True)).pictures["segmentation"].panels)
    assert (panels["reference"] == label[1, 0, 6].numpy()).all()
    assert (panels["image"] == batch.views["view"].x_BCDHW[1, 0, 6].numpy()).all()
    assert panels["prediction"].shape == (8, 8)


def test_two_dimensional_views():
    encoder = {"size": "T", "patch": [4, 4], "depth": 2}
    task = made(encoder=encoder, views={"size": [8, 16]}).task
    output = task(example(size=(8, 16)), context(pictures=True))
    assert torch.isfinite(output.loss)
    assert output.pictures["segmentation"].panels[2][1].shape == (8, 16)


def test_pretrained_weights_arrive(pretraining):
    folder, weights = pretraining
    built = made(pretrained=str(folder), views={"size": [8, 12, 8]})
    encoder = built.task.network.encoder
    assert torch.equal(encoder.blocks[1].qkv.weight, weights["blocks.1.qkv.weight"])
    expected = interpolate(weights["positions"], (2, 2, 2), (2, 3, 2))
    torch.testing.assert_close(encoder.positions.detach(), expected)
    assert (built.normalise.name, encoder.drop_path) == ("percentile", 0.1)
    assert list(built.transfer.adapted) == ["positions"]
    assert made(pretrained=str(folder), normalise={"name": "zscore"}).normalise.name == "zscore"


def test_scratch_takes_architecture_and_normalisation_and_the_same_decoder(pretraining):
    folder, weights = pretraining
    arms = [made(pretrained=str(folder), scratch=scratch) for scratch in (False, True)]
    assert arms[1].transfer is None
    assert arms[0].normalise == arms[1].normalise
    states = [arm.task.state_dict() for arm in arms]
    differing = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert differing
    assert all(name.startswith("network.encoder.") for name in differing)
    assert not torch.equal(states[1]["network.encoder.patch_embed.weight"], weights["patch_embed.weight"])


def test_four_channels_from_one(pretraining):
    folder, _ = pretraining
    task = made(pretrained=str(folder), channels=4).task
    assert torch.isfinite(task(example(channels=4), context()).loss)


def test_a_view_that_the_patch_does_not_divide_is_refused(pretraining):
    with pytest.raises(ConfigError, match="10 along y"):
        made(pretrained=str(pretraining[0]), views={"size": [8, 10, 8]})


def test_label_panels_show_single_voxels():
    task = made().task.eval()
    picture = task(example((0,)), context(pictures=True)).pictures["segmentation"]
    assert picture.limits == {1: (0.0, 3.0)}  # label values are 1 and 3
    assert (picture.scales[0], picture.scales[1:]) == (0, (1, 1))


def test_the_logged_dice_is_that_of_all_devices():
    task = made().task.train()
    task.network.forward = lambda x, generator: torch.tensor([0.0, 9, 0]).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    label = torch.tensor([0, 0, 0, 3]).view(1, 1, 1, 4)
    views = Views(torch.zeros(1, 1, 1, 4), torch.ones_like(label, dtype=torch.bool), label, torch.zeros(1, 2, 3))
    other = torch.tensor([[2.0 * 4, 0], [4 + 4, 0]])  # the other device saw class 1 everywhere, and found it
    ctx = StepContext(torch.Generator(), all_reduce=lambda counts: (counts + other) / 2)
    for _ in range(3):
        scalars = task(Batch({"view": views}, ["a"], torch.arange(1)), ctx).scalars
        assert scalars["dice/anterior"].item() == pytest.approx(2 * 4 / (4 + 8))
        assert scalars["dice/posterior"].item() == 0


def test_the_logged_dice_does_not_fade_while_a_class_is_out_of_view():
    task = made().task.train()
    task.overlap_2K = torch.tensor([[0.0, 0.3], [0.0, 0.5]])
    task.network.forward = lambda x, generator: torch.tensor([9.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    label = torch.zeros(1, 1, 1, 4, dtype=torch.int64)
    views = Views(torch.zeros(1, 1, 1, 4), torch.ones_like(label, dtype=torch.bool), label, torch.zeros(1, 2, 3))
    scalars = task(Batch({"view": views}, ["a"], torch.arange(1)), context()).scalars
    assert scalars["dice/posterior"].item() == pytest.approx(0.6)
    assert scalars["dice/anterior"].item() == 0
