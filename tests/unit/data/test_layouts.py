import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prevox.config.data import CatalogueConfig
from prevox.data.catalogue import catalogue
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


def test_msd_lists_as_monai_writes_them(tmp_path):
    root, elsewhere = tmp_path / "lists", tmp_path / "elsewhere" / "v.nii.gz"
    touch(root, "a.nii.gz", "la.nii.gz", "t.nii.gz")
    touch(tmp_path, "elsewhere/v.nii.gz")
    training = [{"image": "a.nii.gz", "label": "la.nii.gz"}]
    describe(root, training=training, validation=[{"image": str(elsewhere)}], test=["t.nii.gz", "a.nii.gz"])
    entries = recognise(root)
    assert ids(entries) == {"a": "la.nii.gz", "v": None, "t": None}  # a, listed with and without label, once
    assert entries[1].paths == (elsewhere,)
    describe(root, training=training, validation={"image": "t.nii.gz"})
    with pytest.raises(DataError, match=r"'validation'.*expected a list"):
        recognise(root)


def test_an_empty_list_leaves_the_folder_to_other_layouts(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    describe(tmp_path, channel_names={"0": "CT"}, labels={"background": 0, "liver": 1}, training=[])
    (entry,) = recognise(tmp_path)
    assert (entry.image, entry.layout) == ("a", "nnunet")


@pytest.mark.parametrize("labels", [{"background": 0, "t": 1, "ignore": 2}, {"0": "background", "1": "ignore"}])
def test_ignore_is_refused(labels, tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    describe(tmp_path, channel_names={"0": "CT"}, labels=labels)
    with pytest.raises(DataError, match=r"dataset\.json.*'ignore'.*Take it out"):
        recognise(tmp_path)


def test_channel_names_the_wrong_way_round(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    describe(tmp_path, channel_names={"CT": 0}, labels={"background": 0})
    with pytest.raises(DataError, match=r"channels \{'CT': 0\}; expected"):
        recognise(tmp_path)


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
    entries = recognise(tmp_path)
    assert ids(entries) == {"a": "a.mha", "b": "b.nii.gz", "c": None, "f": None, "labels/lonely": "lonely.nii"}
    assert {entry.layout for entry in entries} == {"folder"}
    (lonely,) = [entry for entry in entries if entry.problem is not None]
    assert "labels/lonely.nii: found a label map without image" in str(lonely.problem)
    (single,) = recognise(tmp_path / "unlabelled" / "c.mha")
    assert (single.image, single.root) == ("c", tmp_path / "unlabelled")


def test_folder_of_images_without_labels_beside_them(tmp_path):
    touch(tmp_path, "labels/a.nii.gz")
    assert ids(recognise(tmp_path)) == {"a": None}  # no images/ beside it: nothing says that these are labels
    touch(tmp_path, "images/b.nii.gz")
    assert ids(recognise(tmp_path)) == {"b": None, "labels/a": "a.nii.gz"}  # now they are: one without its image


def test_links_to_folders_are_followed_once(tmp_path):
    root, elsewhere = tmp_path / "scans", tmp_path / "disk"
    touch(root, "images/a.nii.gz")
    touch(elsewhere, "b.nii.gz", "deep/c.nii.gz", ".hidden/d.nii.gz")
    (root / "more").symlink_to(elsewhere)
    (root / "again").symlink_to(root / "images")  # found as images/ already
    (elsewhere / "deep" / "loop").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(tmp_path)
    assert ids(recognise(root)) == {"a": None, "b": None, "c": None}


def names(entries) -> dict[str, tuple[list[str], str | None]]:
    return {e.image: ([p.name for p in e.paths], e.label.name if e.label else None) for e in entries}


@pytest.mark.parametrize("folder", ["imagesTs", "imagesTr", "images"])
def test_channels_of_a_folder_without_dataset_json(folder, tmp_path, capsys):
    root = tmp_path / "Dataset001"
    touch(root, *(f"{folder}/{case}_{n:04d}.nii.gz" for case in "ab" for n in range(2)), f"{folder}/c_0000.nii.gz")
    for path in (root, root / folder):  # the folder itself is what nnU-Net's own prediction takes
        entries = recognise(path)
        both = ["_0000.nii.gz", "_0001.nii.gz"]
        assert names(entries) == {
            "a": ([f"a{end}" for end in both], None),
            "b": ([f"b{end}" for end in both], None),
            "c": (["c_0000.nii.gz"], None),
        }
        assert {(entry.root, entry.collection) for entry in entries} == {(root, "Dataset001")}
        assert [str(e.problem).partition(" in ")[0] for e in entries if e.problem] == [
            "c: found channels [0]; expected channels [0, 1], as other cases"
        ]
    assert "5 files are 3 images of 2" in capsys.readouterr().out


def test_channels_and_labels_without_dataset_json(tmp_path, capsys):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz", "imagesTs/t_0000.nii.gz")
    a, t = (["a_0000.nii.gz", "a_0001.nii.gz"], "a.nii.gz"), (["t_0000.nii.gz"], None)
    assert names(recognise(tmp_path)) == {"a": a, "t": t}
    assert names(recognise(tmp_path / "imagesTr")) == {"a": a}
    assert "channel numbers" not in capsys.readouterr().out  # labels say that these are channels


def test_a_folder_of_images_takes_the_dataset_json_above(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/t_0000.nii.gz", "imagesTs/u_0001.nii.gz")
    describe(tmp_path, name="Livers", channel_names={"0": "CT"}, labels={"background": 0, "liver": 1})
    t, u = recognise(tmp_path / "imagesTs")
    assert (t.image, t.collection, t.modality, t.class_names) == ("t", "Livers", "CT", {1: "liver"})
    assert "u: found channels [1]; expected channels [0] (CT), as dataset.json says" in str(u.problem)
    (a,) = recognise(tmp_path / "imagesTr")
    assert a.label == tmp_path / "labelsTr" / "a.nii.gz"


def test_scans_that_are_numbered_with_four_digits_are_no_channels(tmp_path):
    touch(tmp_path / "amos", "imagesTr/amos_0000.nii.gz", "imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz")
    assert ids(recognise(tmp_path / "amos")) == {"amos_0000": None, "amos_0001": "amos_0001.nii.gz"}
    touch(tmp_path / "some", "images/s_0003.nii.gz", "images/s_0004.nii.gz")  # no channel 0
    assert len(recognise(tmp_path / "some")) == len(recognise(tmp_path / "some" / "images")) == 2
    touch(tmp_path / "many", *(f"images/s_{n:04d}.nii.gz" for n in range(20)))
    assert len(recognise(tmp_path / "many")) == 20
    describe(tmp_path / "amos", modality={"0": "CT"}, training=[{"image": "imagesTr/amos_0001.nii.gz"}])
    assert len(recognise(tmp_path / "amos" / "imagesTr")) == 2


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
    touch(tmp_path, "other/a.nii.gz", "loose.nii.gz", "notes.txt")
    assert {(entry.image, entry.collection) for entry in recognise(tmp_path)} == {("one", "one"), ("two", "two")}
    assert "skipped: other, loose.nii.gz\n" in capsys.readouterr().out


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


def test_a_name_that_is_no_utf8_costs_only_its_image(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    nib.save(nib.Nifti1Image(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), np.eye(4)), scans / "fine.nii.gz")
    Path(os.fsdecode(os.fsencode(scans) + b"/caf\xe9.nii.gz")).symlink_to(scans / "fine.nii.gz")  # Latin-1
    result = catalogue(CatalogueConfig(paths=(scans,), out=tmp_path / "c.parquet"))
    assert result.table["image"].tolist() == ["fine"]
    ((image, reason),) = result.failures
    assert image == r"caf\udce9"
    assert "no UTF-8 text" in reason
    assert "Rename it" in (tmp_path / "c.failures.csv").read_text(encoding="utf-8")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfc"))
    odd.symlink_to(scans, target_is_directory=True)
    with pytest.raises(DataError, match="udcfc: found a path that is no UTF-8"):
        recognise(odd)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"name": "\ud800", "training": ["./a.nii.gz"]}, "not JSON .*surrogates"),
        ({"training": ["a" * 5000]}, "no file .*aaa"),
        ({"training": ["a\0b.nii.gz"]}, "no file .*b.nii.gz"),
    ],
)
def test_names_that_no_file_can_have_are_refused(tmp_path, content, reason):
    describe(tmp_path, **content)
    with pytest.raises(DataError, match=reason):
        catalogue(CatalogueConfig(paths=(tmp_path,), out=tmp_path / "c.parquet"))
