"""Every registered pre-training method goes through the same checks, built through the registry like in a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.saved import count_saved
from safetensors.torch import load, save
from torch import Tensor

from prevox.config.data import NormaliseConfig, ViewsConfig
from prevox.config.models import ResEncConfig, ViTConfig
from prevox.config.runs import pretrain_schema
from prevox.config.train import ProbeConfig
from prevox.data.store import Store
from prevox.methods.registry import METHODS, method_entry, resolve
from prevox.models.registry import build_model
from prevox.models.transformer import checkpoint_activations
from prevox.task import Batch, PretrainMethod, StepContext, ViewGroup, Views
from prevox.train.probe import Probe

pytestmark = pytest.mark.contract

# The smallest sensible settings of each method: method settings, backbone, size of a view, stride of the coarsest map.
# A method without a line here fails the first test.
TINY: dict[str, tuple[dict[str, Any], Any, tuple[int, ...], tuple[int, ...]]] = {
    "mae": (
        {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
        ViTConfig(size="T", patch=(8, 8, 8), depth=2),
        (16, 24, 16),
        (8, 8, 8),
    ),
    "s3d": (
        {},
        ResEncConfig(size="S", stages=3, features=(4, 6, 8), blocks=(1, 2, 1)),
        (16, 24, 16),
        (4, 4, 4),
    ),
    "glmae": (
        {
            "global_size": (24, 32, 24),
            "local_count": 3,
            "head_hidden": 16,
            "head_outputs": 12,
            "decoder_width": 24,
            "decoder_depth": 1,
            "decoder_heads": 2,
        },
        ViTConfig(size="T", patch=(8, 8, 8), depth=2),
        (16, 24, 16),
        (8, 8, 8),
    ),
}
COUNT = 2  # views of an image


def make_method(name: str, channels: int = 1, **changes: Any) -> PretrainMethod:
    settings, model, size, _ = TINY[name]
    model = model.model_copy(update=changes)
    entry = method_entry(name)
    torch.manual_seed(0)
    config = resolve(entry.config).parse(settings)
    method: PretrainMethod = resolve(entry.build)(config, model, ViewsConfig(size=size, count=COUNT), channels)
    return method


def make_views(group: ViewGroup, images: int, channels: int, seed: int = 0) -> Views:
    rng = torch.Generator().manual_seed(seed)
    n = images * group.count
    x = torch.randn(n, channels, *group.size, generator=rng)
    valid = torch.ones(n, 1, *group.size, dtype=torch.bool)
    box = torch.stack([torch.zeros(n, 3), torch.full((n, 3), 16)], dim=1).long()
    return Views(x, valid, None, box)


def make_batch(method: PretrainMethod, channels: int = 1, seed: int = 0) -> Batch:
    views = {name: make_views(group, 2, channels, seed) for name, group in method.views.items()}
    return Batch(views, ["first", "second"], torch.arange(2))


def context(seed: int = 0, pictures: bool = False) -> StepContext:
    return StepContext(torch.Generator().manual_seed(seed), progress=0.5, want_pictures=pictures)


def loss_of(method: PretrainMethod, batch: Batch, seed: int = 0) -> Tensor:
    return method(batch, context(seed)).loss


def test_every_method_has_tiny_settings() -> None:
    assert set(TINY) == set(METHODS)


@pytest.fixture(params=sorted(METHODS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_schema_of_a_run_takes_its_settings(name: str) -> None:
    config: Any = pretrain_schema(name).parse(
        {"store": "s", "out": "o", "train": {"steps": 1}, "method": {"name": name, **TINY[name][0]}}
    )
    assert config.method.name == name


@pytest.mark.parametrize("channels", [1, 4])
def test_the_loss_is_a_finite_scalar_that_reaches_every_parameter(name: str, channels: int) -> None:
    method = make_method(name, channels)
    with torch.no_grad():  # a branch that starts at exactly zero has parameters that learn from the second step on
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    output = method(make_batch(method, channels), context())
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    assert all(value.numel() == 1 and value.isfinite() for value in output.scalars.values())
    assert not any(value.requires_grad for value in output.scalars.values())
    output.loss.backward()
    deaf = [n for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert deaf == []


def test_the_generator_is_the_only_source_of_randomness(name: str) -> None:
    method = make_method(name)
    batch = make_batch(method)
    torch.manual_seed(1)
    first = loss_of(method, batch, seed=7)
    torch.manual_seed(2)
    assert torch.equal(first, loss_of(method, batch, seed=7))
    assert not torch.equal(first, loss_of(method, batch, seed=8))


def test_the_batch_is_left_as_it_was(name: str) -> None:
    method = make_method(name)
    batch, untouched = make_batch(method), make_batch(method)
    loss_of(method, batch)
    for group in method.views:
        assert torch.equal(batch.views[group].x_BCDHW, untouched.views[group].x_BCDHW)


def test_the_state_survives_a_round_trip_through_bytes(name: str) -> None:
    method, batch = make_method(name), None
    batch = make_batch(method)
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    output = method(batch, context())
    output.loss.backward()
    optimiser.step()
    method.after_update(0.5, output)
    torch.manual_seed(5)
    other = make_method(name)
    assert not torch.equal(loss_of(other, batch), loss_of(method, batch))
    other.load_state_dict(load(save({k: v.contiguous() for k, v in method.state_dict().items()})), strict=True)
    assert torch.equal(loss_of(other, batch), loss_of(method, batch))


def test_the_network_that_is_handed_over_can_be_built_again(name: str) -> None:
    method = make_method(name)
    pretrained = method.pretrained()
    network = build_model(pretrained.spec.name, pretrained.spec.settings)
    network.load_state_dict(pretrained.weights, strict=True)
    assert all(not value.requires_grad for value in pretrained.weights.values())
    size = TINY[name][2]
    x = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(3))
    method.eval()
    got, stride = method.features(x)[-1]
    assert torch.equal(network.eval().forward_features(x)[-1], got)
    assert stride == TINY[name][3]


def test_padding_changes_nothing(name: str) -> None:
    method = make_method(name)
    losses, gradients = [], []
    for filler in (0.0, 1e3, float("nan")):
        batch = make_batch(method)
        for views in batch.views.values():
            views.valid_B1DHW[0, ..., -5:] = False
            views.valid_B1DHW[1, ..., 3:, :] = False
            views.x_BCDHW = views.x_BCDHW.masked_fill(~views.valid_B1DHW, filler)
        method.zero_grad()
        loss = loss_of(method, batch)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None]))
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert losses[0].isfinite()
    assert not torch.equal(losses[0], loss_of(method, make_batch(method)))


TRANSFORMERS = [name for name, (_, model, _, _) in TINY.items() if isinstance(model, ViTConfig)]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_activation_checkpointing_keeps_less_and_changes_no_bit(name: str) -> None:
    def step(recompute: bool) -> tuple[Tensor, Tensor, int]:
        method = make_method(name, drop_path=0.5).train()
        if recompute:
            assert checkpoint_activations(method)
        with count_saved() as saved:
            loss = loss_of(method, make_batch(method))
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in method.parameters() if p.requires_grad]), saved.bytes

    loss, gradients, much = step(recompute=False)
    again, same_gradients, less = step(recompute=True)
    assert torch.equal(loss, again)
    assert torch.equal(gradients, same_gradients)
    # what a block keeps without: at least 12 values a token and channel, of encoder (width 192) and decoder
    assert less < 0.8 * much


def test_pictures_are_drawn_on_request_and_change_nothing(name: str) -> None:
    method = make_method(name)
    batch = make_batch(method)
    without, drawn = method(batch, context()), method(batch, context(pictures=True))
    assert without.pictures == {}
    assert torch.equal(without.loss, drawn.loss)
    assert drawn.pictures
    for picture in drawn.pictures.values():
        assert picture.note
        for title, panel in picture.panels:
            assert title
            assert panel.ndim == 2
            assert panel.dtype.kind == "f"


@pytest.mark.parametrize("channels", [1, 4])
def test_features_have_the_stride_they_name(name: str, channels: int) -> None:
    method = make_method(name, channels).eval()
    size = TINY[name][2]
    for scale in (1, 2):  # the native view, and one twice as large
        voxels = [n * scale for n in size]
        maps = method.features(torch.randn(1, channels, *voxels))
        assert maps
        for features, stride in maps:
            assert list(features.shape[2:]) == [n // s for n, s in zip(voxels, stride, strict=True)]
            assert features.isfinite().all()


def test_the_probe_measures_its_features_and_leaves_it_as_it_was(name: str, tiny_store: Path) -> None:
    method, size = make_method(name), TINY[name][2]
    settings = ProbeConfig(store=tiny_store, images=4, voxels=200)
    before = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    store = Store(tiny_store)
    rows = [
        Probe(store, list(store.index.index), size, NormaliseConfig(), settings, 0)(method, torch.device("cpu"))
        for _ in range(2)
    ]
    for row in rows:
        assert row.pop("probe_seconds") > 0
        assert {"probe_dice", "probe_dice_1", "probe_floor"} <= row.keys()
        assert all(0 <= value <= 1 for value in row.values())
    assert rows[0] == rows[1]
    assert [module.training for module in method.modules()] == modes
    assert all(torch.equal(before[key], tensor) for key, tensor in method.state_dict().items())


def test_the_views_are_what_the_settings_ask_for(name: str) -> None:
    for group in make_method(name).views.values():
        assert len(group.size) == len(TINY[name][2])
        assert not group.labels, "pre-training sees no labels"
        assert group.foreground == 0
