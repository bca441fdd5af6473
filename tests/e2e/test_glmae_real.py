"""GL-MAE on real scans, through the command line: what the teacher says goes on depending on what it sees."""

import json
import math
from pathlib import Path

import pytest

from tests.e2e.conftest import prevox

pytestmark = pytest.mark.e2e

SMALL = ["--model.depth", 2, "--method.head-hidden", 256, "--train.batch", 2, "--train.steps", 120]
LARGEST = math.log(128)  # entropy of the recipe's outputs where they are uniform


def test_the_default_form_does_not_collapse_on_hippocampi(real_data: Path, tmp_path: Path) -> None:
    """Centred but not scaled, entropy was above 0.99 log K and information below 0.01 log K by here."""
    data, store = real_data / "Task04_Hippocampus", tmp_path / "store"
    prevox(
        "catalogue", data, "--table", data / "subjects.csv", "--group", "subject_group", "--out", tmp_path / "c.parquet"
    )
    prevox("prepare", "--catalogue", tmp_path / "c.parquet", "--out", store)
    words = ["--recipe", "glmae-vit-t-cpu", "--store", store, *SMALL, "--train.log-every", 10]
    text = prevox("pretrain", *words, "--out", tmp_path / "run")
    assert "have collapsed" not in text
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    late = [row for row in rows if row["progress"] >= 0.5]  # information is a moving mean that starts at log K
    assert len(late) >= 6
    for row in late:
        assert 0.2 * LARGEST < row["teacher_entropy"] < 0.9 * LARGEST, row
        assert row["information"] > 0.1 * LARGEST, row
        assert row["collapse"] == 0, row
