import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.train.test_engine import TIMINGS, Toy, engine, equal, read_metrics, weights
from torch import Tensor, nn

from prevox.config.data import NormaliseConfig
from prevox.config.train import ProbeConfig
from prevox.data.store import Store
from prevox.errors import DataError, RunError
from prevox.signals import stop_signals
from prevox.task import ModelSpec, Pretrained, PretrainMethod
from prevox.train import estimate
from prevox.train.engine import Engine
from prevox.train.probe import Crop, Probe, balance, choose, sample

pytestmark = pytest.mark.unit
IMAGES = [f"case_{number}" for number in range(1, 7)]
CPU = torch.device("cpu")
RANGE = 10_000.0
VALUES = NormaliseConfig(name="window", window=(0.0, RANGE))  # what a crop holds is then value / RANGE


class Known(PretrainMethod):
    """Features that tell half of class 1 and all of class 2 from the known values of the tiny store."""

    def __init__(self, axes: int = 3) -> None:
        super().__init__()
        self.norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[axes](1)
        self.head = nn.Sequential(nn.Dropout(0.5))
        self.calls = 0

    def features(self, x_BCDHW: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in self.modules())
        self.calls += 1
        torch.rand(3)
        self.head(self.norm(x_BCDHW))
        value = (x_BCDHW * RANGE).round()
        z, y, x = value % 1000 // 100, value % 100 // 10, value % 10
        half = (z == 3) & (x < 5) & (value > 0)
        point = (z == 5) & (y == 4) & (x == 6)
        return [(torch.cat([half, point], dim=1).float(), (1,) * (x_BCDHW.ndim - 2))]


def make(store: Path, size: tuple[int, ...] = (12, 12, 12), **settings) -> Probe:
    config = ProbeConfig(store=store, **{"every": 2, "voxels": 4096, "images": 6, **settings})
    return Probe(Store(store), IMAGES, size, VALUES, config, seed=3)


def test_known_features_give_the_dice_worked_out_by_hand(tiny_store: Path) -> None:
    row = make(tiny_store)(Known(), CPU)
    # class 1 has 9 x 10 voxels in the plane z = 3, the features show 9 x 5 of them: 2 * 45 / (45 + 90)
    assert row["probe_dice_1"] == pytest.approx(2 / 3)
    assert row["probe_dice_2"] == 1
    assert row["probe_dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert 0 <= row["probe_floor"] < row["probe_dice"]
    assert row.keys() == {"probe_dice", "probe_dice_1", "probe_dice_2", "probe_floor", "probe_seconds"}


def test_slices_are_probed_by_a_network_of_two_axes(tiny_store: Path) -> None:
    row = make(tiny_store, size=(9, 10))(Known(axes=2), CPU)  # whole slices, each with a voxel of some class
    dice = {name: value for name, value in row.items() if name != "probe_seconds"}
    assert dice.keys() <= {"probe_dice", "probe_dice_1", "probe_dice_2", "probe_floor"}
    assert all(0 <= value <= 1 for value in dice.values())


def test_padding_and_a_class_that_is_nowhere_do_not_count(tiny_store: Path) -> None:
    true, found = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 0, 1, 1]])
    valid = torch.tensor([[True, True, True, False]])
    counted = make(tiny_store)._overlap(found, Crop(torch.zeros(1, 1, 1, 4), true, valid, 0))
    assert counted[1] == 2 * 1 / (2 + 2)
    assert math.isnan(counted[2])


def test_weights_of_sampled_voxels_stand_for_all_of_their_class(tiny_store: Path) -> None:
    true = torch.tensor([0] * 80 + [1] * 15 + [2] * 5).view(10, 10)
    valid = torch.ones(10, 10, dtype=torch.bool)
    valid[0] = False
    voxels, weight = sample(Crop(torch.zeros(1, 1, 10, 10), true, valid, 0), 30, np.random.default_rng(0))
    y = true[tuple(voxels.T)]
    assert [(y == k).sum().item() for k in range(3)] == [10, 10, 5]
    assert [weight[y == k].sum().item() for k in range(3)] == pytest.approx([70, 15, 5])
    assert len({tuple(v) for v in voxels.tolist()}) == 25
    balanced = balance(y, weight)
    assert [balanced[y == k].sum().item() for k in range(3)] == pytest.approx([70**0.5, 15**0.5, 5**0.5])


