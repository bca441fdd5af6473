"""Sequences by acquisition: DICOM headers and sidecars with usual times, and those of real files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.data.dicom_files import CT, MR, save, write_slices
from tests.unit.data.dicom_files import dataset as dicom_dataset
from tests.unit.data.test_bids import scan, tree
from tests.unit.data.test_dicom_catalogue import run
from tests.unit.data.test_dicom_table import FORMATS, needs_files

from prevox.data.acquisition import sequence_of_sidecar
from prevox.data.layouts import recognise
from prevox.data.readers.dicom_header import read_instance

pytestmark = pytest.mark.unit

ORIGINAL, DERIVED = ["ORIGINAL", "PRIMARY", "M", "ND"], ["DERIVED", "SECONDARY", "MPR"]
# scanning sequence, echo, repetition and inversion time in ms, further tags, expected
TABLE: list[tuple[list[str], float, float, float | None, dict[str, Any], str | None]] = [
    # spin echo: within the textbook's short and long times (IMAIOS e-MRI)
    (["SE"], 15, 500, None, {}, "T1"),
    (["SE"], 10, 650, None, {"ContrastBolusAgent": "GADAVIST 7 ml"}, "T1ce"),
    (["SE"], 10, 650, None, {"ContrastBolusAgent": "NONE"}, "T1"),
    (["SE"], 100, 4000, None, {}, "T2"),
    (["SE"], 20, 2500, None, {}, "PD"),
    # a usual MPRAGE at 3 T
    (["GR", "IR"], 2.98, 2300, 900, {}, "T1"),
    (["GR", "IR"], 2.98, 2300, 900, {"ContrastBolusAgent": "Dotarem"}, "T1ce"),
    # UK Biobank, TI / TR = 1800 / 5000 ms (FLAIR SPACE) and 880 / 2000 ms (MPRAGE): Alfaro-Almagro et al. 2018,
    # table 1; the echo times are usual ones
    (["SE", "IR"], 395, 5000, 1800, {}, "FLAIR"),
    (["GR", "IR"], 2.01, 2000, 880, {}, "T1"),
    # a usual 2D FLAIR at 1.5 T, a usual T1 FLAIR at 3 T
    (["SE", "IR"], 120, 9000, 2500, {}, "FLAIR"),
    (["SE", "IR"], 20, 2000, 800, {}, "T1_FLAIR"),
    # a usual 2D gradient echo for haemorrhage
    (["GR"], 20, 620, None, {"MRAcquisitionType": "2D"}, "T2star"),
    # words alone, and words that times refine or contradict
    (["GR"], 5, 25, None, {"SeriesDescription": "TOF_3D_multi-slab"}, "MRA"),
    (["EP"], 93, 6600, None, {"ProtocolName": "ep2d_dwi"}, "DWI"),
    (["RM"], 3.4, 6.2, None, {"SeriesDescription": "Ax T1 BRAVO"}, "T1"),
    (["SE", "IR"], 395, 5000, 1800, {"SeriesDescription": "t2_space_dark-fluid_sag"}, "FLAIR"),
    (["SE", "IR"], 395, 5000, 1800, {"SeriesDescription": "t2_tirm_tra"}, "FLAIR"),
    (["GR"], 20, 620, None, {"SeriesDescription": "t2_fl2d_tra_hemo", "MRAcquisitionType": "2D"}, "T2star"),
    (["SE"], 10, 650, None, {"SeriesDescription": "t1_se_tra", "ContrastBolusAgent": "Gd"}, "T1ce"),
    (["SE"], 100, 4000, None, {"SeriesDescription": "T1 AX"}, None),
    # an agent counts where times decide nothing
    (["GR"], 2, 5, None, {"SeriesDescription": "t1_vibe_tra", "ContrastBolusAgent": "Gadovist"}, "T1ce"),
    (["GR"], 2, 5, None, {"SeriesDescription": "t1_vibe_tra", "ContrastBolusAgent": "none"}, "T1"),
    (["SE"], 100, 4000, None, {"SeriesDescription": "t2_tse", "ContrastBolusAgent": "Gadovist"}, "T2"),
    # maps, differences and phases are not weighted; a reformatted original is
    (["GR"], 2, 5, None, {"SeriesDescription": "T1 Map MOLLI", "ImageType": ["DERIVED", "PRIMARY", "T1 MAP"]}, None),
    (["GR"], 2, 5, None, {"SeriesDescription": "t1_vibe", "ImageType": ["DERIVED", "PRIMARY", "T1 MAP"]}, None),
    (["GR", "IR"], 3, 2300, 900, {"SeriesDescription": "t1 mprage SUB"}, None),
    (["GR", "IR"], 3, 2300, 900, {"SeriesDescription": "mprage", "ProtocolName": "sub-01"}, "T1"),
    (["GR"], 20, 620, None, {"SeriesDescription": "B0_map", "MRAcquisitionType": "2D"}, None),
    (["SE"], 10, 650, None, {"SeriesDescription": "t1_se", "ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, None),
    (["GR", "IR"], 3, 2300, 900, {"SeriesDescription": "t1_mprage_cor", "ImageType": DERIVED}, "T1"),
    (["EP"], 93, 6600, None, {"SeriesDescription": "ADC map", "ImageType": ["DERIVED", "PRIMARY", "ADC"]}, "ADC"),
    # unknown stays unknown
    (["SE"], 60, 1500, None, {}, None),
    (["SE", "IR"], 60, 4000, 150, {}, None),  # STIR
    (["SE", "IR"], 100, 4000, None, {}, None),  # an inversion, but when?
    (["GR"], 5, 25, None, {"MRAcquisitionType": "3D"}, None),  # T1 or angiography
    (["GR"], 20, 30, None, {"MRAcquisitionType": "3D"}, None),  # T2* or susceptibility
    (["EP"], 30, 2000, None, {}, None),
    (["SE"], 100, 4000, None, {"ImageType": DERIVED}, None),
    (["SE"], 100, 4000, None, {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, None),  # phase
    (["SE"], 100, 4000, None, {"SeriesDescription": "Mustermann T1 T2"}, None),  # two words
    (["SE"], 100, 4000, None, {"Modality": "PT"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("scanning", "echo", "repetition", "inversion", "tags", "expected"), TABLE)
def test_headers(tmp_path: Path, scanning, echo, repetition, inversion, tags, expected):
    times = {"EchoTime": echo, "RepetitionTime": repetition, "InversionTime": inversion}
    known = {"ScanningSequence": scanning, "ImageType": ORIGINAL, **times}
    path = save(tmp_path / "a", dicom_dataset(np.zeros((6, 5), np.int16), MR, **(known | tags)))
    instance = read_instance(path)
    assert instance is not None
    assert instance.problem is None
    assert instance.sequence == expected


@pytest.mark.parametrize(("scanning", "echo", "repetition", "inversion", "tags", "expected"), TABLE)
@pytest.mark.parametrize("joined", ["\\", "_"])
def test_sidecars(joined: str, scanning, echo, repetition, inversion, tags, expected):
    renamed = {key.replace("BolusAgent", "BolusIngredient"): value for key, value in tags.items()}
    said = {
        "Modality": "MR", "ScanningSequence": joined.join(scanning), "ImageType": ORIGINAL, "EchoTime": echo / 1000,
        "RepetitionTime": repetition / 1000, "InversionTime": None if inversion is None else inversion / 1000,
    }  # fmt: skip
    assert sequence_of_sidecar(said | renamed) == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(
    st.dictionaries(
        st.sampled_from(["EchoTime", "RepetitionTime", "ScanningSequence", "ImageType", "Modality", "ProtocolName"]),
        st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4),
    )
)
def test_any_sidecar_gives_a_known_sequence_or_none(content):
    assert sequence_of_sidecar(content) in {*dict.fromkeys(row[-1] for row in TABLE), "ADC", "ASL", "BOLD", "SWI"}


@needs_files
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # from the tags by hand; SE\IR with TI 2200, TE 394, TR 6000; SE with TE 90, TR 3000; TI 900 and TE 3.2
        ("dicom2nifti_tests/tests/data/generic/anatomical/001/IM-0001-0001-0001.dcm", "FLAIR"),
        ("dicom2nifti_tests/tests/data/siemens/anatomical/001/IM-0001-0112-0001.dcm", "FLAIR"),
        ("dicom2nifti_tests/tests/data/failing/sliceorientation/001/IM-0001-0001-0001.dcm", "T2"),
        ("dicom2nifti_tests/tests/data/ge/anatomical/001/IM-0001-0112-0001.dcm", "T1"),
        ("dicom2nifti_tests/tests/data/hyperfine/anatomical/001/001.dcm", None),  # 0.06 T: TI 1400
        ("sunnybrook_cine/dicom/SCD0000101_ED/0019.dcm", None),  # a cine of a heart, TE 1.5, TR 3.3
        ("pydicom_tests/src/pydicom/data/test_files/CT_small.dcm", None),
    ],
)
def test_real_headers(name: str, expected: str | None):
    instance = read_instance(FORMATS / name)
    assert instance is not None
    assert instance.sequence == expected


def test_the_catalogue_has_the_class_and_no_word_of_the_description(tmp_path: Path):
    voxels = np.random.default_rng(0).integers(0, 500, (12, 10, 9)).astype(np.int16)
    description = "Mustermann t2_tirm dark-fluid"
    write_slices(tmp_path / "in", voxels, sop_class=MR, SeriesDescription=description)
    write_slices(tmp_path / "in", voxels + 1, prefix="ct", sop_class=CT, SeriesInstanceUID="1.2.9")
    run(tmp_path, tmp_path / "in", workers=1)
    table = run(tmp_path, tmp_path / "in", workers=1).table.set_index("modality")
    assert (table.loc["MR", "sequence"], table.loc["CT", "sequence"]) == ("FLAIR", None)
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"tirm" not in path.read_bytes()


def test_a_sidecar_beside_a_plain_file(tmp_path: Path):
    scan(tmp_path / "scans" / "a.nii.gz")
    scan(tmp_path / "scans" / "b_t2.nii.gz")  # the name is nearer than the sidecar
    scan(tmp_path / "scans" / "c.nii.gz")
    said = {"ScanningSequence": "GR\\IR", "EchoTime": 0.003, "InversionTime": 0.9, "ImageType": ORIGINAL}
    for name in ("a", "b_t2"):
        (tmp_path / "scans" / f"{name}.json").write_text(json.dumps(said))
    (tmp_path / "scans" / "c.json").write_text("[1")
    table = run(tmp_path, tmp_path / "scans", workers=1).table.set_index("image")
    assert table["sequence"].to_dict() == {"a": "T1", "b_t2": "T2", "c": None}


def test_a_bids_sidecar_says_what_the_suffix_does_not(tmp_path: Path):
    root = tree(tmp_path / "heads")
    scan(root / "sub-02/anat/sub-02_inplaneT9.nii.gz")
    said = {"ScanningSequence": "SE", "EchoTime": 0.1, "RepetitionTime": 4, "ProtocolName": "Mustermann"}
    (root / "sub-02/anat/sub-02_inplaneT9.json").write_text(json.dumps(said))
    entries = {entry.image: entry for entry in recognise(root)}
    assert entries["sub-02_inplaneT9"].sequence == "T2"
    assert "ProtocolName" not in entries["sub-02_inplaneT9"].details
    table = run(tmp_path, root, workers=1).table.set_index("image")
    assert table["sequence"].to_dict() == {
        "sub-01_ses-a_T1w": "T1", "sub-01_ses-a_acq-low_FLAIR": "FLAIR", "sub-01_ses-b_T1w": "T1",
        "sub-02_run-2_T1w": "T1", "sub-02_inplaneT9": "T2",
    }  # fmt: skip
