import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.conftest import foreign_skips

pytestmark = pytest.mark.unit


def report(reason: str) -> SimpleNamespace:
    return SimpleNamespace(nodeid="t", longrepr=("file", 1, f"Skipped: {reason}"))


def test_only_listed_reasons_pass() -> None:
    listed = report("real scans are not beside the repository (../shared/data)")
    assert foreign_skips([listed]) == []
    assert foreign_skips([listed, report("too slow today")]) == [("t", "too slow today")]


@pytest.mark.parametrize(("reason", "code"), [("needs a GPU", 0), ("too slow today", 1)])
def test_a_skip_in_a_parallel_worker_counts_as_well(reason: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_sessionfinish, pytest_terminal_summary\n")
    (tmp_path / "test_it.py").write_text(f"import pytest\n\n\ndef test_it():\n    pytest.skip({reason!r})\n")
    words = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout
    assert (f"skip not on tests/allowed_skips.txt: test_it.py::test_it: {reason}" in done.stdout) == bool(code)
