"""DICOM files for tests, whose voxels and places are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
RADIOGRAPH = "1.2.840.10008.5.1.4.1.1.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
NAME, ID, BIRTH = "Mustermann^Erika", "PAT4711", "19640812"


def dataset(pixels: np.ndarray, sop_class: str = CT, **tags: Any) -> FileDataset:
    """A file of one frame (rows, columns) in explicit little endian; tags replace or (None) remove defaults."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop_class, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    known = {
        "SOPClassUID": sop_class,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2.3",
        "PatientName": NAME,
        "PatientID": ID,
        "PatientBirthDate": BIRTH,
        "Modality": "CT" if sop_class == CT else "MR" if sop_class == MR else "CR",
        "ImagePositionPatient": [0.0, 0.0, 0.0],
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [2.0, 1.5],
        "SliceThickness": 3.0,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "HighBit": 8 * pixels.dtype.itemsize - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    for keyword, value in (known | tags).items():
        if value is not None:
            setattr(made, keyword, value)
    made.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    return made


def save(path: Path, made: FileDataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def write_slices(
    folder: Path,
    voxels_JIK: np.ndarray,
    step: tuple[float, float, float] = (0.0, 0.0, 3.0),
    start: tuple[float, float, float] = (0.0, 0.0, 0.0),
    prefix: str = "IM",
    **tags: Any,
) -> list[Path]:
    """A series of slices (rows, columns, slices) that lie `step` apart in LPS mm; file names without suffix."""
    paths = []
    for k in range(voxels_JIK.shape[2]):
        place = {"ImagePositionPatient": [float(f"{a + k * b:.10g}") for a, b in zip(start, step, strict=True)]}
        made = dataset(np.ascontiguousarray(voxels_JIK[:, :, k]), **({"InstanceNumber": k + 1} | place | tags))
        paths.append(save(folder / f"{prefix}{k:04d}", made))
    return paths


def head_size(path: Path) -> int:
    """Bytes in front of the pixel data's element."""
    return path.read_bytes().index(b"\xe0\x7f\x10\x00")


def without_header(path: Path) -> bytes:
    """The data set alone: what is left when preamble and group 2 are cut away."""
    data = path.read_bytes()
    length = pydicom.dcmread(path, stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    return data[128 + 4 + 12 + length :]
