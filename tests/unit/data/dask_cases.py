"""What the tests of the Dask engine have done with cases; apart, so that processes which import it start fast."""

import os
import signal
import time
from pathlib import Path


def cluster_dies(case, folder):
    """`once` and `always` take the worker of the cluster with them."""
    marker = folder / "died"
    if case == "always" or (case == "once" and not marker.exists()):
        if case == "once":
            marker.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return f"{case}!"


def note_process(case, folder):
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(600)


def here(_):
    return str(Path("here").resolve()), os.getpid(), os.getppid()


def nothing(_):
    return None


def stops_its_worker(case, folder):
    """`stop` makes the worker of the cluster one that is there and says nothing; once."""
    marker = folder / "stopped"
    if case == "stop" and not marker.exists():
        marker.write_text(str(os.getppid()))
        os.kill(os.getppid(), signal.SIGSTOP)
    return f"{case}!"


def stops_its_worker_for_long(case, folder):
    stops_its_worker("stop", folder)
    time.sleep(60)
