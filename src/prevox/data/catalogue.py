"""`prevox catalogue`: recognise what lies in folders of scans, look at every image once, write one row per image.

A scan that cannot be used is named with its reason in `NAME.failures.csv` beside `NAME.parquet` and costs only itself.
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prevox.allocator import tables_from_system_memory
from prevox.config.data import CatalogueConfig
from prevox.console import console
from prevox.data.catalogue_rows import DETACHED, SCHEMA, content_hash, file_digest, read_rows
from prevox.data.catalogue_table import print_catalogue, print_failures, print_hint
from prevox.data.choices import chosen
from prevox.data.columns import ROW_GROUP, Columns
from prevox.data.dask_connect import check_dask
from prevox.data.geometry import orientation_of, spacing_of
from prevox.data.join import join_table, subject_column
from prevox.data.journal import Rows, Thumbnails
from prevox.data.layouts import DicomSource, Entry, recognise, refuse_duplicates
from prevox.data.layouts.pictures import refuse_unlisted
from prevox.data.measure import measure
from prevox.data.quality import check_channels, check_same_grid, label_values_of, statistics_of
from prevox.data.readers import Image, read_image, suffix_of
from prevox.data.rules import HELPERS, Verdict, judge, rule_of
from prevox.errors import ConfigError, DataError, RunError
from prevox.output import replacing, writable_folder


@dataclass(frozen=True)
class CatalogueResult:
    """What `catalogue` leaves behind.

    Args:
        path: The Parquet file.
        table: Its rows; of a shard the ids of its images only.
        failures: Image id and reason of each image that was left out.
        thumbnails: Small picture of each image: PNG in base64.
    """

    path: Path
    table: pd.DataFrame
    failures: list[tuple[str, str]]
    thumbnails: Mapping[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 if an image was left out, else 0."""
        return int(bool(self.failures))


def catalogue(config: CatalogueConfig) -> CatalogueResult:
    """Recognise, read, check and list the images of `config.paths`.

    Raises:
        DataError: If a path holds no image, ids clash, the table does not fit, or no image can be used; with
            `strict`, for the first image that cannot be used.
        ConfigError: If a group is asked for without a table (given or found), or `out` does not end in .parquet.
        RunError: If `out` cannot be written; known before any image is read.
    """
    if config.out.suffix != ".parquet":
        raise ConfigError(f"--out {config.out}: must end in .parquet, by which the other verbs know a catalogue.")
    if config.out.is_dir():
        raise RunError(f"{config.out}: is a folder. Choose another --out.")
    writable_folder(config.out.parent)
    tables_from_system_memory()
    if config.engine == "dask":
        check_dask(config.dask)  # before the folders, which may take long
    source = DicomSource(config.out, config.dicom)
    found = [entry for path in config.paths for entry in recognise(path, source, stack=config.stack == "folders")]
    cases = chosen(found, config)
    if config.table is None:
        cases = refuse_unlisted(cases)
    if config.group is not None and config.table is None and not any(entry.table for entry in cases):
        raise ConfigError(f"--group {config.group}: needs --table, the CSV file that has this column.")
    entries = _unique_ids(cases)
    rows, failures = read_rows(entries, config, _row_or_reason)
    images = [entries[position].image for position in rows.positions]
    if config.shard is not None:
        return _part_done(config, images, failures)
    reasons = config.out.with_suffix(".failures.csv")
    _write_failures(reasons, failures)
    if not rows:
        image, reason = failures[0]
        raise DataError(
            cases[0].root,
            found=f"{len(failures)} images of which none can be used (the first, {image}: {reason})",
            expected="at least one usable image",
            remedy=f"All reasons are in {reasons}.",
        )
    table = _table(rows, judge(rows, config.rules))
    used = [cases[position] for position in rows.positions]
    if config.table is not None:
        subjects = [entry.subject for entry in used]
        table = join_table(table, [entry.image for entry in used], config.table, config.group, subjects=subjects)
    else:
        table = _join_found(table, used, config.group)
    _write_parquet(table.reset_index(drop=True), config.out)
    del table  # before it is there twice
    table = read_catalogue(config.out)  # so that callers and later readers see the same types
    print_catalogue(table, failures, config.out, reasons, config.rules)
    if config.table is None:
        for root in sorted({entry.root for entry in used if entry.table is None}):
            print_hint(root, [entry.image for entry in used if entry.root == root])
    return CatalogueResult(config.out, table, failures, Thumbnails(dict(zip(images, rows.lines, strict=True))))


