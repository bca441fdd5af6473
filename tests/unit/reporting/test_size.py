"""How large pages become: five methods on fifty cases whose scans do not compress."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tests.unit.reporting.compared import make_runs

from prevox.config.runs import CompareConfig, ReportConfig
from prevox.evaluation.compare import compare
from prevox.reporting.report import report

pytestmark = pytest.mark.unit
LIMIT = 15_000_000  # bytes
SHAPE = (160, 160, 64)  # more than any volume's share


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Five evaluated runs that are best, median and worst on different cases; all cases have the same large files."""
    folder = tmp_path_factory.mktemp("five")
    rng = np.random.default_rng(0)
    label = np.zeros(SHAPE, np.uint8)
    label[40:120, 40:120, 15:45] = rng.integers(1, 5, (16, 16, 6)).repeat(5, 0).repeat(5, 1).repeat(5, 2)
    files = {}
    for name, array in (("image", rng.normal(size=SHAPE).astype(np.float32)), ("label", label)):
        files[name] = folder / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(array, np.eye(4)), files[name])
    cases = {f"case_{number:02d}": f"subject_{number // 2}" for number in range(50)}
    dice = {f"method-{number}": list(rng.uniform(0.2, 0.9, 50)) for number in range(5)}
    made = make_runs(folder, dict.fromkeys(dice, "verb: finetune\n"), cases, dice, masks=False)
    for run in made:
        rows = [(case, files["label"], files["label"], files["image"]) for case in cases]
        table = pd.DataFrame(rows, columns=["case", "prediction", "reference", "image"])
        table.to_csv(run / "evaluation" / "cases.csv", index=False)
    return made


def test_comparison(runs, tmp_path):
    compare(CompareConfig(runs=runs, out=tmp_path / "out"))
    page = tmp_path / "out" / "report.html"
    assert page.read_text().count('"image":"H4sI') in (3, 4)  # the most disputed case may be another one's
    assert page.stat().st_size < LIMIT


def test_runs(runs, tmp_path):
    page = report(ReportConfig(runs=runs, out=tmp_path / "report.html"))
    text = page.read_text()
    assert 10 <= text.count('"image":"H4sI') <= 15  # three of each run, a few of which coincide
    assert "averaged over blocks of" in text
    assert page.stat().st_size < LIMIT
