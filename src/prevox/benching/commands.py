"""The verbs of one run, in a process of their own: `finetune`, `predict`, `evaluate`, say.

A process of its own, because an arm that is killed for memory, or crashes in a library, must not take the others with
it, and because each then starts with free memory; one for all verbs of a run, because starting takes seconds. The
command lines are kept with what they printed, and anyone can repeat them by hand.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prevox.console import console
from prevox.errors import NotFiniteError, RunError
from prevox.signals import Stop

WORKER = (sys.executable, "-u", "-m", "prevox.benching.worker")  # -u: its last words are last in the log


@dataclass(frozen=True)
class Outcome:
    """How the verbs of a run ended.

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

    @property
    def diverged(self) -> bool:
        """Whether a training was no longer finite, in which the same settings would end again."""
        return self.code == NotFiniteError.exit_code


@dataclass
class Commands:
    """Runs verbs, which are listed in OUT/steps.jsonl as they end.

    Args:
        out: Folder of the bench.
        lock: Descriptor that the processes inherit, so that they hold the folder while they live.
        stop: Set when a signal asks to stop.
    """

    out: Path
    lock: int
    stop: Stop

    def run(self, *commands: Sequence[object], log: str, of: str) -> Outcome:
        """Run verbs one after the other, until one fails.

        Args:
            commands: Verb and options of each.
            log: Name of the log to append to.
            of: Name of the cell, trial, pre-training or dataset that they are for.

        Raises:
            RunError: If a signal asked the bench to stop; what runs is told, saves and ends first.
        """
        words = [[str(word) for word in command] for command in commands]
        console.print(f"{', '.join(command[0] for command in words)}: {of}", markup=False)
        path = self.out / "logs" / f"{log}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = path.stat().st_size if path.is_file() else 0
        with path.open("ab") as file:
            process = subprocess.Popen(
                [*WORKER, str(os.getpid()), str(self.out / "steps.jsonl"), of, json.dumps(words)],
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=(self.lock,),
            )
            code = self._wait(process)
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


def _reason(log: Path, start: int, code: int) -> str:
    lines = [line for line in log.read_bytes()[start:].decode(errors="replace").splitlines() if line.strip()]
    said = " ".join(lines[-1].split()) if lines else ""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory, perhaps)" if name == "SIGKILL" else "") + f"; log {log.name}"
    return f"{said[:2000]} (log {log.name})"
