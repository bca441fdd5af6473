"""The process that `prevox.benching.commands` starts: verbs one after the other, each as its command line would be."""

import ctypes
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from prevox.benching.folder import append_line
from prevox.cli.main import main
from prevox.signals import stop_signals

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def tie(parent: int) -> None:
    """Have Linux kill this process when the bench is killed, so that no two ever work on one run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the bench that started this is gone")


def work(steps: Path, of: str, commands: list[list[str]]) -> int:
    """Run verbs until one fails or a signal asks to stop.

    Args:
        steps: JSON lines file to which each is appended when it has ended.
        of: What they are for.
        commands: Verb and options of each.

    Returns:
        Exit code: of the one that failed, else 1 if some cases of any failed, else 0.
    """
    worst = 0
    with stop_signals() as stop:
        for words in commands:
            command = shlex.join(["prevox", *words])
            sys.stdout.write(f"$ {command}\n")
            sys.stdout.flush()
            began = time.perf_counter()
            try:
                main(words)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            seconds = round(time.perf_counter() - began, 2)
            row = {"verb": words[0], "of": of, "seconds": seconds, "code": code, "command": command}
            append_line(steps, row | {"date": time.strftime("%Y-%m-%d %H:%M:%S")})
            if code not in (0, 1):
                return code
            worst = max(worst, code)
            if stop.asked:
                break
    return worst


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    sys.exit(work(Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])))
