"""Four co-registered channels in one 4D file (MSD's BraTS), overlapping regions, 2D slices of volumes."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from prevox.data.store import Store
from tests.e2e.conftest import FINETUNE, PRETRAIN, S3D, VIEW, Chain, prevox

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def brats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six MSD cases with four channels of very different range, and labels 1, 2, 3 nested around a centre."""
    root = tmp_path_factory.mktemp("brats")
    for name in ("imagesTr", "labelsTr"):
        (root / "scans" / name).mkdir(parents=True)
    training = []
    for number in range(6):
        rng = np.random.default_rng(number)
        distance = np.linalg.norm(np.indices((26, 24, 25)) - rng.uniform(9, 15, 3)[:, None, None, None], axis=0)
        label = np.select([distance < 3, distance < 5, distance < 8], [3, 2, 1], 0).astype(np.uint8)
        scale = np.array([1.0, 50.0, 2000.0, 1e-3])
        image = (label[..., None] + 1 + rng.normal(0, 0.3, (*label.shape, 4))) * scale
        affine = np.diag([-1.0, -1.2, 1.1, 1.0])
        case = f"BRATS_{number:03d}.nii.gz"
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), root / "scans" / "imagesTr" / case)
        nib.save(nib.Nifti1Image(label, affine), root / "scans" / "labelsTr" / case)
        training.append({"image": f"./imagesTr/{case}", "label": f"./labelsTr/{case}"})
    described = {
        "name": "BRATS",
        "tensorImageSize": "4D",
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        "numTraining": 6,
        "numTest": 0,
        "training": training,
        "test": [],
    }
    (root / "scans" / "dataset.json").write_text(json.dumps(described))
    prevox("catalogue", root / "scans", "--out", root / "c.parquet")
    prevox("prepare", "--catalogue", root / "c.parquet", "--out", root / "store")
    return root


def test_channels_are_one_image_from_catalogue_to_scores(brats: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(brats / "c.parquet").set_index("image")
    assert list(rows.index) == [f"BRATS_{number:03d}" for number in range(6)]  # one image a case, not one a channel
    assert set(rows["channels"]) == {4}
    store = Store(brats / "store")
    for image, row in store.index.iterrows():
        source = np.asarray(nib.load(Path(row["root"]) / row["paths"][0]).dataobj)
        stored = store.read(image, 0, tuple((0, size) for size in store.shape(image))).result()
        assert len(stored) == 4
        for channel, (slope, intercept) in enumerate(store.slope_intercept(image)):
            voxels = source[::-1, ::-1, :, channel].T  # the file runs to the left and to the back
            np.testing.assert_allclose(
                stored[channel] * slope + intercept, voxels, rtol=1e-6, atol=slope * 0.51, err_msg=f"channel {channel}"
            )
    words = ["--store", brats / "store", "--normalise.name", "zscore_nonzero"]
    prevox("pretrain", *words, *PRETRAIN, "--train.steps", 2, "--out", tmp_path / "mae")
    (weights,) = (tmp_path / "mae").rglob("pretrained.safetensors")
    assert load_file(weights)["patch_embed.weight"].shape[1] == 4 * 8**3  # one token sees all channels of its patch
    regions = ["--regions", "WT=1,2,3", "TC=2,3", "ET=3"]
    tune = ["--store", brats / "store", "--pretrained", tmp_path / "mae", *FINETUNE, *regions]
    tune += ["--decoder.features", 8, "--views.augment.affine", 0]
    prevox("finetune", *tune, "--train.steps", 60, "--optim.lr", 1e-2, "--out", tmp_path / "seg")
    prevox("predict", "--run", tmp_path / "seg", "--images", brats / "c.parquet", "--split", "validation")
    prevox("evaluate", "--predictions", tmp_path / "seg", "--references", brats / "c.parquet")
    scores = pd.read_parquet(tmp_path / "seg" / "evaluation" / "scores.parquet")
    assert list(scores["class"].unique()) == ["WT", "TC", "ET"]
    assert scores.loc[scores["class"] == "WT", "dice"].mean() > 0.7  # contrast is plain: 60 steps find the outer region


def test_slices_of_volumes_train_a_2d_transformer(brats: Path, tmp_path: Path) -> None:
    words = ["--store", brats / "store", "--views.size", 24, 24, "--model.patch", 8, 8, "--model.size", "T"]
    words += ["--model.depth", 2, "--method.decoder-width", 48, "--method.decoder-depth", 1]
    prevox("pretrain", *words, "--method.decoder-heads", 3, "--train.steps", 2, "--out", tmp_path / "flat")
    assert json.loads((tmp_path / "flat" / "summary.json").read_text())["finished"]


def test_a_stem_of_one_channel_is_repeated_for_four_and_rests_with_the_encoder(
    brats: Path, chain: Chain, tmp_path: Path
) -> None:
    prevox("pretrain", "--store", chain.store, *S3D, "--train.steps", 2, "--out", tmp_path / "s3d")
    tune = [*VIEW, "--optim.name", "sgd", "--optim.lr", "1e-2", "--train.steps", 4, "--decoder-first", "0.5"]
    tune += ["--train.checkpoint-every", 1, "--train.keep-every", 1]
    prevox("finetune", "--store", brats / "store", "--pretrained", tmp_path / "s3d", *tune, "--out", tmp_path / "seg")
    stem = "encoder.stem.convs.0.conv.weight"
    handed = load_file(tmp_path / "s3d" / "checkpoints" / "step_00000002" / "pretrained.safetensors")[stem]
    assert handed.shape[1] == 1
    after = [load_file(tmp_path / f"seg/checkpoints/step_0000000{n}/task.safetensors") for n in (1, 2, 3)]
    for weights in after[:2]:
        np.testing.assert_array_equal(weights[f"network.{stem}"], handed.expand(-1, 4, -1, -1, -1) / 4)
    moved = after[2][f"network.{stem}"] - handed / 4
    assert all(float(moved[:, c].abs().max()) > 0 for c in range(4))  # the channels differ, and so do their weights now
    assert float((moved[:, 0] - moved[:, 1]).abs().max()) > 0
