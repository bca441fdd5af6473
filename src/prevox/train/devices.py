"""The device or devices of a run: what accelerate is told, and the collectives that a method gets."""

import atexit
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prevox.config.train import TrainConfig
from prevox.console import console
from prevox.errors import ConfigError
from prevox.train.cluster import enter_cluster


def accelerator_of(settings: TrainConfig) -> Any:
    """The accelerator of a run, which joins the other processes that SLURM or torchrun has started with it.

    Raises:
        ConfigError: If the device is not there, or the precision does not exist on it.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    cpu = settings.device == "cpu" or (settings.device == "auto" and not torch.cuda.is_available())
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device: 'cuda' was asked for and torch sees no GPU. Use --train.device auto.")
    if cpu and settings.precision == "fp16":
        raise ConfigError("train.precision: fp16 needs a GPU. On a CPU use --train.precision fp32 or bf16.")
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; cuBLAS demands it
    torch.use_deterministic_algorithms(settings.deterministic)
    enter_cluster()
    # accelerate keeps its precision for the life of the process; two runs in one process may differ
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    made = Accelerator(cpu=cpu, mixed_precision="no" if settings.precision == "fp32" else settings.precision)
    if made.num_processes > 1:
        atexit.unregister(_leave_group)
        atexit.register(_leave_group)
    console.quiet = not made.is_main_process
    return made


def _leave_group() -> None:
    """Close the process group before Python ends: its threads, left running, now and then abort a finished process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def collectives(accelerator: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A differentiable gather of rows and a mean over all devices; identities on one."""
    if accelerator.num_processes == 1:
        return (lambda x: x), (lambda x: x)
    from torch.distributed.nn.functional import all_gather

    return (lambda x: torch.cat(all_gather(x))), (lambda x: accelerator.reduce(x.detach(), "mean"))
