"""Looks at the machine for `prevox doctor`: limits of the container, disk, driver, and two quick rates."""

import os
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import perf_counter

import psutil

CGROUP = Path("/sys/fs/cgroup")


def cgroup_memory(root: Path = CGROUP) -> int | None:
    """Bytes that the control group may use, or None where there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # version 2, version 1
        words = _words(root / name)
        if words and words[0].isdecimal() and int(words[0]) < 2**60:  # version 1 writes a huge number for no limit
            return int(words[0])
    return None


def cgroup_cores(root: Path = CGROUP) -> float | None:
    """Cores' worth of time that the control group may use, or None where there is no limit."""
    words = _words(root / "cpu.max") or [
        *_words(root / "cpu/cpu.cfs_quota_us"),
        *_words(root / "cpu/cpu.cfs_period_us"),
    ]
    if len(words) == 2 and words[0].isdecimal() and int(words[1]) > 0:  # "max" and -1 mean no limit
        return int(words[0]) / int(words[1])
    return None


def file_system(folder: Path) -> str:
    """Type of the file system that a folder is on, as the system calls it."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    found = next((mounts[place] for place in (folder, *folder.parents) if place in mounts), "")
    return found or "unknown"


def disk_rates(folder: Path, size: int = 32 << 20) -> tuple[float, float]:
    """MB/s at which a file is written to the disk and read from it again.

    Raises:
        OSError: If the folder cannot be written.
    """
    block = os.urandom(1 << 20)
    with NamedTemporaryFile(dir=folder, prefix=".prevox-doctor-") as file:
        began = perf_counter()
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = perf_counter() - began
        if hasattr(os, "posix_fadvise"):  # otherwise memory would be read, not the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = perf_counter()
        while file.read(len(block)):
            pass
        return size / written / 2**20, size / (perf_counter() - began) / 2**20


def matrix_rate(size: int = 1536, rounds: int = 4) -> float:
    """GFLOP/s of a float32 matrix product, to judge how fast training can be here."""
    import torch

    a = torch.ones(size, size)
    a @ a
    began = perf_counter()
    for _ in range(rounds):
        a @ a
    return 2 * size**3 * rounds / (perf_counter() - began) / 1e9


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver, whatever torch sees; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
