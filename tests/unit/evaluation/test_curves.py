"""Which runs are one curve over which number, and its points, against numbers by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.evaluation.made import evaluation

from prevox.config.runs import CompareConfig
from prevox.errors import ConfigError
from prevox.evaluation.compare import compare
from prevox.evaluation.curves import common, curves, lines
from prevox.evaluation.run_settings import settings_of
from prevox.evaluation.statistics import bootstrap_mean

pytestmark = pytest.mark.unit
BASE = {"pretraining.method.name": "mae", "labels": 10, "train.steps": 100, "optim.lr": 0.01, "train.seed": 0}


def found(runs):
    return {(line.setting, line.name): line.points for line in lines(runs)}


def test_runs_that_differ_in_labels_and_in_what_goes_with_them_are_one_curve():
    runs = {
        "mae-10": BASE,
        "mae-80": BASE | {"labels": 80, "optim.lr": 0.002},
        "mae-10-again": BASE | {"train.seed": 1},
        "other-10": BASE | {"pretraining.method.name": "s3d"},
        "nothing known": {},
    }
    assert found(runs) == {("labels", "mae"): {10.0: ["mae-10", "mae-10-again"], 80.0: ["mae-80"]}}


def test_lengths_are_curves_of_their_own():
    runs = {
        f"mae pre-{pre} fine-{fine}": BASE | {"pretraining.train.steps": pre, "train.steps": fine}
        for pre in (50, 500)
        for fine in (100, 200)
    }
    both = found(runs)
    assert set(both) == {
        ("train.steps", "mae pre-50"), ("train.steps", "mae pre-500"),
        ("pretraining.train.steps", "mae fine-100"), ("pretraining.train.steps", "mae fine-200"),
    }  # fmt: skip
    assert both["train.steps", "mae pre-50"] == {100.0: ["mae pre-50 fine-100"], 200.0: ["mae pre-50 fine-200"]}


def test_shares_of_a_run_go_with_its_length_and_with_nothing_else():
    longer = BASE | {"train.steps": 400, "decoder_first": 0.1}
    assert set(found({"a-1": BASE | {"decoder_first": 0.4}, "a-2": longer})) == {("train.steps", "a")}
    more = BASE | {"labels": 20, "decoder_first": 0.1}
    assert found({"a-1": BASE | {"decoder_first": 0.4}, "a-2": more}) == {}


def test_any_other_number_is_a_curve_and_words_and_pairs_are_none():
    runs = {f"mae ratio-{r}": BASE | {"pretraining.method.mask_ratio": r} for r in (0.25, 0.75, [0.6, 0.9])}
    assert found(runs) == {
        ("pretraining.method.mask_ratio", "mae"): {0.25: ["mae ratio-0.25"], 0.75: ["mae ratio-0.75"]}
    }
    assert found({"a": BASE | {"freeze_encoder": True}, "b": BASE | {"freeze_encoder": False}}) == {}
    assert found({"a": BASE | {"transfer": "encoder"}, "b": BASE | {"transfer": "both"}}) == {}


def test_from_scratch_is_a_level_beside_the_length_of_pretraining():
    scratch = {key: value for key, value in BASE.items() if not key.startswith("pretraining")}
    runs = {"mae-50": BASE | {"pretraining.train.steps": 50}, "mae-500": BASE | {"pretraining.train.steps": 500}}
    runs |= {"scratch-0": scratch, "scratch-1": scratch | {"train.seed": 1}}
    assert found(runs)["pretraining.train.steps", "scratch"] == {None: ["scratch-0", "scratch-1"]}


@given(st.permutations(range(6)))
@settings(deadline=None, max_examples=25)
def test_the_order_of_runs_changes_no_curve(order):
    runs = [(f"r{i}", BASE | {"labels": 10 * (i % 3 + 1), "pretraining.method.name": "ab"[i % 2]}) for i in range(6)]
    mixed = {line.setting: line.points for line in lines(dict(runs[i] for i in order))}
    plain = [(line.setting, line.points) for line in lines(dict(runs))]
    again = [(line.setting, line.points) for line in lines(dict(runs[i] for i in order))]
    assert mixed.keys() == {"labels"}
    assert sorted(map(str, again)) == sorted(map(str, plain))


def test_runs_at_a_point_are_averaged_case_by_case_and_the_band_is_over_subjects():
    rng = np.random.default_rng(0)
    values, subjects = rng.random((12, 3)), list(np.repeat(range(6), 2))
    runs = {"a-0": BASE, "a-1": BASE | {"train.seed": 1}, "a-9": BASE | {"labels": 40}}
    first, second = curves(runs, values, subjects)
    expected = bootstrap_mean(values[:, :2].mean(axis=1), subjects)
    assert (first["x"], first["mean"], first["low"]) == (10.0, expected.mean, expected.low)
    assert (first["cases"], first["subjects"], first["over"]) == (12, 6, "labelled subjects")
    assert second["mean"] == pytest.approx(values[:, 2].mean())


def test_what_runs_are_called_in_common():
    assert common(["mae-10", "mae-all"]) == "mae"
    assert common(["cells/mae.labels_10", "cells/mae.labels_20"]) == "cells/mae.labels"
    assert common(["mae.vit labels-10", "mae.vit labels-all"]) == "mae.vit"
    assert common(["a", "b"]) == "a"


def write_run(folder: Path, config: dict, **summary) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_settings_of_a_run_and_of_the_pretraining_it_starts_from(tmp_path):
    method = {"name": "mae", "mask_ratio": 0.75}
    train = {"steps": None, "epochs": 3, "device": "cpu"}
    mae = write_run(tmp_path / "mae", {"verb": "pretrain", "store": "s", "method": method, "train": train}, steps=90)
    config = {
        "verb": "finetune",
        "store": "t",
        "out": "o",
        "train": {"steps": 7},
        "labels": None,
        "pretrained": str(mae),
    }
    run = write_run(tmp_path / "run", config, subjects=12)
    expected = {"train.steps": 7, "labels": 12, "pretraining.store": "s", "pretraining.train.steps": 90}
    expected |= {"pretraining.method.name": "mae", "pretraining.method.mask_ratio": 0.75}
    assert settings_of(run) == expected
    way = write_run(tmp_path / "way", config | {"pretrained": str(mae / "checkpoints" / "step_00000030")}, subjects=12)
    assert settings_of(way) == expected | {"pretraining.train.steps": 30}
    gone = write_run(tmp_path / "gone", config | {"pretrained": "moved/checkpoints/step_00000030"}, subjects=12)
    own = {key: value for key, value in settings_of(gone).items() if key.startswith("pretraining.")}
    assert own == {"pretraining.run": "moved", "pretraining.train.steps": 30}
    new = write_run(tmp_path / "new", config | {"scratch": True}, subjects=12)
    assert not [key for key in settings_of(new) if key.startswith("pretraining.")]
    assert settings_of(mae) == settings_of(tmp_path / "nothing") == {}


@pytest.fixture
def kept(tmp_path):
    """Fine-tunings from three checkpoints of one pre-training, and one from scratch."""
    mae = write_run(tmp_path / "mae", {"verb": "pretrain", "train": {"steps": 400}}, steps=400)
    runs = []
    starts = {"mae-100": mae / "checkpoints" / "step_00000100", "mae-200": mae / "checkpoints" / "step_00000200"}
    for place, (name, start) in enumerate({**starts, "mae-400": mae, "scratch": None}.items()):
        config = {"verb": "finetune", "train": {"steps": 50}, "pretrained": None if start is None else str(start)}
        write_run(tmp_path / name, config, subjects=4)
        dice = {f"c{case}_{case}": (0.5 + 0.1 * place + 0.01 * case,) for case in range(5)}
        evaluation(tmp_path / name / "evaluation", dice, classes=("organ",))
        runs.append(str(tmp_path / name))
    return tmp_path, tuple(runs)


def test_checkpoints_of_one_pretraining_make_a_curve_in_every_file(kept):
    folder, runs = kept
    found = compare(CompareConfig(runs=runs, out=folder / "out"))
    points = [(entry["line"], entry["x"], round(entry["mean"], 9)) for entry in found.comparison.curves]
    assert points == [("mae", 100.0, 0.52), ("mae", 200.0, 0.62), ("mae", 400.0, 0.72), ("scratch", None, 0.82)]
    table = pd.read_parquet(folder / "out" / "comparison.parquet")
    own = table[table["quantity"] == "over pretraining.train.steps"]
    assert list(own["x"].iloc[:3]) == [100, 200, 400]
    assert np.isnan(own["x"].iloc[3])
    text = (folder / "out" / "tables.md").read_text()
    assert "## Dice over pre-training steps" in text
    assert "| mae | 200 | 0.620 [" in text
    assert "Dice over pre-training steps" in (folder / "out" / "tables.tex").read_text()
    assert "<strong>Dice over pre-training steps</strong>" in (folder / "out" / "report.html").read_text()


def test_runs_that_are_no_rivals_are_described_only(kept):
    folder, runs = kept
    found = compare(CompareConfig(runs=runs, out=folder / "out", describe=True)).comparison
    assert (found.differences, found.verdicts) == ([], [])
    assert len(found.curves) == 4
    text = (folder / "out" / "tables.md").read_text()
    assert "Differences" not in text
    assert "Ranks" not in text
    assert "no difference was tested" in (folder / "out" / "report.html").read_text()
    with pytest.raises(ConfigError, match="found --describe and --baseline"):
        CompareConfig.parse({"runs": runs, "out": folder, "describe": True, "baseline": "scratch"})
