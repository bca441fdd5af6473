"""A short run of the fuzzers, and that they notice what they look for."""

import os
import time
from pathlib import Path

import pytest

from prevox.data.readers import Reading
from tests.fuzz import layouts
from tests.fuzz.readers import MEMORY, READ, Reader, fuzz, outcome, seeds

pytestmark = pytest.mark.unit


def test_no_damaged_file_does_harm() -> None:
    result = fuzz(60, seed=1)
    assert result["faults"] == []
    assert sum(result["outcomes"].values()) == 60
    assert result["past_header"] >= 0.2


def test_no_damaged_dataset_does_harm() -> None:
    result = layouts.fuzz(60, seed=1)
    assert result["faults"] == []
    assert sum(result["outcomes"].values()) == 60
    assert result["outcomes"][layouts.LISTED] >= 20


def test_sound_files_are_read_or_need_a_choice(tmp_path: Path) -> None:
    """Else all that is counted would be damage of one kind: files that nobody could ever read."""
    choice = Reading(colour="grey", complex="magnitude", pages=True)
    sound = [path for path in seeds(tmp_path) if path.suffix != ".dcm"]  # these are read through lists
    assert {outcome(path, choice) for path in sound} == {READ}


def _abort(path: Path, reading: Reading) -> str:
    os.abort()


def _sleep(path: Path, reading: Reading) -> str:
    time.sleep(60)
    return READ


def _raise(path: Path, reading: Reading) -> str:
    raise KeyError(path.name)


def _greedy(path: Path, reading: Reading) -> str:
    return READ if bytearray(2 * MEMORY) else ""


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (_abort, "crashed"),
        (_sleep, "hung"),
        (_raise, "raised something else"),
        (_greedy, "raised something else"),
    ],
)
def test_faults_are_seen_and_the_next_file_is_read(work, kind: str, tmp_path: Path) -> None:
    reader = Reader(work, seconds=5)
    assert [reader.read(tmp_path, Reading())[0] for _ in range(2)] == [kind, kind]
    reader.close()
