import json
from pathlib import Path

import pytest

from prevox.data.layouts import recognise
from prevox.data.layouts.base import class_names_of
from prevox.errors import DataError

pytestmark = pytest.mark.unit

DATA = Path(__file__).parents[3].parent / "shared" / "data"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def describe(root: Path, **content) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(content))


def ids(entries) -> dict[str, str | None]:
    return {entry.image: entry.label.name if entry.label else None for entry in entries}


def test_msd(tmp_path):
    root = tmp_path / "Task99"
    touch(
        root, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b.nii.gz", "imagesTs/c.nii.gz", "imagesTr/._a.nii.gz"
    )
    describe(
        root,
        name="Thing",
        modality={"0": "FLAIR", "1": "T1w"},
        labels={"0": "background", "1": "oedema", "2": "core"},
        training=[
            {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
            {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"},
        ],
        test=["./imagesTs/c.nii.gz"],
    )
    entries = recognise(root)
    assert ids(entries) == {"a": "a.nii.gz", "b": "b.nii.gz", "c": None}
    a, b, c = entries
    assert (a.layout, a.collection, a.dataset, a.modality) == ("msd", "Thing", "Task99", "FLAIR,T1w")
    assert a.class_names == {1: "oedema", 2: "core"}
    assert a.subject == "a"
    assert a.problem is None
    assert c.problem is None
    assert "labelsTr/b.nii.gz" in str(b.problem)
    assert ids(recognise(root / "dataset.json")) == ids(entries)


def test_msd_duplicate_names_both_files(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "imagesTs/a.nii.gz")
    describe(tmp_path, training=[{"image": "imagesTr/a.nii.gz"}], test=["imagesTs/a.nii.gz"])
    with pytest.raises(DataError, match=r"imagesTr/a\.nii\.gz and .*imagesTs/a\.nii\.gz"):
        recognise(tmp_path)


def test_nnunet(tmp_path):
    root = tmp_path / "Dataset007_Brain"
    touch(root, *(f"imagesTr/{case}_{n:04d}.nii.gz" for case in ("x_1", "x_2") for n in range(2)))
    touch(root, "labelsTr/x_1.nii.gz", "labelsTr/x_2.nii.gz", "labelsTr/x_3.nii.gz")
    touch(root, "imagesTr/x_4_0001.nii.gz", "imagesTs/t_0000.nii.gz", "imagesTs/t_0001.nii.gz")
    describe(
        root,
        channel_names={"0": "T1", "1": "T2"},
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
        numTraining=2,
        file_ending=".nii.gz",
    )
    entries = {entry.image: entry for entry in recognise(root)}
    assert sorted(entries) == ["t", "x_1", "x_2", "x_3", "x_4"]
    first = entries["x_1"]
    assert [path.name for path in first.paths] == ["x_1_0000.nii.gz", "x_1_0001.nii.gz"]
    assert (first.layout, first.modality, first.collection) == ("nnunet", "T1,T2", "Dataset007_Brain")
    assert first.class_names == {1: "whole", 2: "core", 3: "enhancing"}
    assert first.problem is None
    assert entries["t"].label is None
    assert entries["t"].problem is None
    assert "x_3: found channels none" in str(entries["x_3"].problem)
    assert "found channels [1]; expected channels [0, 1] (T1, T2)" in str(entries["x_4"].problem)


def test_nnunet_1_listing_without_channel_numbers(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    describe(
        tmp_path,
        modality={"0": "CT"},
        labels={"0": "background", "1": "liver"},
        training=[{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    )
    (entry,) = recognise(tmp_path)
    assert (entry.image, entry.layout, entry.modality, entry.class_names) == ("a", "nnunet", "CT", {1: "liver"})


def test_nnunet_file_without_channel_number(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz")
    describe(tmp_path, channel_names={"0": "CT"}, labels={"background": 0})
    with pytest.raises(DataError, match="without channel number"):
        recognise(tmp_path)


def test_plain_folder_with_pairs(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/sub/b.nrrd", "labels/a.mha", "labels/sub/b.nii.gz", "labels/lonely.nii")
    touch(tmp_path, "unlabelled/c.mha", ".hidden/d.nii.gz", ".e.nii.gz", "notes.txt", "deep/er/f.nii")
    assert ids(recognise(tmp_path)) == {"a": "a.mha", "b": "b.nii.gz", "c": None, "f": None}
    assert {entry.layout for entry in recognise(tmp_path)} == {"folder"}
    (single,) = recognise(tmp_path / "unlabelled" / "c.mha")
    assert (single.image, single.root) == ("c", tmp_path / "unlabelled")


def test_folder_of_images_without_labels_beside_them(tmp_path):
    touch(tmp_path, "labels/a.nii.gz")
    assert ids(recognise(tmp_path)) == {"a": None}  # no images/ beside it: nothing says that these are labels
    touch(tmp_path, "images/b.nii.gz")
    assert ids(recognise(tmp_path)) == {"b": None}


def test_plain_folder_duplicates(tmp_path):
    touch(tmp_path, "sub-1/t1.nii.gz", "sub-2/t1.nii.gz")
    with pytest.raises(DataError, match=r"sub-1/t1\.nii\.gz and .*sub-2/t1\.nii\.gz"):
        recognise(tmp_path)
    touch(tmp_path / "x", "images/a.nii.gz", "labels/a.nii.gz", "labels/a.mha")
    with pytest.raises(DataError, match="two label maps"):
        recognise(tmp_path / "x")


def test_folder_of_datasets(tmp_path, capsys):
    for name in ("one", "two"):
        touch(tmp_path, f"{name}/imagesTr/{name}_0000.nii.gz")
        describe(tmp_path / name, channel_names={"0": "CT"}, labels={"background": 0})
    touch(tmp_path, "other/a.nii.gz")
    assert {(entry.image, entry.collection) for entry in recognise(tmp_path)} == {("one", "one"), ("two", "two")}
    assert "other" in capsys.readouterr().out


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"no image.*\.nii\.gz.*dataset\.json"):
        recognise(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        recognise(tmp_path / "absent")
    touch(tmp_path, "a.txt")
    with pytest.raises(DataError, match="unknown kind"):
        recognise(tmp_path / "a.txt")
    (tmp_path / "dataset.json").write_text("{broken")
    with pytest.raises(DataError, match="not JSON"):
        recognise(tmp_path)


@pytest.mark.parametrize("labels", [["a"], {"liver": "many"}, {"liver": None}])
def test_labels_that_make_no_sense(labels, tmp_path):
    with pytest.raises(DataError, match="labels"):
        class_names_of(labels, tmp_path / "dataset.json")


@pytest.mark.skipif(not DATA.is_dir(), reason="real scans are not beside the repository (../shared/data)")
def test_real_layouts():
    hippocampus = recognise(DATA / "Task04_Hippocampus")
    assert len(hippocampus) == 168
    assert all(entry.label is not None and entry.problem is None for entry in hippocampus)
    pet = recognise(DATA / "nnUNet_raw" / "Dataset101_STSPET")
    assert len(pet) == 27
    assert {(e.layout, e.modality, str(e.class_names)) for e in pet} == {("nnunet", "PET", "{1: 'tumour'}")}
    ct = recognise(DATA / "sts_ct")
    assert (len(ct), sum(entry.label is not None for entry in ct)) == (18, 4)
