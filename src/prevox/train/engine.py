"""The loop. It knows tasks and batches; it knows no method.

Everything random in step s is a function of the run's seed and s, so nothing of a random generator is ever saved: a
resumed run repeats what an uninterrupted one would have done.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from prevox.config.data import NormaliseConfig
from prevox.config.train import OptimConfig, ScheduleConfig, TrainConfig
from prevox.data.dataset import RawBatch, ViewLoader, to_device
from prevox.data.sampler import torch_seed
from prevox.data.store import Store
from prevox.errors import ConfigError, NotFiniteError, RunError
from prevox.signals import stop_signals
from prevox.task import Batch, PretrainMethod, StepContext, StepOutput, Task
from prevox.train.checkpoint import checkpoint_folders, load_checkpoint, save_checkpoint
from prevox.train.devices import accelerator_of, collectives
from prevox.train.memory import peak_mb, reset_peak
from prevox.train.optim import build_optimiser, set_lr
from prevox.train.probe import Probe
from prevox.train.schedule import decoder_steps, lr_factor
from prevox.train.tracking import Tracker
from prevox.train.window import StepRecord, fault, not_finite


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
        decoder_first: Share of the run, at its start, in which parameters that `Task.waits` names are held still.
        handed: Metadata for the header of pretrained.safetensors.
        probe: What measures the features of a pre-training method now and then.
    """

    task: Task
    store: Store
    images: list[str]
    normalise: NormaliseConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    train: TrainConfig
    decoder_first: float = 0.0
    handed: dict[str, Any] = field(default_factory=dict)
    probe: Probe | None = None


