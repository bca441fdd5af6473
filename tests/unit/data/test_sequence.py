"""Sequences by name: what is certain is told, what is not is left open."""

from pathlib import Path

import pytest

from prevox.data.sequence import sequence_of, sequence_of_text

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sub-01_T1w", "T1"),
        ("IXI002-Guys-0828-T1", "T1"),
        ("BraTS-GLI-00000-000-t1n", "T1"),
        ("BraTS-GLI-00000-000-t1c", "T1ce"),
        ("BraTS-GLI-00000-000-t2w", "T2"),
        ("BraTS-GLI-00000-000-t2f", "FLAIR"),
        ("Brats18_2013_0_1_t1ce", "T1ce"),
        ("sub-01_ce-gadolinium_T1w", "T1ce"),
        ("patient7 T1 +Gd", "T1ce"),
        ("sub-01_FLAIR", "FLAIR"),
        ("scan_t2_flair", "FLAIR"),
        ("scan_t1_flair", "T1_FLAIR"),
        ("sub-01_T2starw", "T2star"),
        ("t2*_gre", "T2star"),
        ("sub-01_task-rest_bold", "BOLD"),
        ("sub-01_dwi", "DWI"),
        ("case_dwi_adc", "ADC"),
        ("IXI002-MRA", "MRA"),
        ("TOF_3D", "MRA"),
        ("sub-01_PDw", "PD"),
        ("MPRAGE sagittal", "T1"),
        # not certain
        ("t1_to_t2_registered", None),
        ("t1_post", None),  # after contrast agent, or after an operation
        ("sub_PD_001", None),  # Parkinson's disease
        ("patient1_hippocampus_001", None),
        ("bt1a", None),
        ("t12_vertebra", None),
        ("dwi_flair", None),
        ("", None),
    ],
)
def test_words(text: str, expected: str | None) -> None:
    assert sequence_of_text(text) == expected


@pytest.mark.parametrize(
    ("modality", "names", "description", "expected"),
    [
        (None, ["a_t1.nii.gz"], "", "T1"),
        (None, ["a.nii.gz"], "MPRAGE", "T1"),
        (None, ["a_t2.nii.gz"], "MPRAGE", "T2"),  # what is nearer to the user wins
        (None, ["a_t1_t2.nii.gz"], "MPRAGE", None),  # a name in doubt is not overruled
        ("MRI", ["a_flair.nii.gz"], "", "FLAIR"),
        ("T1w", ["sub-1_ce-gd_T1w.nii.gz"], "", "T1ce"),
        ("T1w", ["a_t2.nii.gz"], "", None),  # they contradict each other
        ("FLAIR,T1w,t1gd,T2w", ["BRATS_001.nii.gz"], "", "FLAIR,T1,T1ce,T2"),
        ("T1,T2", ["a_0000.nii.gz", "a_0001.nii.gz"], "", "T1,T2"),
        ("T1,CT", ["a_0000.nii.gz", "a_0001.nii.gz"], "", None),
        ("CT", ["a.nii.gz"], "", None),
        (None, ["a_t1.mha", "a_flair.mha"], "", "T1,FLAIR"),
    ],
)
def test_where_it_is_looked_for(modality: str | None, names: list[str], description: str, expected: str | None) -> None:
    assert sequence_of(modality, [Path("t1_study") / name for name in names], description) == expected
