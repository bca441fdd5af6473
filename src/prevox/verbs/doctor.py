"""`prevox doctor`: what a support person would ask for, and what stands in the way of work on this machine.

Only named variables of the environment are shown, none that could hold a secret; the host's and the user's name appear
where a path or one of these variables holds them, and nowhere else.
"""

import os
import platform
import resource
import shutil
import sys
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.markup import escape
from rich.table import Table

from prevox import __version__
from prevox.config.tools import DoctorConfig
from prevox.console import console
from prevox.errors import ConfigError, PrevoxError
from prevox.output import replacing
from prevox.train.run_folder import git_revision, processor
from prevox.verbs.machine import cgroup_cores, cgroup_memory, disk_rates, file_system, matrix_rate, nvidia_driver

Facts = dict[str, str]
CORE = {
    "torch": "torch", "accelerate": "accelerate", "numpy": "numpy", "scipy": "scipy", "pandas": "pandas",
    "pyarrow": "pyarrow", "nibabel": "nibabel", "SimpleITK": "SimpleITK", "tensorstore": "tensorstore",
    "pydantic": "pydantic", "tyro": "tyro", "pyyaml": "yaml", "safetensors": "safetensors", "psutil": "psutil",
    "rich": "rich", "tensorboard": "tensorboard", "matplotlib": "matplotlib", "jinja2": "jinja2", "pillow": "PIL",
    "pydicom": "pydicom",
}  # fmt: skip
EXTRAS = {
    "dicom": "pylibjpeg",
    "dask": "distributed",
    "viewer": "napari",
    "mlflow": "mlflow-skinny",
    "wandb": "wandb",
    "bench": "blosc2",
    "test": "pytest",
}
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG", "GLOO_SOCKET_IFNAME", "MASTER_ADDR", "MASTER_PORT",
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION", "SLURM_JOB_ID",
    "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_CPUS_PER_TASK", "SLURM_NNODES",
    "SLURM_STEP_NODELIST", "SLURM_GPUS_ON_NODE", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "LANG",
)  # fmt: skip
GB = 2**30
NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "fuse.sshfs", "ceph", "afs", "9p", "glusterfs")


@dataclass(frozen=True)
class Problem:
    """Something that stands in the way.

    Attributes:
        what: What was found and what to do.
        stops: Whether work cannot be done before it is mended.
    """

    what: str
    stops: bool = False


