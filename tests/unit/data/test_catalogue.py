import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from prevox.config.data import CatalogueConfig
from prevox.data.catalogue import CatalogueResult, catalogue, read_catalogue
from prevox.data.catalogue_table import intensity_regimes
from prevox.data.quality import statistics_of
from prevox.errors import ConfigError, DataError

pytestmark = pytest.mark.unit

DATA = Path(__file__).parents[3].parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="real scans are not beside the repository (../shared/data)")
SHAPE = (9, 10, 11)
AFFINE = np.array([[-1.5, 0, 0, 3], [0, 2, 0, -7], [0, 0, 2.5, 1], [0, 0, 0, 1]])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def noise(seed: int = 0, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 500, shape).astype(np.int16)


def mask(*values: int, shape=SHAPE) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    for place, value in enumerate(values):
        label[place, 2:5, 3:6] = value
    return label


def run(tmp_path: Path, *paths: Path, **settings) -> CatalogueResult:
    settings = {"rules": {"field_of_view": None, "file_size": None}, **settings}  # the images here are small
    return catalogue(CatalogueConfig(paths=paths, out=tmp_path / "out" / "c.parquet", **settings))


def pairs(root: Path, count: int = 4) -> Path:
    for n in range(count):
        save(root / "images" / f"case_{n:02d}.nii.gz", noise(n))
        save(root / "labels" / f"case_{n:02d}.nii.gz", mask(1 + n % 2))
    return root


def test_one_row_per_image(tmp_path, capsys):
    root = pairs(tmp_path / "scans", 3)
    result = run(tmp_path, root)
    assert result.exit_code == 0
    table = read_catalogue(result.path)
    row = table.set_index("image").loc["case_01"]
    source = noise(1)
    assert (row["collection"], row["dataset"], row["subject"], row["layout"]) == ("scans", "scans", "case_01", "folder")
    assert (row["paths"], row["label_path"]) == (["images/case_01.nii.gz"], "labels/case_01.nii.gz")
    assert row["root"] == str(root)
    assert [row[f"shape_{axis}"] for axis in "ijk"] == list(SHAPE)
    assert [row[f"spacing_{axis}"] for axis in "ijk"] == [1.5, 2.0, 2.5]
    assert (row["orientation"], row["channels"], row["dtype"]) == ("LAS", 1, "int16")
    assert row["affine"] == AFFINE.ravel().tolist()
    assert (row["minimum"], row["maximum"]) == (source.min(), source.max())
    np.testing.assert_allclose([row["mean"], row["std"]], [source.mean(), source.std()], rtol=1e-12)
    assert row["label_values"] == [2]
    assert row["class_names"] is None
    assert row["session"] is None
    assert row["flags"] == []
    assert len(row["hash"]) == 64
    assert not result.path.with_name("c.failures.csv").exists()
    printed = capsys.readouterr().out
    assert "scans" in printed
    assert "9 × 10 × 11 voxels" in printed
    assert "hint" not in printed


def test_hash_follows_image_and_label(tmp_path):
    root = pairs(tmp_path / "scans", 2)
    before = run(tmp_path, root).table.set_index("image")["hash"]
    save(root / "labels" / "case_00.nii.gz", mask(3))
    after = run(tmp_path, root).table.set_index("image")["hash"]
    assert before["case_00"] != after["case_00"]
    assert before["case_01"] == after["case_01"]
    digests = [hashlib.sha256((root / d / "case_01.nii.gz").read_bytes()).hexdigest() for d in ("images", "labels")]
    image = hashlib.sha256(digests[0].encode()).hexdigest()
    assert after["case_01"] == hashlib.sha256((image + digests[1]).encode()).hexdigest()


def test_detached_voxels_count_for_the_hash(tmp_path):
    import SimpleITK as sitk

    root = tmp_path / "scans"
    root.mkdir()
    hashes = []
    for seed in range(2):
        sitk.WriteImage(sitk.GetImageFromArray(noise(seed)), str(root / "a.mhd"))
        hashes.append(run(tmp_path, root).table["hash"][0])
    assert hashes[0] != hashes[1]


