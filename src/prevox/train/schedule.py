"""Learning rate over a run, as a factor on the peak."""

import math

from prevox.config.train import ScheduleConfig


def decoder_steps(share: float, steps: int) -> int:
    """Steps in which the decoder alone is trained, at the start of a run."""
    return round(share * steps)


def lr_factor(step: int, steps: int, schedule: ScheduleConfig, decoder_first: float = 0.0) -> float:
    """Factor on the peak learning rate at a step.

    With F = round(decoder_first · steps) > 0 the first F steps, in which the decoder alone is trained, are a ramp of
    their own that reaches the peak with its last step: (step + 1) / F. What follows is the rest of the run, its steps
    counted from F on (S3D's two-phase fine-tuning: ramp, ramp, decay).

    A ramp over W = round(warmup · steps) steps reaches the peak with its last one: (step + 1) / W, so that no step
    is spent at zero. Then, with t = (step - W) / (steps - W) in [0, 1): cosine floor + (1 - floor)(1 + cos πt)/2,
    poly floor + (1 - floor)(1 - t)^power, or constant 1.

    Args:
        step: Number of the optimiser step, from 0.
        steps: Steps of the whole run.
        schedule: Shape; its warmup is a share of the whole run.
        decoder_first: Share of the run in which the decoder alone is trained.
    """
    warmup, first = round(schedule.warmup * steps), decoder_steps(decoder_first, steps)
    if step < first:
        return (step + 1) / first
    step, steps = step - first, steps - first
    if step < warmup:
        return (step + 1) / warmup
    t = (step - warmup) / max(1, steps - warmup)
    if schedule.name == "constant":
        return 1.0
    decay = 0.5 * (1 + math.cos(math.pi * t)) if schedule.name == "cosine" else (1 - t) ** schedule.power
    return schedule.floor + (1 - schedule.floor) * decay
