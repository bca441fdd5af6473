"""From a folder of scans to a report, through the command line."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from prevox.data.phantom import CLASS_NAMES
from tests.e2e.conftest import FINETUNE, GLMAE, PRETRAIN, S3D, Chain, prevox

pytestmark = pytest.mark.e2e


def test_run_folder_describes_itself(chain: Chain) -> None:
    for run in (chain.mae, chain.seg):
        for name in ("config.yaml", "environment.json", "split.json", "metrics.jsonl", "summary.json"):
            assert (run / name).is_file(), name
        assert list((run / "pictures").rglob("*.png"))
        assert list((run / "tensorboard").iterdir())
        assert json.loads((run / "summary.json").read_text())["finished"] is True
    newest = sorted((chain.mae / "checkpoints").iterdir())[-1]
    assert {file.name for file in newest.iterdir()} == {
        "task.safetensors", "optimiser.pt", "progress.json", "pretrained.safetensors",
    }  # fmt: skip


def test_s3d_hands_over_its_u_net(chain: Chain, tmp_path: Path) -> None:
    words = ["--store", chain.store, "--out", tmp_path / "s3d", *S3D, "--train.steps", "2"]
    text = prevox("pretrain", *words, "--train.checkpoint-activations")
    assert "train.checkpoint_activations is ignored: the network has no transformer blocks" in " ".join(text.split())
    weights = load_file(next((tmp_path / "s3d" / "checkpoints").iterdir()) / "pretrained.safetensors")
    assert weights["encoder.stem.convs.0.conv.weight"].shape == (16, 1, 3, 3, 3)
    assert weights["decoder.transpconvs.1.weight"].shape == (32, 16, 1, 2, 2)
    assert list((tmp_path / "s3d" / "pictures").rglob("*.png"))


def test_nothing_is_learnt_from_held_out_subjects(chain: Chain) -> None:
    for run in (chain.mae, chain.seg):
        split = json.loads((run / "split.json").read_text())
        assert split["train"]
        assert split["validation"]
        assert not set(split["train"]) & set(split["validation"])
    mae, seg = (json.loads((run / "split.json").read_text()) for run in (chain.mae, chain.seg))
    assert (mae["train"], mae["validation"]) == (seg["train"], seg["validation"])
    assert seg["seen_in_pretraining"] == []


def test_transferred_weights_are_the_pretrained_ones(chain: Chain) -> None:
    transfer = json.loads((chain.seg / "transfer.json").read_text())
    assert sum("qkv.weight" in name for name in transfer["loaded"]) == 2  # two blocks
    assert transfer["missing"] == []


def test_masks_lie_on_the_input_grid(chain: Chain) -> None:
    split = json.loads((chain.seg / "split.json").read_text())
    masks = sorted((chain.seg / "predictions").glob("*.nii.gz"))
    assert {mask.name.removesuffix(".nii.gz") for mask in masks} == set(split["validation"])
    catalogue = pd.read_parquet(chain.catalogue).set_index("image")
    for mask in masks:
        row = catalogue.loc[mask.name.removesuffix(".nii.gz")]
        source, made = nib.load(Path(row["root"]) / row["paths"][0]), nib.load(mask)
        assert made.shape == source.shape
        np.testing.assert_array_equal(made.affine, source.affine)
        assert made.header["qform_code"] == source.header["qform_code"]
        assert made.header["sform_code"] == source.header["sform_code"]
        assert set(np.unique(np.asanyarray(made.dataobj))) <= {0, *map(int, CLASS_NAMES)}


def test_scores_have_one_row_per_case_and_class(chain: Chain) -> None:
    scores = pd.read_parquet(chain.seg / "evaluation" / "scores.parquet")
    cases = json.loads((chain.seg / "split.json").read_text())["validation"]
    classes = {name for value, name in CLASS_NAMES.items() if int(value) > 0}
    assert set(zip(scores["case"], scores["class"], strict=True)) == {
        (case, name) for case in cases for name in classes
    }
    assert scores["dice"].dropna().between(0, 1).all()


def test_report_is_one_offline_file(chain: Chain) -> None:
    page = (chain.seg / "report.html").read_text()
    assert "data:image" in page or "<svg" in page
    for outside in ('src="http', "src='http", 'href="http', "@import", "url(http"):
        assert outside not in page


def rows_without_timings(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s", "data_wait")} for row in rows]


def same_state(a: Path, b: Path) -> None:
    for name in ("task.safetensors", "pretrained.safetensors"):
        if (a / name).is_file():
            left, right = load_file(a / name), load_file(b / name)
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left), name
    left, right = (torch.load(folder / "optimiser.pt", weights_only=True)["optimiser"] for folder in (a, b))
    for key, moments in left["state"].items():
        assert all(torch.equal(value, right["state"][key][name]) for name, value in moments.items())


def test_resumed_pretraining_equals_the_uninterrupted_one(chain: Chain, tmp_path: Path) -> None:
    killed = tmp_path / "mae"
    shutil.copytree(chain.mae, killed)
    shutil.rmtree(killed / "checkpoints" / "step_00000006")  # as if killed after step 3, in the middle of a log window
    (killed / "checkpoints" / ".step_00000006.partial").mkdir()
    words = ["--store", chain.store, "--out", killed, *PRETRAIN, "--train.steps", 6, "--train.checkpoint-every", 3]
    free = ["--train.reads-ahead", 3, "--train.checkpoint-activations"]  # change no result
    prevox("pretrain", *words, "--resume", *free)
    same_state(chain.mae / "checkpoints" / "step_00000006", killed / "checkpoints" / "step_00000006")
    assert rows_without_timings(killed) == rows_without_timings(chain.mae)


def test_resumed_glmae_equals_the_uninterrupted_one_with_teacher_and_centre(chain: Chain, tmp_path: Path) -> None:
    words = ["--store", chain.store, *GLMAE, "--train.steps", 4, "--train.checkpoint-every", 2]
    prevox("pretrain", *words, "--out", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step_00000004")
    prevox("pretrain", *words, "--out", tmp_path / "killed", "--resume")
    folders = [tmp_path / name / "checkpoints" / "step_00000004" for name in ("whole", "killed")]
    same_state(*folders)
    state = load_file(folders[0] / "task.safetensors")
    assert state["teacher.centre_K"].any()
    assert not torch.equal(state["teacher.encoder.class_token"], state["encoder.class_token"])
    assert rows_without_timings(tmp_path / "killed") == rows_without_timings(tmp_path / "whole")


def test_resumed_finetuning_equals_the_uninterrupted_one(chain: Chain, tmp_path: Path) -> None:
    words = ["--store", chain.store, "--pretrained", chain.mae, *FINETUNE, "--train.steps", 4]
    words += ["--train.checkpoint-every", 2]
    prevox("finetune", *words, "--out", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step_00000004")
    prevox("finetune", *words, "--out", tmp_path / "killed", "--resume")
    same_state(*(tmp_path / name / "checkpoints" / "step_00000004" for name in ("whole", "killed")))


def test_the_same_seed_gives_the_same_run_and_another_seed_another(chain: Chain, tmp_path: Path) -> None:
    words = ["--store", chain.store, *PRETRAIN, "--train.steps", 6]
    prevox("pretrain", *words, "--out", tmp_path / "same")
    prevox("pretrain", *words, "--out", tmp_path / "other", "--train.seed", 1)
    assert rows_without_timings(tmp_path / "same") == rows_without_timings(chain.mae)
    same_state(*(run / "checkpoints" / "step_00000006" for run in (chain.mae, tmp_path / "same")))
    assert rows_without_timings(tmp_path / "other")[0]["loss"] != rows_without_timings(chain.mae)[0]["loss"]


def test_held_out_images_seen_in_pretraining_are_named(chain: Chain, tmp_path: Path) -> None:
    words = ["--store", chain.store, "--train.steps", 1]
    prevox("pretrain", *words, *PRETRAIN, "--use", "all", "--out", tmp_path / "all")
    text = prevox("finetune", *words, *FINETUNE, "--pretrained", tmp_path / "all", "--out", tmp_path / "seg")
    assert "has learnt from 2 of the 2 images held out here" in text
    split = json.loads((tmp_path / "seg" / "split.json").read_text())
    assert split["seen_in_pretraining"] == split["validation"]


def test_resuming_on_a_store_that_has_changed_is_refused(chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(chain.mae, tmp_path / "mae")
    shutil.copytree(chain.store, tmp_path / "store")
    index = pd.read_parquet(tmp_path / "store" / "index.parquet")
    index["subject"] = [f"s{number}" for number in reversed(range(len(index)))]
    index.to_parquet(tmp_path / "store" / "index.parquet")
    words = ["--store", tmp_path / "store", "--out", tmp_path / "mae", *PRETRAIN, "--train.steps", 6]
    text = prevox("pretrain", *words, "--train.checkpoint-every", 3, "--resume", code=2)
    assert "another division into training and validation" in text


def test_resume_with_other_settings_names_the_difference(chain: Chain) -> None:
    words = ["--store", chain.store, "--out", chain.mae, *PRETRAIN, "--train.steps", 9, "--resume"]
    assert "train.steps: the run has 6, this call 9" in prevox("pretrain", *words, code=2)


def test_a_run_folder_in_use_is_refused(chain: Chain) -> None:
    words = ["--store", chain.store, "--out", chain.mae, *PRETRAIN, "--train.steps", 6]
    assert "Add --resume" in prevox("pretrain", *words, code=2)


def test_dry_run_writes_nothing(chain: Chain, tmp_path: Path) -> None:
    words = ["--store", chain.store, "--out", tmp_path / "m", *PRETRAIN, "--train.steps", 6, "--dry-run"]
    text = prevox("pretrain", *words)
    assert "time per step" in text
    assert "peak memory" in text
    assert not (tmp_path / "m").exists()


def test_regions_frozen_encoder_and_few_labels(chain: Chain, tmp_path: Path) -> None:
    run = tmp_path / "regions"
    words = ["--store", chain.store, "--pretrained", chain.mae, *FINETUNE, "--train.steps", 2, "--out", run]
    values = sorted(int(value) for value in CLASS_NAMES if int(value) > 0)
    every = ",".join(map(str, values))
    words += ["--regions", f"all={every}", f"last={values[-1]}", "--labels", 2, "--freeze-encoder"]
    # 'all' without 'last' leaves several values: nothing to paint
    assert "from the outermost to the innermost" in prevox("finetune", *words, code=2)
    words[words.index(f"all={every}")] = f"all={values[-2]},{values[-1]}"
    prevox("finetune", *words)
    assert len(json.loads((run / "split.json").read_text())["train"]) == 2
    trained = load_file(run / "checkpoints" / "step_00000002" / "task.safetensors")
    handed = load_file(chain.mae / "checkpoints" / "step_00000006" / "pretrained.safetensors")
    frozen = [name for name in handed if name.endswith("qkv.weight")]
    assert frozen
    assert all(torch.equal(trained[f"network.encoder.{name}"], handed[name]) for name in frozen)
    prevox("predict", "--run", run, "--images", chain.catalogue, "--split", "validation")
    prevox("evaluate", "--predictions", run, "--references", chain.catalogue)
    scores = pd.read_parquet(run / "evaluation" / "scores.parquet")
    assert set(scores["class"]) == {"all", "last"}


def test_scratch_arm_shares_everything_but_the_encoder(chain: Chain, tmp_path: Path) -> None:
    words = ["--store", chain.store, "--pretrained", chain.mae, *FINETUNE, "--train.steps", 1, "--optim.lr", 1e-12]
    for arm, flags in (("pretrained", []), ("scratch", ["--scratch"])):
        prevox("finetune", *words, *flags, "--out", tmp_path / arm)
    weights = [
        load_file(tmp_path / arm / "checkpoints/step_00000001/task.safetensors") for arm in ("pretrained", "scratch")
    ]
    decoder = [name for name in weights[0] if not name.startswith("network.encoder") and name.endswith("weight")]
    assert decoder
    for name in decoder:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-9, rtol=0)
    encoder = [name for name in weights[0] if name.endswith("qkv.weight")]
    assert all(not torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in encoder)


def test_python_functions_do_what_the_commands_do(chain: Chain, tmp_path: Path) -> None:
    import prevox as package

    result = package.evaluate(predictions=chain.seg, references=chain.catalogue, out=tmp_path / "scores")
    again = pd.read_parquet(tmp_path / "scores" / "scores.parquet")
    pd.testing.assert_frame_equal(again, pd.read_parquet(chain.seg / "evaluation" / "scores.parquet"))
    assert result is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["catalogue", "/no/such/folder"], "/no/such/folder"),
        (["prepare", "--catalogue", "nothing.parquet", "--out", "s"], "nothing.parquet"),
        (["pretrain", "--store", "nowhere", "--out", "o", "--train.steps", "1"], "nowhere"),
        (["predict", "--run", "nowhere", "--images", "x"], "nowhere"),
        (["evaluate", "--predictions", "nowhere", "--references", "x"], "nowhere"),
        (["compare", "--runs", "nowhere", "x", "--out", "o"], "nowhere"),
        (["report", "--runs", "nowhere"], "nowhere"),
        (["pretrain", "--store", "s", "--out", "o", "--recipe", "mae-vit-cup"], "Did you mean 'mae-vit-cpu'"),
    ],
)
def test_wrong_paths_are_named_without_a_traceback(words: list[str], message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = prevox(*words, code=2)
    assert message in text
    assert "Traceback" not in text
