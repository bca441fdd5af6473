import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prevox.config.data import NormaliseConfig
from prevox.config.train import OptimConfig, ScheduleConfig, TrainConfig
from prevox.data.store import Store
from prevox.errors import ConfigError, NotFiniteError, RunError
from prevox.signals import stop_signals
from prevox.task import Batch, Picture, StepContext, StepOutput, Task, ViewGroup
from prevox.train.checkpoint import checkpoint_folders, save_checkpoint
from prevox.train.engine import Engine, Job
from prevox.train.schedule import lr_factor

pytestmark = pytest.mark.unit
IMAGES = [f"case_{number}" for number in range(1, 7)]
TIMINGS = ("samples_per_s", "data_wait", "seconds")  # all that two identical runs differ in


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Toy(Task):
    """Learns to give back its input; can misbehave at a step of choice."""

    def __init__(self, at: int | None = None, do: str = "", dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.views = {"view": ViewGroup((4, 4, 4))}
        self.conv = nn.Conv3d(1, 1, 3, padding=1)
        self.drop = nn.Dropout(dropout)
        self.register_buffer("updates", torch.zeros(()))
        self.at, self.do, self.calls = at, do, 0

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        self.calls += 1
        x = batch.views["view"].x_BCDHW
        noise = torch.rand((), generator=ctx.generator)
        loss = ((self.drop(self.conv(x)) - x) ** 2).flatten(1).mean(1).mean()
        if self.calls == self.at:
            if self.do == "nan":
                loss = loss * float("nan")
            if self.do == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            if self.do == "root":  # finite at 0, with an infinite slope
                loss = loss + (self.conv.weight * 0).sum().abs().sqrt()
        pictures = {"x": Picture([("x", x[0, 0, 0].numpy())])} if ctx.want_pictures else {}
        return StepOutput(loss, {"noise": noise}, pictures)

    def after_update(self, progress: float, output: StepOutput) -> None:
        self.updates += 1
        if self.calls == self.at and self.do == "buffer":  # a momentum teacher, say, that overflows
            self.updates /= 0


def engine(store: Path, task: Task | None = None, optim: dict | None = None, **settings) -> Engine:
    train = TrainConfig.parse({"steps": 7, "batch": 2, "log_every": 3, "device": "cpu", "seed": 5, **settings})
    rate = OptimConfig.parse({"lr": 0.01, **(optim or {})})
    job = Job(task or Toy(), Store(store), IMAGES, NormaliseConfig(), rate, ScheduleConfig(warmup=0.3), train)
    return Engine(job)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folders(run)[-1] / "task.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows(run: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in read_metrics(run)]


def test_rows_are_means_over_their_steps_and_name_the_rate(tiny_store: Path, tmp_path: Path) -> None:
    engine(tiny_store, log_every=1).fit(tmp_path / "each", "each")
    engine(tiny_store, log_every=3).fit(tmp_path / "mean", "mean")
    each, mean = rows(tmp_path / "each"), rows(tmp_path / "mean")
    assert [row["step"] for row in mean] == [3, 6, 7]
    assert mean[0]["loss"] == pytest.approx(sum(row["loss"] for row in each[:3]) / 3, rel=1e-6)
    assert [row["lr"] for row in each] == [0.01 * lr_factor(step, 7, ScheduleConfig(warmup=0.3)) for step in range(7)]
    assert equal(weights(tmp_path / "each"), weights(tmp_path / "mean"))


def test_after_update_runs_once_per_optimiser_step(tiny_store: Path, tmp_path: Path) -> None:
    engine(tiny_store, accumulation=3, batch=1).fit(tmp_path, "run")
    assert weights(tmp_path)["updates"] == 7


def test_accumulation_equals_a_larger_batch(tiny_store: Path, tmp_path: Path) -> None:
    for name, settings in (("large", {"batch": 4}), ("accumulated", {"batch": 2, "accumulation": 2})):
        task = Toy(dropout=0.0)
        engine(tiny_store, task, optim={"name": "sgd", "momentum": 0.0}, **settings).fit(tmp_path / name, name)
    large, accumulated = weights(tmp_path / "large"), weights(tmp_path / "accumulated")
    for key in large:
        torch.testing.assert_close(large[key], accumulated[key], atol=1e-6, rtol=1e-5)


def test_sigterm_saves_and_the_resumed_run_equals_an_uninterrupted_one(tiny_store: Path, tmp_path: Path) -> None:
    whole = engine(tiny_store).fit(tmp_path / "whole", "whole")
    stopped = engine(tiny_store, Toy(at=4, do="term")).fit(tmp_path / "stopped", "stopped")
    assert (whole.finished, stopped.finished, stopped.steps) == (True, False, 4)
    assert engine(tiny_store).fit(tmp_path / "stopped", "stopped").finished
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")  # 4 is within a log window of 3


def test_non_finite_loss_names_step_images_and_last_checkpoint(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError) as caught:
        engine(tiny_store, Toy(at=5, do="nan"), checkpoint_every=2, log_every=100).fit(tmp_path, "run")
    message = str(caught.value)
    assert "at step 5" in message
    assert "step_00000004" in message
    assert "--optim.lr" in message
    assert sum(image in message for image in IMAGES) == 2
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_is_named_before_it_spoils_a_checkpoint(
    clip: float | None, tiny_store: Path, tmp_path: Path
) -> None:
    # step 5's loss is finite; its update spoils the weights, and a checkpoint is due right after it
    with pytest.raises(NotFiniteError) as caught:
        engine(tiny_store, Toy(at=5, do="root"), checkpoint_every=5, log_every=100, clip=clip).fit(tmp_path, "run")
    message = str(caught.value)
    assert "the norm of the gradient became nan at step 5" in message
    assert "Last good checkpoint: none yet" in message
    assert sum(image in message for image in IMAGES) == 2
    assert checkpoint_folders(tmp_path) == []


def test_a_state_that_is_not_finite_is_not_saved(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="'updates' is not finite after step 4") as caught:
        engine(tiny_store, Toy(at=4, do="buffer"), checkpoint_every=2).fit(tmp_path, "run")
    assert "step_00000002" in str(caught.value)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_00000002"]


def test_the_norm_that_is_watched_is_the_gradients(tiny_store: Path) -> None:
    made = engine(tiny_store, Toy(dropout=0.0), optim={"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0})
    before = [parameter.detach().clone() for parameter in made.task.parameters()]
    made.train_step(
        2, made.loader.batches(), draw=False
    )  # step 2 of 7: the ramp of 2 steps is over, the rate is the peak
    moved = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, made.task.parameters(), strict=True)])
    assert made.window[0].norm.item() == pytest.approx(moved.norm().item(), rel=1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_a_checkpoint_is_written_waits_for_it(
    number: int, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine(tiny_store).fit(tmp_path / "whole", "whole")

    def signalled(run: Path, step: int, *rest) -> Path:
        os.kill(os.getpid(), number)
        return save_checkpoint(run, step, *rest)

    monkeypatch.setattr("prevox.train.engine.save_checkpoint", signalled)
    stopped = engine(tiny_store, checkpoint_every=2).fit(tmp_path / "run", "run")
    monkeypatch.undo()
    assert (stopped.finished, stopped.steps) == (False, 3)  # the step after it sees the signal
    assert engine(tiny_store, checkpoint_every=2).fit(tmp_path / "run", "run").steps == whole.steps
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_signal_before_the_first_step_does_none(tiny_store: Path, tmp_path: Path) -> None:
    made = engine(tiny_store)
    with stop_signals():  # as around the whole command
        os.kill(os.getpid(), signal.SIGUSR1)
        result = made.fit(tmp_path, "run")
    assert (result.steps, result.finished) == (0, False)
    assert checkpoint_folders(tmp_path) == []
    assert made.fit(tmp_path, "run").finished


def test_an_optimiser_of_another_run_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    for name, optim in (("run", {}), ("other", {"name": "sgd"})):
        engine(tiny_store, optim=optim, checkpoint_every=4, steps=8).fit(tmp_path / name, name)
    shutil.copy(*(checkpoint_folders(tmp_path / name)[-1] / "optimiser.pt" for name in ("other", "run")))
    with pytest.raises(RunError, match=r"optimiser\.pt or progress\.json is not this run's"):
        engine(tiny_store, checkpoint_every=4, steps=8).fit(tmp_path / "run", "run")


def test_clipping_bounds_the_gradient(tiny_store: Path, tmp_path: Path) -> None:
    task = Toy()
    plain = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    made = engine(tiny_store, task, optim=plain, clip=1e-3, steps=1)
    before = [parameter.detach().clone() for parameter in task.parameters()]
    made.fit(tmp_path, "run")
    moved = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, task.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)  # the only step's rate is the peak, 1


def test_epochs_are_passes_over_the_images(tiny_store: Path) -> None:
    assert engine(tiny_store, steps=None, epochs=4).steps == 12  # 4 passes over 6 images, 2 a step
    assert engine(tiny_store, steps=None, epochs=4, accumulation=3).steps == 4


def test_pictures_at_first_and_last_step(tiny_store: Path, tmp_path: Path) -> None:
    engine(tiny_store, picture_every=100).fit(tmp_path, "run")
    assert [path.name for path in sorted((tmp_path / "pictures").iterdir())] == ["step_00000001", "step_00000007"]


def test_bf16_trains_and_fp16_on_a_cpu_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    engine(tiny_store, precision="bf16").fit(tmp_path, "run")
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path).values())
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        engine(tiny_store, precision="fp16")


def test_the_log_is_json_lines(tiny_store: Path, tmp_path: Path) -> None:
    engine(tiny_store).fit(tmp_path, "run")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all({"step", "loss", "lr", "progress", "noise", *TIMINGS} == json.loads(line).keys() for line in lines)
