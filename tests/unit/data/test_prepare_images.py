"""What `prepare` makes of single images that are odd in one way each."""

import nibabel as nib
import numpy as np
import pytest

from prevox.config.data import CatalogueConfig, PrepareConfig
from prevox.data.catalogue import catalogue
from prevox.data.dataset import ViewLoader
from prevox.data.prepare import prepare
from prevox.data.store import Store
from prevox.task import ViewGroup

pytestmark = pytest.mark.unit


def prepared(folder, image, label=None, affine=None, **settings):
    """The store of one image, "a", written as NIfTI."""
    affine = np.eye(4) if affine is None else affine
    for kind, array in (("images", image), ("labels", label)):
        (folder / "scans" / kind).mkdir(parents=True)
        if array is not None:
            nib.save(nib.Nifti1Image(array, affine), folder / "scans" / kind / "a.nii.gz")
    table = folder / "catalogue.parquet"
    catalogue(CatalogueConfig(paths=(folder / "scans",), out=table, volumes="channels"))
    prepare(PrepareConfig(catalogue=table, out=folder / "store", workers=1, **settings))
    return Store(folder / "store")


def whole(store):
    return tuple((0, size) for size in store.shape("a"))


def test_channels_of_different_range_keep_their_own_steps(tmp_path):
    rng = np.random.default_rng(0)
    t2, adc = rng.uniform(0, 4000.5, (6, 7, 8)), rng.uniform(0, 0.003, (6, 7, 8))
    store = prepared(tmp_path, np.stack([t2, adc], -1).astype(np.float32))
    stored = store.read("a", 0, whole(store)).result()
    for channel, source in enumerate((t2, adc)):
        slope, intercept = store.slope_intercept("a")[channel]
        step = (source.max() - source.min()) / 65535
        np.testing.assert_allclose(
            stored[channel] * slope + intercept, source.T, atol=0.51 * step + 1e-7 * source.max()
        )


def test_a_class_lost_in_resampling_is_flagged_and_counted(tmp_path, capsys):
    label = np.zeros((12, 12, 12), np.uint8)
    label[2:8, 2:8, 2:8] = 1
    label[9, 9, 9] = 5  # one voxel of 1 mm in a grid of 4 mm
    image = label.astype(np.float32) + 1
    row = prepared(tmp_path, image, label, spacing=(4.0, 4.0, 4.0)).row("a")
    assert list(row["label_values"]) == [1]
    assert [flag for flag in row["flags"] if flag.startswith("class")] == ["class_vanished: 5"]
    assert "in 1 images, see class_vanished" in capsys.readouterr().out
    row = prepared(tmp_path / "fine", image, label, spacing="none").row("a")
    assert not any(flag.startswith("class") for flag in row["flags"])
    assert "vanished" not in capsys.readouterr().out


def test_sagittal_slices_are_cut_in_plane(tmp_path):
    picture = np.arange(14 * 11, dtype=np.int16).reshape(14, 11) + 1
    affine = np.array([[0, 0, 3.0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # i is superior, j anterior, k right
    store = prepared(tmp_path, picture[..., None], affine=affine, spacing="median")
    assert store.info["spacing"] == [3, 1, 1]
    assert (store.read("a", 0, whole(store)).result()[0, 0] == picture).all()
    raw = next(ViewLoader(store, ["a"], {"view": ViewGroup((8, 8))}, seed=0, batch=1).batches()).groups["view"]
    _, y, x = (slice(*edge) for edge in raw.boxes[0])
    assert (raw.voxels_BCDHW[0, 0, 0] == picture[y, x]).all()


def test_brackets_in_paths_are_no_markup(tmp_path, capsys):
    prepared(tmp_path, np.ones((3, 4, 5), np.int16))
    folder = tmp_path / "q[" / "y]"
    folder.mkdir(parents=True)
    table = (tmp_path / "catalogue.parquet").rename(folder / "catalogue.parquet")
    (tmp_path / "scans" / "images" / "a.nii.gz").write_bytes(b"not a scan")
    result = prepare(PrepareConfig(catalogue=table, out=folder / "store", workers=1))
    assert result.exit_code == 1
    said = "".join(capsys.readouterr().out.split())
    assert f"1imagesin{table},0alreadyin{folder / 'store'}" in said
    assert "y]/store/failures.csv" in said
