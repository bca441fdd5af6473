"""Look at the text header of NRRD and MetaImage files before ITK does, which allocates what a header declares.

Only what decides about memory is read here: sizes, voxel type, compression, and where the voxels are. Whatever else is
wrong with a header is left to ITK to say.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prevox.data.readers.size import check_memory, check_size
from prevox.errors import DataError

_MOST_TEXT = 1 << 20  # bytes of a header
_MOST_AXES = 10  # MetaImage's own limit
_NRRD_BYTES = {  # without "signed" and "unsigned"
    **dict.fromkeys(("char", "int8", "uchar", "uint8"), 1),
    **dict.fromkeys(("short", "shortint", "int16", "ushort", "uint16"), 2),
    **dict.fromkeys(("int", "int32", "uint", "uint32", "float"), 4),
    **dict.fromkeys(("longlong", "longlongint", "int64", "ulonglong", "uint64", "double"), 8),
}
_META_BYTES = {"char": 1, "short": 2, "int": 4, "long": 4, "long_long": 8, "float": 4, "double": 8}


@dataclass(frozen=True)
class _Declared:
    """What a header says.

    Args:
        sizes: Of all axes, components included.
        bytes_each: Of one value; 1 where the header names no known type.
        packed: Whether the values are deflated; None where it cannot be told how small they may be.
        file: File that holds the voxels where that is not the header's own; None where it is, or cannot be told.
    """

    sizes: tuple[int, ...]
    bytes_each: int
    packed: bool | None
    file: str | None


def check_text(path: Path, *, voxels: bool) -> None:
    """Check that what a header declares can be there and be held.

    Args:
        path: .nrrd, .nhdr, .mha or .mhd file.
        voxels: Whether voxels will be read; else sizes alone are looked at.

    Raises:
        DataError: If sizes are not whole numbers above 0, the file of the voxels is not there, it is too small for what
            is declared, or memory is.
    """
    with path.open("rb") as file:
        start = file.read(_MOST_TEXT)
    text = start.decode("latin-1")
    parse = _nrrd if path.suffix.lower() in (".nrrd", ".nhdr") else _meta
    declared = _parsed(path, text, parse)
    if declared is None or not voxels:
        return
    source = path
    if declared.file is not None:
        source = path.parent / declared.file
        if not source.is_file():
            raise DataError(
                path,
                found=f"a header whose voxels are in '{declared.file}', which is no file",
                expected="the file of the voxels beside its header",
                remedy="Copy both files, and do not rename one of them.",
            )
    if declared.packed is None:
        size = declared.bytes_each
        for axis in declared.sizes:
            size *= axis
        check_memory(path, size, f"{'×'.join(map(str, declared.sizes))} voxels")
    else:
        check_size(path, declared.sizes, declared.bytes_each, packed=declared.packed, files=(source,))


def _parsed(path: Path, text: str, parse: Callable[[str], _Declared | None]) -> _Declared | None:
    """What the header declares; None where it has no sizes (ITK then says what is wrong)."""
    try:
        declared = parse(text)
    except ValueError:  # sizes that are no whole numbers
        declared = _Declared((0,), 1, None, None)
    if declared is None:
        return None
    if min(declared.sizes) < 1 or len(declared.sizes) > _MOST_AXES:
        raise DataError(
            path,
            found=f"a header with sizes {' '.join(map(str, declared.sizes[:_MOST_AXES]))} that make no image",
            expected="2 to 4 axes with whole numbers above 0",
            remedy="The header is damaged: copy or export the file again.",
        )
    return declared


def _nrrd(text: str) -> _Declared | None:
    head = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]
    fields = {key.strip().lower(): value.strip() for key, value in re.findall(r"^([^:#\n]+): ?(.*)$", head, re.M)}
    if "sizes" not in fields:
        return None
    sizes = tuple(int(word) for word in fields["sizes"].split())
    kind = re.sub(r"\b(un)?signed\b|\s|_t$", "", fields.get("type", "").lower())
    encoding = fields.get("encoding", "raw").lower()
    packed = {"raw": False, "gzip": True, "gz": True}.get(encoding)
    file: str | None = fields.get("data file", fields.get("datafile"))
    if file is not None and (file.upper().startswith("LIST") or "%" in file):
        file, packed = None, None
    return _Declared(sizes or (0,), _NRRD_BYTES.get(kind, 1), packed, file)


def _meta(text: str) -> _Declared | None:
    pairs = re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", text.partition("ElementDataFile")[0], re.M)
    fields = dict(pairs)
    if "DimSize" not in fields:
        return None
    sizes = tuple(int(word) for word in fields["DimSize"].split())
    axes, components = int(fields.get("NDims", len(sizes))), int(fields.get("ElementNumberOfChannels", 1))
    if axes != len(sizes):
        sizes = (0,)
    kind = fields.get("ElementType", "").lower().removeprefix("met_").removesuffix("_array").removeprefix("u")
    named = re.search(r"ElementDataFile\s*=\s*(.*?)\s*$", text, re.M)
    file = named[1] if named else "LOCAL"
    packed: bool | None = fields.get("CompressedData", "False").lower() in ("true", "1")
    if file.upper() == "LOCAL":
        return _Declared((*sizes, components), _META_BYTES.get(kind, 1), packed, None)
    several = file == "LIST" or "%" in file
    return _Declared(
        (*sizes, components), _META_BYTES.get(kind, 1), None if several else packed, None if several else file
    )
