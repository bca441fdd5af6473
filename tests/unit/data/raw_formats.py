"""Volume files read by hand, from their formats' specifications: numpy and the standard library, no imaging library.

The expected values of `test_formats.py`: an affine maps voxel indices to RAS+ mm, axes are in the file's own order.

- NIfTI-1: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h (single files and .hdr/.img pairs)
- MGH: https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat
- NRRD: https://teem.sourceforge.net/nrrd/format.html
- MetaImage: https://itk.org/Wiki/ITK/MetaIO/Documentation

`python -m tests.unit.data.raw_formats FOLDER` prints, for every such file below the folder, what the golden file holds.
"""

import gzip
import json
import re
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".mgz", ".mgh", ".nrrd", ".mha")
_NIFTI = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8", 128: "rgb", 256: "i1", 512: "u2", 768: "u4"}
_NIFTI |= {1024: "i8", 1280: "u8", 2304: "rgba"}
_COLOURS = {"rgb": [(name, "u1") for name in "RGB"], "rgba": [(name, "u1") for name in "RGBA"]}  # A is no colour
_NRRD = {"short": "i2", "int": "i4", "unsigned short": "u2", "uchar": "u1", "float": "f4"}
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class Raw:
    """Voxels in the file's axis order, scaled; affine to RAS+ mm, None where the file says nothing."""

    array: np.ndarray
    affine: np.ndarray | None


def read(path: Path) -> Raw:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz", ".hdr")):
        return _nifti(path)
    if name.endswith((".mgz", ".mgh")):
        return _mgh(_bytes(path))
    return _nrrd(_bytes(path)) if name.endswith(".nrrd") else _meta(_bytes(path))


def _bytes(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _nifti(path: Path) -> Raw:
    head = _bytes(path)
    order = "<" if struct.unpack("<i", head[:4])[0] == 348 else ">"
    dim = struct.unpack(order + "8h", head[40:56])
    kind = _NIFTI[struct.unpack(order + "h", head[70:72])[0]]
    pixdim = struct.unpack(order + "8f", head[76:108])
    offset, slope, inter = struct.unpack(order + "3f", head[108:120])
    unit = {1: 1000.0, 3: 0.001}.get(head[123] & 7, 1.0)
    qform, sform = struct.unpack(order + "2h", head[252:256])
    b, c, d, *move = struct.unpack(order + "6f", head[256:280])
    affine = None
    if sform > 0:
        affine = np.vstack([np.reshape(struct.unpack(order + "12f", head[280:328]), (3, 4)), [0, 0, 0, 1]])
    elif qform > 0:
        a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        turn = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        affine = np.eye(4)
        affine[:3, :3] = turn * [pixdim[1], pixdim[2], pixdim[3] * (-1 if pixdim[0] < 0 else 1)]
        affine[:3, 3] = move
    if affine is not None:
        affine[:3] *= unit
    pair = head[344:347] == b"ni1"
    data = path.with_suffix(".img").read_bytes() if pair else head[int(offset) :]
    shape = dim[1 : dim[0] + 1]
    dtype = np.dtype(_COLOURS[kind] if kind in _COLOURS else order + kind)
    array = np.frombuffer(data, dtype, int(np.prod(shape))).reshape(shape, order="F")
    if dtype.names is None and slope != 0 and (slope, inter) != (1, 0):
        array = array * np.float64(slope) + inter
    return Raw(array, affine)


def _mgh(data: bytes) -> Raw:
    _, x, y, z, frames, kind, _, good = struct.unpack(">7ih", data[:30])
    size = np.array(struct.unpack(">3f", data[30:42]))
    directions = np.reshape(struct.unpack(">9f", data[42:78]), (3, 3)).T  # x_r x_a x_s, y_r ...: columns are axes
    centre = np.array(struct.unpack(">3f", data[78:90]))
    affine = None
    if good:
        affine = np.eye(4)
        affine[:3, :3] = directions * size
        affine[:3, 3] = centre - affine[:3, :3] @ (np.array([x, y, z]) / 2)
    dtype = np.dtype({0: "u1", 1: ">i4", 3: ">f4", 4: ">i2"}[kind])
    shape = (x, y, z, frames) if frames > 1 else (x, y, z)
    return Raw(np.frombuffer(data, dtype, int(np.prod(shape)), 284).reshape(shape, order="F"), affine)


def _nrrd(data: bytes) -> Raw:
    text, _, body = data.partition(b"\n\n")
    fields = dict(re.findall(r"^([a-z ]+): (.*)$", text.decode(), re.M))
    shape = tuple(map(int, fields["sizes"].split()))
    numbers = [[float(x) for x in group.split(",")] for group in re.findall(r"\(([^)]*)\)", fields["space directions"])]
    affine = np.eye(4)
    affine[:3, :3] = np.transpose(numbers)
    affine[:3, 3] = [float(x) for x in fields["space origin"].strip("()").split(",")]
    assert fields["space"] == "left-posterior-superior"
    assert fields["encoding"] == "gzip"
    dtype = np.dtype(_NRRD[fields["type"]]).newbyteorder("<")
    voxels = zlib.decompressobj(31).decompress(body)
    return Raw(np.frombuffer(voxels, dtype).reshape(shape, order="F"), _LPS @ affine)


def _meta(data: bytes) -> Raw:
    text, _, body = data.partition(b"ElementDataFile = LOCAL\n")
    fields = dict(re.findall(r"^(\w+) = (.*)$", text.decode(), re.M))
    shape = tuple(map(int, fields["DimSize"].split()))
    affine = np.eye(4)
    # "TransformMatrix" lists the direction of one axis after the other
    affine[:3, :3] = np.reshape([float(x) for x in fields["TransformMatrix"].split()], (3, 3)).T
    affine[:3, :3] *= [float(x) for x in fields["ElementSpacing"].split()]
    affine[:3, 3] = [float(x) for x in fields["Offset"].split()]
    assert fields["ElementType"] == "MET_SHORT"
    voxels = zlib.decompress(body) if fields["CompressedData"] == "True" else body
    return Raw(np.frombuffer(voxels, "<i2").reshape(shape, order="F"), _LPS @ affine)


def plain(raw: Raw) -> dict[str, Any]:
    """Shape, affine, mean and some voxels (the last index is the channel where there is a 4th axis), JSON-able."""
    array = raw.array
    colour = array.dtype.names is not None
    if colour:
        array = np.stack([array[name] for name in "RGB"], -1)
    size = np.abs(array)
    places = {tuple(int(x) for x in np.unravel_index(at, array.shape)) for at in (size.argmax(), size.size // 3)}
    places |= {tuple(n // 2 for n in array.shape), tuple(2 * n // 5 for n in array.shape)}

    def number(x: Any) -> Any:
        return [float(x.real), float(x.imag)] if np.iscomplexobj(x) else round(float(x), 6)

    return {
        "shape": list(array.shape),
        "affine": None if raw.affine is None else np.round(raw.affine[:3], 5).tolist(),
        "mean": None if np.iscomplexobj(array) or colour else round(float(array.mean(dtype=np.float64)), 6),
        "voxels": [[list(place), number(array[place])] for place in sorted(places)],
    }


if __name__ == "__main__":
    root = Path(sys.argv[1])
    found = sorted(path for path in root.rglob("*") if path.name.lower().endswith(SUFFIXES))
    lines = [f"{json.dumps(path.relative_to(root).as_posix())}: {json.dumps(plain(read(path)))}" for path in found]
    print("{\n" + ",\n".join(lines) + "\n}")
