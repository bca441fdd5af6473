"""S3D pre-training, fine-tuning in two phases, prediction, scores and report of a U-Net, through the command line."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import S3D, VIEW, Chain, prevox

pytestmark = pytest.mark.e2e

PHASES = ["--decoder-first", "0.4", "--schedule.warmup", "0.2", "--schedule.name", "poly", "--train.steps", "5"]
TUNE = [*VIEW, *PHASES, "--optim.name", "sgd", "--train.log-every", "1", "--train.checkpoint-every", "1"]


@pytest.fixture(scope="module")
def runs(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("unet")
    store = ["--store", chain.store]
    prevox("pretrain", *store, "--out", made / "s3d", *S3D, "--train.steps", 3)
    pretrained = ["--pretrained", made / "s3d", "--train.keep-every", 1]
    prevox("finetune", *store, "--out", made / "seg", *pretrained, *TUNE, "--deep-supervision")
    prevox("predict", "--run", made / "seg", "--images", chain.catalogue, "--split", "validation")
    prevox("evaluate", "--predictions", made / "seg", "--references", chain.catalogue)
    prevox("report", "--runs", made / "seg", made / "s3d")
    return made


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "task.safetensors")


def test_the_encoder_rests_while_the_decoder_is_trained_alone(runs: Path) -> None:
    handed = load_file(runs / "s3d" / "checkpoints" / "step_00000003" / "pretrained.safetensors")
    first, last = weights(runs / "seg", 2), weights(runs / "seg", 5)  # the phase has 0.4 · 5 = 2 steps
    encoder = [name for name in handed if name.startswith("encoder.")]
    assert encoder
    assert all(torch.equal(handed[name], first[f"network.{name}"]) for name in encoder)
    up = "network.decoder.transpconvs.0.weight"
    assert not torch.equal(weights(runs / "seg", 1)[up], first[up])
    moved = [not torch.equal(handed[name], last[f"network.{name}"]) for name in encoder if name.endswith("conv.weight")]
    assert all(moved)
    rates = [json.loads(line)["lr"] for line in (runs / "seg" / "metrics.jsonl").read_text().splitlines()]
    peak = 1.5e-4
    assert rates == pytest.approx([peak / 2, peak, peak, peak, peak * (1 - 1 / 2) ** 0.9])  # ramp, ramp of 1, poly


def test_masks_lie_on_the_input_grid_and_are_scored(runs: Path, chain: Chain) -> None:
    cases = json.loads((runs / "seg" / "split.json").read_text())["validation"]
    catalogue = pd.read_parquet(chain.catalogue).set_index("image")
    for case in cases:
        row = catalogue.loc[case]
        source, mask = nib.load(Path(row["root"]) / row["paths"][0]), nib.load(runs / f"seg/predictions/{case}.nii.gz")
        assert mask.shape == source.shape
        np.testing.assert_array_equal(mask.affine, source.affine)
    scores = pd.read_parquet(runs / "seg" / "evaluation" / "scores.parquet")
    assert set(scores["case"]) == set(cases)
    page = (runs / "seg" / "report.html").read_text()
    assert "s3d on ResEnc-S, 60 to 90 % masked" in page
    assert "decoder alone for 40 % of the steps" in page


def test_a_scratch_run_of_the_same_network(runs: Path, chain: Chain, tmp_path: Path) -> None:
    encoder = ["--encoder.name", "resenc", "--encoder.size", "S", "--encoder.stages", 2, *VIEW, "--train.steps", 1]
    prevox("finetune", "--store", chain.store, "--out", tmp_path / "new", *encoder)
    described = json.loads((tmp_path / "new" / "network.json").read_text())
    assert described["encoder"]["name"] == "resenc"
    assert described["encoder"]["settings"]["features"] == [16, 32]
    prevox("predict", "--run", tmp_path / "new", "--images", chain.store, "--split", "validation")
    folders = [run / "predictions" for run in (tmp_path / "new", runs / "seg")]
    masks, others = ({file.name for file in folder.glob("*.nii.gz")} for folder in folders)
    assert masks == others
    assert masks


def test_wrong_ways_to_start_are_refused_in_words(runs: Path, chain: Chain, tmp_path: Path) -> None:
    start = ["finetune", "--store", chain.store, "--out", tmp_path / "x", "--pretrained", runs / "s3d", *VIEW]
    said = prevox(*start, "--train.steps", 2, "--decoder.features", 4, code=2)
    assert "decoder: is the UNETR's" in said
    said = prevox(*start, "--train.steps", 2, "--freeze-encoder", "--decoder-first", "0.5", code=2)
    assert "not both" in said
    said = prevox(*start[:-4], "--views.size", 24, 24, 22, "--train.steps", 2, code=2)
    assert "views.size is 22 along x" in said
    said = prevox(*start[:-6], *VIEW, "--encoder.name", "resnec", "--train.steps", 2, code=2)
    assert "Did you mean 'resenc'" in said


def test_the_pre_trained_network_is_handed_to_nnunet(runs: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "handed", "--dataset", "Dataset001_Phantoms"]
    assert "README.txt has the commands" in prevox("export", "nnunet", "--run", runs / "s3d", *out)
    plans = json.loads((tmp_path / "handed" / "prevoxPlans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["spacing"] == [3.0, 3.0, 3.0]  # of the store
    held = torch.load(tmp_path / "handed" / "checkpoint_pretrained.pth", weights_only=True)["network_weights"]
    handed = load_file(runs / "s3d" / "checkpoints" / "step_00000003" / "pretrained.safetensors")
    assert all(torch.equal(held[name], tensor) for name, tensor in handed.items())
    said = prevox("export", "nnunet", "--run", runs / "seg", *out, code=2)
    assert "run of `prevox finetune`" in said
