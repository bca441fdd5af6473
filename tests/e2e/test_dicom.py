"""A tree of DICOM whose tags and names name a patient, through the real command line: nothing written or said may."""

import gzip
import json
import re
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from tests.e2e.conftest import Chain, prevox
from tests.unit.data.dicom_files import BIRTH, ID, MR, NAME, dataset, save, write_slices

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore:Invalid value for VR")]  # a name as the modality

NEEDLES = [*NAME.split("^"), ID, BIRTH, "1964-08-12", "Kneipp", "1.2.3.4"]  # family and given name, ..., series UID
TAGS = {"PatientBirthDate": BIRTH, "ReferringPhysicianName": "Kneipp^Sebastian", "ImageComments": f"{NAME} at Kneipp's"}
WORDS = ["--views.size", 16, 16, 16, "--model.size", "T", "--model.patch", 8, 8, 8, "--model.depth", 2]
WORDS += ["--method.decoder-width", 48, "--method.decoder-depth", 1, "--method.decoder-heads", 3, "--train.steps", 2]


def named_in(text: str | bytes) -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    return [needle for needle in NEEDLES if re.search(re.escape(needle.encode()), data, re.IGNORECASE)]


def voxels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 500, (24, 24, 20)).astype(np.int16)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and files named after the patient: good series, all kinds of bad ones, broken files."""
    root = tmp_path_factory.mktemp("pacs") / f"{NAME.replace('^', '_')} {BIRTH}"
    first, _, last = NAME.rpartition("^")
    for number in range(4):
        folder = root / f"{ID} {number}" / f"{last} {first}"
        tags = TAGS | {"SeriesInstanceUID": f"1.2.3.4.{number}", "PatientID": f"{ID}-{number}"}
        write_slices(folder, voxels(number), prefix=f"{last}-", SeriesDescription=f"{NAME} {BIRTH}", **tags)
    bad = root / f"{ID} bad"
    for number, change in enumerate(
        [
            {"PixelSpacing": None},
            {"PhotometricInterpretation": "RGB"},
            {"Rows": 25},
            {"SeriesDescription": NAME, "PixelSpacing": [0, 0]},
        ]
    ):
        folder = bad / f"{number}" / NAME
        made = write_slices(folder, voxels(9)[:, :, :4], SeriesInstanceUID=f"1.2.3.4.5.{number}", **change)
        (folder / f"{ID}.dcm").write_bytes(made[0].read_bytes()[:700])  # broken
    write_slices(bad / "gap", voxels(9)[:, :, :6], SeriesInstanceUID="1.2.3.4.77")
    (bad / "gap" / "IM0003").unlink()
    save(bad / ID, dataset(voxels(9)[:, :, 0], "1.2.840.10008.5.1.4.1.1.481.5", **TAGS))
    head = {"SeriesInstanceUID": "1.2.3.4.99", "PatientID": f"{ID}-9", "ProtocolName": f"{last} t2_tirm"}
    write_slices(root / f"{ID} 9", voxels(7), sop_class=MR, SeriesDescription=f"{first} FLAIR", **TAGS | head)
    write_slices(bad / f"{NAME}.dcm", voxels(8), SeriesInstanceUID="1.2.3.4.88", Modality=NAME, **TAGS)
    return root


def test_the_patient_is_named_nowhere(export: Path, chain: Chain, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []
    said.append(prevox("catalogue", export, "--out", out / "c.parquet", code=1))
    said.append(prevox("catalogue", export, "--out", out / "strict.parquet", "--strict", code=2))
    said.append(prevox("catalogue", next(export.glob("* bad")), "--out", out / "bad.parquet", code=1))
    said.append(prevox("catalogue", next(export.glob("* bad")) / ID, "--out", out / "plan.parquet", code=2))
    said.append(prevox("prepare", "--catalogue", out / "c.parquet", "--out", out / "store", "--workers", 2))
    said.append(prevox("pretrain", "--store", out / "store", *WORDS, "--out", out / "mae"))
    said.append(prevox("report", "--runs", out / "mae", "--out", out / "report.html"))
    said.append(prevox("predict", "--run", chain.seg, "--images", out / "c.parquet", "--out", out / "masks"))
    moved = export.rename(export.with_name(f"{ID} moved"))
    said.append(prevox("prepare", "--catalogue", out / "c.parquet", "--out", out / "other", "--workers", 1, code=1))
    moved.rename(export)
    for text in said:
        assert named_in(text) == [], text

    written = [path for path in out.rglob("*") if path.is_file()]
    private = [path for path in written if path.suffix == ".series"]
    assert any(
        named_in(path.read_bytes()) for path in private
    )  # the only files with paths: the search finds what is there
    # each lies where docs/how-to/dicom.md says, below NAME.series/ beside a catalogue, for its owner's eyes alone
    assert {path.relative_to(out).parts[0] for path in private} <= {
        f"{name}.series" for name in ("c", "strict", "bad", "plan")
    }
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.glob("*.series")} == {0o700}
    public = [path for path in written if path not in private]
    lists = [path.read_text() for path in private]
    keys = {json.loads(text)["key"] for text in lists}
    assert {path.name for path in public} >= {
        "c.parquet",
        "c.failures.csv",
        "c.rows.jsonl",
        "c.html",
        "index.parquet",
        "report.html",
        "store.json",
    }
    for path in public:
        assert named_in(str(path.relative_to(out))) == []
        data = path.read_bytes()
        assert named_in(data) == [], path
        assert not any(key.encode() in data for key in keys), path
        assert b"prevox_series" not in data, path
        if data.startswith(b"\x1f\x8b"):
            assert named_in(gzip.decompress(data)) == [], path
        if path.suffix == ".parquet":  # its pages are compressed
            table = pd.read_parquet(path)
            assert named_in(table.to_csv() + str(table.attrs)) == [], path

    table = pd.read_parquet(out / "c.parquet")
    assert sorted(table["modality"].dropna()) == ["CT"] * 4 + ["MR"]  # not the name that one file has there
    assert list(table["sequence"].dropna()) == ["FLAIR"]  # of a description with the patient's name
    reasons = pd.read_csv(out / "c.failures.csv")
    assert len(reasons) >= 5
    for path in (out / "masks").glob("**/*.nii.gz"):
        mask = nib.load(path)
        assert mask.shape == (24, 24, 20)
        np.testing.assert_allclose(mask.affine, [[-1.5, 0, 0, 0], [0, -2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
