"""One verb after the other, each as `prevox VERB ...` in a process of its own.

A process of its own, because an arm that is killed for memory, or crashes in a library, must not take the others with
it, and because each then starts with free memory. What it printed is kept, and anyone can repeat it by hand.
"""

import ctypes
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prevox.benching.folder import append_line
from prevox.console import console
from prevox.errors import RunError
from prevox.signals import Stop

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: Exit code; negative for the signal that killed it.
        reason: The last thing it said, where it failed.
    """

    code: int
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Exit code 1 means that some cases failed, which the verb has named; its result is there."""
        return self.code not in (0, 1)


@dataclass
class Commands:
    """Runs verbs and lists them in OUT/steps.jsonl.

    Args:
        out: Folder of the bench.
        lock: Descriptor that commands inherit, so that they hold the folder while they live.
        stop: Set when a signal asks to stop.
    """

    out: Path
    lock: int
    stop: Stop

    def run(self, verb: str, *words: object, log: str, of: str) -> Outcome:
        """Run one verb.

        Args:
            verb: Its name.
            words: Its options.
            log: Name of the log to append to.
            of: Name of the cell, trial, pre-training or dataset that it is for.

        Raises:
            RunError: If a signal asked the bench to stop; what runs is told, saves and ends first.
        """
        command = ["prevox", verb, *map(str, words)]
        console.print(f"{verb} {of}", markup=False)
        path = self.out / "logs" / f"{log}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = path.stat().st_size if path.is_file() else 0
        began = time.perf_counter()
        with path.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=(self.lock,),
                preexec_fn=_tied_to_parent(),
            )
            code = self._wait(process)
        seconds = time.perf_counter() - began
        row = {"verb": verb, "of": of, "seconds": round(seconds, 2), "code": code, "command": shlex.join(command)}
        append_line(self.out / "steps.jsonl", row | {"date": time.strftime("%Y-%m-%d %H:%M:%S")})
        if self.stop.asked:
            raise RunError(f"{self.out}: stopped by a signal; what ran has saved its state. Repeat the call to go on.")
        return Outcome(code, _reason(path, start, code) if code else "")

    def _wait(self, process: "subprocess.Popen[bytes]") -> int:
        told = False
        try:
            while True:
                try:
                    return process.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    if self.stop.asked and not told:
                        process.terminate()
                        told = True
        except BaseException:  # Ctrl-C: nothing goes on behind the user's back
            process.kill()
            process.wait()
            raise


def _tied_to_parent() -> Callable[[], None] | None:
    """Have Linux kill the command if the bench itself is killed, so that no two ever work on one run."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(_DIE_WITH_PARENT, signal.SIGKILL)

    return tie


def _reason(log: Path, start: int, code: int) -> str:
    lines = [line for line in log.read_bytes()[start:].decode(errors="replace").splitlines() if line.strip()]
    said = " ".join(lines[-1].split()) if lines else ""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory, perhaps)" if name == "SIGKILL" else "") + f"; log {log.name}"
    return f"{said[:300]} (log {log.name})"
