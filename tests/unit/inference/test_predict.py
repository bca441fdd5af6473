import csv
import dataclasses
import errno
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from prevox.config.data import NormaliseConfig
from prevox.config.runs import PredictConfig, finetune_schema
from prevox.data.place import PrepareSettings
from prevox.data.readers import read_header
from prevox.errors import ConfigError, DataError, RunError
from prevox.finetuning.labels import LabelScheme
from prevox.finetuning.network_io import LoadedNetwork, describe_network, load_network
from prevox.finetuning.segmentation import build
from prevox.inference.cases import Case, find_cases
from prevox.inference.predict import predict, predict_case

pytestmark = pytest.mark.unit

SHAPE = (12, 10, 7)  # i j k


def oblique():
    """Axes stored as (anterior-posterior, superior-inferior, left-right), two of them flipped, turned by 20 degrees."""
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    order = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # columns: world direction of i, j, k
    affine = np.eye(4)
    affine[:3, :3] = turn @ order @ np.diag([1.0, 1.25, 2.5])
    affine[:3, 3] = [-31.5, 12.25, 100.125]
    return affine


def write(path, array_ijk, affine=None):
    affine = oblique() if affine is None else affine
    image = nib.Nifti1Image(array_ijk.astype(np.float32), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 4)
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def blobs(seed=0, shape=SHAPE):
    """Values in 0..1 within a frame of zeros, which the crop cuts away."""
    array = np.random.default_rng(seed).uniform(0.1, 1, shape)
    array[[0, -1]] = array[:, :2] = array[:, :, [-1]] = 0
    return array


class Threshold(torch.nn.Module):
    """Answers voxel by voxel, so that the right mask is known on the source's own grid."""

    def __init__(self, scheme):
        super().__init__()
        self.scheme = scheme

    def parts(self):
        return self, None

    def forward(self, x):
        if self.scheme.overlapping:
            return torch.cat([x[:, :1] - 0.3, x[:, :1] - 0.8], dim=1) * 50
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, :1] - 0.5], dim=1) * 50


def loaded(scheme=None, spacing=None, channels=1, size=(4, 5, 6)):
    scheme = scheme or LabelScheme({"organ": (5,)})
    unit = NormaliseConfig(name="window", window=(0, 1))
    prepare = PrepareSettings(spacing, "nonzero", 3)
    return LoadedNetwork(Threshold(scheme), scheme, channels, size, unit, prepare, Path("run"), Path("file"))


def settings(run="run", images="images", **over):
    return PredictConfig.parse({"run": run, "images": images, "device": "cpu", **over})


def segment(tmp_path, network, *paths, **over):
    case = Case("case", tuple(paths), None)
    predict_case(case, network, settings(**over), tmp_path, torch.device("cpu"))
    return nib.load(tmp_path / "case.nii.gz")


def test_the_mask_lies_on_the_inputs_own_grid(tmp_path):
    path = write(tmp_path / "image.nii.gz", blobs())
    mask, source = segment(tmp_path, loaded(), path), nib.load(path)
    assert np.array_equal(np.asarray(mask.dataobj), 5 * (blobs().astype(np.float32) > 0.5))
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.affine, source.affine)
    for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "qoffset_x", "xyzt_units"):
        assert np.array_equal(mask.header[field], source.header[field]), field
    assert np.array_equal(mask.header["quatern_b"], source.header["quatern_b"])


def test_regions_are_painted_one_into_the_other(tmp_path):
    path = write(tmp_path / "image.nii.gz", blobs())
    mask = segment(tmp_path, loaded(LabelScheme({"whole": (1, 4), "core": (4,)}, overlapping=True)), path)
    image = blobs().astype(np.float32)
    assert np.array_equal(np.asarray(mask.dataobj), np.select([image > 0.8, image > 0.3], [4, 1]))