def test_a_probe_leaves_modes_statistics_and_random_state_as_they_were(tiny_store: Path) -> None:
    method = Known()
    method.head.eval()  # as of a teacher that never trains
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    modes, state = [module.training for module in method.modules()], torch.get_rng_state()
    probe = make(tiny_store)
    probe(method, CPU)
    assert method.calls == len(probe.fit) + len(probe.test)
    assert [module.training for module in method.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(before, method.state_dict())


def test_the_same_seed_gives_the_same_numbers(tiny_store: Path) -> None:
    few = {"voxels": 20, "images": 4}
    rows = [make(tiny_store, **few)(Known(), CPU) for _ in range(2)]
    assert {**rows[0], "probe_seconds": 0} == {**rows[1], "probe_seconds": 0}


def test_halves_are_of_different_subjects_and_depend_on_the_seed_only(tiny_store: Path) -> None:
    store = Store(tiny_store)
    halves = [choose(store, IMAGES, 6, seed) for seed in range(8)]
    assert halves == [choose(store, IMAGES[::-1], 6, seed) for seed in range(8)]
    for fit, test in halves:
        subjects = [{store.row(image)["subject"] for image in half} for half in (fit, test)]
        assert all(subjects)
        assert not subjects[0] & subjects[1]
    assert len({str(half) for half in halves}) > 1
    fit, test = choose(store, IMAGES, 3, seed=0)
    assert (len(fit), len(test)) == (2, 1)
    with pytest.raises(DataError, match=r"labels of 1 subject\(s\)"):
        choose(store, IMAGES[:2], 6, seed=0)


class Probed(Toy, PretrainMethod):
    """The engine's toy, with features."""

    def features(self, x_BCDHW: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        torch.rand(1)
        return [(self.drop(self.conv(x_BCDHW)), (1, 1, 1))]

    def pretrained(self) -> Pretrained:
        return Pretrained(dict(self.conv.state_dict()), ModelSpec("toy", {}))


def probed(store: Path, task: Probed | None = None, every: int = 3, **settings) -> Engine:
    made = engine(store, task or Probed(), **settings)
    probe = Probe(Store(store), IMAGES, (8, 8, 8), NormaliseConfig(), ProbeConfig(store=store, every=every), seed=5)
    made.job = replace(made.job, probe=probe)
    return made


def rows(run: Path) -> list[dict]:
    varying = {*TIMINGS, "probe_seconds"}
    return [{name: value for name, value in row.items() if name not in varying} for row in read_metrics(run)]


def test_a_run_with_a_probe_learns_the_same(tiny_store: Path, tmp_path: Path) -> None:
    engine(tiny_store, Probed()).fit(tmp_path / "without", "without")
    probed(tiny_store).fit(tmp_path / "with", "with")
    assert equal(weights(tmp_path / "without"), weights(tmp_path / "with"))
    assert rows(tmp_path / "without") == [row for row in rows(tmp_path / "with") if "loss" in row]
    found = [row for row in rows(tmp_path / "with") if "probe_dice" in row]
    assert [row["step"] for row in found] == [0, 3, 6, 7]  # untrained, every third of seven, the last
    assert len({row["probe_floor"] for row in found}) == 1
    assert len({row["probe_dice"] for row in found}) > 1


def board(run: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload().Scalars("probe_dice")
    return [(event.step, round(event.value, 6)) for event in events]


@pytest.mark.parametrize("at", [3, 4])
def test_a_resumed_run_is_probed_as_an_uninterrupted_one(at: int, tiny_store: Path, tmp_path: Path) -> None:
    probed(tiny_store).fit(tmp_path / "whole", "whole")
    assert not probed(tiny_store, Probed(at=at, do="term")).fit(tmp_path / "run", "run").finished
    probed(tiny_store).fit(tmp_path / "run", "run")
    assert rows(tmp_path / "whole") == rows(tmp_path / "run")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert board(tmp_path / "run") == board(tmp_path / "whole")
    assert [step for step, _ in board(tmp_path / "run")] == [0, 3, 6, 7]


def test_a_run_that_was_killed_before_its_first_checkpoint_has_one_row_of_step_0(
    tiny_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError):
        probed(tiny_store, Probed(at=2, do="nan")).fit(tmp_path, "run")
    assert [row["step"] for row in rows(tmp_path)] == [0]
    probed(tiny_store).fit(tmp_path, "run")
    assert [row["step"] for row in rows(tmp_path)] == [0, 3, 3, 6, 6, 7, 7]
    assert [step for step, _ in board(tmp_path)] == [0, 3, 6, 7]


def test_a_signal_before_the_first_step_probes_nothing(tiny_store: Path, tmp_path: Path) -> None:
    with stop_signals():
        os.kill(os.getpid(), signal.SIGUSR1)
        probed(tiny_store).fit(tmp_path, "run")
    assert rows(tmp_path) == []


def test_weights_that_are_not_finite_stop_the_run_and_not_the_probe(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the norm of the gradient became nan at step 2"):
        probed(tiny_store, Probed(at=2, do="root"), every=2, log_every=100).fit(tmp_path, "run")


def test_another_probe_of_the_same_run_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    make(tiny_store).check_same(file)  # the run was not probed before
    file.write_text(json.dumps(make(tiny_store).described()))
    make(tiny_store).check_same(file)
    with pytest.raises(RunError, match=r"other every, voxels than this call"):
        make(tiny_store, every=4, voxels=7).check_same(file)


def test_a_rehearsal_counts_the_probes(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "ENOUGH", 0.0)
    found = estimate.rehearse(probed(tiny_store), tmp_path)
    assert found.probes == 4
    assert found.probe > 0
    assert list(tmp_path.iterdir()) == []
