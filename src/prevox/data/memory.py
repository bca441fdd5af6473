"""How much memory this process and its children may still take, and about how much a case needs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from prevox.console import warn
from prevox.data.place import PrepareSettings
from prevox.data.readers import Reading, read_header, stored_size, suffix_of
from prevox.errors import DataError

_UNLIMITED = 1 << 60  # what the first version of cgroups says where no limit is set is beyond this
# bytes for each voxel, measured as the peak of one process over NIfTI files of 200³ int16 and float32 voxels, with and
# without label map: 24 where nothing is resampled, 8 of the source and 20 of the result where it is; 12 to catalogue it
_SOURCE, _PREPARED, _CATALOGUED = 8, 20, 12
_SMALL = 4 << 20  # bytes of a file below which its header is not worth a look
_EXPANSION = 16  # bytes of memory for each byte of a file whose header is not looked at
OWN = 200 << 20  # bytes of a process that works on cases before it has read anything
SHARE = 0.8  # of the available memory that cases may take together


class Budget:
    """Admits cases as long as their estimates fit into memory together, and one case always.

    Args:
        free: Bytes that they may take.
    """

    def __init__(self, free: int) -> None:
        self.free = free
        self._taken: dict[int, int] = {}

    def admits(self, index: int, need: int) -> bool:
        """Take so many bytes for a case if they are there."""
        if self._taken and sum(self._taken.values()) + need > self.free:
            return False
        self._taken[index] = need
        return True

    def release(self, index: int) -> None:
        """Give back what a case has taken."""
        self._taken.pop(index, None)


def warn_of_memory(name: str, need: int, free: int) -> None:
    """Say why fewer cases run at once than could."""
    warn(
        f"memory: {name} needs about {need / 1e9:.1f} GB and all cases together may take {free / 1e9:.1f} GB, so fewer "
        "than all workers run at times."
    )


def available_memory() -> int:
    """Bytes that can be taken before something is killed: of the machine, and of the limit of a job or container.

    On Linux these limits are control groups; what they hold of the page cache counts as free, for it is given back.
    """
    rooms = [_room(folder) for folder in _control_groups()]
    return min([int(psutil.virtual_memory().available), *(room for room in rooms if room is not None)])


def _control_groups(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Folders of the memory control group of this process and all above it, each of which may have a limit."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if number == "0" and not controllers:
            top = root
        elif "memory" in controllers.split(","):
            top = root / "memory"
        else:
            continue
        own = top / place.lstrip("/")
        folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]
    return folders


def _room(folder: Path) -> int | None:
    """Bytes below the limit of a control group (either version's files); None where there is no limit."""
    for limit, current, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, used = int((folder / limit).read_text()), int((folder / current).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # other version, no such group, or "max"
            continue
        if most < _UNLIMITED:
            return max(0, most - used + int(statistics.get(cache, 0)))
    return None


def preparing_bytes(row: dict[str, Any], settings: PrepareSettings) -> int:
    """Bytes that preparing an image takes at most, about, from its row of the catalogue."""
    voxels = row["channels"] * row["shape_i"] * row["shape_j"] * row["shape_k"]
    growth = 1.0
    if settings.spacing is not None:
        growth = row["spacing_i"] * row["spacing_j"] * row["spacing_k"] / float(np.prod(settings.spacing))
    source = _SOURCE + np.dtype(row["dtype"]).itemsize
    return int(voxels * (source + _PREPARED * growth))


def reading_bytes(paths: Iterable[Path], reading: Reading) -> int:
    """Bytes that cataloguing the files of one image takes at most, about.

    From the headers of NIfTI files that are not small, for these are read without compiled code, which a broken file
    could crash; from the sizes of others, of a series or a folder of slices all its files.
    """
    total = 0
    for path in paths:
        try:
            size = stored_size(path)
        except (DataError, OSError, ValueError):  # the reader says what is wrong with it
            continue
        total += header_bytes(path, reading) if size > _SMALL else _EXPANSION * size
    return total


def header_bytes(path: Path, reading: Reading) -> int:
    """Bytes that cataloguing one file takes, about: by its header for NIfTI, by its size for anything else."""
    if suffix_of(path) not in (".nii", ".nii.gz"):
        return _EXPANSION * path.stat().st_size if path.is_file() else 0
    try:
        header = read_header(path, reading)
    except DataError:
        return 0
    voxels = header.channels * int(np.prod(header.shape_ijk, dtype=np.float64))
    return voxels * (_CATALOGUED + np.dtype(header.dtype).itemsize)
