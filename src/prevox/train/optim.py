"""Optimiser with its parameter groups: no decay on norms, biases, tokens and positions; layer-wise learning rates."""

import torch
from torch import nn

from prevox.config.train import OptimConfig
from prevox.task import Task

UNDECAYED = ("class_token", "mask_token", "positions")


def parameter_groups(task: Task, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters grouped by (learning-rate scale, decayed or not).

    Each group has `params`, `names`, `scale` (factor on the learning rate, from `Task.layer_scale`) and
    `weight_decay` (0 for one-dimensional parameters and for class token, mask token and positions).
    """
    groups: dict[tuple[float, float], dict[str, object]] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name.rpartition(".")[2] in UNDECAYED else weight_decay
        scale = task.layer_scale(name)
        group = groups.setdefault((scale, decay), {"params": [], "names": [], "scale": scale, "weight_decay": decay})
        group["params"].append(parameter)  # type: ignore[attr-defined]
        group["names"].append(name)  # type: ignore[attr-defined]
    return [groups[key] for key in sorted(groups)]


def build_optimiser(task: Task, settings: OptimConfig) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, over the task's parameter groups."""
    groups = parameter_groups(task, settings.weight_decay)
    if settings.name == "adamw":
        # one fused kernel for all parameters: on a CPU several times faster than a loop over them
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to `lr` times its scale."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["scale"]


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