def test_broken_scans_are_quarantined_with_their_reasons(tmp_path, capsys):
    root = pairs(tmp_path / "scans", 2)
    whole = (root / "images" / "case_00.nii.gz").read_bytes()
    (root / "images" / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (root / "images" / "zero.nii.gz").touch()
    save(root / "images" / "grid.nii.gz", noise(7))
    save(root / "labels" / "grid.nii.gz", mask(1, shape=(9, 10, 12)))
    save(root / "images" / "moved.nii.gz", noise(8))
    save(root / "labels" / "moved.nii.gz", mask(1), AFFINE + np.eye(4, k=3) * 1.5)
    save(root / "images" / "soft.nii.gz", noise(9))
    save(root / "labels" / "soft.nii.gz", (mask(1) * 0.4).astype(np.float32))
    save(root / "images" / "nothing.nii.gz", np.full(SHAPE, np.nan, np.float32))
    result = run(tmp_path, root)
    assert result.exit_code == 1
    assert sorted(result.table["image"]) == ["case_00", "case_01"]
    reasons = pd.read_csv(result.path.with_name("c.failures.csv")).set_index("image")["reason"]
    assert sorted(reasons.index) == ["cut", "grid", "moved", "nothing", "soft", "zero"]
    assert "cannot be read" in reasons["cut"]
    assert "0 bytes" in reasons["zero"]
    assert "9×10×12" in reasons["grid"]
    assert "9×10×11" in reasons["grid"]
    assert "off by 1 voxels" in reasons["moved"]
    assert "[-1.5 0 0 4.5;" in reasons["moved"]
    assert "[-1.5 0 0 3;" in reasons["moved"]
    assert "label values 0.4" in reasons["soft"]
    assert "no finite voxel" in reasons["nothing"]
    assert "6 left out" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"cut\.nii\.gz"):
        run(tmp_path, root, strict=True)
    for name in ("cut", "zero", "grid", "moved", "soft", "nothing"):
        (root / "images" / f"{name}.nii.gz").unlink()
        (root / "labels" / f"{name}.nii.gz").unlink(missing_ok=True)
    assert run(tmp_path, root).exit_code == 0
    assert not result.path.with_name("c.failures.csv").exists()  # the old list is not about this catalogue


def test_header_rounding_is_no_other_grid(tmp_path):
    save(tmp_path / "s" / "images" / "a.nii.gz", noise())
    save(tmp_path / "s" / "labels" / "a.nii.gz", mask(1), AFFINE + 1e-3)
    assert run(tmp_path, tmp_path / "s").exit_code == 0


def test_label_without_a_name(tmp_path):
    root = tmp_path / "msd"
    for name, value in (("a", 1), ("b", 7)):
        save(root / f"imagesTr/{name}.nii.gz", noise(value))
        save(root / f"labelsTr/{name}.nii.gz", mask(value))
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "name": "Organs",
                "labels": {"0": "background", "1": "liver"},
                "modality": {"0": "CT"},
                "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in "ab"],
                "test": ["imagesTs/gone.nii.gz"],
            }
        )
    )
    result = run(tmp_path, root)
    assert dict(result.failures).keys() == {"b", "gone"}
    assert "label values [7] without a name" in dict(result.failures)["b"]
    assert "gone.nii.gz" in dict(result.failures)["gone"]
    row = read_catalogue(result.path).iloc[0]
    assert json.loads(row["class_names"]) == {"1": "liver"}
    assert (row["collection"], row["dataset"], row["modality"]) == ("Organs", "msd", "CT")


def test_channels_of_several_files_must_share_their_grid(tmp_path):
    root = tmp_path / "nn"
    save(root / "imagesTr/a_0000.nii.gz", noise(0))
    save(root / "imagesTr/a_0001.nii.gz", noise(1).astype(np.float32))
    save(root / "imagesTr/b_0000.nii.gz", noise(0))
    save(root / "imagesTr/b_0001.nii.gz", noise(1, (9, 10, 12)))
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": {"bg": 0}}))
    result = run(tmp_path, root)
    row = result.table.iloc[0]
    assert (row["image"], row["channels"], row["modality"]) == ("a", 2, "T1,T2")
    assert row["paths"] == ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"]
    assert (row["minimum"], row["maximum"]) == (0, max(noise(0).max(), noise(1).max()))
    assert "a channel on another grid" in dict(result.failures)["b"]


