"""Fine-tuning a residual encoder U-Net: transfer, deep supervision, what is trained when."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tests.unit.finetuning.test_segmentation import NAMES, context, example
from torch.nn import functional

from prevox.config.runs import finetune_schema
from prevox.errors import ConfigError
from prevox.finetuning.losses import class_losses, coarser
from prevox.finetuning.segmentation import build
from prevox.models.resenc.network import ResEncUNet

pytestmark = pytest.mark.unit

UNET = {
    "channels": 1,
    "classes": 1,
    "features": [4, 6, 8],
    "blocks": [1, 1, 2],
    "strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]],
    "kernels": [[3, 3, 3]] * 3,
    "decoder_convs": 1,
}
ENCODER = {
    "name": "resenc",
    "stages": 3,
    "features": [4, 6, 8],
    "blocks": [1, 1, 2],
    "strides": ["1", "2", "1x2x2"],
}


def made(channels=1, label_values=(0, 1, 3), **over):
    settings = {"store": "store", "out": "run", "train": {"steps": 1}, "views": {"size": [8, 8, 8]}, **over}
    if "pretrained" not in settings:
        settings.setdefault("encoder", ENCODER)
    config = finetune_schema("resenc").parse(settings)
    return build(config, channels=channels, class_names=NAMES, label_values=label_values)


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    torch.manual_seed(5)
    weights = {name: torch.randn_like(value) for name, value in ResEncUNet(**UNET).state_dict().items()}
    header = {"spec": json.dumps({"name": "resenc", "settings": UNET}), "normalise": '{"name": "percentile"}'}
    save_file(weights, folder / "pretrained.safetensors", header)
    return folder, weights


def test_the_network_from_scratch_is_what_the_settings_say():
    network = made().task.network
    assert network.features == (4, 6, 8)
    assert network.strides == [(1, 1, 1), (2, 2, 2), (2, 4, 4)]
    assert network.decoder.seg_layers[-1].out_channels == 3


def test_the_encoder_comes_along_and_the_decoder_does_not(pretraining):
    folder, weights = pretraining
    built, fresh = made(pretrained=folder), made(pretrained=folder, scratch=True)
    found, new = built.task.network.state_dict(), fresh.task.network.state_dict()
    assert built.normalise.name == "percentile"
    for name, value in found.items():
        assert torch.equal(value, weights[name] if name.startswith("encoder.") else new[name]), name
    stem = "encoder.stem.convs.0.conv.weight"
    assert not torch.equal(new[stem], weights[stem])
    assert all(name.startswith("decoder.") for name in built.transfer.missing)
    assert set(built.transfer.unexpected) == {name for name in weights if name.startswith("decoder.")}
    assert set(built.transfer.loaded) == {name for name in weights if name.startswith("encoder.")}


def test_with_the_decoder_all_but_the_output_layers_comes_along(pretraining):
    folder, weights = pretraining
    built, fresh = made(pretrained=folder, transfer="encoder_decoder"), made(pretrained=folder, scratch=True)
    new = fresh.task.network.state_dict()
    for name, value in built.task.network.state_dict().items():
        assert torch.equal(value, new[name] if "seg_layers" in name else weights[name]), name


def test_the_stem_is_repeated_and_divided_so_that_equal_channels_give_the_old_response(pretraining):
    folder, weights = pretraining
    network = made(channels=3, pretrained=folder).task.network
    stem = network.encoder.stem.convs[0].conv
    assert torch.equal(stem.bias, weights["encoder.stem.convs.0.conv.bias"])
    x = torch.randn(1, 1, 8, 8, 8)
    old = functional.conv3d(x, weights["encoder.stem.convs.0.conv.weight"], stem.bias, padding=1)
    torch.testing.assert_close(stem(x.expand(1, 3, 8, 8, 8)), old)


def test_of_two_outputs_the_coarser_one_has_no_weight():
    task = made(deep_supervision=True).task
    batch = example()
    views = batch.views["view"]
    views.valid_B1DHW[:, :, 6:] = False
    outputs = task.network(views.x_BCDHW)
    assert [tuple(y.shape[2:]) for y in outputs] == [(8, 8, 8), (4, 4, 4)]  # three stages: two maps are decoded
    index = task.scheme.encode_classes(views.label_B1DHW, "")
    dice, entropy = class_losses(outputs[0], index, views.valid_B1DHW)
    found = task(batch, context())
    torch.testing.assert_close(found.loss, dice.mean() + entropy)  # the coarser of two has no weight
    assert not task.network.decoder.seg_layers[0].weight.requires_grad
    assert task.network.decoder.seg_layers[1].weight.requires_grad


def test_the_only_output_of_two_stages_is_trained():
    encoder = {**ENCODER, "stages": 2, "features": [4, 4], "blocks": [1, 1], "strides": ["1", "2"]}
    task = made(deep_supervision=True, encoder=encoder).task
    task(example(), context()).loss.backward()
    assert task.network.decoder.seg_layers[0].weight.grad.abs().sum() > 0


def test_three_outputs_are_weighted_two_to_one_to_none():
    encoder = {**ENCODER, "stages": 4, "features": [4, 4, 4, 4], "blocks": [1] * 4, "strides": ["1", "2", "2", "2"]}
    task = made(deep_supervision=True, encoder=encoder, views={"size": [16, 8, 8]}).task
    batch = example(size=(16, 8, 8))
    views = batch.views["view"]
    index = task.scheme.encode_classes(views.label_B1DHW, "")
    expected = 0.0
    for level, weight in enumerate((2 / 3, 1 / 3)):
        logits = task.network(views.x_BCDHW)[level]
        # as torch's nearest-exact, which is what nnU-Net resizes labels with
        there = functional.interpolate(index.float(), logits.shape[2:], mode="nearest-exact").long()
        dice, entropy = class_losses(logits, there, torch.ones_like(there, dtype=torch.bool))
        expected = expected + weight * (dice.mean() + entropy)
    found = task(batch, context()).loss
    torch.testing.assert_close(found, expected)
    found.backward()
    grads = [layer.weight.grad is not None for layer in task.network.decoder.seg_layers]
    assert grads == [False, True, True]


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 4), (1, 1, 1)])
def test_coarser_targets_are_the_nearest_voxels(factors):
    label = torch.arange(4 * 8 * 8).view(1, 1, 4, 8, 8)
    size = [n // f for n, f in zip(label.shape[2:], factors, strict=True)]
    expected = functional.interpolate(label.double(), size, mode="nearest-exact").long()
    assert torch.equal(coarser(label, size), expected)


def test_a_whole_step_learns_and_draws():
    task = made(deep_supervision=True).task
    batch = example()
    batch.views["view"].x_BCDHW += 3 * batch.views["view"].label_B1DHW
    optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    losses = []
    for _ in range(25):
        output = task(batch, context(pictures=True))
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert [title for title, _ in output.pictures["segmentation"].panels] == ["image", "reference", "prediction"]


def test_what_waits_and_how_fast_layers_learn():
    task = made(layer_decay=0.5).task
    assert {name.split(".")[1] for name, _ in task.named_parameters() if task.waits(name)} == {"encoder"}
    assert task.layer_scale("network.encoder.stem.convs.0.conv.weight") == 0.5**4  # 3 stages, so n + 1 = 4
    assert task.layer_scale("network.encoder.stages.2.blocks.0.conv1.conv.weight") == 0.5
    assert task.layer_scale("network.decoder.transpconvs.0.weight") == 1
    assert {made().task.layer_scale(name) for name, _ in task.named_parameters()} == {1.0}  # none by itself


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"decoder": {"features": 4}}, ["decoder", "UNETR", "resenc"]),
        ({"views": {"size": [8, 8, 6]}}, ["views.size is 6 along x", "4", "8"]),
        ({"views": {"size": [8, 8]}}, ["views.size has 2 numbers", "3 axes"]),
        ({"views": {"size": [2, 4, 4]}}, ["views.size is [2, 4, 4]", "single site"]),
    ],
)
def test_what_does_not_fit_is_refused(over, words, pretraining):
    with pytest.raises(ConfigError) as caught:
        made(pretrained=pretraining[0], **over)
    for word in words:
        assert word in str(caught.value)


def test_weights_of_another_u_net_are_refused(pretraining, tmp_path):
    _, weights = pretraining
    other = {**UNET, "features": [4, 6, 10]}  # the header says what the weights are not
    header = {"spec": json.dumps({"name": "resenc", "settings": other})}
    save_file(weights, tmp_path / "pretrained.safetensors", header)
    with pytest.raises(ConfigError, match="has shape"):
        made(pretrained=tmp_path)


@pytest.mark.parametrize("over", [{"deep_supervision": True}, {"transfer": "encoder_decoder"}])
def test_a_transformer_refuses_what_only_a_u_net_has(over):
    config = finetune_schema().parse(
        {"store": "s", "out": "o", "train": {"steps": 1}, "views": {"size": [16] * 3}, "encoder": {"size": "T"}, **over}
    )
    with pytest.raises(ConfigError, match=next(iter(over))):
        build(config, channels=1, class_names=NAMES, label_values=(0, 1, 3))


def test_only_a_drop_path_that_was_asked_for_is_warned_of(capsys):
    made(drop_path=0.1)  # as the command line hands it over, given or not
    assert "drop_path" not in capsys.readouterr().out
    made(drop_path=0.3)
    assert "drop_path is ignored: a U-Net has none" in capsys.readouterr().out


def test_settings_of_a_transfer_without_weights_are_warned_of(pretraining, capsys):
    made(pretrained=pretraining[0], scratch=True, transfer="encoder_decoder", decoder_first=0.5, train={"steps": 4})
    printed = " ".join(capsys.readouterr().out.split())
    assert "transfer is ignored" in printed
    assert "decoder_first: the encoder that is held still has random weights" in printed
