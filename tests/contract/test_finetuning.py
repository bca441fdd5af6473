"""Every registered backbone can be fine-tuned, saved, loaded and run window by window."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prevox.config.data import NormaliseConfig
from prevox.config.runs import finetune_schema
from prevox.finetuning.network_io import describe_network, load_network
from prevox.finetuning.segmentation import Segmentation, build
from prevox.inference.sliding_window import sliding_window
from prevox.models.registry import MODELS
from prevox.task import Batch, StepContext, Views

pytestmark = pytest.mark.contract

# Small settings of each backbone; one without a line here fails the first test.
TINY: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit", "size": "T", "depth": 2},
    "resenc": {"name": "resenc", "size": "S", "stages": 3, "features": [4, 6, 8], "blocks": [1, 1, 1]},
}
SIZES = [(8, 16, 8), (16, 8)]
CLASSES = {str(number): f"class {number}" for number in range(1, 12)}  # more outputs than features: the head may wait


def test_every_model_has_tiny_settings() -> None:
    assert set(TINY) == set(MODELS)


@pytest.fixture(params=sorted(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(name: str, size: tuple[int, ...], classes: int = 2, **over: Any) -> Segmentation:
    encoder = {**TINY[name], **({"patch": (4,) * len(size)} if name == "vit" else {})}
    decoder = {"decoder": {"features": 4}} if name == "vit" else {}
    settings = {"store": "s", "out": "o", "train": {"steps": 1}, "views": {"size": size}, "encoder": encoder}
    config = finetune_schema(name).parse({**settings, **decoder, **over})
    names = dict(list(CLASSES.items())[:classes])
    return build(config, channels=2, class_names=names, label_values=range(classes + 1)).task


def example(size: tuple[int, ...], classes: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, *size, generator=generator)
    label = torch.randint(0, classes + 1, (2, 1, *size), generator=generator)
    views = Views(x, torch.ones_like(label, dtype=torch.bool), label, torch.zeros(2, 2, 3, dtype=torch.long))
    return Batch({"view": views}, ["a", "b"], torch.arange(2))


def step(task: Segmentation, size: tuple[int, ...]) -> torch.Tensor:
    return task(example(size), StepContext(torch.Generator().manual_seed(0))).loss


@pytest.mark.parametrize("size", SIZES)
def test_everything_that_is_trained_has_a_gradient(name: str, size: tuple[int, ...]) -> None:
    task = made(name, size)
    step(task, size).backward()
    assert [key for key, p in task.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_has_none(name: str, frozen: bool) -> None:
    task = made(name, SIZES[0], freeze_encoder=frozen).train()
    step(task, SIZES[0]).backward()
    waits = {key: p.grad is not None for key, p in task.named_parameters() if task.waits(key)}
    rest = {key: p.grad is not None for key, p in task.named_parameters() if p.requires_grad and not task.waits(key)}
    assert waits
    assert any(waits.values()) is not frozen
    assert all(rest.values())
    assert task.network.encoder.training is not frozen


def test_layers_learn_faster_towards_the_output(name: str) -> None:
    task = made(name, SIZES[0], layer_decay=0.5)
    scales = {key: task.layer_scale(key) for key, _ in task.named_parameters()}
    assert {scale for key, scale in scales.items() if not task.waits(key)} == {1.0}
    inside = {scale for key, scale in scales.items() if task.waits(key)}
    depth = task.network.depth
    assert inside - {1.0} == {0.5 ** (depth + 1 - i) for i in range(depth + 1)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("classes", [2, 11])
def test_saved_and_loaded_it_answers_the_same_window_by_window(
    name: str, size: tuple[int, ...], classes: int, tmp_path: Path
) -> None:
    task = made(name, size, classes)
    checkpoint = tmp_path / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    prepare = {"crop": "none", "order": 3, "spacing": None}
    description = describe_network(task, NormaliseConfig(), prepare, None)
    (tmp_path / "network.json").write_text(json.dumps(description))
    save_file(task.state_dict(), checkpoint / "task.safetensors")
    loaded = load_network(tmp_path)

    x = torch.randn(1, 2, *size)
    with torch.no_grad():
        expected = task.eval().network(x)
    body, head = loaded.network.parts()
    assert (head is not None) is (classes == 11)
    volume = x if len(size) == 3 else x.unsqueeze(2)
    found = torch.cat(list(sliding_window(body, volume, loaded.size, 0.5, 2, "cpu")), dim=1)
    found = found if head is None else head(found)
    torch.testing.assert_close(found.view(expected[0].shape), expected[0], atol=1e-5, rtol=1e-5)
