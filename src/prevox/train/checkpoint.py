"""Checkpoints: safetensors for weights, JSON for what people read, one state file for the optimiser.

A checkpoint folder appears under its final name only when it is complete; nothing in it is unpickled freely.

    checkpoints/step_00000500/
        task.safetensors        everything in the task's state_dict
        optimiser.pt            optimiser and gradient scaler, loadable with weights_only=True
        progress.json           step, unfinished log window
        pretrained.safetensors  (pre-training) the encoder alone, with its specification in the header
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prevox import __version__
from prevox.errors import RunError
from prevox.task import PretrainMethod, Task

PREFIX = "step_"


def checkpoint_folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob(f"{PREFIX}*") if (path / "progress.json").is_file())


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder's name says."""
    return int(folder.name.removeprefix(PREFIX))


def save_checkpoint(
    run: Path,
    step: int,
    task: Task,
    optimiser: dict[str, Any],
    progress: dict[str, Any],
    pretrained_metadata: dict[str, Any],
    keep_every: int | None = None,
) -> Path:
    """Write one checkpoint atomically and drop the older ones but for the newest two (and multiples of keep_every).

    Args:
        run: Run folder.
        step: Optimiser steps done.
        task: Its whole state_dict is kept.
        optimiser: State dictionary of optimiser and scaler.
        progress: What else a resumed run needs, JSON-able.
        pretrained_metadata: Written into the header of pretrained.safetensors beside the specification.
        keep_every: Keep checkpoints whose step is a multiple of this.

    Raises:
        RunError: If the disk does not take it; earlier checkpoints stay as they are.
    """
    final = run / "checkpoints" / f"{PREFIX}{step:08d}"
    partial = final.with_name(f".{final.name}.partial")
    try:
        for stale in final.parent.glob(f".{PREFIX}*.partial"):  # of a run that was killed
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_plain(task.state_dict()), partial / "task.safetensors")
        if isinstance(task, PretrainMethod):
            handed = task.pretrained()
            spec = {"name": handed.spec.name, "settings": handed.spec.settings}
            header = {"prevox": __version__, "spec": json.dumps(spec)}
            header |= {key: json.dumps(value) for key, value in pretrained_metadata.items()}
            save_file(_plain(handed.weights), partial / "pretrained.safetensors", metadata=header)
        torch.save(optimiser, partial / "optimiser.pt")
        (partial / "progress.json").write_text(json.dumps({"step": step, **progress}))
        for path in (*partial.iterdir(), partial):
            _to_disk(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _to_disk(final.parent)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors report a full disk in their way
        shutil.rmtree(partial, ignore_errors=True)
        reason = str(error).splitlines()[0]
        raise RunError(
            f"{final}: the checkpoint could not be written ({reason}). Earlier checkpoints are untouched; "
            "make room or choose another --out, then go on with --resume."
        ) from error
    for old in checkpoint_folders(run)[:-2]:
        if not (keep_every and step_of(old) % keep_every == 0):
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.partial")))  # at no moment a whole name on half of it
    return final


def load_checkpoint(folder: Path, task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """Restore a task in place.

    Returns:
        Optimiser state and progress.

    Raises:
        RunError: If a file is damaged or belongs to another task.
    """
    try:
        weights = load_file(folder / "task.safetensors")
        optimiser = torch.load(folder / "optimiser.pt", weights_only=True, map_location="cpu")
        progress = json.loads((folder / "progress.json").read_text())
    except (OSError, SafetensorError, ValueError, RuntimeError, EOFError, _unpickling_error()) as error:
        raise RunError(
            f"{folder}: cannot be read as a checkpoint ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Delete this folder; --resume then takes the checkpoint before it."
        ) from error
    mismatch = set(weights) ^ set(task.state_dict())
    if mismatch:
        raise RunError(
            f"{folder}: holds another task's weights (for example '{min(mismatch)}' is on one side only). "
            "Resume with the method and model the run was started with, or choose another --out."
        )
    try:
        task.load_state_dict(weights)
    except RuntimeError as error:  # the same names, other shapes
        raise RunError(
            f"{folder}: holds weights of another size ({' '.join(str(error).split()[:60])}). "
            "Resume with the model the run was started with, or choose another --out."
        ) from None
    return optimiser, progress


def _to_disk(path: Path) -> None:
    """Have the system write a file, or the names in a folder, before it goes on: a node may lose its power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Detached contiguous copies: safetensors refuses tensors that share memory."""
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def _unpickling_error() -> type[Exception]:
    import pickle

    return pickle.UnpicklingError
