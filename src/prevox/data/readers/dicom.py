"""DICOM series through pydicom. What is read is a .series file: a list of the DICOM files (and frames) of one image.

`prevox catalogue` writes these lists (`data.layouts.dicom`). They are the only files that hold paths of DICOM input,
which may contain names of patients: an image is known by its list's name, and so are all messages here.
"""

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.pixels import get_decoder, iter_pixels
from pydicom.uid import UID, JPEG2000TransferSyntaxes
from scipy import ndimage

from prevox.data.pseudonyms import keep_private
from prevox.data.readers.base import Header, Image, Reading, check_affine
from prevox.data.readers.dicom_file import open_dicom, parse
from prevox.data.readers.dicom_grid import NoVolume, Slice, StackGrid, grid_of
from prevox.data.readers.dicom_header import Instance, read_instance
from prevox.data.temporary import temporary_path
from prevox.errors import DataError

SCHEMA = 2
Tilt = Literal["refuse", "resample"]
Files = Sequence[tuple[Path, Sequence[int] | None]]

_J2K_SIZE = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 code stream and of its size
_LARGE = 1 << 31  # declared bytes from which the size of the files is looked at
_COMPRESSED = 1000  # no image is compressed to less than its thousandth
_ADVICE = {  # beginning of a problem to what can be done
    "colour": "Convert it to grey values, or leave it out.",
    "a localiser": "It only shows where the other series lie.",
    "a Siemens mosaic": "Export it again with its private elements, or as single slices.",
    "a file that cannot be read": "If the files have moved, run `prevox catalogue` on their new place.",
}


def write_series(path: Path, files: Files, tilt: Tilt, key: str) -> None:
    """Write the list of an image's files, whole or not at all, readable by its owner only.

    A list that says the same stays. Tasks of a job array may write at the same time: they write the same.

    Args:
        path: File to write; its name is the image's id.
        files: Absolute paths, each with the frames to take (all where None).
        tilt: What becomes of a gantry tilt.
        key: Of the hash of the contents (`pseudonyms.content_key`), hexadecimal.
    """
    folder = files[0][0].parent
    names = [
        (file.name if file.parent == folder else str(file), None if frames is None else list(frames))
        for file, frames in files
    ]
    content = {"prevox_series": SCHEMA, "key": key, "tilt": tilt, "folder": str(folder), "files": names}
    text = json.dumps(content) + "\n"
    if path.is_file() and path.read_bytes() == text.encode():
        keep_private(path, 0o600)
        return
    temporary = temporary_path(path)
    temporary.touch(0o600)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_header(path: Path, reading: Reading) -> Header:
    """Read the geometry of a series from the headers of its files; `reading` chooses nothing here."""
    slices, tilt = _slices(path)
    return _header(path, *_grid(path, slices, tilt))


def read_image(path: Path, reading: Reading) -> Image:
    """Decode and rescale the slices of a series; radiographs stored with inverted grey values are inverted."""
    slices, tilt = _slices(path)
    grid, resampled = _grid(path, slices, tilt)
    header = _header(path, grid, resampled)
    array_IJK = _values(path, grid, header.dtype)
    if resampled:
        array_IJK = _untilted(array_IJK, grid.shift_ij)
    return Image(array_IJK[None], replace(header, dtype=array_IJK.dtype.name))


def series_files(path: Path) -> list[Path]:
    """Files that the list names.

    Raises:
        DataError: If the list makes no sense.
    """
    return [file for file, _ in _listed(path).files]


def stored_size(path: Path) -> int:
    """Bytes of the files that the list names; those that are gone count nothing."""
    return sum(file.stat().st_size for file, _ in _listed(path).files if file.is_file())


def series_stamp(path: Path) -> list[Any]:
    """What the list says, and sizes and times of change of its files in order.

    Raises:
        DataError: If the list makes no sense.
        OSError: If a file is gone.
    """
    found = [file.stat() for file, _ in _listed(path).files]
    return [path.read_text(encoding="utf-8"), *((file.st_size, file.st_mtime_ns) for file in found)]


