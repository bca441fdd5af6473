import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import prevox
from prevox.config.tools import ExportConfig
from prevox.errors import ConfigError, RunError
from prevox.exporting.nnunet import export
from prevox.models.resenc.network import ResEncUNet

pytestmark = pytest.mark.unit
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "resenc_nnunet.json").read_text())
# the network of the golden list, which was made by nnU-Net's own package
NETWORK: dict[str, Any] = {
    "channels": 2,
    "classes": 3,
    "features": [4, 6, 8],
    "blocks": [1, 2, 2],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "decoder_convs": 1,
}
STEM = "encoder.stem.convs.0.conv.weight"


def run_folder(folder: Path, network: dict[str, Any], name: str = "resenc", **metadata: Any) -> Path:
    torch.manual_seed(0)
    weights = {key: torch.randn_like(value) for key, value in ResEncUNet(**network).state_dict().items()}
    told = {"size": [16, 32, 32], "spacing": [3.0, 1.0, 0.5], "normalise": {"name": "zscore"}, **metadata}
    header = {key: json.dumps(value) for key, value in told.items() if value is not None}
    save_file(
        weights, folder / "pretrained.safetensors", header | {"spec": json.dumps({"name": name, "settings": network})}
    )
    return folder


def exported(tmp_path: Path, **over: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    words = {"target": "nnunet", "run": tmp_path, "out": tmp_path / "out", "dataset": "Dataset004_Hippocampus", **over}
    export(ExportConfig.parse(words))
    checkpoint = torch.load(tmp_path / "out" / "checkpoint_pretrained.pth", weights_only=True)
    return checkpoint["network_weights"], json.loads((tmp_path / "out" / "prevoxPlans.json").read_text())


def test_every_name_of_nnunets_network_is_there_with_its_shape_and_aliases_are_one_tensor(tmp_path: Path) -> None:
    weights, _ = exported(run_folder(tmp_path, NETWORK))
    assert {name: list(tensor.shape) for name, tensor in weights.items()} == GOLDEN
    ours = ResEncUNet(**NETWORK).state_dict()
    for name, tensor in weights.items():
        plain = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
        plain = plain.replace("all_modules.0.", "conv.").replace("all_modules.1.", "norm.")
        assert plain in ours
        assert tensor.data_ptr() == weights[plain].data_ptr(), name  # the very same memory


def test_the_stem_is_repeated_and_divided(tmp_path: Path) -> None:
    run = run_folder(tmp_path, {**NETWORK, "channels": 1})
    one, _ = exported(run)
    three, plans = exported(run, channels=3)
    assert torch.equal(three[STEM], one[STEM].expand(-1, 3, -1, -1, -1) / 3)
    settings = plans["configurations"]["3d_fullres"]
    assert settings["normalization_schemes"] == ["ZScoreNormalization"] * 3
    assert len(plans["foreground_intensity_properties_per_channel"]) == 3


def test_plans_hold_what_the_pre_training_had(tmp_path: Path) -> None:
    _, plans = exported(run_folder(tmp_path, NETWORK), batch=3)
    assert plans["dataset_name"] == "Dataset004_Hippocampus"
    settings = plans["configurations"]["3d_fullres"]
    assert (settings["patch_size"], settings["spacing"], settings["batch_size"]) == ([16, 32, 32], [3.0, 1.0, 0.5], 3)
    network = settings["architecture"]["arch_kwargs"]
    assert network["n_stages"] == 3
    assert network["strides"] == NETWORK["strides"]
    assert network["kernel_sizes"] == NETWORK["kernels"]
    assert network["n_blocks_per_stage"] == [1, 2, 2]
    assert network["n_conv_per_stage_decoder"] == [1, 1]


def test_a_window_is_nnunets_ct_scheme_with_its_ends(tmp_path: Path) -> None:
    """Its scheme: clip to the percentiles, subtract the mean, divide by the deviation. -1000 .. 1000 become 0 .. 1."""
    window = {"name": "window", "window": [-1000, 1000]}
    _, plans = exported(run_folder(tmp_path, {**NETWORK, "channels": 1}, normalise=window))
    assert plans["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization"]
    told = plans["foreground_intensity_properties_per_channel"]["0"]
    for hu, expected in ((-2000, 0.0), (-1000, 0.0), (0, 0.5), (3000, 1.0)):
        clipped = min(max(hu, told["percentile_00_5"]), told["percentile_99_5"])
        assert (clipped - told["mean"]) / told["std"] == expected


@pytest.mark.parametrize(
    ("metadata", "over", "message"),
    [
        ({"normalise": {"name": "percentile"}}, {}, "'percentile', which nnU-Net does not know; expected one of"),
        ({"spacing": None}, {}, "Give --spacing Z Y X in mm"),
        ({}, {"spacing": [1.0, 2.0]}, r"spacing: found 2 number\(s\); expected 3"),
        ({}, {"channels": 3}, "has 2 and the images to fine-tune on have 3"),
        ({"name": "vit"}, {}, "holds a 'vit' network; nnU-Net takes a three-dimensional residual encoder U-Net"),
    ],
)
def test_what_nnunet_cannot_take_is_refused(tmp_path: Path, metadata: Any, over: Any, message: str) -> None:
    run = run_folder(tmp_path, NETWORK, **metadata)
    with pytest.raises(ConfigError, match=message):
        exported(run, **over)
    assert not (tmp_path / "out").exists()


def test_flat_networks_and_other_folders_are_refused(tmp_path: Path) -> None:
    flat = {**NETWORK, "strides": [[1, 1], [2, 2], [2, 2]], "kernels": [[3, 3]] * 3}
    with pytest.raises(ConfigError, match="'two-dimensional resenc'"):
        exported(run_folder(tmp_path, flat))
    with pytest.raises(RunError, match=r"prevox pretrain"):
        exported(tmp_path, run=tmp_path / "nothing")
    with pytest.raises(ConfigError, match="dataset"):
        exported(tmp_path, dataset="Hippocampus")


def test_the_function_can_be_called_more_than_once(tmp_path: Path) -> None:
    run = run_folder(tmp_path, NETWORK)
    for name in ("first", "second"):
        path = prevox.export(target="nnunet", run=run, out=tmp_path / name, dataset="Dataset004_Hippocampus")
        assert path.is_file()


def test_without_a_dataset_its_name_is_left_to_fill_in_and_said_so(tmp_path: Path, capsys: Any) -> None:
    _, plans = exported(run_folder(tmp_path, NETWORK), dataset=None)
    assert plans["dataset_name"] == "DatasetXXX_Name"
    assert "no --dataset given" in " ".join(capsys.readouterr().out.split())
    assert "put its name for DatasetXXX_Name in prevoxPlans.json" in (tmp_path / "out" / "README.txt").read_text()
    exported(tmp_path)
    assert "DatasetXXX" not in (tmp_path / "out" / "README.txt").read_text()


def test_z_scores_of_voxels_that_are_not_zero_use_nnunets_mask(tmp_path: Path) -> None:
    _, plans = exported(run_folder(tmp_path, NETWORK, normalise={"name": "zscore_nonzero"}))
    settings = plans["configurations"]["3d_fullres"]
    assert (settings["normalization_schemes"], settings["use_mask_for_norm"]) == (
        ["ZScoreNormalization"] * 2,
        [True] * 2,
    )
