"""What a whole run will take: its parts, done in a temporary folder, and counted as often as the run has them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from prevox.console import console
from prevox.data.dataset import RawBatch
from prevox.data.store import CACHE_BYTES
from prevox.errors import RunError
from prevox.signals import stop_signals
from prevox.train.engine import Engine
from prevox.train.memory import peak_mb, reset_peak
from prevox.train.schedule import decoder_steps
from prevox.train.tracking import Tracker

ENOUGH = 10.0  # seconds of steps from which the time of one is taken


@dataclass(frozen=True)
class Estimate:
    """What was measured, and how often a run has it.

    Attributes:
        first: Seconds of the first step with its pictures, and of all that is loaded or set up at its first use.
        step: Seconds of a later step; the mean, as a run is a sum.
        held_step: The same while the decoder alone is trained; 0 where it never is.
        picture: Seconds that pictures add to a step.
        checkpoint: Seconds of writing one.
        checkpoint_mb: Its size on the disk.
        peak_mb: Largest memory, of a GPU or else of this process.
        waiting: Share of a later step spent waiting for reads.
        timed: Later steps that were timed.
        steps: Steps of the run.
        held: Those of them in which the decoder alone is trained.
        pictures: Steps of the run that make pictures, the first included.
        checkpoints: Checkpoints of the run.
        probe: Seconds of probing the features; what the first one does once is part of `first`.
        probes: How often that is.
    """

    first: float
    step: float
    held_step: float
    picture: float
    checkpoint: float
    checkpoint_mb: float
    peak_mb: float
    waiting: float
    timed: int
    steps: int
    held: int
    pictures: int
    checkpoints: int
    probe: float = 0.0
    probes: int = 0

    @property
    def seconds(self) -> float:
        """The whole run's, as summary.json counts them: from the first step to the last checkpoint."""
        held = max(0, self.held - 1)  # the first step is one of them
        later = (self.steps - 1 - held) * self.step + held * self.held_step + (self.pictures - 1) * self.picture
        return self.first + later + self.checkpoints * self.checkpoint + max(0, self.probes - 1) * self.probe


def rehearse(engine: Engine, near: Path) -> Estimate:
    """Do what a run does in a temporary folder, for at least 10 seconds, and leave nothing behind.

    Args:
        engine: Of the run; its task has learnt a little afterwards.
        near: Existing folder on the disk that the run will be on.

    Raises:
        RunError: If the loss is not finite, the disk cannot be written, or a signal came.
    """
    batches, block = engine.loader.batches(), min(engine.settings.log_every, 6)
    held = decoder_steps(engine.job.decoder_first, engine.steps)
    began = perf_counter()
    reset_peak(engine.accelerator.device)
    with _temporary_run(near) as run, stop_signals() as stop:
        with Tracker(run, engine.steps, 0, "dry run") as tracker:
            steps = _Steps(engine, batches, run, tracker)
            steps.seconds(1, draw=True)
            first = perf_counter() - began
            steps.seconds(2)
            held_step = steps.seconds(6) / 6 if held else 0.0
            if held:  # from here on, all is trained
                steps.number = held
                steps.seconds(2)
            timed, seconds, waited = 0, 0.0, engine.loader.waited
            while engine.on_any(timed < 6 or seconds < ENOUGH) and not engine.on_any(stop.asked):
                seconds += steps.seconds(block)
                timed += block
            waited = engine.loader.waited - waited
            _fill_cache(batches, engine)
            drawing = steps.seconds(1, draw=True)
            first_probe, probe = steps.probe_seconds(), steps.probe_seconds()
        began = perf_counter()
        engine.save(run, 1, 0.0)
        saving = perf_counter() - began
        size = sum(file.stat().st_size for file in run.glob("checkpoints/*/*"))
    if stop.asked:
        raise RunError("the dry run was stopped by a signal.")
    step = seconds / timed
    return Estimate(
        first=first + first_probe,
        step=step,
        held_step=held_step,
        picture=max(0.0, drawing - step),
        checkpoint=saving,
        checkpoint_mb=size / 2**20,
        peak_mb=peak_mb(engine.accelerator.device),
        waiting=waited / seconds,
        timed=timed,
        steps=engine.steps,
        held=held,
        pictures=sum(engine.draws(step) for step in range(engine.steps)),
        checkpoints=sum(engine.saves(step + 1) for step in range(engine.steps)),
        probe=probe,
        probes=sum(engine.probes(step) for step in range(engine.steps + 1)),
    )


@dataclass
class _Steps:
    """Steps as `Engine.fit` does them."""

    engine: Engine
    batches: Iterator[RawBatch]
    run: Path
    tracker: Tracker
    number: int = 0  # of the step in the run

    def seconds(self, count: int, draw: bool = False) -> float:
        """Seconds of some steps with one row of the log, at which the host waits for the device."""
        began = perf_counter()
        self.engine.begin_row()
        for _ in range(count):
            output = self.engine.train_step(self.number, self.batches, draw)
        if draw:
            self.tracker.pictures(1, output.pictures)
        self.engine.log(self.tracker, 1, self.run)
        return perf_counter() - began

    def probe_seconds(self) -> float:
        """Seconds of a probe; next to none where there is none."""
        began = perf_counter()
        self.engine.probe(self.tracker, 0, self.run)
        return perf_counter() - began


def _fill_cache(batches: Iterator[RawBatch], engine: Engine) -> None:
    """Read on until the store's cache holds what it would in the course of the run, or for a while."""
    began, read = perf_counter(), 0
    for _ in range(engine.steps * engine.settings.accumulation):
        if read > CACHE_BYTES or perf_counter() - began > ENOUGH:
            return
        read += sum(view.nbytes for group in next(batches).groups.values() for view in group.voxels_BCDHW)


@contextmanager
def _temporary_run(near: Path) -> Iterator[Path]:
    """A temporary folder, and no word meanwhile."""
    quiet = console.quiet
    console.quiet = True
    try:
        with TemporaryDirectory(prefix=".prevox-dry-run-", dir=near) as folder:
            yield Path(folder)
    except OSError as error:
        raise RunError(f"{near}: cannot be written ({error.strerror}). Choose another --out.") from None
    finally:
        console.quiet = quiet
