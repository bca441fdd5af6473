"""`prevox prepare`: reorient, crop, resample and write a catalogue's images as a store.

Each image (or pack of slices) is written under a temporary name and renamed, so a half-written one is never visible. An
image whose content hash and settings are those in the store is left alone: a second run does only what is missing or
changed.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from rich.markup import escape

from prevox.config.data import PrepareConfig
from prevox.console import console, warn
from prevox.data.encode import Case, encode_case, is_file_name, slice_shape
from prevox.data.geometry import canonical_axes, spacing_of
from prevox.data.group import read_attributes, update_attributes, write_image_group
from prevox.data.memory import preparing_bytes
from prevox.data.pack import Packer, packed_images, remove_replaced_packs, update_rows
from prevox.data.place import Prepared, PrepareSettings, prepare_image
from prevox.data.runner import Failure, run_cases
from prevox.data.store import image_folder, read_info
from prevox.data.store_files import StoreFiles
from prevox.data.temporary import is_temporary, remove_stale, temporary_path
from prevox.errors import ConfigError, PrevoxError, RunError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PrepareResult", "PrepareSettings", "Prepared", "prepare", "prepare_image"]

T = TypeVar("T")

_CANNOT_WRITE = re.compile(
    r"No space left|ENOSPC|[Qq]uota|EDQUOT|Read-only file|EROFS|Permission denied|EACCES|Not a directory|ENOTDIR"
)


@dataclass(frozen=True)
class PrepareResult:
    """What `prepare` leaves behind.

    Attributes:
        store: The store's folder.
        prepared: Images written by this run.
        skipped: Images of the catalogue that were there already.
        failures: Image id and reason of each that could not be prepared.
    """

    store: Path
    prepared: int
    skipped: int
    failures: list[tuple[str, str]]

    @property
    def exit_code(self) -> int:
        """1 if an image could not be prepared, else 0."""
        return int(bool(self.failures))


def prepare(config: PrepareConfig) -> PrepareResult:
    """Write the store, or complete one.

    Raises:
        DataError: If the catalogue or the existing store cannot be used.
        ConfigError: If the existing store was prepared with other settings, or the folder holds something else.
        RunError: If the folder cannot be written or the disk is full (what is finished stays); with `strict`, for the
            first image that fails.
    """
    from prevox.data.catalogue import read_catalogue, wanted
    from prevox.data.index import kept_columns, write_failures, write_tables

    catalogue = read_catalogue(config.catalogue)
    if not config.excluded:
        catalogue = wanted(config.catalogue, catalogue, "--excluded takes them; or catalogue with other --rules.")
    rows: list[dict[str, Any]] = catalogue.to_dict("records")  # type: ignore[assignment]  # keys are column names
    settings = PrepareSettings(_spacing(config, rows), config.crop, config.order)
    all_cases = [
        Case(kept_columns(row), str(row["hash"]), slice_shape(row, settings), preparing_bytes(row, settings))
        for row in rows
    ]
    given = config.plain()
    user_settings = {name: given[name] for name in ("spacing", "crop", "order")}
    with _writing(config.out):
        _open_folder(config, settings, user_settings)
        (config.out / "images").mkdir(exist_ok=True)
        _remove_leftovers(config.out)
        cases = _to_do(config.out, all_cases, settings)
    console.print(
        f"{len(rows)} images in {config.catalogue}, {len(rows) - len(cases)} already in {config.out}", markup=False
    )
    failures: list[tuple[str, str]] = []
    try:
        _prepare_all(config, settings, cases, failures)
    finally:
        # also after an interruption: what is finished can be used
        with _writing(config.out):
            _remove_leftovers(config.out)  # of workers that have died or were stopped
            write_failures(config.out, failures)
            hashes = {case.image: case.hash for case in all_cases}
            index = write_tables(config.out, hashes, settings.plain(), user_settings)
            remove_replaced_packs(config.out, index)
    _print_summary(config.out, index, failures)
    return PrepareResult(config.out, len(cases) - len(failures), len(rows) - len(cases), failures)


def _prepare_all(
    config: PrepareConfig, settings: PrepareSettings, cases: list[Case], failures: list[tuple[str, str]]
) -> None:
    """Prepare the cases; append image and reason of those that fail.

    Volumes are written by the workers. Slices come back from them, to be written here pack by pack: so a slice that
    cannot be read, or kills its worker, costs itself only.
    """
    volumes = [case for case in cases if case.slice_CYX is None]
    write = partial(prepare_case, out=config.out, settings=settings)
    for _ in _results(config, write, volumes, failures):
        pass
    packer = Packer(config.out, [case for case in cases if case.slice_CYX is not None])
    encode = partial(encode_case, settings=settings)
    for case, encoded in _results(config, encode, packer.cases, failures):
        with _writing(config.out):
            packer.add(case, encoded)


def _results(
    config: PrepareConfig, work: Callable[[Case], T], cases: list[Case], failures: list[tuple[str, str]]
) -> Iterator[tuple[Case, T | None]]:
    """Run the cases; yield each with its result, or with None if it has failed, and say so."""
    results = run_cases(
        work,
        cases,
        config.workers,
        lambda case: case.image,
        "preparing",
        timeout=config.timeout,
        memory=lambda case: case.memory,
    )
    for case, result in results:
        if not isinstance(result, Failure):
            yield case, result
            continue
        if result.kind == RunError.__name__:
            raise RunError(result.reason)
        image, reason = case.image, " ".join(result.reason.split())
        if config.strict:
            failures.append((image, reason))
            raise RunError(f"{image}: {reason} Stopped because of --strict; without it the image is left out.")
        if is_file_name(image):  # an older version of an image that cannot be prepared any more is not kept
            shutil.rmtree(image_folder(config.out, image), ignore_errors=True)
        console.print(f"[red]left out:[/red] {escape(image)}: {escape(reason)}")
        failures.append((image, reason))
        yield case, None


def _remove_leftovers(out: Path) -> None:
    for folder in (out, out / "images", out / "packs"):
        remove_stale(folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write into a message that names the folder."""
    try:
        yield
    except (OSError, ValueError) as error:  # tensorstore reports the system's errors as ValueError
        if isinstance(error, PrevoxError) or not _CANNOT_WRITE.search(str(error)):
            raise
        raise RunError(
            f"{folder}: cannot be written ({' '.join(str(error).split())[:300]}). Finished images can be used. "
            "Free space or give another --out, and run `prevox prepare` again: it goes on where it was."
        ) from error


