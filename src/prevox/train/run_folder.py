"""The run folder: a run describes itself (settings, environment, data), so that it can be repeated and resumed."""

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from prevox import __version__
from prevox.config.base import read_yaml, write_yaml
from prevox.config.runs import RunConfig
from prevox.errors import ConfigError, RunError

PACKAGES = ("torch", "accelerate", "numpy", "scipy", "tensorstore", "nibabel", "SimpleITK", "pydantic", "safetensors")
FREE_ON_RESUME = {
    "out",
    "resume",
    "dry_run",
    "train.reads_ahead",
    "train.device",
    "train.picture_every",
    "train.checkpoint_every",
    "train.keep_every",
}


def open_run(config: RunConfig, verb: str) -> Path:
    """Make the run folder, or check that an existing one was started with the same settings.

    Raises:
        RunError: If the folder holds something and --resume was not given, or cannot be written.
        ConfigError: If --resume was given with other settings; each difference is named.
    """
    out = config.out
    settings = {"verb": verb, **config.plain()}
    try:
        if (out / "config.yaml").is_file():
            if not config.resume:
                raise RunError(f"{out}: is a run already. Add --resume to go on with it, or choose another --out.")
            _check_same(read_yaml(out / "config.yaml"), settings, out)
            return out
        if out.exists() and any(out.iterdir()):
            raise RunError(f"{out}: is not empty and not a run. Choose another --out.")
        out.mkdir(parents=True, exist_ok=True)
        write_yaml(out / "config.yaml", settings, header=f"prevox {__version__}: every setting of this run")
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}). Choose another --out.") from error
    return out


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def environment(store_hash: str) -> dict[str, Any]:
    """What a reader needs to judge or repeat the run: versions, machine, command, data."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "prevox": __version__,
        "git": _git_revision(),
        "command": shlex.join(["prevox", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "prevox" else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": cuda,
        "packages": {name: _version(name) for name in PACKAGES},
        "store_hash": store_hash,
    }


def _check_same(old: dict[str, Any], new: dict[str, Any], out: Path) -> None:
    before, now = dict(_flat(old)), dict(_flat(new))
    changed = [
        f"{key}: the run has {before.get(key)!r}, this call {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)
    ]
    if changed:
        raise ConfigError(
            f"{out}: cannot be resumed with other settings. " + "; ".join(changed) + ". Repeat the run's settings "
            "(they are in its config.yaml) or choose another --out."
        )


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    result: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, dict):
            result.extend(_flat(value, f"{prefix}{key}."))
        else:
            result.append((prefix + key, value))
    return result


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Revision of the checkout that this package runs from, if it is one."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
