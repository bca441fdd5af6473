"""What one DICOM file says of itself: which object it is, which frames it holds, where they lie. No pixel is read.

Of what identifies a patient only PatientID is read, to be hashed (`data.pseudonyms`); names and dates of birth are
never looked at. Series Description and Protocol Name are looked through for the words that name an MR sequence, and
nothing of them is kept but which of these; of Contrast/Bolus Agent counts whether it names one (`data.acquisition`).
Reasons repeat no text of the file.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.uid import UID

from prevox.data.acquisition import Acquisition, sequence_of_acquisition
from prevox.data.readers import dicom_mosaic as mosaic
from prevox.data.readers.dicom_file import open_dicom, parse

SUFFIXES = (".dcm", ".dicom", ".ima")  # of files that must be DICOM; others are by their first bytes

_DIRECTORY = "1.2.840.10008.1.3.10"
_IMAGE = " Image Storage"  # part of the names of all classes of images
_RADIOGRAPHS = ("CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA")  # modalities whose images are bright where dense
_VOLUMES = ("CT", "MR", "PT")  # modalities whose images are slices; what has no place elsewhere is a picture
_GREY = ("MONOCHROME1", "MONOCHROME2")
_KEYWORDS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "ImageType", "Modality"),
    *("InstanceNumber", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "ModalityLUTSequence", "PixelSpacing"),
    *("ImagerPixelSpacing", "NominalScannedPixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "EchoTime"),
    *("TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime", "InversionTime", "DiffusionBValue"),
    *("DiffusionGradientOrientation", "AcquisitionTime", "ContentTime"),
    *("SeriesDescription", "ProtocolName", "ScanningSequence", "MRAcquisitionType", "RepetitionTime"),
    *("ContrastBolusAgent", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_INDICES = "DimensionIndexValues"
_TAGS = [tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None] + mosaic.TAGS
# what may tell frames at one place apart: name, sequence of an enhanced object, keyword
_MARKS = (
    ("type", "MRImageFrameTypeSequence", "FrameType"),
    ("component", "MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("image_type", "", "ImageType"),
    ("echo", "MREchoSequence", "EffectiveEchoTime"),
    ("echo_time", "", "EchoTime"),
    ("inversion", "", "InversionTime"),
    ("b_value", "MRDiffusionSequence", "DiffusionBValue"),
    ("gradient", "", "DiffusionGradientOrientation"),
    ("temporal", "FrameContentSequence", "TemporalPositionIndex"),
    ("temporal_id", "", "TemporalPositionIdentifier"),
    ("acquisition", "FrameContentSequence", "FrameAcquisitionNumber"),
    ("acquisition_number", "", "AcquisitionNumber"),
    ("delay", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("trigger", "", "TriggerTime"),
    ("acquisition_time", "", "AcquisitionTime"),
    ("content_time", "", "ContentTime"),
    ("number", "", "InstanceNumber"),
)


@dataclass(frozen=True, slots=True)  # there are as many as files
class Frame:
    """One plane of pixels.

    Args:
        number: Within its file, from 0.
        position: Centre of the first pixel, LPS mm; None where the file does not say.
        orientation: Directions in which the column's and the row's index rise (6 numbers); None where it does not say.
        spacing: Between rows and between columns, in mm; None where there is none that makes sense.
        at_detector: Whether `spacing` is that at the detector or of a scanned film, not in the patient.
        thickness: Of the slice, in mm; None where the file does not say.
        slope: Stored values times `slope` plus `intercept` are the image's.
        intercept: See `slope`.
        stack: Id of its stack in an enhanced object.
        marks: What may tell frames at one place apart, by name.
    """

    number: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    at_detector: bool
    thickness: float | None
    slope: float
    intercept: float
    stack: str
    marks: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)  # there are as many as files
class Instance:
    """One DICOM file. What it does not say is empty, or 0.

    Args:
        path: The file.
        kind: "image", or what else it is ("RT Dose", "DICOMDIR").
        uid: SOPInstanceUID.
        series: SeriesInstanceUID.
        study: StudyInstanceUID.
        patient: PatientID.
        modality: CT, MR, ...
        rows: Of pixels in a frame.
        columns: Of pixels in a frame.
        bits: Stored bits of a value.
        allocated: Bits that a value takes.
        signed: Whether stored values are.
        inverted: Whether it is a radiograph in which low values are bright (MONOCHROME1).
        frames: The planes.
        tiles: Frames along each side of a Siemens mosaic, whose frames are numbered row by row; 1 for all else.
        sequence: MR sequence, where header or description say it.
        problem: What it is instead of an image that can be read; None if nothing speaks against it.
    """

    path: Path
    kind: str = "image"
    uid: str = ""
    series: str = ""
    study: str = ""
    patient: str = ""
    modality: str = ""
    rows: int = 0
    columns: int = 0
    bits: int = 0
    allocated: int = 0
    signed: bool = False
    inverted: bool = False
    frames: tuple[Frame, ...] = ()
    tiles: int = 1
    sequence: str | None = None
    problem: str | None = None


def read_instance(path: Path) -> Instance | None:
    """Describe a file; None if it is no DICOM. A file that cannot be read is an instance with a problem."""
    try:
        with open_dicom(path) as file:
            if file is not None:
                return _described(path, file)
            if path.suffix.lower() not in SUFFIXES:
                return None
            what = "bytes that do not begin as DICOM does" if path.stat().st_size else "an empty file"
            return Instance(path, problem=f"a broken DICOM file ({what})")
    except OSError as error:  # whose text would repeat the path
        if path.suffix and path.suffix.lower() not in SUFFIXES and not path.suffix[1:].isdigit():
            return None  # a text, perhaps; files of DICOM are often called by their UID, which ends in a number
        return Instance(path, problem=f"a file that cannot be read ({error.strerror or type(error).__name__})")
    except Exception as error:  # pydicom has no base of what it raises on a header that makes no sense
        return Instance(path, problem=f"a broken DICOM file (a header that makes no sense: {type(error).__name__})")


def _described(path: Path, file: BinaryIO) -> Instance:
    dataset, has_pixels = parse(file, _TAGS)
    sop_class = _text(dataset, "SOPClassUID") or _text(dataset.file_meta, "MediaStorageSOPClassUID")
    name = UID(sop_class).name
    known = Instance(
        path,
        uid=_text(dataset, "SOPInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        study=_text(dataset, "StudyInstanceUID"),
        patient=_text(dataset, "PatientID"),
        modality=_text(dataset, "Modality"),
    )
    if sop_class == _DIRECTORY or path.name == "DICOMDIR":
        return replace(known, kind="DICOMDIR")
    if name != sop_class and _IMAGE not in name:  # a private or absent class may be an image
        return replace(known, kind=name.removesuffix(" Storage"))
    if not has_pixels:
        return replace(known, problem="no pixel data (a broken DICOM file, cut short, or one saved without)")
    rows, columns = _whole(dataset, "Rows"), _whole(dataset, "Columns")
    if rows < 1 or columns < 1:
        return replace(known, problem="no rows and columns (a broken DICOM file)")
    frames = tuple(_frames(dataset))
    described = replace(
        known,
        rows=rows,
        columns=columns,
        bits=_whole(dataset, "BitsStored") or _whole(dataset, "BitsAllocated"),
        allocated=_whole(dataset, "BitsAllocated"),
        signed=_whole(dataset, "PixelRepresentation") == 1,
        inverted=known.modality in _RADIOGRAPHS and _text(dataset, "PhotometricInterpretation") == "MONOCHROME1",
        frames=frames,
        sequence=sequence_of_acquisition(_acquisition(dataset)) if known.modality == "MR" else None,
        problem=_problem(dataset) or _misplaced(known.modality, frames),
    )
    is_mosaic = "MOSAIC" in {part.upper() for part in _values(dataset, "ImageType")}
    return _split(described, dataset) if is_mosaic and described.problem is None else described


def _acquisition(dataset: Dataset) -> Acquisition:
    return Acquisition(
        f"{_text(dataset, 'SeriesDescription')} {_text(dataset, 'ProtocolName')}",
        frozenset(part.upper() for part in _values(dataset, "ImageType")),
        frozenset(part.upper() for part in _values(dataset, "ScanningSequence")),
        _text(dataset, "MRAcquisitionType"),
        _number(dataset, "EchoTime"),
        _number(dataset, "RepetitionTime"),
        _number(dataset, "InversionTime"),
        _text(dataset, "ContrastBolusAgent"),
    )


def _split(whole: Instance, dataset: Dataset) -> Instance:
    """A mosaic as the slices it holds, or with the reason why it cannot be split."""
    (frame, *others), size = whole.frames, (whole.rows, whole.columns)
    if others:
        return replace(whole, problem="a Siemens mosaic of several frames")
    if frame.position is None or frame.orientation is None or frame.spacing is None:
        return replace(whole, problem="a Siemens mosaic without position or pixel spacing")
    distances = _number(dataset, "SpacingBetweenSlices"), frame.thickness
    try:
        layout = mosaic.mosaic_of(dataset, size, frame.orientation, distances)
    except mosaic.NoMosaic as error:
        return replace(whole, problem=str(error))
    rows, columns = (side // layout.tiles for side in size)
    # Image Position is that of a slice as large as the whole picture
    along_row = (whole.columns - columns) / 2 * frame.spacing[1] * np.array(frame.orientation[:3])
    along_column = (whole.rows - rows) / 2 * frame.spacing[0] * np.array(frame.orientation[3:])
    first = np.array(frame.position) + along_row + along_column
    places = [(first + number * layout.step).tolist() for number in range(layout.count)]
    frames = tuple(replace(frame, number=number, position=tuple(place)) for number, place in enumerate(places))
    return replace(whole, rows=rows, columns=columns, frames=frames, tiles=layout.tiles)


def _problem(dataset: Dataset) -> str | None:
    """What speaks against an object with pixels, as far as it alone shows."""
    colours = _text(dataset, "PhotometricInterpretation")
    kinds = {part.upper() for part in _values(dataset, "ImageType")}
    if colours not in _GREY or (_whole(dataset, "SamplesPerPixel") or 1) != 1:
        return "colour pixels"
    if "LOCALIZER" in kinds:
        return "a localiser (scout)"
    if dataset.get("ModalityLUTSequence"):
        return "values that are no numbers but places in a table (Modality LUT)"
    allocated, stored = _whole(dataset, "BitsAllocated"), _whole(dataset, "BitsStored")
    if allocated not in (8, 16, 32) or not 0 <= stored <= allocated:
        return f"values of {stored} bits in {allocated}"
    return None


def _misplaced(modality: str, frames: Sequence[Frame]) -> str | None:
    """Whether planes say only half of where they lie, or nothing where they must."""
    said = {(frame.position is not None, frame.orientation is not None) for frame in frames}
    if said == {(True, True)} or (said == {(False, False)} and modality not in _VOLUMES):
        return None
    return "no position or no orientation of its slices, or one that makes no sense"


def _frames(dataset: Dataset) -> Iterator[Frame]:
    """The frames; geometry and marks are looked up in the frame's groups, the shared groups, the object itself.

    Raises:
        ValueError: If the groups are not those of the frames.
    """
    count = _whole(dataset, "NumberOfFrames") or 1
    shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if groups and len(groups) != count:
        raise ValueError("groups of other frames")
    placed = count == 1 or bool(groups)
    for number in range(count) if placed else range(min(count, 2)):  # without places, there is no need to know more
        places = (groups[number], shared) if groups else (shared,)

        def find(sequence: str, keyword: str, places: tuple[Dataset, ...] = places) -> Dataset:
            """The data set that holds the element: first one that has it."""
            for place in places:
                item = next(iter(place.get(sequence) or ()), None) if sequence else None
                if item is not None and keyword in item:
                    return item
            return dataset

        slope = _number(find("PixelValueTransformationSequence", "RescaleSlope"), "RescaleSlope")
        intercept = _number(find("PixelValueTransformationSequence", "RescaleIntercept"), "RescaleIntercept")
        spacing = _spacing(find("PixelMeasuresSequence", "PixelSpacing"), "PixelSpacing")
        beside = _spacing(dataset, "ImagerPixelSpacing") or _spacing(dataset, "NominalScannedPixelSpacing")
        thickness = _number(find("PixelMeasuresSequence", "SliceThickness"), "SliceThickness")
        position = find("PlanePositionSequence", "ImagePositionPatient")
        orientation = find("PlaneOrientationSequence", "ImageOrientationPatient")
        content = find("FrameContentSequence", "StackID")
        yield Frame(
            number,
            _numbers(position, "ImagePositionPatient", 3) if placed else None,
            _directions(orientation) if placed else None,
            spacing or beside,
            spacing is None and beside is not None,
            thickness if thickness is not None and thickness > 0 else None,
            1.0 if slope is None else slope,
            0.0 if intercept is None else intercept,
            _text(content, "StackID"),
            dict(_marks(find)),
        )


def _marks(find: Callable[[str, str], Dataset]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, sequence, keyword in _MARKS:
        if values := _values(find(sequence, keyword), keyword):
            yield name, values
    for axis, index in enumerate(_values(find("FrameContentSequence", _INDICES), _INDICES)):
        yield f"dimension_{axis}", (index,)


def _directions(dataset: Dataset) -> tuple[float, ...] | None:
    """Two unit vectors at right angles; None where there are none."""
    numbers = _numbers(dataset, "ImageOrientationPatient", 6)
    if numbers is None:
        return None
    row, column = np.array(numbers[:3]), np.array(numbers[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(row @ column) > 0.01:
        return None
    return (*(row / lengths[0]).tolist(), *(column / lengths[1]).tolist())


def _spacing(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    """Two sizes above 0; None where there are none."""
    numbers = _numbers(dataset, keyword, 2)
    return None if numbers is None or min(numbers) <= 0 else numbers


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """The finite numbers of an element; None where it is absent or holds anything else."""
    try:
        numbers = tuple(float(value) for value in _values(dataset, keyword))
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    numbers = _numbers(dataset, keyword, 1)
    return None if numbers is None else numbers[0]


def _whole(dataset: Dataset, keyword: str) -> int:
    number = _number(dataset, keyword)
    return 0 if number is None else int(number)


def _values(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of an element as text; empty where it is absent, empty or cannot be read."""
    try:
        value = dataset.get(keyword)
    except ValueError:  # numbers that are none
        return ()
    if value is None or value == "":
        return ()
    return tuple(map(str, value)) if isinstance(value, MultiValue | list) else (str(value),)


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip("\0 ")
