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

from prevox import __version__
from prevox.config.base import read_yaml, write_yaml
from prevox.config.runs import RunConfig
from prevox.errors import ConfigError, RunError

PACKAGES = ("torch", "accelerate", "numpy", "scipy", "tensorstore", "nibabel", "SimpleITK", "pydantic", "safetensors")
FREE_ON_RESUME = {
    "out",
    "store",  # may have moved; its hash is compared instead
    "resume",
    "dry_run",
    "train.reads_ahead",
    "train.checkpoint_activations",  # changes memory and time, no result
    "train.device",
    "train.picture_every",
    "train.checkpoint_every",
    "train.keep_every",
    "probe",  # the training is the same with and without; its own file is compared instead
}


def check_run(config: RunConfig, verb: str, split: dict[str, list[str]]) -> None:
    """Check that the run folder is free, or holds the same run to be resumed; writes nothing.

    Raises:
        RunError: If the folder holds something and --resume was not given, or the images are divided in another way
            than when the run was started.
        ConfigError: If --resume was given with other settings; each difference is named.
    """
    out = config.out
    if not (out / "config.yaml").is_file():
        if out.is_dir() and any(path.name != ".config.yaml.partial" for path in out.iterdir()):
            raise RunError(f"{out}: is not empty and not a run. Choose another --out.")
        return
    if not config.resume:
        raise RunError(f"{out}: is a run already. Add --resume to go on with it, or choose another --out.")
    _check_same(read_yaml(out / "config.yaml"), {"verb": verb, **config.plain()}, out)
    if (out / "split.json").is_file() and json.loads((out / "split.json").read_text()) != split:
        raise RunError(
            f"{out}: the store gives another division into training and validation images than when the run was "
            "started: held-out subjects could be trained on. Resume with the store as it was, or start a new run."
        )


def write_run(config: RunConfig, verb: str, files: dict[str, Any]) -> None:
    """Make the run folder and write config.yaml and the given JSON files.

    Raises:
        RunError: If it cannot be written.
    """
    out = config.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "config.yaml").is_file():
            settings = {"verb": verb, **config.plain()}
            write_yaml(out / "config.yaml", settings, header=f"prevox {__version__}: every setting of this run")
        for name, content in files.items():
            write_json(out / name, content)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}). Choose another --out.") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def environment(store_hash: str) -> dict[str, Any]:
    """What a reader needs to judge or repeat the run: versions, machine, command, data."""
    import torch  # here, because `doctor` reports a machine without it

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "prevox": __version__,
        "git": git_revision(),
        "command": shlex.join(["prevox", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "prevox" else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": cuda,
        "packages": {name: _version(name) for name in PACKAGES},
        "store_hash": store_hash,
    }


def _check_same(old: dict[str, Any], new: dict[str, Any], out: Path) -> None:
    if old.get("verb") != new["verb"]:
        raise ConfigError(
            f"{out}: is a run of `prevox {old.get('verb')}`; `prevox {new['verb']}` cannot go on with it. Choose "
            "another --out."
        )
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


def git_revision() -> str | None:
    """Revision of the checkout that this file belongs to; None where it is merely installed inside someone's."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True, timeout=5)
        done = subprocess.run(
            [*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def processor() -> str:
    """Model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
