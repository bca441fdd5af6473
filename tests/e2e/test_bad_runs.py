"""Stores, runs and images that were fine once, or are fine elsewhere: damaged, exchanged, of another kind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prevox.data.store import Store
from prevox.methods.registry import METHODS
from tests.e2e.bad import AFFINE, FINETUNE, ONE_STEP, PRETRAIN, SIDE, Shell, label, noise, save, says, scans

pytestmark = pytest.mark.e2e


def remove(pattern: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        for path in list(folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def cut(pattern: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (path,) = folder.glob(pattern)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return act


UNREADABLE = (
    "case_1.zarr: found voxels that cannot be read",
    "expected the folder as `prevox prepare` wrote it",
    "Remove",
)
STORES = {
    "image gone": (
        remove("images/case_1.zarr"),
        (
            "no folder for 1 of 4 images (case_1",
            "expected every image that index.parquet names",
            "Run `prevox prepare`",
        ),
    ),
    "level gone": (
        remove("images/case_1.zarr/0"),
        ("case_1.zarr: found no array '0'", "expected voxels", "remove the folder"),
    ),
    "shard gone": (remove("images/case_1.zarr/0/c/0/0/0/0"), UNREADABLE),
    "shard cut": (cut("images/case_1.zarr/0/c/0/0/0/0"), UNREADABLE),
    "index gone": (remove("index.parquet"), ("without index.parquet", "expected a finished store", "run it again")),
    "index cut": (
        cut("index.parquet"),
        ("index.parquet: found no index", "expected the Parquet file", "Run `prevox pre"),
    ),
    "info gone": (remove("store.json"), ("a folder without store.json", "expected a store", "Give the folder")),
    "info cut": (cut("store.json"), ("store.json: found", "expected the JSON of a store", "Give the folder")),
}


@pytest.mark.parametrize("what", STORES)
def test_a_damaged_store_is_noticed(what: str, made: Path, shell: Shell, tmp_path: Path) -> None:
    damage, parts = STORES[what]
    shutil.copytree(made / "store", tmp_path / "store")
    damage(tmp_path / "store")
    words = ["--store", tmp_path / "store", "--out", tmp_path / "run", "--use", "all", *PRETRAIN, "--train.steps", 4]
    says(shell("pretrain", *words, code=2), *parts)
    if what in (
        "image gone",
        "shard gone",
        "shard cut",
        "level gone",
        "index gone",
        "index cut",
    ):  # as the message says
        shutil.rmtree(tmp_path / "store" / "images" / "case_1.zarr", ignore_errors=True)
        shell("prepare", "--catalogue", made / "c.parquet", "--out", tmp_path / "store", "--workers", 1)
        whole = ((0, 22), (0, 18), (0, 20))
        mended, sound = (Store(path / "store").read("case_1", 0, whole).result() for path in (tmp_path, made))
        assert np.array_equal(mended, sound)


RUNS = {
    "weights cut": (
        "seg",
        cut("checkpoints/*/task.safetensors"),
        ("task.safetensors: does not hold the weights", "Fine-tune again"),
    ),
    "no checkpoint": (
        "seg",
        remove("checkpoints"),
        ("has neither task.safetensors", "Give a run folder of `prevox fine"),
    ),
    "description cut": ("seg", cut("network.json"), ("network.json: cannot be read", "Fine-tune again")),
    "hand-over cut": (
        "mae",
        cut("checkpoints/*/pretrained.safetensors"),
        ("pretrained.safetensors: not a readable safetensors file", "Give a folder written by `prevox pretrain`"),
    ),
    "settings cut": (
        "mae",
        lambda run: (run / "config.yaml").write_text("{{") and None,
        ("config.yaml: not valid YAML",),
    ),
}


@pytest.mark.parametrize("what", RUNS)
def test_a_damaged_run_is_noticed(what: str, made: Path, shell: Shell, tmp_path: Path) -> None:
    name, damage, parts = RUNS[what]
    run = shutil.copytree(made / name, tmp_path / name)
    damage(run)
    calls = {
        "seg": ["predict", "--run", run, "--images", made / "c.parquet", "--out", tmp_path / "masks"],
        "mae": [
            "finetune",
            "--store",
            made / "store",
            "--out",
            tmp_path / "new",
            "--pretrained",
            run,
            *FINETUNE,
            *ONE_STEP,
        ],
    }
    if what == "settings cut":
        calls["mae"] = ["pretrain", "--store", made / "store", "--out", run, "--resume", *PRETRAIN, *ONE_STEP]
    says(shell(*calls[name], code=2), *parts)


def test_a_run_of_another_method_is_not_resumed(
    made: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(made / "mae", tmp_path / "mae")
    monkeypatch.setitem(METHODS, "other", METHODS["mae"])
    words = ["--store", made / "store", "--out", run, "--resume", *PRETRAIN, *ONE_STEP, "--method.name", "other"]
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("name: mae", "name: other"))
    words[words.index("other")] = "mae"
    text = shell("pretrain", *words, code=2)
    says(
        text, "mae: cannot be resumed", "method.name: the run has 'other', this call 'mae'", "Repeat the run's settings"
    )
    # settings that agree, weights that do not: as if the checkpoint had been copied from elsewhere
    (run / "config.yaml").write_text(config)
    (checkpoint,) = (run / "checkpoints").iterdir()
    (seg,) = (made / "seg" / "checkpoints").iterdir()
    for file in seg.iterdir():
        shutil.copy(file, checkpoint / file.name)
    (run / "summary.json").unlink()
    text = shell("pretrain", *words, code=2)
    says(
        text,
        checkpoint.name,
        "holds another task's weights",
        "Resume with the method and model the run was started with",
    )


def test_channels_that_do_not_fit(made: Path, shell: Shell, tmp_path: Path) -> None:
    for count in (2, 3):
        words = ["--out", tmp_path / f"{count}.parquet", "--volumes", "channels"]
        shell("catalogue", scans(tmp_path / f"{count}", 2, count), *words)
        words = ["--catalogue", tmp_path / f"{count}.parquet", "--out", tmp_path / f"store{count}", "--workers", 1]
        shell("prepare", *words)
    text = shell("predict", "--run", made / "seg", "--images", tmp_path / "2", "--out", tmp_path / "masks", code=2)
    says(
        text, "case_0: found 2 channel(s)", "expected 1, as in the images that the run was trained on", "Give the same"
    )
    shell("pretrain", "--store", tmp_path / "store2", "--out", tmp_path / "mae2", *PRETRAIN, *ONE_STEP)
    words = ["--store", tmp_path / "store3", "--out", tmp_path / "new", *FINETUNE, *ONE_STEP]
    text = shell("finetune", *words, "--pretrained", tmp_path / "mae2", code=2)
    says(
        text,
        "channels: the pre-trained network has 2",
        "images to fine-tune on have 3",
        "Prepare a store with the same",
    )
    folder = scans(tmp_path / "mixed", 3)
    save(folder / "images" / "case_2.nii.gz", np.stack([noise(), noise(1)], -1))
    shell("catalogue", folder, "--out", tmp_path / "mixed.parquet", "--volumes", "channels")
    words = ["--catalogue", tmp_path / "mixed.parquet", "--out", tmp_path / "store", "--workers", 1]
    says(shell("prepare", *words), "channels differ (2 images with 1, 1 images with 2)", "make one store for each")
    words = ["--store", tmp_path / "store", "--out", tmp_path / "new", "--use", "all", *PRETRAIN, *ONE_STEP]
    text = shell("pretrain", *words, code=2)
    says(
        text,
        "1 of 3 chosen images with other channels (case_2 has 2)",
        "expected 1 channel(s)",
        "Make one store for each",
    )


def test_solid_views_of_flat_images(shell: Shell, tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / "scans" / f"slice_{number}.nii.gz", noise(number, (24, 24, 1)))
    shell("catalogue", tmp_path / "scans", "--out", tmp_path / "c.parquet")
    shell("prepare", "--catalogue", tmp_path / "c.parquet", "--out", tmp_path / "store", "--workers", 1)
    words = ["--store", tmp_path / "store", "--out", tmp_path / "new", *PRETRAIN, *ONE_STEP]
    text = shell("pretrain", *words, code=2)
    says(
        text, "two-dimensional images (slice_", "expected views of two numbers", "Set --views.size Y X and a two-number"
    )
    remove("packs/*.zarr/0/c/0/0/0/0")(tmp_path / "store")  # their voxels, which they share
    text = shell("pretrain", *words, "--views.size", 16, 16, "--model.patch", 8, 8, code=2)
    says(
        text,
        "found voxels that cannot be read",
        "expected the folder as `prevox prepare` wrote it",
        "Remove this folder",
    )


def test_predictions_of_another_grid_or_case(made: Path, shell: Shell, tmp_path: Path) -> None:
    words = ["evaluate", "--references", made / "c.parquet", "--workers", 1, "--predictions"]
    save(tmp_path / "shape" / "case_1.nii.gz", label(shape=(20, 18, 21)))
    text = shell(*words, tmp_path / "shape", code=2)
    says(
        text, "case case_1", "shape/case_1.nii.gz: found 20×18×21", "expected the reference's 20×18×22", "resample them"
    )
    save(tmp_path / "place" / "case_1.nii.gz", label(), AFFINE + 3 * np.eye(4, k=3))
    text = shell(*words, tmp_path / "place", code=2)
    says(text, "place/case_1.nii.gz: found a grid whose corners lie up to 3 mm off", "expected the grid of", "resample")
    save(tmp_path / "value" / "case_1.nii.gz", label(9))
    text = shell(*words, tmp_path / "value", code=2)
    says(text, "value/case_1.nii.gz: found label value 9, which no reference has", "expected label values", "--regions")
    save(tmp_path / "name" / "someone.nii.gz", label())
    text = shell(*words, tmp_path / "name", code=2)
    says(
        text,
        "1 masks (someone), none with a reference",
        "expected names that equal the ids",
        "Name each mask <case id>",
    )


def test_references_without_labels(made: Path, shell: Shell, tmp_path: Path) -> None:
    save(tmp_path / "scans" / "case_0.nii.gz", noise())
    shell("catalogue", tmp_path / "scans", "--out", tmp_path / "c.parquet")
    text = shell("evaluate", "--predictions", made / "seg", "--references", tmp_path / "c.parquet", code=2)
    says(
        text,
        "c.parquet: found 1 images without a label",
        "expected images with labels",
        "Catalogue a folder with labels",
    )


def test_constant_images_are_prepared_exactly_and_harm_no_run(shell: Shell, tmp_path: Path) -> None:
    """They are named with advice by `catalogue`; normalised they are 0 everywhere, and the loss stays finite."""
    for name, value in (("flat", 7), ("zero", 0)):
        save(tmp_path / "scans" / f"{name}.nii.gz", np.full(SIDE, value, np.int16))
    save(tmp_path / "scans" / "third.nii.gz", np.full(SIDE, 0.3, np.float32))
    says(
        shell("catalogue", tmp_path / "scans", "--out", tmp_path / "c.parquet"),
        "constant: 3 images (flat, third, zero)",
    )
    shell("prepare", "--catalogue", tmp_path / "c.parquet", "--out", tmp_path / "store", "--workers", 1)
    store = Store(tmp_path / "store")
    for image, value in (("flat", 7), ("zero", 0), ("third", np.float32(0.3))):
        ((slope, intercept),) = store.slope_intercept(image)
        whole = tuple((0, size) for size in store.shape(image))
        assert np.unique(store.read(image, 0, whole).result() * slope + intercept).tolist() == [value]
        assert store.row(image)["max_error"].tolist() == [0]
    words = ["--store", tmp_path / "store", "--out", tmp_path / "run", "--use", "all", *PRETRAIN, "--train.steps", 2]
    shell("pretrain", *words, "--train.log-every", 1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(np.isfinite(row["loss"]) for row in rows)
