import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from prevox.console import console
from prevox.errors import ConfigError, RunError
from prevox.models.adapt import TransferReport, adapt, read_pretrained
from prevox.models.positions import sincos
from prevox.models.vit import ViT, patchify
from prevox.task import ModelSpec

pytestmark = pytest.mark.unit


def spec(grid=(6, 6, 6), patch=(16, 16, 16), channels=1, width=12, **more):
    common = {"grid": list(grid), "patch": list(patch), "channels": channels, "width": width, "depth": 1, "heads": 2}
    return ModelSpec("vit", {**common, **more})


def built(model):
    torch.manual_seed(1)
    return ViT(**model.settings)


def test_nothing_changes_between_equal_networks():
    source = spec()
    weights = built(source).state_dict()
    result, report = adapt(weights, source, spec(drop_path=0.1))
    assert set(report.loaded) == set(weights)
    assert (report.adapted, report.missing, report.unexpected) == ({}, [], [])
    assert all(torch.equal(result[name], weights[name]) for name in weights)


def test_positions_go_from_a_96_to_a_128_grid():
    source, target = spec((6, 6, 6)), spec((8, 8, 8))
    result, report = adapt(built(source).state_dict(), source, target)
    volume = sincos((6, 6, 6), 12).reshape(6, 6, 6, 12).permute(3, 0, 1, 2)[None]
    expected = torch.nn.functional.interpolate(volume, size=(8, 8, 8), mode="trilinear", align_corners=False)
    torch.testing.assert_close(result["positions"].reshape(8, 8, 8, 12).permute(3, 0, 1, 2), expected[0])
    assert report.adapted == {"positions": "interpolated from grid [6, 6, 6] to [8, 8, 8]"}
    built(target).load_state_dict(result)


def test_one_channel_repeated_answers_as_before():
    source, target = spec(patch=(2, 4, 2), grid=(2, 2, 2)), spec(patch=(2, 4, 2), grid=(2, 2, 2), channels=4)
    result, report = adapt(built(source).state_dict(), source, target)
    old, new = built(source), built(target)
    new.load_state_dict(result)
    x = torch.randn(2, 1, 4, 8, 4)
    response = new.patch_embed(patchify(x.expand(-1, 4, -1, -1, -1), (2, 4, 2)))
    torch.testing.assert_close(response, old.patch_embed(patchify(x, (2, 4, 2))), rtol=1e-5, atol=1e-5)
    assert list(report.adapted) == ["patch_embed.weight"]


def test_channels_summed_answer_as_the_repeated_image_did():
    source, target = spec(patch=(2, 4, 2), grid=(2, 2, 2), channels=3), spec(patch=(2, 4, 2), grid=(2, 2, 2))
    result, _ = adapt(built(source).state_dict(), source, target)
    old, new = built(source), built(target)
    new.load_state_dict(result)
    x = torch.randn(2, 1, 4, 8, 4)
    before = old.patch_embed(patchify(x.expand(-1, 3, -1, -1, -1), (2, 4, 2)))
    torch.testing.assert_close(new.patch_embed(patchify(x, (2, 4, 2))), before, rtol=1e-5, atol=1e-5)


def test_class_token_and_final_norm_may_come_or_go():
    with_both, without = spec(), spec(class_token=False, final_norm=False)
    _, report = adapt(built(with_both).state_dict(), with_both, without)
    assert set(report.unexpected) == {"class_token", "norm.weight", "norm.bias"}
    _, report = adapt(built(without).state_dict(), without, with_both)
    assert set(report.missing) == {"class_token", "norm.weight", "norm.bias"}


def test_report_is_shown_and_plain():
    source, target = spec(), spec((8, 8, 8), class_token=False)
    _, report = adapt(built(source).state_dict(), source, target)
    with console.capture() as capture:
        report.show()
    shown = capture.get()
    assert "class_token" in shown
    assert "blocks.*.qkv.weight" in shown
    assert json.loads(json.dumps(report.plain()))["unexpected"] == ["class_token"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 24}, "width.* 12 .* 24"),
        ({"depth": 3}, "depth.* 1 .* 3"),
        ({"patch": (8, 8, 8)}, r"patch.*\[16, 16, 16\].*\[8, 8, 8\]"),
    ],
)
def test_what_cannot_be_fitted_names_key_and_both_values(change, words):
    with pytest.raises(ConfigError, match=words):
        adapt(built(spec()).state_dict(), spec(), spec(**change))


def test_two_to_three_channels_have_no_meaning():
    source = spec(channels=2, patch=(2, 2, 2))
    with pytest.raises(ConfigError, match=r"has 2 and .* have 3"):
        adapt(built(source).state_dict(), source, spec(channels=3, patch=(2, 2, 2)))


def write_pretrained(folder, value, metadata=None):
    folder.mkdir(parents=True)
    header = {"spec": json.dumps({"name": "vit", "settings": spec().settings}), "normalise": '{"name": "zscore"}'}
    save_file({"class_token": torch.full((12,), value)}, folder / "pretrained.safetensors", metadata or header)


def test_run_checkpoint_and_file_are_read_and_the_newest_wins(tmp_path):
    write_pretrained(tmp_path / "checkpoints" / "step_00000900", 9.0)
    write_pretrained(tmp_path / "checkpoints" / "step_00001000", 10.0)
    write_pretrained(tmp_path / "checkpoints" / "step_00002000.partial", 20.0)
    (tmp_path / "checkpoints" / "step_00003000").mkdir()
    weights, model, extra = read_pretrained(tmp_path)
    assert weights["class_token"][0] == 10
    assert model == ModelSpec("vit", spec().settings)
    assert extra == {"normalise": {"name": "zscore"}}
    older = tmp_path / "checkpoints" / "step_00000900"
    assert read_pretrained(older)[0]["class_token"][0] == 9
    assert read_pretrained(older / "pretrained.safetensors")[0]["class_token"][0] == 9


def test_files_that_are_no_hand_over_are_refused(tmp_path):
    write_pretrained(tmp_path / "foreign", 1.0, {"format": "pt"})
    with pytest.raises(RunError, match="no 'spec' in its header"):
        read_pretrained(tmp_path / "foreign")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((tmp_path / "foreign" / "pretrained.safetensors").read_bytes()[:-5])
    with pytest.raises(RunError, match=r"broken.safetensors: not a readable safetensors file"):
        read_pretrained(broken)
    with pytest.raises(RunError, match="does not exist"):
        read_pretrained(tmp_path / "absent")
    with pytest.raises(RunError, match="has neither"):
        read_pretrained(tmp_path)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a file was unpickled",))


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "pretrained.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RunError):
        read_pretrained(path)


def test_names_with_brackets_are_no_markup(capsys):
    TransferReport(loaded=["a[/b]"], adapted={"c[/d]": "[/e]"}, missing=["f[/g]"], unexpected=["h[/i]"]).show()
    said = capsys.readouterr().out
    assert [name for name in ("a[/b]", "c[/d]: [/e]", "f[/g]", "h[/i]") if name not in said] == []
