"""Fixtures for all tests, and the rule that a skip must be on the list of allowed skips."""

import os
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.txt")


def allowed_reasons() -> list[str]:
    lines = (line.strip() for line in ALLOWED.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    foreign = foreign_skips(terminalreporter.stats.get("skipped", []))
    for where, reason in foreign:
        terminalreporter.write_line(f"skip not on tests/allowed_skips.txt: {where}: {reason}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and foreign_skips(reporter.stats.get("skipped", [])) and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def foreign_skips(reports: list[pytest.TestReport]) -> list[tuple[str, str]]:
    """Skips whose reason is not on the list."""
    reasons = [(report.nodeid, report.longrepr[2].removeprefix("Skipped: ")) for report in reports]
    return [(where, reason) for where, reason in reasons if not any(reason.startswith(ok) for ok in allowed_reasons())]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real scans, which stay outside the repository."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real scans are not beside the repository")
    return folder


os.environ.setdefault("MPLBACKEND", "Agg")
