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
