"""A run whose decoder is trained alone first: who learns, how fast, and what clipping sees, step by step."""

from pathlib import Path

import pytest
import torch
from tests.unit.train.test_engine import IMAGES, rows, weights
from torch import nn

from prevox.config.data import NormaliseConfig
from prevox.config.train import OptimConfig, ScheduleConfig, TrainConfig
from prevox.data.store import Store
from prevox.errors import ConfigError
from prevox.task import Batch, StepContext, StepOutput, Task, ViewGroup
from prevox.train.engine import Engine, Job
from prevox.train.estimate import rehearse

pytestmark = pytest.mark.unit
STEPS, FIRST, WARMUP = 10, 3, 2


class Two(Task):
    """An encoder that waits, with a gradient far larger than the decoder's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.views = {"view": ViewGroup((4, 4, 4))}
        self.encoder, self.decoder = nn.Conv3d(1, 1, 1), nn.Conv3d(1, 1, 1)
        self.seen: list[dict[str, torch.Tensor]] = []  # weights after each step
        self.trained: list[set[str]] = []

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        x = batch.views["view"].x_BCDHW
        self.trained.append({name for name, p in self.named_parameters() if p.requires_grad})
        loss = ((self.decoder(x) - x) ** 2).mean() + 1000 * ((self.encoder(x) - x) ** 2).mean()
        return StepOutput(loss, {})

    def after_update(self, progress: float, output: StepOutput) -> None:
        self.seen.append({name: p.detach().clone() for name, p in self.named_parameters()})

    def waits(self, parameter: str) -> bool:
        return parameter.startswith("encoder.")


def job(store: Path, optim: dict | None = None, first: float = FIRST / STEPS, **settings) -> Job:
    train = TrainConfig.parse({"steps": STEPS, "batch": 2, "log_every": 1, "device": "cpu", "seed": 5, **settings})
    rate = OptimConfig.parse({"name": "sgd", "lr": 0.01, "weight_decay": 0.1, **(optim or {})})
    schedule = ScheduleConfig(name="poly", warmup=WARMUP / STEPS)
    return Job(Two(), Store(store), IMAGES, NormaliseConfig(), rate, schedule, train, first)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_nothing_frozen_moves_not_even_by_decay_or_momentum(tiny_store: Path, tmp_path: Path, name: str) -> None:
    made = job(tiny_store, {"name": name})
    before = {key: p.detach().clone() for key, p in made.task.named_parameters()}
    Engine(made).fit(tmp_path, "run")
    task = made.task
    for step, (trained, state) in enumerate(zip(task.trained, task.seen, strict=True)):
        still = step < FIRST
        assert trained == {f"{part}.{what}" for part in ("encoder", "decoder")[still:] for what in ("weight", "bias")}
        for key in ("encoder.weight", "encoder.bias"):
            assert torch.equal(state[key], before[key]) == still, (step, key)
        previous = task.seen[step - 1] if step else before
        assert not torch.equal(state["decoder.weight"], previous["decoder.weight"])


def test_the_rates_that_are_logged_are_those_of_the_schedule(tiny_store: Path, tmp_path: Path) -> None:
    Engine(job(tiny_store)).fit(tmp_path, "run")
    decay = [0.01 * (1 - t / 5) ** 0.9 for t in range(5)]
    expected = [0.01 / 3, 0.02 / 3, 0.01, 0.005, 0.01, *decay]
    assert [row["lr"] for row in rows(tmp_path)] == pytest.approx(expected)


def test_clipping_sees_only_what_is_trained(tiny_store: Path, tmp_path: Path) -> None:
    """The encoder's gradient is a thousand times larger: were it counted, the decoder would hardly move."""
    rate = {"momentum": 0.0, "weight_decay": 0.0}
    made = job(tiny_store, rate, clip=1e-3)
    before = {key: p.detach().clone() for key, p in made.task.named_parameters()}
    engine = Engine(made)
    engine.fit(tmp_path, "run")
    for step in range(FIRST):
        previous = made.task.seen[step - 1] if step else before
        moved = [made.task.seen[step][key] - previous[key] for key in ("decoder.weight", "decoder.bias")]
        norm = torch.cat([m.flatten() for m in moved]).norm().item()
        assert norm == pytest.approx(engine.lr(step) * 1e-3, rel=1e-2)  # the clipped length, all of it the decoder's


@pytest.mark.parametrize("stop", [1, FIRST, FIRST + 1, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_store: Path, tmp_path: Path, stop: int) -> None:
    Engine(job(tiny_store, checkpoint_every=stop)).fit(tmp_path / "whole", "run")

    made = job(tiny_store, checkpoint_every=stop)
    engine = Engine(made)
    engine.saves = lambda step: step == stop  # type: ignore[method-assign]
    real, calls = engine.train_step, iter(range(STEPS))

    def dies(*args):
        if next(calls) == stop:
            raise KeyboardInterrupt
        return real(*args)

    engine.train_step = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.fit(tmp_path / "cut", "run")
    Engine(job(tiny_store, checkpoint_every=stop)).fit(tmp_path / "cut", "run")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_without_a_share_everything_is_trained_from_the_start(tiny_store: Path, tmp_path: Path) -> None:
    made = job(tiny_store, first=0.0)
    Engine(made).fit(tmp_path, "run")
    assert all(len(trained) == 4 for trained in made.task.trained)


def test_the_estimate_times_both_kinds_of_steps(tiny_store: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("prevox.train.estimate.ENOUGH", 0.1)
    made = job(tiny_store, {"lr": 1e-6}, log_every=10)
    found = rehearse(Engine(made), tmp_path)
    assert found.held == FIRST
    assert found.held_step > 0
    expected = found.first + 2 * found.held_step + 7 * found.step
    extra = found.checkpoints * found.checkpoint + (found.pictures - 1) * found.picture
    held = [len(trained) == 2 for trained in made.task.trained]
    assert held.index(False) == 1 + 2 + 6  # one with pictures, two to warm up, six that are timed
    assert not any(held[9:])
    assert found.seconds == pytest.approx(expected + extra)


@pytest.mark.parametrize(("steps", "first"), [(5, 0.05), (10, 0.99)])
def test_phases_without_a_step_are_refused(tiny_store: Path, steps: int, first: float) -> None:
    with pytest.raises(ConfigError, match=rf"decoder_first: {first:g} of {steps} steps are (0|{steps})"):
        Engine(job(tiny_store, first=first, steps=steps))


def test_all_that_is_ever_trained_is_counted(tiny_store: Path) -> None:
    assert Engine(job(tiny_store)).parameters == 4
