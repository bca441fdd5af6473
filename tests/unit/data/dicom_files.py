"""DICOM files for tests, whose voxels and places are known."""

import struct
from collections.abc import Mapping, Sequence
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


def csa_header(**tags: tuple[str, Sequence[Any]]) -> bytes:
    """A CSA header of the second kind (SV10): name, VR and values of each element, as text."""
    parts = [b"SV10\x04\x03\x02\x01", struct.pack("<2I", len(tags), 77)]
    for name, (vr, values) in tags.items():
        parts.append(struct.pack("<64si4s3i", name.encode(), len(values), vr.encode(), 0, len(values), 77))
        for value in values:
            text = f"{value}\0".encode()
            parts.append(struct.pack("<4i", *[len(text)] * 4) + text + bytes(-len(text) % 4))
    return b"".join(parts)


def write_mosaic(
    path: Path, voxels_JIK: np.ndarray, csa: Mapping[str, tuple[str, Sequence[Any]]] | None = None, **tags: Any
) -> FileDataset:
    """A Siemens mosaic of a volume (rows, columns, slices) in as few tiles as hold it; `csa` changes its CSA header."""
    rows, columns, count = voxels_JIK.shape
    tiles = next(side for side in range(1, 100) if side * side >= count)
    picture = np.zeros((tiles * rows, tiles * columns), voxels_JIK.dtype)
    for k in range(count):
        down, right = k // tiles * rows, k % tiles * columns
        picture[down : down + rows, right : right + columns] = voxels_JIK[:, :, k]
    made = dataset(
        picture, MR, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"], **{"SpacingBetweenSlices": 4.0} | tags
    )
    known = {"NumberOfImagesInMosaic": ("US", [count]), "SliceNormalVector": ("FD", ["0.0", "0.0", "1.0"])}
    block = made.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", csa_header(**{k: v for k, v in (known | dict(csa or {})).items() if v[1]}))
    save(path, made)
    return made
