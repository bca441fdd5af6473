import pytest
import torch
from torch import nn

from prevox.config.train import OptimConfig
from prevox.task import Task
from prevox.train.optim import build_optimiser, count_parameters, parameter_groups, set_lr

pytestmark = pytest.mark.unit


class Toy(Task):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.positions = nn.Parameter(torch.zeros(5, 4))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def layer_scale(self, parameter: str) -> float:
        return 0.5 if parameter.startswith("linear") else 1.0


def by_name(groups: list[dict]) -> dict[str, dict]:
    return {name: group for group in groups for name in group["names"]}


def test_only_matrices_are_decayed_and_frozen_parameters_are_left_out() -> None:
    found = by_name(parameter_groups(Toy(), weight_decay=0.05))
    decayed = {name for name, group in found.items() if group["weight_decay"] == 0.05}
    assert decayed == {"linear.weight"}
    assert {name for name, group in found.items() if group["weight_decay"] == 0} == {
        "linear.bias", "norm.weight", "norm.bias", "class_token", "positions",
    }  # fmt: skip


def test_learning_rate_is_scaled_per_group() -> None:
    optimiser = build_optimiser(Toy(), OptimConfig(lr=1e-3))
    set_lr(optimiser, 2e-3)
    rates = {name: group["lr"] for group in optimiser.param_groups for name in group["names"]}
    assert rates["linear.weight"] == rates["linear.bias"] == 1e-3
    assert rates["norm.weight"] == 2e-3


def test_undecayed_parameter_stays_without_gradient_signal() -> None:
    toy = Toy()
    nn.init.ones_(toy.positions)
    optimiser = build_optimiser(toy, OptimConfig(lr=0.1, weight_decay=0.5))
    for parameter in toy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = toy.linear.weight.detach().clone()
    optimiser.step()
    assert torch.equal(toy.positions, torch.ones(5, 4))
    torch.testing.assert_close(toy.linear.weight.detach(), before * (1 - 0.1 * 0.5))


def test_sgd_is_nesterov() -> None:
    optimiser = build_optimiser(Toy(), OptimConfig(name="sgd", lr=0.1, momentum=0.99))
    assert all(group["nesterov"] and group["momentum"] == 0.99 for group in optimiser.param_groups)


def test_parameter_count_leaves_frozen_ones_out() -> None:
    assert count_parameters(Toy()) == 3 * 4 + 4 + 4 + 4 + 4 + 20
