"""Residual encoder U-Net against its mathematics written out with functions, and against nnU-Net's names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prevox.config.models import ResEncConfig
from prevox.errors import ConfigError
from prevox.models.resenc.aliases import from_nnunet, to_nnunet
from prevox.models.resenc.network import ResEncUNet
from prevox.models.resenc.settings import resenc_settings, total_strides

pytestmark = pytest.mark.unit

# Names and shapes of dynamic-network-architectures 0.4.4: ResidualEncoderUNet(2, 3, features, Conv3d, kernels, strides,
# blocks, 3, [1, 1], conv_bias=True, norm_op=InstanceNorm3d, affine, deep_supervision=True) with the settings below.
GOLDEN = Path(__file__).parents[2] / "golden" / "resenc_nnunet.json"
SMALL: dict[str, Any] = {
    "channels": 2,
    "classes": 3,
    "features": [4, 6, 8],
    "blocks": [1, 2, 2],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
}


def small(**changes: Any) -> ResEncUNet:
    torch.manual_seed(0)
    network = ResEncUNet(**{**SMALL, **changes})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def conv_norm(w: dict[str, Tensor], name: str, x: Tensor, stride: Any = 1, act: bool = True) -> Tensor:
    weight = w[f"{name}.conv.weight"]
    x = functional.conv3d(x, weight, w.get(f"{name}.conv.bias"), stride, [k // 2 for k in weight.shape[2:]])
    mean, var = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), keepdim=True, unbiased=False)
    x = (x - mean) / (var + 1e-5).sqrt()
    x = x * w[f"{name}.norm.weight"].view(-1, 1, 1, 1) + w[f"{name}.norm.bias"].view(-1, 1, 1, 1)
    return torch.where(x > 0, x, 0.01 * x) if act else x


def written_out(w: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """nnU-Net's network with deep supervision, from its state dict; finest output first."""
    x, maps = conv_norm(w, "encoder.stem.convs.0", x), []
    for s, (count, stride) in enumerate(zip(SMALL["blocks"], SMALL["strides"], strict=True)):
        for b in range(count):
            at, t = f"encoder.stages.{s}.blocks.{b}", stride if b == 0 else [1, 1, 1]
            y = conv_norm(w, f"{at}.conv2", conv_norm(w, f"{at}.conv1", x, t), act=False)
            pooled = max(t) > 1
            short = functional.avg_pool3d(x, t) if pooled else x
            if (projection := f"{at}.skip.{int(pooled)}") + ".conv.weight" in w:
                short = conv_norm(w, projection, short, act=False)
            x = functional.leaky_relu(y + short, 0.01)
        maps.append(x)
    outputs = []
    for s in range(2):
        stride = SMALL["strides"][-1 - s]
        up = functional.conv_transpose3d(
            x, w[f"decoder.transpconvs.{s}.weight"], w[f"decoder.transpconvs.{s}.bias"], stride
        )
        x = conv_norm(w, f"decoder.stages.{s}.convs.0", torch.cat([up, maps[1 - s]], 1))
        outputs.append(functional.conv3d(x, w[f"decoder.seg_layers.{s}.weight"], w[f"decoder.seg_layers.{s}.bias"]))
    return outputs[::-1]


def test_outputs_equal_the_mathematics_written_out() -> None:
    network, x = small(deep_supervision=True).double(), torch.randn(2, 2, 4, 16, 8).double()
    want = written_out(dict(network.state_dict()), x)
    for got, expected in zip(network(x), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    plain = small().double()
    torch.testing.assert_close(plain(x), want[0], rtol=1e-9, atol=1e-9)


def test_only_what_is_evaluated_is_trained() -> None:
    for supervised, frozen in ((True, []), (False, ["decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"])):
        network = small(deep_supervision=supervised)
        assert [n for n, p in network.named_parameters() if not p.requires_grad] == frozen


def test_names_and_shapes_are_nnunets_with_every_alias() -> None:
    weights = small().state_dict()
    full = to_nnunet(weights)
    assert {name: list(tensor.shape) for name, tensor in full.items()} == json.loads(GOLDEN.read_text())
    for name, tensor in full.items():
        base = name.removeprefix("decoder.") if "decoder.encoder" in name else name
        base = base.replace("all_modules.0", "conv").replace("all_modules.1", "norm")
        assert tensor.data_ptr() == weights[base].data_ptr()
    back = from_nnunet(full)
    assert list(back) == list(weights)
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_an_alias_with_other_values_is_refused() -> None:
    full = to_nnunet(small().state_dict())
    stale = "encoder.stem.convs.0.all_modules.0.weight"
    with pytest.raises(ConfigError, match=rf"'{stale}' differs"):
        from_nnunet({**full, stale: full[stale] + 1})


def test_a_residual_branch_starts_at_zero() -> None:
    network = ResEncUNet(**SMALL)
    branches = [block.conv2.norm.weight for stage in network.encoder.stages for block in stage.blocks]
    assert not any(weight.any() for weight in branches)


# settings


def test_presets_are_nnunets() -> None:
    for size in ("M", "L", "XL"):
        settings = resenc_settings(ResEncConfig(size=size), (160, 160, 160), 1, 1)
        assert settings["features"] == [32, 64, 128, 256, 320, 320]
        assert settings["blocks"] == [1, 3, 4, 6, 6, 6]
        assert total_strides(settings["strides"])[-1] == (32, 32, 32)
    with torch.device("meta"):
        network = ResEncUNet(**settings)
    assert sum(p.numel() for p in network.encoder.parameters()) == pytest.approx(90.3e6, rel=1e-3)  # published figure
    assert sum(p.numel() for p in network.decoder.parameters()) == pytest.approx(12.05e6, rel=2e-3)


def test_settings_per_axis_and_in_two_dimensions() -> None:
    config = ResEncConfig.parse({"size": "S", "stages": 2, "features": [4, 8], "blocks": [1, 1], "strides": [1, "1x2"]})
    settings = resenc_settings(config, (6, 8), 1, 2)
    assert settings["strides"] == [[1, 1], [1, 2]]
    assert settings["kernels"] == [[3, 3], [3, 3]]
    assert ResEncUNet(**settings)(torch.randn(1, 1, 6, 8)).shape == (1, 2, 6, 8)
    assert ResEncConfig.parse({"strides": [1, [1, 2, 2]]}).strides == ("1", "1x2x2")


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"features": [4, 8]}, (8, 8, 8), "features has 2 entries and the network 4 stages"),
        ({"kernels": [3, 3, 2, 3]}, (8, 8, 8), r"kernels: found \[2, 2, 2\]; expected odd"),
        ({"strides": [1, 2, 2, "2x2"]}, (8, 8, 8), "'2x2' has 2 numbers and the views have 3 axes"),
        ({}, (8, 12, 8), "views.size is 12 along y, .* total stride of 8 .* 8 and 16"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], size: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resenc_settings(ResEncConfig.parse({"size": "S", **settings}), size, 1, 1)
