import json
from pathlib import Path

import pytest

from tests.e2e.conftest import prevox

pytestmark = pytest.mark.e2e


def test_demo_ends_in_a_report_with_both_arms_and_leaves_finished_work_alone(tmp_path: Path) -> None:
    words = ["demo", "--out", tmp_path / "demo", "--images", 10, "--labels", 2]
    words += ["--pretrain-steps", 2, "--finetune-steps", 2]
    prevox(*words)
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "pretrained" in page
    assert "scratch" in page
    arms = {arm: json.loads((tmp_path / "demo" / arm / "split.json").read_text()) for arm in ("pretrained", "scratch")}
    assert arms["pretrained"]["train"] == arms["scratch"]["train"]
    assert len(arms["scratch"]["train"]) == 2
    assert len(arms["scratch"]["validation"]) == 2
    for arm in arms:
        summary = json.loads((tmp_path / "demo" / arm / "evaluation" / "summary.json").read_text())["summary"]
        mean = next(row for row in summary if row["class"] == "mean" and row["metric"] == "dice")
        assert mean["low"] <= mean["mean"] <= mean["high"]
    before = (tmp_path / "demo" / "pretrain" / "environment.json").stat().st_mtime_ns
    assert "is finished; nothing to do" in prevox(*words)
    assert (tmp_path / "demo" / "pretrain" / "environment.json").stat().st_mtime_ns == before
