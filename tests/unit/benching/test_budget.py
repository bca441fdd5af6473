"""How estimates of kinds become those of runs."""

from pathlib import Path

import pytest
from tests.unit.benching.bench_files import content

from prevox.benching import budget as module
from prevox.benching.budget import estimate
from prevox.benching.folder import Folder, append_line
from prevox.benching.plan import plan, trials
from prevox.benching.run import Runner
from prevox.config.bench import BenchFile
from prevox.errors import RunError

pytestmark = pytest.mark.unit


def test_a_kind_is_rehearsed_once_and_scaled_by_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = {"datasets": {"a": {}}, "rates": [1e-3, 1e-2], "trial_steps": 100, "labels": [2, "all"], "seeds": [0, 1]}
    file = BenchFile.parse(content(**over, folds=2), "file")
    cells = plan(file)  # fine-tuning 600 steps, the recipes' length
    rehearsed = []

    def fake(runner, run):
        rehearsed.append(run.name)
        if "s3d" in run.name and "labels" not in run.name:
            raise RunError("no memory")
        return {"seconds": 70.0, "seconds_per_step": 0.1, "steps": 600.0, "peak_mb": 1.0}

    monkeypatch.setattr(module, "_rehearsed", fake)
    folder = Folder(tmp_path)
    append_line(tmp_path / "steps.jsonl", {"verb": "predict", "seconds": 4.0})
    append_line(tmp_path / "steps.jsonl", {"verb": "evaluate", "seconds": 2.0})
    found = estimate(file, cells, Runner(file, {}, folder, None))
    # pre-training of mae and of s3d, fine-tuning on each backbone: neither labels, seed, fold, rate nor weights matter
    assert len(rehearsed) == 4
    assert {found.seconds[cell.name] for cell in cells} == {70.0}
    assert {found.seconds[trial.name] for cell in cells for trial in trials(file, cell)} == {70.0 - 500 * 0.1}
    assert set(found.unknown.values()) == {"no memory"}
    assert all(".s3d." in name for name in found.unknown)
    assert len(found.unknown) == 2  # one for each fold
    assert (found.scoring, found.spent) == (6.0, 6.0)
