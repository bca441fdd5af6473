"""A tree as the Brain Imaging Data Structure 1.9 describes it: entities, inheritance, derivatives, participants."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prevox.config.data import CatalogueConfig
from prevox.data.catalogue import catalogue
from prevox.data.layouts import recognise
from prevox.errors import DataError

pytestmark = pytest.mark.unit


def scan(path: Path, values: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        seed = int.from_bytes(path.name.encode(), "little") % 2**32
        values = np.random.default_rng(seed).integers(0, 900, (9, 10, 11)).astype(np.int16)
    image = nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]))
    image.set_sform(image.affine, 1)
    nib.save(image, path)


def tree(root: Path) -> Path:
    """Two subjects, one with two sessions, a segmentation, a preprocessed copy, sidecars at two levels."""
    for name in (
        *("sub-01/ses-a/anat/sub-01_ses-a_T1w", "sub-01/ses-a/anat/sub-01_ses-a_acq-low_FLAIR"),
        *("sub-01/ses-b/anat/sub-01_ses-b_T1w", "sub-02/anat/sub-02_run-2_T1w"),
    ):
        scan(root / f"{name}.nii.gz")
    scan(root / "derivatives" / "prep" / "sub-02" / "anat" / "sub-02_run-2_desc-denoised_T1w.nii.gz")
    segmentation = np.zeros((9, 10, 11), np.uint8)
    segmentation[3:6, 3:6, 3:6] = 2
    scan(root / "derivatives" / "seg" / "sub-01/ses-a/anat" / "sub-01_ses-a_desc-manual_dseg.nii.gz", segmentation)
    (root / "derivatives" / "seg" / "dseg.tsv").write_text("index\tname\n0\tbackground\n2\tlesion\n")
    (root / "dataset_description.json").write_text(json.dumps({"Name": "Two heads", "BIDSVersion": "1.9.0"}))
    (root / "T1w.json").write_text(json.dumps({"EchoTime": 0.003, "FlipAngle": 8, "InstitutionName": "Somewhere"}))
    (root / "sub-02/anat/sub-02_run-2_T1w.json").write_text(json.dumps({"EchoTime": 0.004}))
    (root / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t40\tF\nsub-02\t51\tM\n")
    return root


def test_entities_become_subject_session_and_modality(tmp_path):
    entries = {entry.image: entry for entry in recognise(tree(tmp_path / "heads"))}
    assert {name: (e.subject, e.session, e.modality) for name, e in entries.items()} == {
        "sub-01_ses-a_T1w": ("sub-01", "ses-a", "T1w"),
        "sub-01_ses-a_acq-low_FLAIR": ("sub-01", "ses-a", "FLAIR"),
        "sub-01_ses-b_T1w": ("sub-01", "ses-b", "T1w"),
        "sub-02_run-2_T1w": ("sub-02", None, "T1w"),
    }
    assert {(entry.layout, entry.collection) for entry in entries.values()} == {("bids", "Two heads")}


def test_sidecars_are_inherited_and_the_closer_one_wins(tmp_path):
    entries = {entry.image: entry.details for entry in recognise(tree(tmp_path / "heads"))}
    assert entries["sub-01_ses-b_T1w"] == {"datatype": "anat", "EchoTime": 0.003, "FlipAngle": 8}  # no institution
    assert entries["sub-02_run-2_T1w"] == {"datatype": "anat", "run": "2", "EchoTime": 0.004, "FlipAngle": 8}
    assert entries["sub-01_ses-a_acq-low_FLAIR"] == {"datatype": "anat", "acq": "low"}


def test_derivatives_are_left_out_but_a_doubtless_segmentation(tmp_path, capsys):
    root = tree(tmp_path / "heads")
    # of sub-01's two images of session a, both have the segmentation's entities but `acq`: it is the T1w's
    entries = {entry.image: entry for entry in recognise(root)}
    labels = {name: entry.label.name for name, entry in entries.items() if entry.label is not None}
    assert labels == {"sub-01_ses-a_T1w": "sub-01_ses-a_desc-manual_dseg.nii.gz"}
    assert entries["sub-01_ses-a_T1w"].class_names == {2: "lesion"}
    assert "1 image files in derivatives/ are left out" in " ".join(capsys.readouterr().out.split())


def test_two_segmentations_of_one_image_leave_doubt(tmp_path, capsys):
    root = tree(tmp_path / "heads")
    scan(root / "derivatives/seg/sub-01/ses-a/anat/sub-01_ses-a_desc-auto_dseg.nii.gz", np.ones((9, 10, 11), np.uint8))
    assert all(entry.label is None for entry in recognise(root))
    assert "none is taken as a label map" in " ".join(capsys.readouterr().out.split())


def test_a_segmentation_in_another_space_is_no_label_map(tmp_path):
    root = tree(tmp_path / "heads")
    folder = root / "derivatives/seg/sub-01/ses-a/anat"
    (folder / "sub-01_ses-a_desc-manual_dseg.nii.gz").rename(folder / "sub-01_ses-a_space-MNI152_dseg.nii.gz")
    assert all(entry.label is None for entry in recognise(root))


def test_catalogue_joins_participants(tmp_path):
    table = catalogue(CatalogueConfig(paths=(tree(tmp_path / "heads"),), out=tmp_path / "c.parquet")).table
    found = table.set_index("image")
    assert found["age"].to_dict() == {name: 40 if "sub-01" in name else 51 for name in table["image"]}
    assert found["subject"].nunique() == 2
    assert found.loc["sub-01_ses-a_T1w", "label_values"] == [2]
    assert found.loc["sub-01_ses-b_T1w", "session"] == "ses-b"
    assert found.loc["sub-02_run-2_T1w", "EchoTime"] == 0.004


def test_a_broken_description_is_told(tmp_path):
    root = tree(tmp_path / "heads")
    (root / "dataset_description.json").write_text("[1")
    with pytest.raises(DataError, match=r"dataset_description\.json: found text that is no JSON object"):
        recognise(root)


def test_a_folder_that_only_looks_alike_is_a_plain_folder(tmp_path):
    scan(tmp_path / "scans" / "sub-01" / "brain.nii.gz")
    assert [entry.layout for entry in recognise(tmp_path / "scans")] == ["folder"]
