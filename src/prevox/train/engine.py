"""The loop. It knows tasks and batches; it knows no method.

Everything random in step s is a function of the run's seed and s, so nothing of a random generator is ever saved: a
resumed run repeats what an uninterrupted one would have done.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from prevox.config.data import NormaliseConfig
from prevox.config.train import OptimConfig, ScheduleConfig, TrainConfig
from prevox.console import console
from prevox.data.dataset import RawBatch, ViewLoader, to_device
from prevox.data.sampler import torch_seed
from prevox.data.store import Store
from prevox.errors import ConfigError, RunError
from prevox.task import Batch, StepContext, StepOutput, Task
from prevox.train.checkpoint import checkpoint_folders, load_checkpoint, save_checkpoint
from prevox.train.optim import build_optimiser, set_lr
from prevox.train.schedule import lr_factor
from prevox.train.tracking import Tracker


@dataclass
class Result:
    """How a run ended."""

    steps: int
    seconds: float
    peak_mb: float
    finished: bool


@dataclass
class Job:
    """All that the engine needs to train.

    Args:
        task: What is trained.
        store: Where the images are.
        images: Ids to train on.
        normalise: Intensity normalisation.
        optim: Optimiser settings.
        schedule: Learning rate over the run.
        train: Length, batch, precision ...
        handed: Metadata for the header of pretrained.safetensors.
    """

    task: Task
    store: Store
    images: list[str]
    normalise: NormaliseConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    train: TrainConfig
    handed: dict[str, Any] = field(default_factory=dict)


class Engine:
    """One task on one or more devices.

    Args:
        job: What to train, and how.

    Raises:
        ConfigError: If the precision does not exist on the device.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.settings = job, job.train
        self.accelerator = _accelerator(job.train)
        self.world: int = self.accelerator.num_processes
        self.main: bool = self.accelerator.is_main_process
        self.loader = ViewLoader(
            job.store,
            job.images,
            job.task.views,
            seed=job.train.seed,
            batch=job.train.batch,
            reads_ahead=job.train.reads_ahead,
            rank=self.accelerator.process_index,
            world=self.world,
        )
        self.steps = self._length()
        self.task, self.optimiser = self.accelerator.prepare(job.task, build_optimiser(job.task, job.optim))
        self.window: list[tuple[Tensor, dict[str, Tensor], list[str]]] = []  # since the last row of the log

    def _length(self) -> int:
        if self.settings.steps is not None:
            return self.settings.steps
        assert self.settings.epochs is not None  # RunConfig demands one of them
        per_step = self.settings.batch * self.settings.accumulation * self.world
        return max(1, round(self.settings.epochs * len(self.job.images) / per_step))

    def fit(self, run: Path, label: str) -> Result:
        """Train to the end, or to SIGTERM/SIGUSR1, going on from the last checkpoint in `run`.

        Raises:
            RunError: If the loss stops being finite, or a checkpoint cannot be written.
        """
        run.mkdir(parents=True, exist_ok=True)
        reset_peak(self.accelerator.device)
        step, seconds_before = self._restore(run)
        began = perf_counter()
        stopping = False
        self._row_began, self._waited_before = began, self.loader.waited
        tracking = Tracker(run, self.steps, step, label) if self.main else nullcontext()
        with tracking as tracker, _stop_signals() as stop:
            batches = self.loader.batches(start=step * self.settings.accumulation)
            while step < self.steps and not stopping:
                last = step + 1 == self.steps
                draw = last or step == 0 or (step + 1) % self.settings.picture_every == 0
                output = self._step(step, batches, draw)
                step += 1
                if step % self.settings.log_every == 0 or last:
                    self._log(tracker, step, run)
                if draw and tracker is not None:
                    tracker.pictures(step, output.pictures)
                stopping = self._any(stop.asked)  # read once: a signal that comes later is met by the next step
                if last or stopping or step % self.settings.checkpoint_every == 0:
                    self._check_finite(step, run)
                    self._save(run, step, seconds_before + perf_counter() - began)
        seconds = seconds_before + perf_counter() - began
        return Result(step, seconds, peak_mb(self.accelerator.device), finished=step >= self.steps)

    def _step(self, step: int, batches: Iterator[RawBatch], draw: bool) -> StepOutput:
        """One optimiser step: forward and backward of every micro-batch, clipping, update, the task's after_update."""
        set_lr(self.optimiser, self.job.optim.lr * lr_factor(step, self.steps, self.job.schedule))
        accumulation = self.settings.accumulation
        self.task.train()
        losses, scalars, images = [], [], []
        for micro in range(accumulation):
            batch, ctx = self._next(batches, step / self.steps, draw and micro == 0)
            syncing = micro == accumulation - 1
            with nullcontext() if syncing else self.accelerator.no_sync(self.task):
                with self.accelerator.autocast():
                    output: StepOutput = self.task(batch, ctx)
                self.accelerator.backward(output.loss / accumulation)
            losses.append(output.loss.detach().float())
            scalars.append(output.scalars)
            images.extend(batch.images)
            if micro == 0:
                first = output
        if self.settings.clip is not None:
            self.accelerator.clip_grad_norm_(self.task.parameters(), self.settings.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.accelerator.unwrap_model(self.task).after_update((step + 1) / self.steps, output)
        mean = {name: torch.stack([row[name].detach().float() for row in scalars]).mean() for name in scalars[0]}
        self.window.append((torch.stack(losses).mean(), mean, images))
        return first

    def _next(self, batches: Iterator[RawBatch], progress: float, draw: bool) -> tuple[Batch, StepContext]:
        raw = next(batches)
        rng = torch.Generator().manual_seed(torch_seed(self.settings.seed, "step", raw.number))
        torch.manual_seed(torch_seed(self.settings.seed, "layers", raw.number))  # dropout and drop path
        job, device = self.job, self.accelerator.device
        batch = to_device(raw, job.store, job.task.views, job.normalise, device, rng)
        gather, reduce = _collectives(self.accelerator)
        return batch, StepContext(rng, progress, draw, gather, reduce)

    def _any(self, here: bool) -> bool:
        """Whether it is so on any device; all of them must leave the loop at the same step."""
        if self.world == 1:
            return here
        found = self.accelerator.reduce(torch.tensor(float(here), device=self.accelerator.device), "sum")
        return bool(found.item() > 0)

    def _log(self, tracker: Tracker | None, step: int, run: Path) -> None:
        """Write the means since the last row; the only place where the host waits for the device."""
        self._check_finite(step, run)
        count = len(self.window)
        names = list(self.window[0][1])
        table = torch.stack(
            [torch.stack([loss, *(scalars[name] for name in names)]) for loss, scalars, _ in self.window]
        )
        means = self.accelerator.reduce(table.mean(0), "mean").tolist()
        now, waited = perf_counter(), self.loader.waited
        seconds = max(now - self._row_began, 1e-9)
        images = count * self.settings.batch * self.settings.accumulation * self.world
        row = dict(zip(["loss", *names], means, strict=True))
        row |= {"lr": self.job.optim.lr * lr_factor(step - 1, self.steps, self.job.schedule)}
        row |= {"progress": step / self.steps, "samples_per_s": images / seconds}
        row |= {"data_wait": (waited - self._waited_before) / seconds, "seconds": seconds}
        self._row_began, self._waited_before = now, waited
        self.window.clear()
        if tracker is not None:
            tracker.row(step, row)

    def _check_finite(self, step: int, run: Path) -> None:
        """Stop before a spoilt state is logged or saved."""
        if not self.window:
            return
        losses = torch.stack([loss for loss, _, _ in self.window]).cpu()
        bad = (~torch.isfinite(losses)).nonzero()
        if not self._any(len(bad) > 0):
            return
        if len(bad) == 0:
            raise RunError("the loss of another process is not finite; its message says where.")
        offset = int(bad[0])
        images = ", ".join(self.window[offset][2])
        saved = checkpoint_folders(run)
        raise RunError(
            f"the loss became {losses[offset].item()} at step {step - len(self.window) + offset + 1}, with the images "
            f"{images} in the batch. Last good checkpoint: {saved[-1] if saved else 'none yet'}. Try a lower "
            "--optim.lr, a longer --schedule.warmup, --train.clip 1.0, or --train.precision fp32; if it happens with "
            "the same images again, look at them."
        )

    def _save(self, run: Path, step: int, seconds: float) -> None:
        if not self.main:
            return
        state = {"optimiser": self.optimiser.state_dict()}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        window = [
            [loss.item(), {name: value.item() for name, value in scalars.items()}, images]
            for loss, scalars, images in self.window
        ]
        progress = {"window": window, "seconds": seconds, **self._unchangeable()}
        task = self.accelerator.unwrap_model(self.task)
        save_checkpoint(run, step, task, state, progress, self.job.handed, self.settings.keep_every)

    def _unchangeable(self) -> dict[str, Any]:
        """What a resumed run must share with the one that was interrupted, beside its settings."""
        return {"steps": self.steps, "processes": self.world, "store_hash": str(self.job.store.info["hash"])}

    def _restore(self, run: Path) -> tuple[int, float]:
        folders = checkpoint_folders(run)
        if not folders:
            return 0, 0.0
        state, progress = load_checkpoint(folders[-1], self.accelerator.unwrap_model(self.task))
        for name, now in self._unchangeable().items():
            if progress[name] != now:
                raise RunError(
                    f"{folders[-1]}: was made with {name} {progress[name]}, this call has {now}; the samples would "
                    "not be those of an uninterrupted run. Resume with the same store and number of processes, or "
                    "start anew."
                )
        self.optimiser.load_state_dict(state["optimiser"])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        device = self.accelerator.device
        self.window = [
            (
                torch.tensor(loss, device=device),
                {name: torch.tensor(value, device=device) for name, value in scalars.items()},
                images,
            )
            for loss, scalars, images in progress["window"]
        ]
        return int(progress["step"]), float(progress["seconds"])

    def time_steps(self, warm: int = 2, timed: int = 6) -> tuple[float, float]:
        """Run a few real steps without writing anything.

        Returns:
            Median seconds per step, peak memory in MB.
        """
        reset_peak(self.accelerator.device)
        batches = self.loader.batches()
        seconds = []
        for step in range(warm + timed):
            began = perf_counter()
            self._step(min(step, self.steps - 1), batches, draw=False)
            self.window[-1][0].item()  # wait for the device
            seconds.append(perf_counter() - began)
        return sorted(seconds[warm:])[timed // 2], peak_mb(self.accelerator.device)


@dataclass
class _Stop:
    asked: bool = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGTERM and SIGUSR1 (what clusters send before they kill) let the step end, save, and leave cleanly."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    try:
        before = {number: signal.signal(number, ask) for number in numbers}
    except ValueError:  # not in the main thread: signals are somebody else's business
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _accelerator(settings: TrainConfig) -> Any:
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
    # accelerate keeps its precision for the life of the process; two runs in one process may differ
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    made = Accelerator(cpu=cpu, mixed_precision="no" if settings.precision == "fp32" else settings.precision)
    console.quiet = not made.is_main_process
    return made


def _collectives(accelerator: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    if accelerator.num_processes == 1:
        return (lambda x: x), (lambda x: x)
    from torch.distributed.nn.functional import all_gather

    return (lambda x: torch.cat(all_gather(x))), (lambda x: accelerator.reduce(x.detach(), "mean"))


def reset_peak(device: torch.device) -> None:
    """Let `peak_mb` count from here: a process may train several times."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux only; elsewhere the peak is the process's
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """Largest memory since `reset_peak` in MB: the GPU's where there is one, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
