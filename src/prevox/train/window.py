"""The steps since the last row of the log, and whether all of them were sound."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass
class StepRecord:
    """One optimiser step.

    Attributes:
        loss: Mean over its batches; a scalar on the device, so that the host need not wait.
        norm: Norm of the gradient before clipping, scalar likewise; 0 where a gradient scaler judges it.
        scalars: Means of the task's scalars.
        images: Ids of all its images on this device.
    """

    loss: Tensor
    norm: Tensor
    scalars: dict[str, Tensor]
    images: list[str]

    def plain(self) -> list[Any]:
        """JSON-able, for progress.json; the numbers come back bit for bit."""
        scalars = {name: value.item() for name, value in self.scalars.items()}
        return [self.loss.item(), self.norm.item(), scalars, self.images]

    @classmethod
    def from_plain(cls, row: list[Any], device: torch.device) -> Self:
        """What `plain` made."""
        loss, norm, scalars, images = row
        tensors = {name: torch.tensor(value, device=device) for name, value in scalars.items()}
        return cls(torch.tensor(loss, device=device), torch.tensor(norm, device=device), tensors, images)


def fault(window: list[StepRecord], step: int) -> str | None:
    """The first step at which loss or gradient was not finite, in words; None where all is well.

    Args:
        window: The latest steps.
        step: Number of steps done, the window's last one included.
    """
    if not window:
        return None
    found = torch.stack([torch.stack([row.loss, row.norm.to(row.loss)]) for row in window]).cpu()
    bad = (~torch.isfinite(found)).any(1).nonzero()
    if len(bad) == 0:
        return None
    offset = int(bad[0])
    loss, norm = found[offset].tolist()
    at = f"at step {step - len(window) + offset + 1}, with the images {', '.join(window[offset].images)} in the batch"
    if torch.isfinite(found[offset, 0]):
        return f"the norm of the gradient became {norm} {at} (the loss was {loss:.4g})."
    return f"the loss became {loss} {at}."


def not_finite(state: dict[str, Tensor]) -> str | None:
    """Name of the first tensor of a state that holds a NaN or an infinity, or None."""
    if not state:
        return None
    sound = torch.stack([torch.isfinite(tensor).all().to("cpu") for tensor in state.values()])
    return None if bool(sound.all()) else next(name for name, ok in zip(state, sound.tolist(), strict=True) if not ok)
