"""Fixtures for all tests, and the rule that a skip must be on the list of allowed skips."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
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


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six small labelled images of different sizes (two per subject), values known voxel by voxel.

    Voxel (z, y, x) of image n is 1000 n + 100 z + 10 y + x (int16); the label is 1 where z = 3, 2 at one voxel.
    """
    from prevox.config.data import CatalogueConfig, PrepareConfig
    from prevox.data.catalogue import catalogue
    from prevox.data.prepare import prepare

    root = tmp_path_factory.mktemp("tiny")
    (root / "scans" / "images").mkdir(parents=True)
    (root / "scans" / "labels").mkdir()
    rows = ["case,subject"]
    for number in range(1, 7):
        shape = (8 + number % 3, 9, 10)
        z, y, x = np.indices(shape)
        voxels = (1000 * number + 100 * z + 10 * y + x).astype(np.int16)
        label = (z == 3).astype(np.uint8)
        label[5, 4, 6] = 2
        for folder, array in (("images", voxels), ("labels", label)):
            # canonical order z y x is the reverse of a NIfTI file's x y z with an identity affine
            nib.save(nib.Nifti1Image(array.T, np.eye(4)), root / "scans" / folder / f"case_{number}.nii.gz")
        rows.append(f"case_{number},s{(number + 1) // 2}")
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    table = {"table": root / "table.csv", "group": "subject"}
    catalogue(CatalogueConfig(paths=(root / "scans",), out=root / "c.parquet", **table))
    prepare(PrepareConfig(catalogue=root / "c.parquet", out=root / "store", workers=1))
    return root / "store"


os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also in a job that a shell has started in the background and that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
