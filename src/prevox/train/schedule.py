"""Learning rate over a run, as a factor on the peak."""

import math

from prevox.config.train import ScheduleConfig


def lr_factor(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Factor on the peak learning rate at a step.

    A ramp over W = round(warmup · steps) steps reaches the peak with its last one: (step + 1) / W, so that no step
    is spent at zero. Then, with t = (step - W) / (steps - W) in [0, 1): cosine floor + (1 - floor)(1 + cos πt)/2,
    poly floor + (1 - floor)(1 - t)^power, or constant 1.

    Args:
        step: Number of the optimiser step, from 0.
        steps: Steps of the whole run.
        schedule: Shape.
    """
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    t = (step - warmup) / max(1, steps - warmup)
    if schedule.name == "constant":
        return 1.0
    decay = 0.5 * (1 + math.cos(math.pi * t)) if schedule.name == "cosine" else (1 - t) ** schedule.power
    return schedule.floor + (1 - schedule.floor) * decay
