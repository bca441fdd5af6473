"""The store's own tables, rebuilt from what its groups and packs say, so that a killed `prepare` loses nothing."""

import csv
import hashlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prevox.console import warn
from prevox.data.columns import ROW_GROUP, Columns
from prevox.data.group import read_attributes
from prevox.data.pack import pack_folders, read_pack
from prevox.data.rules import MEASURED
from prevox.data.store import SCHEMA
from prevox.data.temporary import temporary_path

# what the catalogue says about a source file's own grid and voxels; the store has its own, of the prepared ones
_SOURCE_COLUMNS = {
    "channels", "shape_i", "shape_j", "shape_k", "spacing_i", "spacing_j", "spacing_k", "orientation", "affine",
    "dtype", "minimum", "maximum", "mean", "std", "label_values", "hash", "layout", *MEASURED, "reasons",
}  # fmt: skip
_GROUP_COLUMNS = (
    "hash", "channels", "shape", "spacing", "affine", "source_shape", "source_affine", "label_values", "slope",
    "intercept", "max_error", "bytes", "source_bytes",
)  # fmt: skip

_TABLE_KB, _ROW_KB = 64, 1  # kB of the index: 24 without a row, and 0.2 to 0.3 of each, as columns of --table may add

VANISHED = "class_vanished"  # flag of an image in which resampling left no voxel of a class; the value follows


def kept_columns(row: dict[str, Any]) -> dict[str, Any]:
    """The part of a catalogue row that goes into the store, as JSON-able values; extra columns of --table included."""
    return {name: _plain(value) for name, value in row.items() if name not in _SOURCE_COLUMNS}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | bool | int | float) else str(value)


def reserve_room(out: Path, images: int) -> Path | None:
    """Take the room that the store's tables will need, so that they can be written when the images fill the disk.

    None if there is no such room: then the tables take what there is.
    """
    path = temporary_path(out / "reserve")
    try:
        with path.open("wb") as file:
            for _ in range(_TABLE_KB + images * _ROW_KB):
                file.write(os.urandom(1024))  # which no file system stores in less
    except OSError:
        path.unlink(missing_ok=True)
        return None
    return path


def write_tables(
    store: Path, images: Mapping[str, str], settings: dict[str, Any], prepare: dict[str, Any]
) -> pd.DataFrame:
    """Rebuild index.parquet and store.json; files whose content stays are not touched.

    Args:
        store: Store folder.
        images: Ids of the present catalogue, with their content hash. Others may be older names of the same scans,
            which would then stand on both sides of a split, so they are left out.
        settings: What decided about the voxels (resolved spacing, crop, order).
        prepare: The same as the user gave it.

    Returns:
        The index, one row per image in order of their ids.
    """
    columns = Columns()
    taken: set[str] = set()  # two runs may have packed one image each
    others: set[str] = set()
    strange: list[Path] = []
    for folder in pack_folders(store):
        members = read_pack(folder)
        strange += [] if members is not None else [folder]
        for position, attributes in enumerate(members or []):
            image = attributes["row"]["image"]
            if image not in images:
                others.add(image)
            elif attributes["hash"] == images[image] and image not in taken:
                taken.add(image)
                columns.add(_index_row(attributes, folder.stem, position))
    older = 0
    for folder in sorted((store / "images").glob("[!.]*.zarr")):
        found = read_attributes(folder) if folder.stem in images and folder.stem not in taken else None
        if found is not None and found["hash"] == images[folder.stem]:
            columns.add(_index_row(found, None, -1))
        elif found is not None:
            older += 1
        elif folder.stem not in images:
            others.add(folder.stem)
        elif folder.stem not in taken:
            strange.append(folder)
    if older:
        warn(f"{older} images in the store are older than their files: left out of the index until they are prepared.")
    if others:
        few = ", ".join(sorted(others)[:3]) + (" ..." if len(others) > 3 else "")
        warn(f"{len(others)} images in the store are not in this catalogue: left out of the index ({few}).")
    for folder in strange:
        warn(f"{folder}: not an image group of this store; left out of the index. Remove it.")
    if not len(columns):
        index = pd.DataFrame()
        (store / "index.parquet").unlink(missing_ok=True)
    else:
        index = columns.table().sort_values("image", kind="stable", ignore_index=True)
        buffer = io.BytesIO()
        index.to_parquet(buffer, index=False, row_group_size=ROW_GROUP)
        write_if_changed(store / "index.parquet", buffer.getvalue())
    write_info(store, store_info(index, settings, prepare))
    return index


def _index_row(attributes: dict[str, Any], pack: str | None, position: int) -> dict[str, Any]:
    own = {name: attributes[name] for name in _GROUP_COLUMNS}
    as_text = {name: json.dumps(attributes[name]) for name in ("statistics", "levels")}
    vanished = [f"{VANISHED}: {value}" for value in attributes["vanished"]]
    flags = [*(attributes["row"].get("flags") or []), *vanished]
    return {**attributes["row"], **own, **as_text, "flags": flags, "pack": pack, "pack_position": position}


def store_info(index: pd.DataFrame, settings: dict[str, Any], prepare: dict[str, Any]) -> dict[str, Any]:
    """Contents of store.json for these index rows."""
    counts = Counter(map(int, index.get("channels", [])))
    if len(counts) > 1:
        found = ", ".join(f"{count} images with {channels}" for channels, count in sorted(counts.items()))
        warn(f"channels differ ({found}); networks need the same number in all: make one store for each.")
    images = sorted(
        [image, content] for image, content in zip(index.get("image", []), index.get("hash", []), strict=True)
    )
    return {
        "schema": SCHEMA,
        "prepare": prepare,
        "spacing": settings["spacing"],
        "class_names": _class_names(index.get("class_names", [])),
        "channels": counts.most_common(1)[0][0] if counts else 0,
        "hash": hashlib.sha256(json.dumps([images, settings], sort_keys=True).encode()).hexdigest(),
    }


def _class_names(texts: Iterable[Any]) -> dict[str, str]:
    """All names of label values; where collections disagree the first one stays, with a warning."""
    names: dict[str, str] = {}
    clashes: set[str] = set()
    for text in dict.fromkeys(text for text in texts if isinstance(text, str)):
        for value, name in json.loads(text).items():
            if names.setdefault(value, name) != name:
                clashes.add(f"{value} is '{names[value]}' and '{name}'")
    if clashes:
        warn(f"label values have several names: {'; '.join(sorted(clashes))}. Make one store for each meaning.")
    return dict(sorted(names.items(), key=lambda item: int(item[0])))


def write_info(store: Path, info: dict[str, Any]) -> None:
    """Write store.json."""
    write_if_changed(store / "store.json", (json.dumps(info, indent=1) + "\n").encode())


def write_failures(store: Path, failures: list[tuple[str, str]]) -> None:
    """Write failures.csv: image and reason of each that is not in the store."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([("image", "reason"), *sorted(failures)])
    write_if_changed(store / "failures.csv", buffer.getvalue().encode())


def write_if_changed(path: Path, content: bytes) -> None:
    """Replace a file atomically, unless it holds just this."""
    if path.is_file() and path.read_bytes() == content:
        return
    temporary = temporary_path(path)
    temporary.write_bytes(content)
    temporary.replace(path)
