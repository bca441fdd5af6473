"""`prevox plan` on catalogues of small scans: files, network, messages."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

import prevox
from prevox.config.base import load_recipe, over_recipe
from prevox.config.data import CatalogueConfig
from prevox.config.models import ResEncConfig
from prevox.config.runs import finetune_schema
from prevox.data.catalogue import SCHEMA, catalogue, read_catalogue
from prevox.data.plan import BYTES, make_plan, map_elements
from prevox.errors import ConfigError, DataError, RunError
from prevox.models.resenc.network import ResEncUNet, ResidualBlock
from prevox.models.resenc.settings import resenc_settings
from prevox.verbs.plan import fingerprint, room

pytestmark = pytest.mark.unit

SHAPE = (20, 33, 18)  # i j k
SAR = np.array([[0, 0, 1.5, 0], [0, -1, 0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])  # i upwards, 4 mm; k to the right, 1.5 mm


def scan(folder, name, shape=SHAPE, affine=SAR, label=True, seed=0):
    """One image with a label of the values 1 and 3, or without."""
    noise = np.random.default_rng(seed).integers(0, 500, shape).astype(np.int16)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(noise, affine), folder / "images" / f"{name}.nii.gz")
    if label:
        values = np.where(noise.reshape(*shape[:3], -1)[..., 0] > 400, 3, 1)
        nib.save(nib.Nifti1Image(values.astype(np.uint8), affine), folder / "labels" / f"{name}.nii.gz")


def catalogued(tmp_path, **choices):
    return catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "c.parquet", **choices)).path


@pytest.fixture
def listed(tmp_path):
    """Three labelled images and a larger one without label."""
    for n in range(3):
        scan(tmp_path / "scans", f"case_{n}", seed=n)
    scan(tmp_path / "scans", "other", shape=(60, 60, 60), label=False)
    return catalogued(tmp_path)


def test_geometry_is_turned_as_prepare_turns_it(listed):
    rows = read_catalogue(listed)
    found = fingerprint(listed, rows[rows["label_path"].notna()])
    assert set(found.spacings) == {(4.0, 1.0, 1.5)}
    assert set(found.shapes) == {(20, 33, 18)}
    assert (found.channels, found.classes) == (1, 3)


def test_recipe_and_numbers(listed, tmp_path, capsys):
    out = tmp_path / "planned" / "dynamic.yaml"
    result = prevox.plan(catalogue=listed, out=out, size="S")
    made = result.plan
    assert made == make_plan(fingerprint(listed, read_catalogue(listed).iloc[:3]), room("S"))
    written = yaml.safe_load(out.read_text())
    assert written["views"]["size"] == list(made.patch) == [20, 40, 20]
    assert written["views"]["foreground"] == 0.33
    assert written["train"]["batch"] == made.batch
    assert written["encoder"] == {
        "name": "resenc",
        "size": "S",
        "stages": 4,
        "features": [16, 32, 64, 128],
        "blocks": [1, 2, 2, 2],
        "strides": ["1x1x1", "1x2x2", "1x2x2", "2x2x1"],
        "kernels": ["1x3x3", "1x3x3", "3x3x3", "3x3x3"],
    }
    assert result.prepare.startswith(f"prevox prepare --catalogue {listed} --spacing 4 1 1.5 --out ")
    assert result.prepare in out.read_text()
    numbers = json.loads(result.numbers.read_text())
    assert numbers["plan"]["spacing"] == [4, 1, 1.5]
    assert numbers["plan"]["memory"] == made.elements * made.batch * BYTES
    assert numbers["fingerprint"]["shapes"] == [[20, 33, 18]] * 3
    printed = capsys.readouterr().out
    for told in ("20 × 33 × 18 voxels", "1x2x2", "of 4 in the catalogue, the labelled ones", result.prepare):
        assert told in printed


@pytest.mark.parametrize("size", ["S", "L"])
def test_all_that_is_not_planned_is_the_shipped_recipes(listed, tmp_path, size):
    recipe = prevox.plan(catalogue=listed, out=tmp_path / "plan.yaml", size=size)
    written = load_recipe("finetune", str(recipe.path))
    config = finetune_schema("resenc").parse(over_recipe(written, {"store": "store", "out": "run"}))
    shipped = finetune_schema().parse(
        load_recipe("finetune", {"S": "resenc-s-cpu", "L": "resenc-l"}[size])
        | {"store": "store", "out": "run", "pretrained": "run"}
    )
    assert config.loss == shipped.loss
    assert (config.optim.name, config.optim.lr, config.optim.momentum) == ("sgd", 0.01, shipped.optim.momentum)
    assert (config.schedule.name, config.schedule.warmup, config.decoder_first) == ("poly", 0, 0)
    assert (config.train.steps, config.train.precision) == (shipped.train.steps, shipped.train.precision)
    assert config.views.augment == shipped.views.augment


def test_flat_views_are_not_turned_out_of_their_plane(tmp_path):
    scan(tmp_path / "scans", "flat", shape=(12, 60, 60), affine=np.diag([0.6, 0.6, 0.6, 1])[[2, 1, 0, 3]])
    result = prevox.plan(catalogue=catalogued(tmp_path), out=tmp_path / "plan.yaml", size="S")
    assert max(result.plan.patch) > 3 * min(result.plan.patch)
    assert load_recipe("finetune", str(result.path))["views"]["augment"]["rotation"] == 0


def test_the_network_is_the_planned_one_and_has_as_many_elements(listed, tmp_path):
    result = prevox.plan(catalogue=listed, out=tmp_path / "plan.yaml", size="S")
    encoder = ResEncConfig(**load_recipe("finetune", str(result.path))["encoder"])
    network = ResEncUNet(**resenc_settings(encoder, result.plan.patch, channels=1, classes=3))
    assert [list(kernel) for kernel in result.plan.kernels] == [
        list(stage.blocks[0].conv1.conv.kernel_size) for stage in network.encoder.stages
    ]
    seen = []
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(lambda _, __, output: seen.append(output.numel()))
        if isinstance(module, ResidualBlock) and len(module.skip) == 1:  # a shortcut that pools, or projects, only
            pools = isinstance(module.skip[0], nn.AvgPool3d)
            module.skip.register_forward_hook(lambda _, __, output, pools=pools: seen.append(pools * output.numel()))
    output = network(torch.zeros(1, 1, *result.plan.patch))
    assert output.shape == (1, 3, *result.plan.patch)
    assert sum(seen) == result.plan.elements
    maps = network.forward_features(torch.zeros(1, 1, *result.plan.patch))
    assert list(maps[-1].shape[2:]) == [20 // 2, 40 // 8, 20 // 4]


def test_memory_is_what_a_training_step_keeps():
    """Saved for the backward pass: 8 bytes an element, within what weights, skips and shortcuts add."""
    settings = resenc_settings(ResEncConfig(size="S"), (32, 32, 32), channels=1, classes=2)
    kept = {}

    def note(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = ResEncUNet(**settings)(torch.zeros(1, 1, 32, 32, 32))
    planned = map_elements((32,) * 3, settings["strides"], settings["features"], settings["blocks"], 2) * BYTES
    assert sum(kept.values()) == pytest.approx(planned, rel=0.2)
    del output


def test_all_images_count_where_none_is_labelled(tmp_path, capsys):
    scan(tmp_path / "scans", "a", label=False)
    scan(tmp_path / "scans", "b", label=False, seed=1)
    result = prevox.plan(catalogue=catalogued(tmp_path), out=tmp_path / "plan.yaml", size="S")
    assert result.plan.median_shape == SHAPE
    assert "none is labelled" in capsys.readouterr().out


def test_an_older_plan_is_replaced_and_nothing_else(listed, tmp_path):
    out = tmp_path / "plan.yaml"
    prevox.plan(catalogue=listed, out=out, size="S")
    prevox.plan(catalogue=listed, out=out, size="M")
    assert load_recipe("finetune", str(out))["encoder"]["size"] == "M"
    for name in ("mine.yaml", "mine.json"):
        other = tmp_path / name
        other.write_text("views: {size: [8, 8, 8]}\n")
        with pytest.raises(RunError, match=f"{name}: found a file that `prevox plan` did not write"):
            prevox.plan(catalogue=listed, out=tmp_path / "mine.yaml")
        assert other.read_text() == "views: {size: [8, 8, 8]}\n"
        other.unlink()
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(RunError, match="is a folder"):
        prevox.plan(catalogue=listed, out=tmp_path / "folder.yaml")
    with pytest.raises(ConfigError, match=r"must end in \.yaml"):
        prevox.plan(catalogue=listed, out=tmp_path / "plan.json")


def test_real_hippocampus(real_data, tmp_path):
    """168 crops of 1 mm: nnU-Net's published view; 5 % of the voxels are 5.7 views."""
    config = CatalogueConfig(paths=(real_data / "Task04_Hippocampus",), out=tmp_path / "c.parquet")
    made = prevox.plan(catalogue=catalogue(config).path, out=tmp_path / "plan.yaml", size="M").plan
    assert (made.spacing, made.median_shape, made.patch) == ((1, 1, 1), (35, 50, 35), (40, 56, 40))
    assert made.strides == [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert made.batch == made.largest_batch == 6


def test_planning_does_not_load_torch():
    code = "import sys, prevox.verbs.plan; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class TestRefused:
    def refused(self, path, tmp_path):
        with pytest.raises(DataError) as caught:
            prevox.plan(catalogue=path, out=tmp_path / "plan.yaml")
        assert caught.value.where == str(path)
        assert caught.value.remedy
        assert not (tmp_path / "plan.yaml").exists()
        return str(caught.value)

    def test_no_catalogue(self, tmp_path):
        assert "found no such file" in self.refused(tmp_path / "none.parquet", tmp_path)

    def test_no_image(self, listed, tmp_path):
        table = read_catalogue(listed).iloc[:0]
        table.attrs["prevox_catalogue"] = SCHEMA
        table.to_parquet(tmp_path / "empty.parquet")
        assert len(pd.read_parquet(tmp_path / "empty.parquet")) == 0
        assert "found no image" in self.refused(tmp_path / "empty.parquet", tmp_path)

    def test_slices(self, tmp_path):
        scan(tmp_path / "scans", "slice", shape=(30, 30, 1))
        assert "found slices (2D) in 1 of 1 images (slice)" in self.refused(catalogued(tmp_path), tmp_path)

    def test_slices_among_volumes(self, tmp_path):
        scan(tmp_path / "scans", "volume")
        scan(tmp_path / "scans", "slice", shape=(30, 30, 1))
        said = self.refused(catalogued(tmp_path), tmp_path)
        assert "found slices (2D) in 1 of 2 images (slice); expected volumes (3D) only" in said

    def test_different_channels(self, tmp_path):
        scan(tmp_path / "scans", "a")
        scan(tmp_path / "scans", "b", seed=1)
        scan(tmp_path / "scans", "two", shape=(*SHAPE, 2), seed=2)
        said = self.refused(catalogued(tmp_path, volumes="channels"), tmp_path)
        assert "numbers of channels: 1 (images: 2), 2 (images: 1); the rarest in two" in said

    def test_images_too_small_for_a_network(self, tmp_path):
        scan(tmp_path / "scans", "a", shape=(7, 7, 9))
        scan(tmp_path / "scans", "b", shape=(5, 7, 9), seed=1)
        said = self.refused(catalogued(tmp_path), tmp_path)
        assert "found images of 6 × 7 × 9 voxels (median; the smallest, b, has 5 × 7 × 9)" in said
        assert "two axes of at least 8 voxels" in said