def test_a_resampled_ball_comes_back_as_a_ball(tmp_path):
    grid = np.stack(np.meshgrid(*map(np.arange, (24, 20, 14)), indexing="ij"))
    spacing = np.array([1, 1.25, 2.5]).reshape(3, 1, 1, 1)
    distance = np.linalg.norm((grid - np.array([12, 10, 7]).reshape(3, 1, 1, 1)) * spacing, axis=0)
    path = write(tmp_path / "image.nii.gz", np.clip(1 - distance / 16, 0.01, 1))  # 0.5 is at a radius of 8 mm
    mask = np.asarray(segment(tmp_path, loaded(spacing=(1.5, 1.5, 1.5)), path).dataobj) > 0
    ball = distance < 8
    assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.96
    assert not mask[distance > 8 + 1.5].any()
    assert mask[distance < 8 - 1.5].all()


@pytest.mark.parametrize(("suffix", "spacing"), [("png", None), ("jpg", None), ("png", (1.0, 0.5, 0.5))])
def test_the_mask_of_a_picture_is_a_png_on_its_rows_and_columns(suffix, spacing, tmp_path):
    y, x = np.indices((20, 31))
    rows = np.where(y > 12, 200, 8 * x).astype(np.uint8)  # not symmetric
    rows[:2] = 0  # cut away by the crop
    Image.fromarray(rows).save(tmp_path / f"image.{suffix}", quality=100)
    window = NormaliseConfig(name="window", window=(0, 255))
    network = dataclasses.replace(loaded(size=(1, 8, 8), spacing=spacing), normalise=window)
    case = Case("case", (tmp_path / f"image.{suffix}",), None)
    predict_case(case, network, settings(probabilities=True), tmp_path, torch.device("cpu"))
    mask = np.asarray(Image.open(tmp_path / "case.png"))
    assert mask.shape == rows.shape
    assert set(np.unique(mask)) == {0, 5}
    assert ((mask == 5) != (rows > 127)).mean() <= (0 if suffix == "png" and spacing is None else 0.03)
    probabilities = nib.load(tmp_path / "probabilities" / "case.nii.gz")
    assert probabilities.shape == (31, 20, 1, 2)
    assert np.array_equal(np.argmax(np.asarray(probabilities.dataobj), -1)[..., 0].T, mask > 0)


@pytest.mark.parametrize("overlapping", [False, True])
def test_probabilities_are_on_the_source_grid_too(tmp_path, overlapping):
    path = write(tmp_path / "image.nii.gz", blobs())
    scheme = LabelScheme({"whole": (1, 4), "core": (4,)}, True) if overlapping else LabelScheme({"organ": (5,)})
    segment(tmp_path, loaded(scheme), path, probabilities=True)
    image = blobs().astype(np.float32)
    found = np.asarray(nib.load(tmp_path / "probabilities" / "case.nii.gz").dataobj)
    cut = image == 0  # the frame is outside the crop, or exactly 0 inside it
    logits = [image - 0.3, image - 0.8] if overlapping else [0.5 - image, image - 0.5]
    expected = np.stack([1 / (1 + np.exp(-50 * logit)) for logit in logits], axis=-1)
    np.testing.assert_allclose(found[~cut], expected[~cut], atol=1e-4)
    np.testing.assert_allclose(found[cut], [[0, 0] if overlapping else [1, 0]] * cut.sum(), atol=1e-6)


