"""The dynamic baseline: plan, prepare and fine-tune with the commands that `prevox plan` prints."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from prevox.data.phantom import write_phantoms
from tests.e2e.conftest import prevox

pytestmark = pytest.mark.e2e


def test_the_printed_commands_lead_to_a_network_of_the_planned_shape(tmp_path: Path) -> None:
    scans = write_phantoms(tmp_path / "scans of two", 4, seed=5, shape=(24, 30, 26))
    listed, out = tmp_path / "c.parquet", tmp_path / "dynamic plan.yaml"
    prevox("catalogue", scans, "--out", listed)
    printed = prevox("plan", "--catalogue", listed, "--out", out, "--size", "S")
    prepare, finetune = (shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("  prevox "))
    assert [prepare[0], finetune[0]] == ["prepare", "finetune"]
    prevox(*prepare)
    run = tmp_path / "run"
    prevox(*finetune[:-1], run, "--train.steps", 1)  # the printed folder is relative, the recipe's length real

    planned = json.loads(out.with_suffix(".json").read_text())["plan"]
    recipe = yaml.safe_load(out.read_text())
    settings = json.loads((run / "network.json").read_text())["encoder"]["settings"]
    for key in ("strides", "kernels", "features", "blocks"):
        assert settings[key] == planned[key]
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["views"]["size"] == recipe["views"]["size"] == planned["patch"]
    assert resolved["train"]["batch"] == planned["batch"]
    prevox("predict", "--run", run, "--images", listed, "--split", "validation")
    assert list((run / "predictions").glob("*.nii.gz"))


def test_a_catalogue_that_is_not_there(tmp_path: Path) -> None:
    said = prevox("plan", "--catalogue", tmp_path / "none.parquet", code=2)
    assert "none.parquet: found no such file; expected a catalogue" in said