class Engine:
    """One task on one or more devices.

    Args:
        job: What to train, and how.

    Raises:
        ConfigError: If the precision does not exist on the device, or one of two phases would have no step.

    Attributes:
        parameters: Number of all that is ever trained.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.settings = job, job.train
        self.accelerator = accelerator_of(job.train)
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
        first = decoder_steps(job.decoder_first, self.steps)
        if job.decoder_first and not 0 < first < self.steps:
            raise ConfigError(
                f"decoder_first: {job.decoder_first:g} of {self.steps} steps are {first}; expected at least one step "
                "for the decoder alone and one for everything. Train longer, or choose another share."
            )
        optimiser = build_optimiser(job.task, job.optim)  # of all that is ever trained
        self.parameters = sum(p.numel() for group in optimiser.param_groups for p in group["params"])
        self.waiting = [p for name, p in job.task.named_parameters() if p.requires_grad and job.task.waits(name)]
        self._hold(first > 0)
        self.task, self.optimiser = self.accelerator.prepare(job.task, optimiser)
        self.window: list[StepRecord] = []  # since the last row of the log

    def _length(self) -> int:
        if self.settings.steps is not None:
            return self.settings.steps
        assert self.settings.epochs is not None  # RunConfig demands one of them
        per_step = self.settings.batch * self.settings.accumulation * self.world
        return max(1, round(self.settings.epochs * len(self.job.images) / per_step))

    def _hold(self, still: bool) -> None:
        """Hold the parameters that wait, or let go of them; clipping and momentum do not see what has no gradient."""
        self.held = still
        for parameter in self.waiting:
            parameter.requires_grad_(not still)

    def enter_phase(self, step: int) -> None:
        """Train what is trained in this step."""
        held = step < decoder_steps(self.job.decoder_first, self.steps)
        if held == self.held:
            return
        self._hold(held)
        if self.world > 1:  # what a wrapper sums over processes is settled when it is made
            self.task = self.accelerator.prepare(self.accelerator.unwrap_model(self.task))

    def fit(self, run: Path, label: str) -> Result:
        """Train to the end, or to SIGTERM/SIGUSR1, going on from the last checkpoint in `run`.

        Raises:
            NotFiniteError: If loss, gradient or weights stop being finite.
            RunError: If a checkpoint cannot be written.
        """
        run.mkdir(parents=True, exist_ok=True)
        reset_peak(self.accelerator.device)
        step, seconds_before = self._restore(run)
        began = perf_counter()
        self.begin_row()
        tracking = Tracker(run, self.steps, step, label) if self.main else nullcontext()
        with tracking as tracker, stop_signals() as stop:
            batches = self.loader.batches(start=step * self.settings.accumulation)
            stopping = self.on_any(stop.asked)  # during start-up: what there is to keep lies on the disk already
            if step == 0 and not stopping:
                self.probe(tracker, step, run)
            while step < self.steps and not stopping:
                last = step + 1 == self.steps
                draw = self.draws(step)
                output = self.train_step(step, batches, draw)
                step += 1
                if step % self.settings.log_every == 0 or last:
                    self.log(tracker, step, run)
                if draw and tracker is not None:
                    tracker.pictures(step, output.pictures)
                self.probe(tracker, step, run)
                stopping = self.on_any(stop.asked)  # read once: a signal that comes later is met by the next step
                if stopping or self.saves(step):
                    self._check_finite(step, run, saving=True)
                    self.save(run, step, seconds_before + perf_counter() - began)
        seconds = seconds_before + perf_counter() - began
        return Result(step, seconds, peak_mb(self.accelerator.device), finished=step >= self.steps)

    def begin_row(self) -> None:
        """Let the times of the next row of the log count from here."""
        self._row_began, self._waited_before = perf_counter(), self.loader.waited

    def lr(self, step: int) -> float:
        """Learning rate of a step, counted from 0, before a parameter's own scale."""
        job = self.job
        return job.optim.lr * lr_factor(step, self.steps, job.schedule, job.decoder_first)

    def draws(self, step: int) -> bool:
        """Whether a step, counted from 0, makes pictures."""
        return step == 0 or step + 1 == self.steps or (step + 1) % self.settings.picture_every == 0

    def saves(self, step: int) -> bool:
        """Whether there is a checkpoint after this many steps."""
        return step == self.steps or step % self.settings.checkpoint_every == 0

    def train_step(self, step: int, batches: Iterator[RawBatch], draw: bool) -> StepOutput:
        """One optimiser step: forward and backward of every micro-batch, clipping, update, the task's after_update."""
        self.enter_phase(step)
        set_lr(self.optimiser, self.lr(step))
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
        norm = self._gradient_norm()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.accelerator.unwrap_model(self.task).after_update((step + 1) / self.steps, output)
        mean = {name: torch.stack([row[name].detach().float() for row in scalars]).mean() for name in scalars[0]}
        self.window.append(StepRecord(torch.stack(losses).mean(), norm, mean, images))
        return first

    def _gradient_norm(self) -> Tensor:
        """Norm of the gradient, which is clipped if asked for; 0 under a scaler, which skips what is not finite."""
        parameters = self.task.parameters()
        norm = None
        if self.settings.clip is not None:
            norm = self.accelerator.clip_grad_norm_(parameters, self.settings.clip)
        if self.accelerator.scaler is not None:
            return torch.zeros((), device=self.accelerator.device)
        if norm is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return norm.detach()

    def _next(self, batches: Iterator[RawBatch], progress: float, draw: bool) -> tuple[Batch, StepContext]:
        raw = next(batches)
        rng = torch.Generator().manual_seed(torch_seed(self.settings.seed, "step", raw.number))
        torch.manual_seed(torch_seed(self.settings.seed, "layers", raw.number))  # dropout and drop path
        job, device = self.job, self.accelerator.device
        batch = to_device(raw, job.store, job.task.views, job.normalise, device, rng)
        gather, reduce = collectives(self.accelerator)
        return batch, StepContext(rng, progress, draw, gather, reduce)

    def on_any(self, here: bool) -> bool:
        """Whether it is so on any device; all of them must leave the loop at the same step."""
        if self.world == 1:
            return here
        found = self.accelerator.reduce(torch.tensor(float(here), device=self.accelerator.device), "sum")
        return bool(found.item() > 0)

    def log(self, tracker: Tracker | None, step: int, run: Path) -> None:
        """Write the means since the last row; the only place where the host waits for the device."""
        self._check_finite(step, run)
        count = len(self.window)
        names = list(self.window[0].scalars)
        table = torch.stack([torch.stack([row.loss, *(row.scalars[name] for name in names)]) for row in self.window])
        means = self.accelerator.reduce(table.mean(0), "mean").tolist()
        seconds = max(perf_counter() - self._row_began, 1e-9)
        images = count * self.settings.batch * self.settings.accumulation * self.world
        row = dict(zip(["loss", *names], means, strict=True))
        row |= {"lr": self.lr(step - 1)}
        row |= {"progress": step / self.steps, "samples_per_s": images / seconds}
        row |= {"data_wait": (self.loader.waited - self._waited_before) / seconds, "seconds": seconds}
        self.window.clear()
        self.begin_row()
        if tracker is not None:
            tracker.row(step, row)

    def probes(self, step: int) -> bool:
        """Whether the features are probed after this many steps."""
        return self.job.probe is not None and (step == self.steps or step % self.job.probe.every == 0)

    def probe(self, tracker: Tracker | None, step: int, run: Path) -> None:
        """Probe the features if it is time to, on the main process; the others wait for it in their next step."""
        if self.job.probe is None or not self.probes(step):
            return
        self._check_finite(step, run, saving=True)
        if tracker is None:
            return
        task = self.accelerator.unwrap_model(self.task)
        assert isinstance(task, PretrainMethod), "only a pre-training method has features"
        began = perf_counter()
        tracker.probe(step, self.job.probe(task, self.accelerator.device))
        self._row_began += perf_counter() - began  # no part of the training's pace

    def _check_finite(self, step: int, run: Path, saving: bool = False) -> None:
        """Stop before a spoilt state is logged or saved."""
        message = fault(self.window, step)
        if saving and message is None:
            tensor = not_finite(self.accelerator.unwrap_model(self.task).state_dict())
            message = tensor and f"'{tensor}' is not finite after step {step}, though every loss and gradient was."
        if not self.on_any(message is not None):
            return
        if message is None:
            raise NotFiniteError("the training of another process is not finite; its message says where.")
        saved = checkpoint_folders(run)
        raise NotFiniteError(
            f"{message} Last good checkpoint: {saved[-1] if saved else 'none yet'}. Try a lower --optim.lr, a longer "
            "--schedule.warmup, --train.clip 1.0, or --train.precision fp32, in a new run (--out); if it happens with "
            "the same images again, look at them."
        )

    def save(self, run: Path, step: int, seconds: float) -> None:
        """Write a checkpoint, on the main process."""
        if not self.main:
            return
        state = {"optimiser": self.optimiser.state_dict()}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        progress = {"window": [row.plain() for row in self.window], "seconds": seconds, **self._unchangeable()}
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
            if progress.get(name) != now:
                raise RunError(
                    f"{folders[-1]}: was made with {name} {progress.get(name)}, this call has {now}; the samples would "
                    "not be those of an uninterrupted run. Resume with the same store and number of processes, or "
                    "start anew."
                )
        try:
            self.optimiser.load_state_dict(state["optimiser"])
            if self.accelerator.scaler is not None and "scaler" in state:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.window = [StepRecord.from_plain(row, self.accelerator.device) for row in progress["window"]]
            return int(progress["step"]), float(progress["seconds"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise RunError(
                f"{folders[-1]}: optimiser.pt or progress.json is not this run's ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}). Delete this folder; --resume then takes the checkpoint before it."
            ) from error