def _table(rows: Rows, verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The rows with what the rules say of them."""
    columns = Columns()
    for row, verdict in zip(rows, verdicts, strict=True):
        columns.add({name: row[name] for name in row if name not in HELPERS} | verdict._asdict())
    return columns.table(rows.positions)


def _part_done(config: CatalogueConfig, images: list[str], failures: list[tuple[str, str]]) -> CatalogueResult:
    """Say what one task of a job array has read; the table is written by the call without --shard."""
    print_failures(failures)
    console.print(
        f"shard {config.shard}: {len(images)} images read. When all shards are done, the same call without --shard "
        f"writes {config.out}; it reads only what is missing.",
        markup=False,
        soft_wrap=True,
    )
    return CatalogueResult(config.out, pd.DataFrame({"image": images}), failures)


def read_catalogue(path: Path) -> pd.DataFrame:
    """Read a catalogue; lists are lists, absent values None.

    Raises:
        DataError: If the file is missing or was not written by `prevox catalogue`.
    """
    remedy = "Write one with `prevox catalogue FOLDER`."
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise DataError(path, found=found, expected="a catalogue (parquet)", remedy=remedy)
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(path, found=f"no Parquet ({error})", expected="a catalogue", remedy=remedy) from None
    schema = table.attrs.get("prevox_catalogue")
    if schema != SCHEMA:
        found = "a Parquet file of another origin" if schema is None else f"a catalogue of schema {schema}"
        raise DataError(path, found=found, expected=f"a catalogue of schema {SCHEMA}", remedy=remedy)
    for name in ("paths", "affine", "flags", "reasons", "excluded", "label_values"):
        table[name] = pd.Series([None if x is None else x.tolist() for x in table[name]], table.index, dtype=object)
    for name in ("label_path", "class_names", "modality", "sequence", "session", "reading"):
        if name in table:  # catalogues of earlier versions have no `reading`
            table[name] = table[name].astype(object).where(table[name].notna(), None)
    return table


def wanted(path: Path, table: pd.DataFrame, remedy: str) -> pd.DataFrame:
    """The images that no rule of the catalogue excludes; says how many are, and by which rules.

    Raises:
        DataError: If none is left.
    """
    excluded = table["excluded"].map(bool)
    if not excluded.any():
        return table
    rules = Counter(rule_of(reason) for reasons in table["excluded"] for reason in reasons)
    by = ", ".join(f"{rule} {number}" for rule, number in rules.items())
    if excluded.all():
        raise DataError(path, found=f"only images that its rules exclude ({by})", expected="others", remedy=remedy)
    console.print(
        f"{excluded.sum()} of {len(table)} images are excluded by rules of the catalogue ({by})", markup=False
    )
    return table[~excluded]


def _unique_ids(entries: Sequence[Entry]) -> list[Entry]:
    """Make ids unique over collections: where there are several, subjects get their name, and images if they clash.

    Raises:
        DataError: If two folders share a collection's name, or ids clash still.
    """
    roots: dict[str, Path] = {}
    for entry in entries:
        root = roots.setdefault(entry.collection, entry.root)
        if root != entry.root:
            raise DataError(
                entry.root,
                found=f"a collection named '{entry.collection}', as in {root}",
                expected="a name of its own for each collection",
                remedy="Rename the folder, or `name` in its dataset.json; give no folder twice.",
            )
    for root in roots.values():
        refuse_duplicates(
            [entry for entry in entries if entry.root == root],
            "Give each file once, and rename files that share a name.",
        )
    if len(roots) == 1:
        return list(entries)
    clash = len({entry.image for entry in entries}) < len(entries)
    unique = [
        replace(
            entry,
            image=f"{_slug(entry.collection)}_{entry.image}" if clash else entry.image,
            subject=entry.subject if entry.layout == "dicom" else f"{entry.collection}/{entry.subject}",
        )
        for entry in entries
    ]
    refuse_duplicates(unique, "Rename the folder of one (or `name` in its dataset.json): ids start with these names.")
    return unique


def _slug(name: str) -> str:
    """A collection's name as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def _row_or_reason(entry: Entry) -> dict[str, Any] | Exception:
    try:
        return _row(entry)
    except (DataError, OSError, MemoryError) as error:
        return error


def _row(entry: Entry) -> dict[str, Any]:
    """Read one image with its label and describe it."""
    if entry.problem is not None:
        raise entry.problem
    images = [read_image(path, entry.reading) for path in entry.paths]
    header = images[0].header
    for other in images[1:]:
        check_same_grid(header, other.header, "a channel")
    meant = len(images) > 1 or header.colour or entry.volumes_are_channels
    check_channels(entry.paths[0], sum(len(image.array_CIJK) for image in images), entry.channels, meant)
    array = images[0].array_CIJK if len(images) == 1 else np.concatenate([image.array_CIJK for image in images])
    statistics = statistics_of(array)
    if np.isnan(statistics.mean):
        raise DataError(entry.paths[0], found="no finite voxel", expected="numbers", remedy="Export it again.")
    flags = [*header.flags, *([] if statistics.finite else ["nan"])]
    one = entry.reading.volume is not None
    digests = [_digest(image, one) for image in images]
    label, label_values, label_hash = None, None, ""
    if entry.label is not None:
        label = read_image(entry.label, entry.reading.of_label())
        check_same_grid(header, label.header, "a label map")
        label_values = label_values_of(label, entry.class_names)
        label_hash = _digest(label, one)
        if label_hash in digests:
            raise DataError(
                entry.label,
                found=f"the same file as the image {entry.paths[digests.index(label_hash)]}",
                expected="a label map",
                remedy="Put the image's label map there, or take the file out of the labels.",
            )
    reading = entry.reading.text()
    image_hash = content_hash([*digests, reading or ""])
    identity = {
        "image": entry.image,
        "collection": entry.collection,
        "dataset": entry.dataset,
        "subject": entry.subject,
        "session": entry.session,
        "paths": [_within(entry.root, path) for path in entry.paths],
        "label_path": _within(entry.root, entry.label) if entry.label else None,
        "root": str(entry.root),
        "modality": entry.modality,
    }
    contents = {
        "dtype": array.dtype.name,
        "minimum": statistics.minimum,
        "maximum": statistics.maximum,
        "mean": statistics.mean,
        "std": statistics.std,
        "label_values": label_values,
        "class_names": json.dumps(entry.class_names) if entry.class_names is not None else None,
        "flags": flags,
        "hash": hashlib.sha256((image_hash + label_hash).encode()).hexdigest(),
        "layout": entry.layout,
        "reading": reading,
        "image_hash": image_hash,
        "label_hash": label_hash,
    }
    described = dict(entry.details) | identity | _geometry(images[0], array.shape[0]) | contents
    return described | measure(entry, images, array, label)


def _within(root: Path, path: Path) -> str:
    """A path relative to the root; a dataset.json may name files outside of it, which stay absolute."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _geometry(image: Image, channels: int) -> dict[str, Any]:
    header = image.header
    shape = {f"shape_{axis}": size for axis, size in zip("ijk", header.shape_ijk, strict=True)}
    spacing = {f"spacing_{axis}": size for axis, size in zip("ijk", spacing_of(header.affine), strict=True)}
    place = {"orientation": orientation_of(header.affine), "affine": header.affine.ravel().tolist()}
    return {"channels": channels} | shape | spacing | place


def _digest(image: Image, one_volume: bool) -> str:
    """SHA-256 of the file's bytes; of header file and voxels where the voxels lie in a file of their own.

    For folders of slices, and one volume of several, of affine and voxels.
    """
    path = image.header.path
    if not one_volume and path.is_file() and suffix_of(path) not in DETACHED:
        return file_digest(path)
    head = path.read_bytes() if suffix_of(path) in DETACHED else image.header.affine.tobytes()
    digest = hashlib.sha256(head)
    digest.update(np.ascontiguousarray(image.array_CIJK).data)
    return digest.hexdigest()


def _join_found(table: pd.DataFrame, used: Sequence[Entry], group: str | None) -> pd.DataFrame:
    """Join the tables that layouts have found, each to the images it describes; say which, and whose subjects count.

    Args:
        table: One row per image.
        used: The entry of each row.
        group: Column with the subjects; None takes the one whose name leaves no doubt.
    """
    several = table["collection"].nunique() > 1
    parts = []
    for path in dict.fromkeys(entry.table for entry in used):
        part = table[[entry.table == path for entry in used]]
        if path is not None:
            column = group or subject_column(path)
            images = [entry.image for entry in used if entry.table == path]
            subjects_known = [entry.subject for entry in used if entry.table == path]
            part = join_table(part, images, path, column, subjects=subjects_known, found=True)
            if column is not None and several:
                part["subject"] = part["collection"] + "/" + part["subject"]
            subjects = f"{part['subject'].nunique()} subjects by its column '{column}'"
            alone = "no column that is surely the subject's, so each picture counts as its own (--group COLUMN)"
            console.print(f"joined {path}: {subjects if column else alone}", markup=False, soft_wrap=True)
        parts.append(part)
    return pd.concat(parts).loc[table.index]


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    table.attrs["prevox_catalogue"] = SCHEMA
    with replacing(path) as partial:
        table.to_parquet(partial, index=False, row_group_size=ROW_GROUP)


def _write_failures(path: Path, failures: list[tuple[str, str]]) -> None:
    """Write the list, or remove one that an earlier catalogue left."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "reason"), *failures])
