"""Folders of pictures: with a table, with masks, among volumes."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow

from prevox.config.data import CatalogueConfig, PrepareConfig
from prevox.data.catalogue import CatalogueResult, catalogue, read_catalogue
from prevox.data.dataset import ViewLoader
from prevox.data.layouts import recognise
from prevox.data.prepare import prepare
from prevox.data.store import Store
from prevox.errors import ConfigError, DataError
from prevox.task import ViewGroup

pytestmark = pytest.mark.unit


def save(path: Path, seed: int = 0, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (9, 11) if channels == 1 else (9, 11, channels)
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)).save(path)
    return path


def run(tmp_path: Path, *paths: Path, **settings) -> CatalogueResult:
    return catalogue(CatalogueConfig(paths=paths, out=tmp_path / "out" / "c.parquet", **settings))


@pytest.fixture
def xrays(tmp_path) -> Path:
    """Four pictures at two depths of images/, and a table in the style of ChestX-ray14 with a row too many."""
    root = tmp_path / "cxr"
    for number, folder in enumerate(("a", "a", "b/deep", "b")):
        save(root / "images" / folder / f"0000{number // 2}_00{number}.png", number)
    rows = {
        "Image Index": ["00000_000.png", "00000_001.png", "00001_002.png", "00001_003.png", "00009_000.png"],
        "Patient ID": ["007", "007", "008", "008", "009"],
        "Effusion": [0, 1, 0, 1, 1],
        "modality": ["DX"] * 5,
    }
    pd.DataFrame(rows).to_csv(root / "labels.csv", index=False)
    return root


def test_table_is_found_and_joined_and_patients_are_subjects(xrays, tmp_path, capsys):
    result = run(tmp_path, xrays)
    assert result.exit_code == 0
    table = read_catalogue(result.path)
    assert list(table["image"]) == ["00000_000", "00000_001", "00001_003", "00001_002"]  # in order of their paths
    assert list(table["subject"]) == ["007", "007", "008", "008"]  # leading zeros are no number's
    assert list(table["Effusion"]) == [0, 1, 1, 0]
    assert set(table["layout"]) == {"pictures"}
    assert table["modality"].isna().all()  # the catalogue's own column stays
    said = " ".join(capsys.readouterr().out.split())
    assert f"joined {xrays / 'labels.csv'}: 2 subjects by its column 'Patient ID'" in said
    assert "not joined: modality" in said
    assert "hint" not in said
    prepare(PrepareConfig(catalogue=result.path, out=tmp_path / "store", workers=1))
    assert list(Store(tmp_path / "store").index["Effusion"]) == [0, 1, 0, 1]


def test_table_beside_the_folder_of_images_counts_too(xrays, tmp_path):
    assert {entry.table for entry in recognise(xrays / "images")} == {xrays / "labels.csv"}
    assert recognise(xrays / "images" / "a")[0].table is None  # but not from further away


def test_unlisted_picture_is_left_out_by_name(xrays, tmp_path):
    save(xrays / "images" / "logo.png", 9)
    result = run(tmp_path, xrays)
    ((image, reason),) = result.failures
    assert image == "logo"
    assert "logo.png: found no row in" in reason
    assert len(result.table) == 4
    with pytest.raises(DataError, match=r"logo\.png"):
        run(tmp_path, xrays, strict=True)


def test_given_table_and_group_win(xrays, tmp_path):
    assert list(run(tmp_path, xrays, group="Effusion").table["subject"]) == ["0", "1", "1", "0"]
    other = tmp_path / "other.csv"
    other.write_text("id,who\n" + "".join(f"0000{n // 2}_00{n},w{n}\n" for n in range(4)))
    table = run(tmp_path, xrays, table=other, group="who").table
    assert list(table["subject"]) == ["w0", "w1", "w3", "w2"]
    assert "Effusion" not in table
    with pytest.raises(DataError, match="no column 'nobody'"):
        run(tmp_path, xrays, group="nobody")
    (xrays / "labels.csv").unlink()
    with pytest.raises(ConfigError, match="--table"):
        run(tmp_path, xrays, group="who")


def test_which_column_is_the_subject(xrays, tmp_path, capsys):
    table = pd.read_csv(xrays / "labels.csv", dtype=str)
    for name in ("subject", "PatientID", "patient_id", " Subject ID"):
        table.rename(columns={"Patient ID": name}).to_csv(xrays / "labels.csv", index=False)
        assert list(run(tmp_path, xrays).table["subject"]) == ["007", "007", "008", "008"], name
    capsys.readouterr()
    table.rename(columns={"Patient ID": "who"}).to_csv(xrays / "labels.csv", index=False)
    assert run(tmp_path, xrays).table["subject"].is_unique
    assert "each picture counts as its own (--group COLUMN)" in capsys.readouterr().out
    table.assign(subject="s").to_csv(xrays / "labels.csv", index=False)  # two: which is meant?
    assert run(tmp_path, xrays).table["subject"].is_unique
    table.assign(**{"Patient ID": ["007", "", "8", "8", "9"]}).to_csv(xrays / "labels.csv", index=False)
    with pytest.raises(DataError, match=r"empty 'Patient ID' for 00000_001.*--table .* without --group"):
        run(tmp_path, xrays)


def test_tables_that_do_not_describe_the_pictures(xrays, capsys):
    table = pd.read_csv(xrays / "labels.csv", dtype=str)
    (xrays / "colours.csv").write_text("colour,value\nred,1\n")
    boxes = table.iloc[[0, 0, 1]]
    boxes.to_csv(xrays / "boxes.tsv", sep="\t", index=False)  # several rows for a picture: boxes, not pictures
    assert recognise(xrays)[0].table == xrays / "labels.csv"
    table.iloc[:1].to_csv(xrays / "few.csv", index=False)
    assert recognise(xrays)[0].table == xrays / "labels.csv"  # the only one that describes all
    table.to_csv(xrays / "copy.csv", index=False)
    assert recognise(xrays)[0].layout == "folder"
    assert "several tables describe these pictures (copy.csv, labels.csv): none is joined" in capsys.readouterr().out
    for name in ("copy", "labels"):
        (xrays / f"{name}.csv").unlink()
    assert recognise(xrays)[0].layout == "folder"  # a table of one in four is no list of them


def test_patients_of_two_collections_are_different_people(xrays, tmp_path):
    other = save(tmp_path / "other" / "x.jpg").parent
    (other / "t.csv").write_text("file,subject\nx.jpg,007\n")
    table = run(tmp_path, xrays, other).table
    assert sorted(set(table["subject"])) == ["cxr/007", "cxr/008", "other/007"]
    assert table["Effusion"].isna().sum() == 1


def test_masks_beside_pictures_are_labels(tmp_path):
    for number in range(3):
        save(tmp_path / "s" / "images" / f"p{number}.jpg", number, channels=3)
        mask = np.zeros((9, 11), np.uint8)
        mask[2:4, 3:6] = 255 if number else 1
        (tmp_path / "s" / "labels").mkdir(exist_ok=True)
        Pillow.fromarray(mask).save(tmp_path / "s" / "labels" / f"p{number}.png")
    (tmp_path / "s" / "list.csv").write_text("name,patient\np0,a\np1,a\np2,b\n")
    Pillow.fromarray(mask).save(tmp_path / "s" / "labels" / "p2.jpg")
    (tmp_path / "s" / "labels" / "p2.png").unlink()
    result = run(tmp_path, tmp_path / "s")
    assert list(result.table["label_values"].map(list)) == [[1], [255]]
    assert list(result.table["subject"]) == ["a", "a"]
    assert set(result.table["channels"]) == {3}
    assert "a label map in a JPEG" in dict(result.failures)["p2"]


def test_nnunet_layout_of_pictures(tmp_path):
    for case in "ab":
        save(tmp_path / "D" / "imagesTr" / f"{case}_0000.png", 1)
        (tmp_path / "D" / "labelsTr").mkdir(exist_ok=True)
        Pillow.fromarray(np.eye(9, 11, dtype=np.uint8)).save(tmp_path / "D" / "labelsTr" / f"{case}.png")
    description = '{"channel_names": {"0": "X"}, "labels": {"background": 0, "line": 1}, "file_ending": ".png"}'
    (tmp_path / "D" / "dataset.json").write_text(description)
    table = run(tmp_path, tmp_path / "D").table
    assert list(table["image"]) == ["a", "b"]
    assert list(table["label_values"].map(list)) == [[1], [1]]


def test_pictures_among_volumes_are_previews(tmp_path, capsys):
    save(tmp_path / "s" / "qc" / "case.png")
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), tmp_path / "s" / "case.nii.gz")
    assert [entry.paths[0].name for entry in recognise(tmp_path / "s")] == ["case.nii.gz"]
    assert "1 PNG, JPEG or TIFF files beside 1 volumes are left out" in capsys.readouterr().out


def test_grey_and_colour_do_not_mix(tmp_path, capsys):
    for number in range(3):
        save(tmp_path / "s" / f"p{number}.png", number, channels=3 if number == 2 else 1)
    run(tmp_path, tmp_path / "s")
    prepare(PrepareConfig(catalogue=tmp_path / "out" / "c.parquet", out=tmp_path / "store", workers=1))
    assert "channels differ (2 images with 1, 1 images with 3)" in capsys.readouterr().out
    store = Store(tmp_path / "store")
    with pytest.raises(DataError, match=r"other channels \(p2 has 3\)"):
        ViewLoader(store, list(store.index.index), {"view": ViewGroup((8, 8))}, seed=0, batch=1)
