"""What pre-training and fine-tuning do around the engine: run folder, dry run, summary."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from prevox.allocator import keep_freed_memory
from prevox.config.runs import RunConfig
from prevox.console import console, warn
from prevox.errors import DISK_FULL, RunError
from prevox.models.transformer import checkpoint_activations
from prevox.output import writable_folder
from prevox.train.checkpoint import checkpoint_folders, step_of
from prevox.train.engine import Engine, Job
from prevox.train.estimate import rehearse
from prevox.train.run_folder import check_run, environment, write_json, write_run


@dataclass(frozen=True)
class RunResult:
    """Where the run is and how it ended; `finished` is False after a stop signal and after a dry run."""

    path: Path
    finished: bool
    seconds: float
    estimate: dict[str, float] | None = None


def train_run(
    verb: str, config: RunConfig, job: Job, split: dict[str, list[str]], files: dict[str, Any] | None = None
) -> RunResult:
    """Train a job in its run folder, or only estimate it (--dry-run).

    Args:
        verb: pretrain or finetune.
        config: Resolved settings; written to config.yaml.
        job: What the engine trains.
        split: Image ids by part; written to split.json.
        files: Further JSON files of the run folder, by name.

    Raises:
        PrevoxError: If the run folder holds another run, or cannot be written.
    """
    keep_freed_memory()
    if config.train.checkpoint_activations and not checkpoint_activations(job.task):
        warn("train.checkpoint_activations is ignored: the network has no transformer blocks")
    if config.dry_run:
        return dry_run(config, job)
    check_run(config, verb, split)
    run, engine = config.out, Engine(job)
    finished = checkpoint_folders(run)
    if finished and step_of(finished[-1]) >= engine.steps and (run / "summary.json").is_file():
        console.print(f"{verb}: {run} is finished; nothing to do")
        return RunResult(run, finished=True, seconds=0.0)
    engine.accelerator.wait_for_everyone()  # all processes have looked before the main one writes
    if engine.main:
        writable_folder(run)
        (run / "summary.json").unlink(missing_ok=True)  # it speaks of an earlier attempt
        described = {"split.json": split, "environment.json": environment(str(job.store.info["hash"]))}
        write_run(config, verb, described | (files or {}))
    engine.accelerator.wait_for_everyone()
    subjects = job.store.index.loc[job.images, "subject"].nunique()
    console.print(
        f"{verb}: {len(job.images)} images of {subjects} subjects, {engine.parameters / 1e6:.1f} M parameters "
        f"to train, {engine.steps} steps, on {engine.accelerator.device} ({config.train.precision}); run folder {run}"
    )
    try:
        result = engine.fit(run, label=f"{verb} {run.name}")
    except OSError as error:  # log or pictures; a checkpoint says so by itself
        if error.errno not in DISK_FULL:
            raise
        raise RunError(
            f"{run}: cannot be written ({error.strerror}). Finished checkpoints are untouched: free space, and repeat "
            "the call with --resume."
        ) from error
    summary = {
        "verb": verb,
        "steps": result.steps,
        "seconds": result.seconds,
        "peak_mb": result.peak_mb,
        "parameters": engine.parameters,
        "images": len(job.images),
        "subjects": int(subjects),
        "finished": result.finished,
        "date": time.strftime("%Y-%m-%d"),
    }
    if engine.main:
        write_json(run / "summary.json", summary)
    if result.finished:
        console.print(f"{verb}: done in {result.seconds:.0f} s, {result.peak_mb:.0f} MB at most; run folder {run}")
    else:
        console.print(f"{verb}: stopped by a signal after step {result.steps}; the state is saved, go on with --resume")
    return RunResult(run, result.finished, result.seconds)


def dry_run(config: RunConfig, job: Job) -> RunResult:
    """Rehearse on the real data and print what the whole run would take; nothing is left on the disk."""
    engine = Engine(job)
    found = rehearse(engine, next(folder for folder in config.out.absolute().parents if folder.is_dir()))
    rate = config.train.batch * config.train.accumulation * engine.world / found.step
    table = Table(title=f"dry run: estimate from {found.timed} real steps", show_header=False)
    table.add_row("parameters to train", f"{engine.parameters / 1e6:.2f} M")
    table.add_row("steps", f"{found.steps}")
    table.add_row("time per step", f"{found.step:.3f} s, {found.waiting:.0%} of it waiting for data")
    if found.held:
        table.add_row("decoder alone", f"{found.held} of these steps, {found.held_step:.3f} s each")
    table.add_row("throughput", f"{rate:.2f} images/s")
    table.add_row("pictures", f"{found.pictures} times {found.picture:.1f} s")
    if found.probes:
        table.add_row("probes", f"{found.probes} times {found.probe:.1f} s")
    table.add_row(
        "checkpoints", f"{found.checkpoints} times {found.checkpoint:.1f} s, {found.checkpoint_mb:.0f} MB each"
    )
    table.add_row("peak memory", f"{found.peak_mb:.0f} MB on {engine.accelerator.device}")
    table.add_row("whole run", f"{_duration(found.seconds)}, after the start-up")
    console.print(table)
    estimate = {
        "seconds_per_step": found.step,
        "seconds": found.seconds,
        "peak_mb": found.peak_mb,
        "checkpoint_mb": found.checkpoint_mb,
        "steps": float(found.steps),
    }
    return RunResult(config.out, finished=False, seconds=0.0, estimate=estimate)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