def test_flags(tmp_path):
    root = tmp_path / "scans"
    save(root / "images" / "flat.nii.gz", np.full(SHAPE, 3, np.int16))
    holes = noise().astype(np.float32)
    holes[0, 0, 0] = np.nan
    save(root / "images" / "holes.nii.gz", holes)
    save(root / "images" / "thin.nii.gz", noise(3, (9, 10, 4)))
    save(root / "images" / "empty.nii.gz", noise(5))
    save(root / "labels" / "empty.nii.gz", mask())
    for name in ("one", "other"):
        save(root / "images" / f"{name}.nii.gz", noise(6 if name == "one" else 7))
        save(root / "labels" / f"{name}.nii.gz", mask(1, 2))
    shutil.copy(root / "images" / "thin.nii.gz", root / "images" / "copy.nii.gz")
    result = run(tmp_path, root)
    flags = {row.image: set(row.flags) for row in read_catalogue(result.path).itertuples()}
    assert flags["flat"] == {"constant", "no_label"}
    assert flags["holes"] == {"nan", "no_label"}
    assert flags["thin"] == flags["copy"] == {"tiny", "no_label", "duplicate_image"}
    assert flags["empty"] == {"empty_label"}
    assert flags["one"] == flags["other"] == {"duplicate_label"}
    rows = result.table.set_index("image")
    assert rows.loc["holes", "mean"] == pytest.approx(np.nanmean(holes.astype(np.float64)))


def test_statistics_in_chunks_match_numpy(monkeypatch):
    monkeypatch.setattr("prevox.data.quality._CHUNK", 100)
    values = (np.random.default_rng(0).normal(1e6, 1, (2, 7, 8, 9))).astype(np.float64)
    found = statistics_of(values)
    np.testing.assert_allclose([found.mean, found.std], [values.mean(), values.std()], rtol=1e-12)
    assert (found.minimum, found.maximum, found.finite) == (values.min(), values.max(), True)


def test_table_is_found_by_values_and_groups_subjects(tmp_path, capsys):
    root = pairs(tmp_path / "scans", 4)
    table = root / "people.csv"
    rows = pd.DataFrame(
        {
            "age": [50, 60, 50, 70, 20],
            "scan": [f"case_{n:02d}.nii.gz" for n in (3, 2, 1, 0, 9)],
            "person": ["007", "007", "008", "008", "009"],
            "sex": ["f", "f", "m", "m", "f"],
        }
    )
    rows.to_csv(table, index=False)
    run(tmp_path, root)
    assert f"people.csv describes these cases; add --table {table} --group age" in capsys.readouterr().out
    result = run(tmp_path, root, table=table, group="person")
    joined = read_catalogue(result.path).set_index("image")
    assert dict(joined["subject"]) == {"case_00": "008", "case_01": "008", "case_02": "007", "case_03": "007"}
    assert dict(joined["age"]) == {"case_00": 70, "case_01": 50, "case_02": 60, "case_03": 50}
    assert "scan" not in joined
    assert "hint" not in capsys.readouterr().out


def test_tables_that_do_not_fit(tmp_path):
    root = pairs(tmp_path / "scans", 3)
    cases = [f"case_{n:02d}" for n in range(3)]
    good = pd.DataFrame({"case": cases, "person": ["a", "a", "b"]})

    def fails(frame: pd.DataFrame, match: str, group: str | None = None) -> None:
        frame.to_csv(tmp_path / "t.csv", index=False)
        with pytest.raises(DataError, match=match):
            run(tmp_path, root, table=tmp_path / "t.csv", group=group)

    fails(good, r"no column 'persn'.*'person'\?", group="persn")
    fails(good.iloc[:2], r"no row for 1 of 3 images: case_02")
    fails(pd.concat([good, good.iloc[:1]]), "several rows for case_00")
    fails(good.assign(case=["x", "y", "z"]), "no column with the ids")
    fails(good.assign(modality="MR"), "columns that the catalogue has as well: modality")
    fails(good.rename(columns={"person": "subject"}), "--group subject takes")
    fails(good.assign(person=["a", "", "b"]), "empty 'person' for case_01", group="person")
    with pytest.raises(DataError, match="no such file"):
        run(tmp_path, root, table=tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match="--table"):
        run(tmp_path, root, group="person")
    good.rename(columns={"person": "subject"}).to_csv(tmp_path / "t.csv", index=False, sep=";")
    assert list(run(tmp_path, root, table=tmp_path / "t.csv", group="subject").table["subject"]) == ["a", "a", "b"]


