"""`prevox list` and `prevox doctor`."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import psutil
from rich.table import Table

from prevox import __version__
from prevox.config.base import RECIPES, read_yaml, recipe_names
from prevox.config.tools import DoctorConfig, ListConfig
from prevox.console import console
from prevox.data.layouts import LAYOUTS
from prevox.errors import ConfigError
from prevox.methods.registry import METHODS
from prevox.models.registry import MODELS

CORE = ("torch", "accelerate", "numpy", "scipy", "pandas", "pyarrow", "nibabel", "SimpleITK", "tensorstore", "pydantic")
EXTRAS = {
    "dask": "distributed",
    "viewer": "napari",
    "mlflow": "mlflow-skinny",
    "wandb": "wandb",
    "bench": "blosc2",
    "test": "pytest",
}


def list_all(config: ListConfig) -> None:
    """Print methods, models, recipes and layouts."""
    table = Table(title="what exists", show_lines=False)
    for column in ("kind", "name", "what"):
        table.add_column(column)
    for name, method in METHODS.items():
        table.add_row("method", name, method.summary)
    for name, model in MODELS.items():
        table.add_row("model", name, model.summary)
    for verb in ("pretrain", "finetune"):
        for name in recipe_names(verb):
            table.add_row(f"{verb} recipe", name, _first_comment(verb, name))
    for name, layout in LAYOUTS.items():
        table.add_row("layout", name, (layout.__doc__ or "").splitlines()[0])
    console.print(table)


def doctor(config: DoctorConfig) -> dict[str, str]:
    """Print (and return) versions, memory, disk, device and the extras that are installed."""
    import torch

    if not config.folder.is_dir():
        raise ConfigError(
            f"folder: {config.folder} does not exist. Give the folder whose disk will hold stores and runs."
        )
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(config.folder)
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none seen by torch"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "prevox": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": f"{cores} usable, torch uses {torch.get_num_threads()} threads",
        "memory": f"{memory.total / 2**30:.1f} GB, {memory.available / 2**30:.1f} GB free",
        "disk": f"{disk.free / 2**30:.1f} GB free at {config.folder.resolve()}",
        "GPU": cuda,
        "matrix rate": f"{_matrix_rate():.0f} GFLOP/s (float32, CPU)",
        **{name: _version(name) or "MISSING" for name in CORE},
        **{f"extra {name}": _version(package) or "not installed" for name, package in EXTRAS.items()},
    }
    table = Table(title="prevox doctor", show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)
    return facts


def _first_comment(verb: str, recipe: str) -> str:
    path = RECIPES / verb / f"{recipe}.yaml"
    first = path.read_text().splitlines()[0]
    if first.startswith("#"):
        return first.lstrip("# ")
    return ", ".join(read_yaml(path))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _matrix_rate(size: int = 1536, rounds: int = 4) -> float:
    """Floating-point rate of a matrix product, to judge how fast training can be here."""
    from time import perf_counter

    import torch

    a = torch.ones(size, size)
    a @ a
    began = perf_counter()
    for _ in range(rounds):
        a @ a
    return 2 * size**3 * rounds / (perf_counter() - began) / 1e9
