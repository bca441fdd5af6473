"""Names of what is being written, from which another run can tell whether its writer still lives.

Two runs may write to one store at a time (a cluster requeues a job whose first run has not ended yet): neither may
write under the other's temporary name, nor remove what the other has half written.
"""

import os
import platform
import re
import shutil
import time
from pathlib import Path

import psutil

_NAME = re.compile(r"\..+\.([\w-]*)-(\d+)\.tmp")
_DAY = 86400.0  # seconds; what another host has not touched for so long is nobody's


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path` that belongs to this process."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a path has a name that `temporary_path` gives."""
    return _NAME.fullmatch(path.name) is not None


def remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders of dead processes of this host, and any that are older than a day."""
    for path in folder.glob(".*.tmp"):
        if not _is_stale(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_stale(path: Path) -> bool:
    name = _NAME.fullmatch(path.name)
    if name and name[1] == _host() and not _is_alive(int(name[2])):
        return True
    try:
        return time.time() - path.stat().st_mtime > _DAY
    except FileNotFoundError:  # its writer has just finished
        return False


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is not harmless; age decides
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    try:  # one that has ended keeps its number until it is asked how, which in a container may be never
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _host() -> str:
    return re.sub(r"\W", "-", platform.node())[:40]