def test_channels_in_files_of_their_own(tmp_path):
    paths = [write(tmp_path / f"c_{number}.nii.gz", blobs(number)) for number in range(2)]
    mask = segment(tmp_path, loaded(channels=2), *paths)
    assert np.array_equal(np.asarray(mask.dataobj), 5 * (blobs(0).astype(np.float32) > 0.5))
    with pytest.raises(DataError, match=r"case: found 1 channel\(s\); expected 2"):
        segment(tmp_path, loaded(channels=2), paths[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a random network, as `finetune` leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    checkpoint = folder / "checkpoints" / "step_00000007"
    checkpoint.mkdir(parents=True)
    config = finetune_schema().parse(
        {
            "store": "store",
            "out": "run",
            "train": {"steps": 1},
            "views": {"size": [8, 8, 8]},
            "encoder": {"size": "T", "patch": [4, 4, 4], "depth": 2},
            "decoder": {"features": 4},
        }
    )
    task = build(config, channels=1, class_names={"1": "a", "6": "b"}, label_values=[1, 6]).task
    description = describe_network(task, NormaliseConfig(), {"crop": "nonzero", "order": 3, "spacing": "median"}, None)
    (folder / "network.json").write_text(json.dumps(description))
    (folder / "split.json").write_text(json.dumps({"train": ["x"], "validation": ["a"]}))
    save_file(task.state_dict(), checkpoint / "task.safetensors")
    return folder, task


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_network_is_the_one_that_was_saved(run):
    folder, task = run
    for path in (folder, folder / "checkpoints" / "step_00000007"):
        found = load_network(path)
        x = torch.randn(1, 1, 8, 8, 8)
        assert torch.equal(found.network(x), task.eval().network(x))
        assert found.scheme.classes == {"a": (1,), "b": (6,)}
        assert (found.size, found.channels, found.run) == ((8, 8, 8), 1, folder.absolute())
        assert found.prepare == PrepareSettings(None, "nonzero", 3)


def test_a_folder_of_scans_with_one_broken(run, tmp_path):
    folder, _ = run
    for name in "ab":
        write(tmp_path / "scans" / f"{name}.nii.gz", blobs())
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no gzip")
    out = tmp_path / "masks"
    result = predict(settings(folder, tmp_path / "scans", out=out))
    assert (result.exit_code, result.predicted) == (1, ["a", "b"])
    rows = rows_of(out / "predictions.csv")
    assert [row["file"] for row in rows] == ["a.nii.gz", "b.nii.gz"]
    assert json.loads(rows[0]["source"]) == [str(tmp_path / "scans" / "a.nii.gz")]
    assert float(rows[0]["seconds"]) > 0
    failed = rows_of(out / "failures.csv")
    assert [row["image"] for row in failed] == ["broken"]
    assert "broken.nii.gz" in failed[0]["reason"]
    mask, source = read_header(out / "a.nii.gz"), read_header(tmp_path / "scans" / "a.nii.gz")
    assert mask.shape_ijk == source.shape_ijk
    assert np.array_equal(mask.affine, source.affine)
    assert {name: mask.codes[name] for name in ("qform_code", "sform_code")} == {"qform_code": 1, "sform_code": 4}
    assert set(np.unique(np.asarray(nib.load(out / "a.nii.gz").dataobj))) <= {0, 1, 6}
    again = predict(settings(folder, tmp_path / "scans" / "a.nii.gz", out=out))
    assert (again.exit_code, again.predicted) == (0, ["a"])
    assert not (out / "failures.csv").exists()
    assert not list(out.glob(".*"))


def test_only_one_part_of_the_split(run, tmp_path):
    folder, _ = run
    for name in "ab":
        write(tmp_path / "scans" / f"{name}.nii.gz", blobs())
    result = predict(settings(folder, tmp_path / "scans", out=tmp_path / "masks", split="validation"))
    assert result.predicted == ["a"]
    with pytest.raises(RunError, match="none of its 2 images is among the run's 1 train images"):
        predict(settings(folder, tmp_path / "scans", split="train"))


def test_nothing_that_can_be_segmented_is_an_error(run, tmp_path):
    write(tmp_path / "scans" / "a.nii.gz", np.stack([blobs(), blobs()], axis=-1))
    with pytest.raises(RunError, match=r"no image could be segmented. The first, a: a: found 2 channel\(s\)"):
        predict(settings(run[0], tmp_path / "scans", out=tmp_path / "masks"))


def test_what_is_no_finetuning_run_is_refused(run, tmp_path):
    folder, task = run
    with pytest.raises(RunError, match="does not exist"):
        load_network(tmp_path / "absent")
    checkpoint = tmp_path / "pretraining" / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    save_file(task.state_dict(), checkpoint / "task.safetensors")
    with pytest.raises(RunError, match="no fine-tuning run"):
        load_network(tmp_path / "pretraining")
    (tmp_path / "pretraining" / "network.json").write_text((folder / "network.json").read_text())
    (checkpoint / "task.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="does not hold the weights"):
        load_network(tmp_path / "pretraining")


def test_two_images_with_one_id_would_overwrite_each_other(tmp_path):
    for dataset in ("Dataset001_A", "Dataset002_B"):
        write(tmp_path / dataset / "imagesTr" / "case_0000.nii.gz", blobs())
        description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
        (tmp_path / dataset / "dataset.json").write_text(json.dumps({**description, "numTraining": 1}))
    with pytest.raises(DataError, match="two images with the id 'case'"):
        find_cases(tmp_path)


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("over", [{"out": "scans/images"}, {"out": "scans/labels"}, {"out": "scans/images/a.nii.gz"}])
def test_masks_never_replace_images_or_labels(run, tmp_path, monkeypatch, over):
    monkeypatch.chdir(tmp_path)
    for part in ("images", "labels"):
        write(tmp_path / "scans" / part / "a.nii.gz", blobs())
    before = files_in(tmp_path)
    with pytest.raises(ConfigError, match=r"out: .* holds .*a\.nii\.gz.* Give --out a folder of its own"):
        predict(settings(run[0], tmp_path / "scans", **over))
    assert files_in(tmp_path) == before
    assert predict(settings(run[0], tmp_path / "scans", out="scans/masks")).predicted == ["a"]


def test_probabilities_never_replace_images_and_links_are_followed(run, tmp_path):
    write(tmp_path / "out" / "probabilities" / "a.nii.gz", blobs())
    (tmp_path / "link").symlink_to(tmp_path / "out", target_is_directory=True)
    with pytest.raises(ConfigError, match="folder of its own"):
        predict(settings(run[0], tmp_path / "out" / "probabilities", out=tmp_path / "link", probabilities=True))


def test_a_place_that_cannot_be_written_is_told_before_the_work(run, tmp_path, monkeypatch):
    write(tmp_path / "scans" / "a.nii.gz", blobs())
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("prevox.inference.predict.predict_case", lambda *args, **kwargs: pytest.fail("work was done"))
    with pytest.raises(RunError, match=r"file.masks: cannot be written \(Not a directory\)"):
        predict(settings(run[0], tmp_path / "scans", out=tmp_path / "file" / "masks"))


def test_a_full_disk_stops_and_what_is_done_stays_named(run, tmp_path, monkeypatch):
    for name in "abc":
        write(tmp_path / "scans" / f"{name}.nii.gz", blobs())
    written = []

    def write_or_fill(path, label, like):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path.name)

    monkeypatch.setattr("prevox.inference.predict.write_mask", write_or_fill)
    with pytest.raises(RunError, match=r"No space left on device.* 1 of 3 images are done"):
        predict(settings(run[0], tmp_path / "scans", out=tmp_path / "masks"))
    assert [row["image"] for row in rows_of(tmp_path / "masks" / "predictions.csv")] == ["a"]
    assert not (tmp_path / "masks" / "failures.csv").exists()


def test_brackets_in_paths_are_no_markup(run, tmp_path, capsys):
    write(tmp_path / "q[/y]" / "a.nii.gz", blobs())
    (tmp_path / "q[/y]" / "[/b].nii.gz").parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "q[/y]" / "[/b].nii.gz").write_bytes(b"no gzip")
    result = predict(settings(run[0], tmp_path / "q[/y]", out=tmp_path / "masks[/z]"))
    assert (result.predicted, len(result.failures)) == (["a"], 1)
    said = "".join(capsys.readouterr().out.split())
    assert "masks[/z]" in said
    assert "q[/y]" in said