def series_digest(path: Path) -> str:
    """SHA-256, by the list's key, of the files' bytes and what is taken of them; names and places do not count.

    Raises:
        DataError: If the list makes no sense.
        OSError: If a file cannot be read.
    """
    listed = _listed(path)
    parts = []
    for name, frames in listed.files:
        with name.open("rb") as file:
            keyed = hashlib.file_digest(file, lambda: hmac.new(listed.key, digestmod="sha256"))
        parts.append(f"{keyed.hexdigest()} {frames}")
    return hashlib.sha256("\n".join([listed.tilt, *sorted(parts)]).encode()).hexdigest()


class _List(NamedTuple):
    """What a .series file says: files of an image with their frames, what becomes of a tilt, key of the hashes."""

    files: Files
    tilt: Tilt
    key: bytes


def _listed(path: Path) -> _List:
    """Read a list.

    Raises:
        DataError: If it makes no sense.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["prevox_series"] != SCHEMA:
            raise ValueError
        folder = Path(content["folder"])
        files = [(folder / name, frames) for name, frames in content["files"]]
        return _List(files, content["tilt"], bytes.fromhex(content["key"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            path,
            found="something else than a list of DICOM files",
            expected="a list as `prevox catalogue` writes it",
            remedy="Run `prevox catalogue` again.",
        ) from None


def _slices(path: Path) -> tuple[list[Slice], Tilt]:
    """The slices that the list names, and what becomes of a tilt.

    Raises:
        DataError: If a file is no image or has a problem of its own.
    """
    files, tilt, _ = _listed(path)
    slices: list[Slice] = []
    problems: Counter[str] = Counter()
    for file, frames in files:
        instance = read_instance(file) or Instance(file, problem="a file that cannot be read as DICOM any more")
        if instance.problem is None and instance.kind != "image":
            instance = replace(instance, problem=f"a {instance.kind} object")
        if instance.problem is not None:
            problems[instance.problem] += 1
            continue
        wanted = None if frames is None else set(frames)
        slices += [(instance, frame) for frame in instance.frames if wanted is None or frame.number in wanted]
    if problems or not slices:
        problem, count = problems.most_common(1)[0] if problems else ("no frame", 0)
        raise DataError(
            path,
            found=problem if len(files) == 1 else f"{problem} ({count} of {len(files)} files)",
            expected="grey slices of one volume, or one grey picture",
            remedy=next((advice for start, advice in _ADVICE.items() if problem.startswith(start)), ""),
        )
    return slices, tilt


def _grid(path: Path, slices: Sequence[Slice], tilt: Tilt) -> tuple[StackGrid, bool]:
    """The grid of the slices, and whether it must be resampled to right angles."""
    try:
        grid = grid_of(slices)
        tilted = grid.shift_ij != (0.0, 0.0)
        if tilted and tilt == "refuse":
            step, plane = grid.affine[:3, 2], np.cross(grid.affine[:3, 0], grid.affine[:3, 1])
            cosine = abs(step @ plane) / np.linalg.norm(step) / np.linalg.norm(plane)
            raise NoVolume(
                f"a gantry tilt of {np.degrees(np.arccos(min(1.0, cosine))):.1f} degrees",
                "slices stacked at right angles",
                "`prevox catalogue --dicom.tilt resample` brings such series to right angles.",
            )
        _check_declared(grid)
    except NoVolume as error:
        raise DataError(path, found=error.found, expected=error.expected, remedy=error.remedy) from None
    return grid, tilted


def _check_declared(grid: StackGrid) -> None:
    """Refuse sizes that the files cannot hold, before memory is taken for them."""
    declared = sum(one.rows * one.columns * one.allocated // 8 for one, _ in grid.slices)
    if declared > _LARGE:
        stored = sum(file.stat().st_size for file in {one.path for one, _ in grid.slices} if file.is_file())
        if declared > _COMPRESSED * stored:
            raise NoVolume(f"{declared / 1e9:.1f} GB of pixels in {stored / 1e6:.3g} MB of files", "a size that fits")


def _header(path: Path, grid: StackGrid, resampled: bool) -> Header:
    first, frame = grid.slices[0]
    affine, shape, flags = grid.affine.copy(), [first.columns, first.rows, len(grid.slices)], grid.flags
    if resampled:
        affine[:3, 3] += affine[:3, :2] @ _margin(len(grid.slices), grid.shift_ij)[0]
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        normal /= np.linalg.norm(normal)
        affine[:3, 2] = normal * (normal @ affine[:3, 2])
        shape[:2] = np.add(shape[:2], _margin(len(grid.slices), grid.shift_ij)[1]).tolist()
        flags += ("tilt_resampled",)
    codes: dict[str, Any] = {"format": "dicom", "ndim": 2 if frame.position is None else 3}
    i, j, k = shape
    return Header(path, (i, j, k), 1, check_affine(path, affine), codes, _dtype(grid.slices), flags)


def _dtype(slices: Sequence[Slice]) -> str:
    """Type of the rescaled values: integers where slope and intercept are whole and 1, for all that can be stored."""
    one = slices[0][0]
    if not _is_whole(slices):
        return "float32" if one.bits <= 24 else "float64"
    stored = np.dtype(f"{'' if one.signed else 'u'}int{one.allocated}")
    intercepts = {frame.intercept for _, frame in slices}
    if intercepts == {0.0}:
        return stored.name
    low, high = (-(1 << (one.bits - 1)), (1 << (one.bits - 1)) - 1) if one.signed else (0, (1 << one.bits) - 1)
    return _fitting(low + int(min(intercepts)), high + int(max(intercepts)))


def _fitting(low: int, high: int) -> str:
    names = ("int16", "uint16", "int32")
    return next((name for name in names if np.iinfo(name).min <= low and high <= np.iinfo(name).max), "float64")


def _is_whole(slices: Sequence[Slice]) -> bool:
    return all(frame.slope == 1 and frame.intercept == round(frame.intercept) for _, frame in slices)


def _values(path: Path, grid: StackGrid, dtype: str) -> np.ndarray:
    """Rescaled values (I, J, K)."""
    one = grid.slices[0][0]
    stored = np.empty((one.columns, one.rows, len(grid.slices)), f"{'' if one.signed else 'u'}int{one.allocated}", "F")
    for k, plane_JI in _planes(path, grid.slices):
        stored[:, :, k] = plane_JI.T
    if one.inverted:  # within the range of stored values, so that the rescaled ones stay in theirs
        np.subtract(-1 if one.signed else (1 << one.bits) - 1, stored, out=stored)
    intercepts = {frame.intercept for _, frame in grid.slices}
    if _is_whole(grid.slices):
        if intercepts == {0.0}:
            return stored
        low, high = int(stored.min()) + int(min(intercepts)), int(stored.max()) + int(max(intercepts))
        if np.dtype(dtype).kind in "iu" and (low < np.iinfo(dtype).min or high > np.iinfo(dtype).max):
            dtype = _fitting(low, high)  # more bits are in use than the header says
    values = np.empty(stored.shape, dtype, "F")
    for k, (_, frame) in enumerate(grid.slices):  # slice by slice: float64 arithmetic without a float64 volume
        values[:, :, k] = stored[:, :, k].astype(np.float64) * frame.slope + frame.intercept
    return values


def _planes(path: Path, slices: Sequence[Slice]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode file by file: place along K and stored values (rows, columns) of each slice.

    Raises:
        DataError: If pixels cannot be decoded, or nothing here can.
    """
    places: dict[Path, list[tuple[int, int]]] = {}
    tiles = {instance.path: instance.tiles for instance, _ in slices}
    for k, (instance, frame) in enumerate(slices):
        places.setdefault(instance.path, []).append((frame.number, k))
    for file, frames in places.items():
        frames.sort()
        try:
            with open_dicom(file) as opened:
                dataset = parse(opened)[0] if opened is not None else Dataset()
                _check_decoder(path, dataset.file_meta.TransferSyntaxUID)
                _check_codestream(dataset)
                planes = _frames_of(dataset, [number for number, _ in frames], tiles[file])
                for (_, k), plane in zip(frames, planes, strict=True):
                    yield k, plane
        except (DataError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # decoders have no common base; pylibjpeg-rle's panics are no Exceptions
            spoken = isinstance(error, ValueError | RuntimeError)  # others would repeat paths
            words = " ".join(str(error).split())[:300] if spoken else type(error).__name__
            raise DataError(
                path,
                found=f"pixels that cannot be decoded (slice {frames[0][1] + 1} of {len(slices)}: {words})",
                expected="complete pixel data in the coding that the header names",
                remedy="Export the series again.",
            ) from None


def _frames_of(dataset: Dataset, numbers: Sequence[int], tiles: int) -> Iterator[np.ndarray]:
    """Decode frames (rows, columns), or the tiles of a mosaic."""
    if tiles == 1:
        yield from iter_pixels(dataset, indices=list(numbers))
        return
    (picture,) = iter_pixels(dataset, indices=[0])
    rows, columns = picture.shape[0] // tiles, picture.shape[1] // tiles
    for number in numbers:
        row, column = divmod(number, tiles)
        yield picture[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]


def _check_decoder(path: Path, syntax: UID) -> None:
    """Check that pixels in this transfer syntax can be decoded.

    Raises:
        DataError: If they cannot at all, or a plug-in is not installed.
    """
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            path,
            found=f"pixels coded as {syntax.name}",
            expected="native, RLE, JPEG, JPEG-LS or JPEG 2000 pixels",
            remedy="Convert them first (dcmdjpeg, gdcmconv --raw).",
        ) from None
    if not decoder.is_available:
        raise DataError(
            path,
            found=f"pixels coded as {syntax.name}, for which no decoder is installed",
            expected="the plug-ins of pydicom",
            remedy="pip install 'prevox[dicom]'",
        )


