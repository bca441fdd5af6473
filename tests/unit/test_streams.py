"""Commands whose output nobody reads, or only the beginning of it, through real pipes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
PREVOX = [sys.executable, "-m", "prevox"]


def to_nobody(*words: object, both: bool = False) -> tuple[int, str]:
    """Exit code and what stands on standard error, of a command whose output goes to a pipe without reader."""
    read, write = os.pipe()
    os.close(read)
    command = [*PREVOX, *map(str, words)]
    errors = write if both else subprocess.PIPE
    done = subprocess.run(command, stdout=write, stderr=errors, text=True, timeout=120)
    os.close(write)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["prepare", "--help"], ["pretrain", "--help"], ["list"], ["list", "--help"]]
)
def test_a_command_without_reader_ends_quietly_as_unix_tools_do(words: list[str]) -> None:
    assert to_nobody(*words) == (141, "")


def test_a_reader_of_the_first_lines_gets_them() -> None:
    # unbuffered, so that there is something to be written after the reader has left
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*PREVOX, "pretrain", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("usage: prevox pretrain")
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(60) in (141, 0)  # 0 if all of it was in the pipe before it was closed


def test_the_work_is_done_though_nobody_reads(tmp_path: Path) -> None:
    code, errors = to_nobody("doctor", "--folder", tmp_path, "--out", tmp_path / "doctor.json")
    assert (tmp_path / "doctor.json").is_file()
    assert (code in (141, 1), errors) == (True, "")  # 1: doctor has found something that stops all work


def test_a_failure_keeps_its_exit_code() -> None:
    assert to_nobody("pretrian", both=True) == (2, "")
    code, errors = to_nobody("pretrian")
    assert (code, "Did you mean 'pretrain'?" in errors) == (2, True)


@pytest.mark.parametrize("words", [["--help"], ["list"], ["prepare", "--help"]])
def test_closed_descriptors(words: list[str], tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" >&- 2>"$0"', str(tmp_path / "errors"), *PREVOX, *words]
    assert subprocess.run(command, timeout=120).returncode == 0
    assert (tmp_path / "errors").read_text() == ""
    assert subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *PREVOX, *words], timeout=120).returncode == 0


def test_another_closed_pipe_is_no_reader_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from prevox.cli import main as cli

    def break_pipe(verb: str, settings: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")  # of a worker, for example

    monkeypatch.setattr(cli, "run", break_pipe)
    with pytest.raises(BrokenPipeError):
        cli.main(["list"])