@dataclass
class DoctorResult:
    """The facts by section, and the problems."""

    facts: dict[str, Facts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 if a problem stops work, else 0."""
        return int(any(problem.stops for problem in self.problems))


def doctor(config: DoctorConfig) -> DoctorResult:
    """Print (and return) versions, machine, disk, device, environment and what is wrong with them.

    Raises:
        ConfigError: If the folder does not exist.
        RunError: If `out` cannot be written.
    """
    if not config.folder.is_dir():
        raise ConfigError(
            f"folder: {config.folder} does not exist. Give the folder whose disk will hold stores and runs."
        )
    found = DoctorResult()
    found.facts["prevox"] = {
        "prevox": __version__,
        "git revision": git_revision() or "no checkout",
        "python": f"{platform.python_version()} in {sys.prefix}",
    }
    found.facts["packages"] = _packages(found.problems)
    found.facts["machine"] = _machine(found.problems)
    found.facts["disk"] = _disk(config.folder, found.problems)
    complete = not any(value.startswith("MISSING") for value in found.facts["packages"].values())
    if complete:
        found.facts["device"] = _device(found.problems)
    found.facts["environment"] = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    looks = [("store", partial(_store, config.store))] if config.store is not None else []
    looks += [("run", partial(_run, config.run))] if config.run is not None else []
    for name, look in looks if complete else []:
        try:
            found.facts[name] = look()
        except PrevoxError as error:
            found.problems.append(Problem(str(error), stops=True))
    _show(found)
    if config.out is not None:
        _write(found, config.out)
    return found


def _show(found: DoctorResult) -> None:
    table = Table(title="prevox doctor", show_header=False)
    for section, facts in found.facts.items():
        for number, (name, value) in enumerate(facts.items()):
            table.add_row(section if number == 0 else "", name, escape(value), end_section=number == len(facts) - 1)
    console.print(table)
    for problem in found.problems:
        kind = "[red]problem:[/red]" if problem.stops else "[yellow]note:[/yellow]"
        console.print(f"{kind} {escape(problem.what)}", markup=True)
    if not found.problems:
        console.print("nothing stands in the way")
    console.print("Before you send this to anyone, look at the paths, and at names of hosts in the environment.")


def _write(found: DoctorResult, path: Path) -> None:
    import json

    problems = [{"what": problem.what, "stops": problem.stops} for problem in found.problems]
    with replacing(path) as partial:
        partial.write_text(json.dumps({**found.facts, "problems": problems}, indent=1) + "\n")


def _packages(problems: list[Problem]) -> Facts:
    """Versions; whether each package is there, and its binary parts load, is seen by importing it."""
    facts = {}
    for name, module in CORE.items():
        try:
            import_module(module)
            facts[name] = package_version(name) or "unknown version"
        except Exception as error:  # a broken binary raises whatever it likes
            facts[name] = f"MISSING ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            remedy = "Install Prevox again in a fresh environment (make demo makes one)."
            problems.append(Problem(f"{name} cannot be imported: {facts[name]}. {remedy}", stops=True))
    for name, package in EXTRAS.items():
        facts[f"extra {name}"] = package_version(package) or "not installed"
    return facts


def _machine(problems: list[Problem]) -> Facts:
    memory, limit = psutil.virtual_memory(), cgroup_memory()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cores()
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    shared = Path("/dev/shm")
    free = min(memory.available, limit) if limit else memory.available
    if free < 4 * GB:
        problems.append(
            Problem(f"{free / GB:.1f} GB of memory are free; small recipes need 1 to 4. Close what else runs.")
        )
    if quota and quota < usable:
        problems.append(
            Problem(f"{usable} cores are visible, {quota:.1f} may be used: set OMP_NUM_THREADS={max(1, int(quota))}.")
        )
    if 0 <= files < 1024:
        problems.append(Problem(f"a process may open {files} files only. Raise it: ulimit -n 4096."))
    return {
        "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()) or "unknown",
        "processor": processor(),
        "cores": f"{usable} usable of {os.cpu_count()}, cgroup limit {f'{quota:.1f}' if quota else 'none'}",
        "memory": f"{memory.total / GB:.1f} GB, {memory.available / GB:.1f} GB free, "
        f"cgroup limit {f'{limit / GB:.1f} GB' if limit else 'none'}",
        "/dev/shm": f"{shutil.disk_usage(shared).total / GB:.1f} GB" if shared.is_dir() else "none",
        "open files": str(files),
    }


def _disk(folder: Path, problems: list[Problem]) -> Facts:
    folder = folder.resolve()
    free, kind = shutil.disk_usage(folder).free, file_system(folder)
    if free < 5 * GB:
        remedy = "Free space, or give --folder another disk."
        problems.append(Problem(f"{folder}: {free / GB:.1f} GB are free. {remedy}", stops=free < GB / 2))
    facts = {
        "folder": str(folder),
        "free": f"{free / GB:.1f} GB",
        "file system": f"{kind} (network)" if kind.startswith(NETWORK) else kind,
    }
    try:
        write, read = disk_rates(folder)
        facts["rate"] = f"write {write:.0f} MB/s, read {read:.0f} MB/s"
    except OSError as error:
        facts["rate"] = f"cannot be written: {error.strerror}"
        problems.append(Problem(f"{folder}: cannot be written ({error.strerror}). Use another folder.", stops=True))
    return facts


def _device(problems: list[Problem]) -> Facts:
    import torch

    driver = nvidia_driver()
    facts = {
        "torch build": f"CUDA {torch.version.cuda or 'none'}, oneDNN {torch.backends.mkldnn.is_available()}, "
        f"MKL {torch.backends.mkl.is_available()}, distributed {torch.distributed.is_available()}",
        "NVIDIA driver": driver or "none",
        "threads": f"{torch.get_num_threads()} of torch, {torch.get_num_interop_threads()} between operators",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "matrix rate": f"{matrix_rate():.0f} GFLOP/s (float32, CPU)",
    }
    if not torch.cuda.is_available():
        facts["GPU"] = "none seen by torch"
        if driver and torch.version.cuda is None:
            problems.append(Problem("there is an NVIDIA driver and a torch for CPUs: install a CUDA build of torch."))
        elif driver:
            problems.append(
                Problem(
                    "there is an NVIDIA driver and torch sees no GPU: look at CUDA_VISIBLE_DEVICES, and whether the "
                    f"driver ({driver}) is new enough for CUDA {torch.version.cuda}."
                )
            )
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        facts[f"GPU {number}"] = (
            f"{about.name}, {about.total_memory / GB:.1f} GB, compute {about.major}.{about.minor}, "
            f"bf16 {'yes' if torch.cuda.is_bf16_supported(including_emulation=False) else 'no'}"
        )
    return facts


def _store(place: str) -> Facts:
    from prevox.data.store import Store
    from prevox.data.store_files import StoreFiles

    store = Store(place)
    files = StoreFiles(place)
    failed = files.read("failures.csv")
    lines = 0 if failed is None else len(failed.decode().splitlines()) - 1
    return {
        "path": str(files.folder.resolve() if files.folder else files.place),
        "schema": str(store.info["schema"]),
        "images": f"{len(store.index)} of {store.index['subject'].nunique()} subjects, {lines} left out",
        "channels": str(store.info["channels"]),
        "hash": str(store.info["hash"]),
    }


def _run(path: Path) -> Facts:
    """State of a run, and the packages that have changed since it was started."""
    import json

    from prevox.config.base import read_yaml
    from prevox.train.checkpoint import checkpoint_folders

    settings = read_yaml(path / "config.yaml")
    saved = checkpoint_folders(path)
    facts = {
        "path": str(path.resolve()),
        "verb": str(settings.get("verb")),
        "newest checkpoint": saved[-1].name if saved else "none",
        "finished": "unknown: no summary.json, so it runs still or was killed",
    }
    for name, read in (("summary.json", _finished), ("environment.json", _changed)):
        try:
            facts |= read(json.loads((path / name).read_text()))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, AttributeError) as error:
            facts[name] = f"damaged ({type(error).__name__}: {error})"
    return facts


def _finished(summary: dict[str, Any]) -> Facts:
    return {"finished": f"{'yes' if summary['finished'] else 'no, stopped by a signal'}, {summary['steps']} steps"}


def _changed(environment: dict[str, Any]) -> Facts:
    then = {"prevox": environment["prevox"], **environment["packages"]}
    now = {name: __version__ if name == "prevox" else package_version(name) for name in then}
    changed = [f"{name} {then[name]} → {now[name]}" for name in then if then[name] != now[name]]
    return {"versions since its start": ", ".join(changed) or "the same"}


def package_version(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
