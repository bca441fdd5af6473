"""The store's own tables, rebuilt from what its groups and packs say, so that a killed `prepare` loses nothing."""

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prevox.console import warn
from prevox.data.group import read_attributes
from prevox.data.pack import pack_folders, packed_images, read_pack
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
    packed = packed_images(store)
    folders = {folder.stem: folder for folder in sorted((store / "images").glob("[!.]*.zarr"))}
    others = sorted({*folders, *(image for image, _ in packed)} - set(images))
    if others:
        few = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
        warn(f"{len(others)} images in the store are not in this catalogue: left out of the index ({few}).")
    known = {found.pack for found in packed.values()}
    strange = [folder for folder in pack_folders(store) if folder.stem not in known and read_pack(folder) is None]
    rows = []
    for image, content in sorted(images.items()):
        found = packed.get((image, content))
        if found is not None:
            rows.append(_index_row(found.attributes, found.pack, found.position))
        elif image in folders:
            attributes = read_attributes(folders[image])
            if attributes is None:
                strange.append(folders[image])
            else:
                rows.append(_index_row(attributes, None, -1))
    for folder in strange:
        warn(f"{folder}: not an image group of this store; left out of the index. Remove it.")
    index = pd.DataFrame(rows)
    if not rows:
        (store / "index.parquet").unlink(missing_ok=True)
    else:
        buffer = io.BytesIO()
        index.to_parquet(buffer, index=False)
        write_if_changed(store / "index.parquet", buffer.getvalue())
    write_info(store, store_info(rows, settings, prepare))
    return index


def _index_row(attributes: dict[str, Any], pack: str | None, position: int) -> dict[str, Any]:
    own = {name: attributes[name] for name in _GROUP_COLUMNS}
    as_text = {name: json.dumps(attributes[name]) for name in ("statistics", "levels")}
    vanished = [f"{VANISHED}: {value}" for value in attributes["vanished"]]
    flags = [*(attributes["row"].get("flags") or []), *vanished]
    return {**attributes["row"], **own, **as_text, "flags": flags, "pack": pack, "pack_position": position}


def store_info(rows: list[dict[str, Any]], settings: dict[str, Any], prepare: dict[str, Any]) -> dict[str, Any]:
    """Contents of store.json for these index rows."""
    counts = Counter(row["channels"] for row in rows)
    if len(counts) > 1:
        found = ", ".join(f"{count} images with {channels}" for channels, count in sorted(counts.items()))
        warn(f"channels differ ({found}); networks need the same number in all: make one store for each.")
    content = json.dumps([sorted([row["image"], row["hash"]] for row in rows), settings], sort_keys=True)
    return {
        "schema": SCHEMA,
        "prepare": prepare,
        "spacing": settings["spacing"],
        "class_names": _class_names(rows),
        "channels": counts.most_common(1)[0][0] if counts else 0,
        "hash": hashlib.sha256(content.encode()).hexdigest(),
    }


def _class_names(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """All names of label values; where collections disagree the first one stays, with a warning."""
    names: dict[str, str] = {}
    clashes: set[str] = set()
    for text in dict.fromkeys(row.get("class_names") for row in rows):
        for value, name in json.loads(text or "{}").items():
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
