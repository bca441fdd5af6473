"""Is a file's header believable? What it declares is compared with the file's size and the free memory.

A damaged or hostile header may declare any shape. Whoever allocates first and reads then is killed by the system, and
with it every other image of the run; so this is asked before the first voxel is read.
"""

import contextlib
import math
import resource
from collections.abc import Iterable
from pathlib import Path

import psutil

from prevox.errors import DataError

_DEFLATE = 1032  # times that deflate (gzip, zlib) can shrink anything at most: 258 bytes in 2 bits
_KEPT = 64 << 20  # bytes that are left to everything else


def check_size(path: Path, shape: Iterable[int], bytes_each: int, *, packed: bool, files: Iterable[Path] = ()) -> None:
    """Check that a file can hold the voxels that its header declares, and that memory can.

    Args:
        path: The file, for messages.
        shape: Declared size of all axes, channels included.
        bytes_each: Of one voxel in the file.
        packed: Whether the voxels are compressed with deflate.
        files: The files that hold the voxels; none takes `path` itself.

    Raises:
        DataError: If the files are too small for what is declared, or it needs more memory than is free.
    """
    sizes = tuple(int(size) for size in shape)  # numpy's would overflow
    declared = math.prod(sizes) * bytes_each
    there = sum(file.stat().st_size for file in tuple(files) or (path,))
    text = f"{'×'.join(map(str, sizes))} voxels of {bytes_each} bytes"
    if declared > there * (_DEFLATE if packed else 1):
        raise DataError(
            path,
            found=f"a header that declares {text} ({_human(declared)}) and cannot be read from {_human(there)}",
            expected="as many voxels as the header declares",
            remedy="The file is cut short or its header is damaged: copy or export it again.",
        )
    check_memory(path, declared, text)


def check_memory(path: Path, needed: int, text: str) -> None:
    """Check that memory is free for an image.

    Raises:
        DataError: If it is not.
    """
    free = free_memory()
    if needed > free:
        raise DataError(
            path,
            found=f"{text}, which need {_human(needed)} of memory",
            expected=f"at most {_human(max(0, free))}, which are free",
            remedy="If the file really is that large, crop or split it, or use a machine with more memory.",
        )


def free_memory() -> int:
    """Bytes that this process may still allocate, by the system's account and by its own limit (ulimit -v)."""
    free = int(psutil.virtual_memory().available)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with contextlib.suppress(psutil.Error):
            free = min(free, limit - int(psutil.Process().memory_info().vms))
    return free - _KEPT


def _human(size: int) -> str:
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
