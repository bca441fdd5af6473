"""Every registered backbone goes through the same checks."""

import json
from typing import Any

import pytest
import torch

from prevox.config.models import ResEncConfig, ViTConfig
from prevox.methods.registry import resolve
from prevox.models.registry import MODELS, build_model
from prevox.models.resenc.settings import resenc_settings
from prevox.models.vit import vit_settings

pytestmark = pytest.mark.contract

# Small settings of each backbone for views of SIZE (3D) and SIZE[1:] (2D); a backbone without a line here fails the
# first test.
SIZE = (16, 24, 16)


def tiny_vit(size: tuple[int, ...], channels: int) -> dict[str, Any]:
    return vit_settings(ViTConfig(size="T", patch=(8,) * len(size), depth=2, drop_path=0.1), size, channels)


def tiny_resenc(size: tuple[int, ...], channels: int) -> dict[str, Any]:
    config = ResEncConfig(size="S", stages=3, features=(4, 6, 8), blocks=(1, 2, 1))
    return resenc_settings(config, size, channels, classes=2)


TINY = {"vit": tiny_vit, "resenc": tiny_resenc}


def test_every_model_has_tiny_settings() -> None:
    assert set(TINY) == set(MODELS)


@pytest.fixture(params=sorted(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("size", [SIZE, SIZE[1:]])
@pytest.mark.parametrize("channels", [1, 4])
def test_maps_of_native_and_larger_views(name: str, size: tuple[int, ...], channels: int) -> None:
    torch.manual_seed(0)
    network = build_model(name, TINY[name](size, channels)).eval()
    for scale in (1, 2):
        maps = network.forward_features(torch.randn(2, channels, *(n * scale for n in size)))
        for features in maps:
            assert features.shape[0] == 2
            assert features.ndim == 2 + len(size)
            assert features.isfinite().all()


def test_the_specification_rebuilds_the_network(name: str) -> None:
    settings = TINY[name](SIZE, 2)
    torch.manual_seed(0)
    network = build_model(name, settings).eval()
    again = build_model(name, json.loads(json.dumps(settings))).eval()
    again.load_state_dict(network.state_dict(), strict=True)
    x = torch.randn(1, 2, *SIZE)
    for got, want in zip(again.forward_features(x), network.forward_features(x), strict=True):
        assert torch.equal(got, want)


def test_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    network = build_model(name, TINY[name](SIZE, 1)).train()
    x = torch.randn(8, 1, *SIZE)
    outputs = [*network.forward_features(x), network(x)]  # a network with a decoder of its own has it in `forward`
    sum(m.square().sum() for m in outputs).backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_samples_of_a_batch_do_not_mix(name: str) -> None:
    torch.manual_seed(0)
    network = build_model(name, TINY[name](SIZE, 1)).eval()
    x = torch.randn(3, 1, *SIZE)
    together = network.forward_features(x)[-1]
    alone = torch.cat([network.forward_features(one.unsqueeze(0))[-1] for one in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_layers_are_numbered_from_the_input_to_the_output(name: str) -> None:
    network = build_model(name, TINY[name](SIZE, 1))
    indices = {network.layer_index(n) for n, _ in network.named_parameters()}
    assert indices == set(range(network.depth + 2))


def test_the_settings_schema_has_a_default(name: str) -> None:
    assert resolve(MODELS[name].config)().name == name