def _spacing(config: PrepareConfig, rows: list[dict[str, Any]]) -> tuple[float, float, float] | None:
    """Target spacing along z y x in mm; None for each image's own."""
    if config.spacing == "none":
        return None
    if config.spacing == "median":
        z, y, x = np.median([_canonical_spacing(row) for row in rows], axis=0).round(6).tolist()
        return z, y, x
    if len(config.spacing) != 3:
        raise ConfigError(f"--spacing {config.spacing}: {len(config.spacing)} numbers; expected three (z y x), in mm.")
    if silent := sum("no_geometry" in row["flags"] for row in rows):
        warn(f"{silent} images say nothing of their geometry (no_geometry): --spacing takes what is assumed for them.")
    z, y, x = config.spacing
    return z, y, x


def _canonical_spacing(row: dict[str, Any]) -> list[float]:
    spacing = spacing_of(np.reshape(row["affine"], (4, 4)))
    return [spacing[axis] for axis in _axes(row["affine"], (row["shape_i"], row["shape_j"], row["shape_k"]))]


def _axes(affine: list[float], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Source axes in canonical order."""
    return canonical_axes(np.reshape(affine, (4, 4)), shape)[0]


def _open_folder(config: PrepareConfig, settings: PrepareSettings, user_settings: dict[str, Any]) -> None:
    """Make the folder, or check that it is a store prepared with these settings."""
    from prevox.data.index import store_info, write_info

    out = config.out
    if (out / "store.json").is_file():
        old, new = PrepareSettings.from_info(read_info(StoreFiles(out))).plain(), settings.plain()
        for key, value in new.items():
            if old[key] != value:
                raise ConfigError(
                    f"--{key} {value}: the store {out} was prepared with {key} {old[key]}, and images prepared in "
                    f"different ways do not mix. Give another --out, or --{key} as it was."
                )
        return
    if out.is_file():
        raise ConfigError(f"--out {out}: found a file; expected a folder.")
    if out.is_dir() and any(not is_temporary(path) for path in out.iterdir()):
        raise ConfigError(f"--out {out}: found a folder with other files; expected a store, or a new or empty folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_info(out, store_info([], settings.plain(), user_settings))  # first: a run killed here is taken up as well


def _to_do(out: Path, cases: list[Case], settings: PrepareSettings) -> list[Case]:
    """Cases that are not in the store as they are now; what else the catalogue says of the others is taken over."""
    packed = packed_images(out)
    missing: list[Case] = []
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for case in cases:
        found = packed.get((case.image, case.hash))
        if found is None or found.attributes["settings"] != settings.plain():
            missing += [] if _is_done(out, case, settings) else [case]
        elif found.attributes["row"] != case.row:
            rows.setdefault(found.pack, {})[found.position] = case.row
    update_rows(out, rows)
    return missing


def _is_done(out: Path, case: Case, settings: PrepareSettings) -> bool:
    """Whether the image has a group as it is now; what else the catalogue says about it is brought up to date."""
    if not is_file_name(case.image):
        return False
    folder = image_folder(out, case.image)
    attributes = read_attributes(folder)
    if attributes is None or attributes["hash"] != case.hash or attributes["settings"] != settings.plain():
        return False
    if attributes["row"] != case.row:
        update_attributes(folder, {"row": case.row})
    return True


def prepare_case(case: Case, out: Path, settings: PrepareSettings) -> None:
    """Encode and write one volume; runs in a worker process.

    Raises:
        DataError: If the image or its label cannot be used.
        RunError: If the store cannot be written.
    """
    encoded = encode_case(case, settings)
    folder = image_folder(out, case.image)
    temporary = temporary_path(folder)
    group = temporary / folder.name  # OME-Zarr holds the image's name, so it is written under that
    with _writing(out):
        try:
            write_image_group(
                group, encoded.stored_CZYX, encoded.label_ZYX, encoded.affine, encoded.attributes, encoded.seed
            )
            shutil.rmtree(folder, ignore_errors=True)  # an older version of the same image
            try:
                group.rename(folder)
            except OSError:
                if not _is_done(out, case, settings):  # else another run on this store was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _print_summary(out: Path, index: "pd.DataFrame", failures: list[tuple[str, str]]) -> None:
    from rich.table import Table

    from prevox.data.index import VANISHED

    table = Table(show_header=False)
    table.add_row("images in the store", str(len(index)))
    if len(index):
        turned = [
            np.array(shape)[list(_axes(a, shape))]
            for shape, a in zip(index.source_shape, index.source_affine, strict=True)
        ]
        before, after, spacing = (
            np.median(x, axis=0) for x in (turned, index["shape"].tolist(), index["spacing"].tolist())
        )
        table.add_row("median shape (z y x)", f"{_times(before)} → {_times(after)}")
        table.add_row("median spacing (z y x)", f"{_times(spacing)} mm")
        table.add_row(
            "size", f"{index['bytes'].sum() / 1e6:.1f} MB, sources {index['source_bytes'].sum() / 1e6:.1f} MB"
        )
        errors = index["max_error"].map(max)
        worst = escape(str(index["image"].iloc[int(errors.argmax())]))
        error = f"{errors.max():.3g} ({worst})" if errors.max() > 0 else "none: all are exact"
        table.add_row("largest quantisation error", error)
        lost = sum(any(flag.startswith(VANISHED) for flag in flags) for flags in index["flags"])
        if lost:
            table.add_row("a class vanished in resampling", f"in {lost} images, see {VANISHED} in the index's flags")
    table.add_row("left out", escape(f"{len(failures)}" + (f", see {out / 'failures.csv'}" if failures else "")))
    console.print(table)


def _times(numbers: np.ndarray) -> str:
    return " × ".join(f"{number:g}" for number in np.round(numbers, 3))
