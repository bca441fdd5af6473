"""What the benchmarks share: arms run in turn in one process, their time, their peak memory, and one JSON object.

Machines are shared and noisy, so the arms are interleaved, medians are taken, and the ratio is what counts. All arms
run with `keep_freed_memory`, as the verbs do; the peer gains from it as much as we do, and what it is worth is
benchmarks/allocator.py. Peaks come from calls of their own, which are not timed: resident memory above what was
resident before, sampled every few milliseconds, after freed memory has been given back to the system (glibc). Once a
benchmark has used a GPU, its peaks are the memory allocated there.
"""

import gc
import json
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from prevox.allocator import keep_freed_memory, release_freed_memory
from prevox.train.run_folder import environment

_SAMPLING = 0.005  # seconds between two looks at the resident memory


@dataclass(frozen=True)
class Run:
    """One call of one arm."""

    result: Any
    seconds: float
    peak_mb: float = 0.0


def timed(function: Callable[[], Any]) -> Run:
    """Result and seconds."""
    gc.collect()
    began = time.perf_counter()
    result = function()
    return Run(result, time.perf_counter() - began)


def measured(function: Callable[[], Any]) -> Run:
    """Result, seconds, and peak memory above the start in MB: the GPU's, else resident memory, all of it taken anew."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        run = timed(function)
        return replace(run, peak_mb=(torch.cuda.max_memory_allocated() - start) / 2**20)
    process, done, peak = psutil.Process(), threading.Event(), 0
    gc.collect()
    release_freed_memory()
    start = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLING):
            peak = max(peak, process.memory_info().rss - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run = timed(function)
    peak = max(peak, process.memory_info().rss - start)
    done.set()
    watcher.join()
    return replace(run, peak_mb=peak / 2**20)


def interleaved(arms: Mapping[str, Callable[[], Any]], runs: int, warm: int = 1) -> dict[str, list[Run]]:
    """Call every arm in turn: `warm` times without counting, for its peak memory, again to warm, and `runs` times."""
    keep_freed_memory()
    peaks: dict[str, float] = {}
    for part in ("warm", "peaks", "warm"):
        for name, function in arms.items():
            if part == "peaks":
                peaks[name] = measured(function).peak_mb
            else:
                for _ in range(warm):
                    function()
    found: dict[str, list[Run]] = {name: [] for name in arms}
    for _ in range(runs):
        for name, function in arms.items():
            found[name].append(replace(timed(function), peak_mb=peaks[name]))
    return found


def median(runs: list[Run]) -> float:
    """Median seconds."""
    return float(np.median([run.seconds for run in runs]))


def compared(name: str, ours: list[Run], peer: list[Run], equal: float, **more: Any) -> dict[str, Any]:
    """One comparison as the JSON object that every benchmark prints.

    Args:
        name: What is compared with what.
        ours: Runs of this project's way.
        peer: Runs of the other way, in turn with ours.
        equal: Largest deviation of the outputs.
        more: Whatever else explains the figure.
    """
    return {
        "name": name,
        "ours_s": round(median(ours), 4),
        "peer_s": round(median(peer), 4),
        "ratio": round(median(peer) / median(ours), 2),
        "ours_peak_mb": round(max(run.peak_mb for run in ours), 1),
        "peer_peak_mb": round(max(run.peak_mb for run in peer), 1),
        "equal": equal,
        "runs": len(ours),
        "ours_all_s": [round(run.seconds, 4) for run in ours],
        "peer_all_s": [round(run.seconds, 4) for run in peer],
        **more,
    }


def show(comparison: dict[str, Any]) -> None:
    """Print one comparison on a line of its own, with the command, the date and the machine."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    print(json.dumps({**comparison, "command": command, "where": where()}, ensure_ascii=False), flush=True)


def where() -> str:
    """Date, machine and versions in one line."""
    found = environment("")
    cores = f"{found['cores']} cores, {found['threads']} threads"
    return f"{date.today()}, {found['gpu'] or found['processor']}, {cores}, torch {torch.__version__}"


def synchronised(loss: torch.Tensor) -> torch.Tensor:
    """The loss of a step, once the device has finished it."""
    loss.item()
    return loss.detach()


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def _attention_backward(gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, q, k, v))


_CPU_ATTENTION = {  # which PyTorch's counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def gradients(network: nn.Module, step: Callable[[], Any]) -> dict[str, Tensor]:
    """Gradients that a step leaves in the network's parameters, by name."""
    step()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def giga_operations(step: Callable[[], Any]) -> float:
    """Floating-point operations of a step's convolutions and matrix products, attention included, in units of 10⁹."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        step()
    return counter.get_total_flops() / 1e9


def matrix_rate(size: int = 2048, rounds: int = 3) -> float:
    """GFLOP/s of a float32 matrix product on this machine: what a training step can at most reach."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / float(np.median(seconds)) / 1e9