def test_several_collections_keep_their_subjects_apart(tmp_path):
    ct, pet = pairs(tmp_path / "my ct", 2), pairs(tmp_path / "pet", 3)
    table = run(tmp_path, ct, pet).table
    assert list(table["image"])[:2] == ["my-ct_case_00", "my-ct_case_01"]
    assert list(table["subject"])[1:3] == ["my ct/case_01", "pet/case_00"]
    assert table["image"].is_unique
    other = tmp_path / "mr"
    save(other / "scan.nii.gz", noise())
    table = run(tmp_path, ct, other).table
    assert list(table["image"]) == ["case_00", "case_01", "scan"]  # no clash, no prefix
    assert list(table["subject"]) == ["my ct/case_00", "my ct/case_01", "mr/scan"]
    pd.DataFrame({"case": ["case_00", "case_01", "case_02"], "who": ["a", "b", "c"]}).to_csv(tmp_path / "t.csv")
    shared = run(tmp_path, ct, pet, table=tmp_path / "t.csv", group="who").table
    assert list(shared["subject"]) == ["a", "b", "a", "b", "c"]
    with pytest.raises(DataError, match=r"two images with the id 'case_00'.*Give each file once"):
        run(tmp_path, ct, ct)
    with pytest.raises(DataError, match="a collection named 'pet'"):
        run(tmp_path, pet, pairs(tmp_path / "elsewhere" / "pet", 1))


def test_nothing_usable(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.nii.gz").touch()
    with pytest.raises(DataError, match=r"none can be used.*0 bytes"):
        run(tmp_path, tmp_path / "s")
    assert (tmp_path / "out" / "c.failures.csv").is_file()
    assert not (tmp_path / "out" / "c.parquet").exists()


def test_reading_something_else(tmp_path):
    with pytest.raises(DataError, match="prevox catalogue"):
        read_catalogue(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(DataError, match="no Parquet"):
        read_catalogue(tmp_path / "text.parquet")
    pd.DataFrame({"image": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="another origin"):
        read_catalogue(tmp_path / "other.parquet")


@real
def test_hippocampus(tmp_path, capsys):
    root = DATA / "Task04_Hippocampus"
    result = run(tmp_path, root)
    printed = capsys.readouterr().out
    assert f"add --table {root / 'subjects.csv'} --group subject_group" in printed
    assert "3 regimes" in printed
    assert [count for *_, count in intensity_regimes(result.table)] == [35, 111, 22]
    result = run(tmp_path, root, table=root / "subjects.csv", group="subject_group")
    assert result.exit_code == 0
    assert len(result.table) == 168
    assert result.table["subject"].nunique() == 110
    assert result.table["label_values"].map(tuple).unique().tolist() == [(1, 2)]
    assert not any("duplicate_label" in flags for flags in result.table["flags"])


@real
def test_pet_in_nnunet_layout(tmp_path):
    table = run(tmp_path, DATA / "nnUNet_raw" / "Dataset101_STSPET").table
    assert len(table) == 27
    assert set(table["orientation"]) == {"LPS"}


@real
def test_hippocampus_quirks(tmp_path):
    source, quirks, root = DATA / "Task04_Hippocampus", DATA / "formats" / "hippocampus_quirks", tmp_path / "s"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    shutil.copy(quirks / "118_image_without_label.nii.gz", root / "images" / "118.nii.gz")
    for case, label in (
        ("011", None),
        ("014", "281_label_wrong_grid_512x512x94"),
        ("015", "010_label_identical_to_011"),
    ):
        shutil.copy(source / f"imagesTr/hippocampus_{case}.nii.gz", root / f"images/{case}.nii.gz")
        path = quirks / f"{label}.nii.gz" if label else source / f"labelsTr/hippocampus_{case}.nii.gz"
        shutil.copy(path, root / f"labels/{case}.nii.gz")
    result = run(tmp_path, root)
    assert result.exit_code == 1
    reasons = dict(result.failures)
    assert "a label map on another grid: 512×512×94" in reasons["014"]
    rows = result.table.set_index("image")
    assert rows.loc["118", "flags"] == ["no_label"]
    assert rows.loc["118", "label_path"] is None
    assert "on another grid" in reasons["015"]  # the label of case 011 does not cover case 015