def _check_codestream(dataset: Dataset) -> None:
    """Check the size in the first JPEG 2000 code stream, of which the decoder takes memory before it looks at anything.

    Raises:
        ValueError: If it is not the header's.
    """
    data = dataset.get("PixelData", b"")
    start = data.find(_J2K_SIZE) + len(_J2K_SIZE) + 4  # 2 bytes each: length and capabilities
    if dataset.file_meta.TransferSyntaxUID in JPEG2000TransferSyntaxes and start > len(_J2K_SIZE) + 3:
        right, bottom, left, top = np.frombuffer(data, ">u4", 4, start).tolist()
        if (right - left, bottom - top) != (dataset.Columns, dataset.Rows):
            raise ValueError(f"{right - left}×{bottom - top} coded, {dataset.Columns}×{dataset.Rows} in the header")


def _margin(count: int, shift_ij: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Where the untilted grid begins, and by how much it is larger, in voxels along I and J."""
    reach = (count - 1) * np.array(shift_ij)
    return np.floor(np.minimum(reach, 0)), np.ceil(np.abs(reach))


def _untilted(array_IJK: np.ndarray, shift_ij: tuple[float, float]) -> np.ndarray:
    """Move each slice within its plane to right angles, linearly; what no slice covers gets the smallest value."""
    start, more = _margin(array_IJK.shape[2], shift_ij)
    i, j = (np.array(array_IJK.shape[:2]) + more.astype(int)).tolist()
    kind = array_IJK.dtype if array_IJK.dtype.kind == "f" else np.dtype(np.float32)
    result = np.empty((i, j, array_IJK.shape[2]), kind, "F")
    fill = float(array_IJK.min())
    for k in range(array_IJK.shape[2]):
        offset = start - k * np.array(shift_ij)
        moved = array_IJK[:, :, k].astype(np.float64)
        result[:, :, k] = ndimage.affine_transform(moved, (1.0, 1.0), offset, (i, j), order=1, cval=fill)
    return result
