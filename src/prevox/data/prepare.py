"""`prevox prepare`: reorient, crop, resample and write a catalogue's images as a store.

Each image is written under a temporary name and renamed, so a half-written one is never visible. An image whose content
hash and settings are those of its group is left alone: a second run does only what is missing or changed.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape

from prevox.config.data import PrepareConfig
from prevox.console import console
from prevox.data.geometry import canonical_axes, spacing_of, values_of
from prevox.data.group import quantise_channels, read_attributes, update_attributes, write_image_group
from prevox.data.place import Prepared, PrepareSettings, place, prepare_image
from prevox.data.readers import Image, read_image
from prevox.data.runner import Failure, run_cases
from prevox.data.store import SCHEMA, image_folder, read_info
from prevox.data.temporary import remove_stale, temporary_path
from prevox.errors import ConfigError, DataError, PrevoxError, RunError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PrepareResult", "PrepareSettings", "Prepared", "prepare", "prepare_image"]

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


@dataclass(frozen=True)
class Case:
    """One image to prepare.

    Args:
        row: What the store keeps of its catalogue row; JSON-able.
        hash: Of the contents of its files.
    """

    row: dict[str, Any]
    hash: str

    @property
    def image(self) -> str:
        """The image's id."""
        return str(self.row["image"])


def prepare(config: PrepareConfig) -> PrepareResult:
    """Write the store, or complete one.

    Raises:
        DataError: If the catalogue or the existing store cannot be used.
        ConfigError: If the existing store was prepared with other settings, or the folder holds something else.
        RunError: If the folder cannot be written or the disk is full (what is finished stays); with `strict`, for the
            first image that fails.
    """
    from prevox.data.catalogue import read_catalogue
    from prevox.data.index import kept_columns, write_failures, write_tables

    catalogue = read_catalogue(config.catalogue)
    rows: list[dict[str, Any]] = catalogue.to_dict("records")  # type: ignore[assignment]  # keys are column names
    all_cases = [Case(kept_columns(row), str(row["hash"])) for row in rows]
    settings = PrepareSettings(_spacing(config, rows), config.crop, config.order)
    given = config.plain()
    user_settings = {name: given[name] for name in ("spacing", "crop", "order")}
    with _writing(config.out):
        _open_folder(config, settings, user_settings)
        remove_stale(config.out)
        remove_stale(config.out / "images")
        cases = [case for case in all_cases if not _is_done(config.out, case, settings)]
    console.print(
        f"{len(rows)} images in {config.catalogue}, {len(rows) - len(cases)} already in {config.out}", markup=False
    )
    failures: list[tuple[str, str]] = []
    try:
        _prepare_all(config, settings, cases, failures)
    finally:
        # also after an interruption: what is finished can be used
        with _writing(config.out):
            write_failures(config.out, failures)
            index = write_tables(config.out, [case.image for case in all_cases], settings.plain(), user_settings)
    _print_summary(config.out, index, failures)
    return PrepareResult(config.out, len(cases) - len(failures), len(rows) - len(cases), failures)


def _prepare_all(
    config: PrepareConfig, settings: PrepareSettings, cases: list[Case], failures: list[tuple[str, str]]
) -> None:
    """Prepare the cases; append image and reason of those that fail."""
    work = partial(prepare_case, out=config.out, settings=settings)
    for case, result in run_cases(work, cases, config.workers, lambda case: case.image, "preparing"):
        if not isinstance(result, Failure):
            continue
        if result.kind == RunError.__name__:
            raise RunError(result.reason)
        image, reason = case.image, " ".join(result.reason.split())
        if config.strict:
            failures.append((image, reason))
            raise RunError(f"{image}: {reason} Stopped because of --strict; without it the image is left out.")
        if _is_file_name(image):  # an older version of an image that cannot be prepared any more is not kept
            shutil.rmtree(image_folder(config.out, image), ignore_errors=True)
        console.print(f"[red]left out:[/red] {escape(image)}: {escape(reason)}")
        failures.append((image, reason))


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
        old, new = PrepareSettings.from_info(read_info(out)).plain(), settings.plain()
        for key, value in new.items():
            if old[key] != value:
                raise ConfigError(
                    f"--{key} {value}: the store {out} was prepared with {key} {old[key]}, and images prepared in "
                    f"different ways do not mix. Give another --out, or --{key} as it was."
                )
        return
    if out.is_file():
        raise ConfigError(f"--out {out}: found a file; expected a folder.")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: found a folder with other files; expected a store, or a new or empty folder.")
    (out / "images").mkdir(parents=True, exist_ok=True)
    write_info(out, store_info([], settings.plain(), user_settings))


def _is_done(out: Path, case: Case, settings: PrepareSettings) -> bool:
    """Whether the image is in the store as it is now; what else the catalogue says about it is brought up to date."""
    if not _is_file_name(case.image):
        return False
    folder = image_folder(out, case.image)
    attributes = read_attributes(folder)
    if attributes is None or attributes["hash"] != case.hash or attributes["settings"] != settings.plain():
        return False
    if attributes["row"] != case.row:
        update_attributes(folder, {"row": case.row})
    return True


def _is_file_name(image: str) -> bool:
    return bool(image) and Path(image).name == image and not image.startswith(".")


def prepare_case(case: Case, out: Path, settings: PrepareSettings) -> None:
    """Read, place and write one image; runs in a worker process.

    Raises:
        DataError: If the image or its label cannot be used.
        RunError: If the store cannot be written.
    """
    if not _is_file_name(case.image):
        raise DataError(case.image, found="an id that is no file name", expected="an id without '/' or a leading dot")
    channels, label, source_bytes = _read(case.row)
    header = channels[0].header
    array = channels[0].array_CIJK if len(channels) == 1 else np.concatenate([c.array_CIJK for c in channels])
    label_array = None if label is None else label.array_CIJK[0]
    placed = place(array, header.affine, label_array, settings, header.path)
    stored, slope, intercept, max_error = quantise_channels(placed.array_CZYX)
    values, vanished = _label_values(label_array, placed.label_ZYX)
    attributes = {
        "schema": SCHEMA,
        "hash": case.hash,
        "settings": settings.plain(),
        "row": case.row,
        "channels": len(stored),
        "shape": list(placed.grid.shape),
        "spacing": list(placed.grid.spacing),
        "source_shape": list(placed.source.shape),
        "source_affine": placed.source.affine.ravel().tolist(),
        "source_codes": header.codes,
        "crop": [list(edge) for edge in placed.crop],
        "label_values": values,
        "vanished": vanished,
        "slope": slope,
        "intercept": intercept,
        "max_error": max_error,
        "statistics": [channel_statistics(channel) for channel in placed.array_CZYX],
        "source_bytes": source_bytes,
    }
    folder = image_folder(out, case.image)
    temporary = temporary_path(folder)
    group = temporary / folder.name  # OME-Zarr holds the image's name, so it is written under that
    with _writing(out):
        try:
            seed = int(case.hash[:16], 16)
            write_image_group(group, stored, placed.label_ZYX, placed.grid.affine, attributes, seed)
            shutil.rmtree(folder, ignore_errors=True)  # an older version of the same image
            try:
                group.rename(folder)
            except OSError:
                if not _is_done(out, case, settings):  # else another run on this store was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _label_values(source: np.ndarray | None, prepared: np.ndarray | None) -> tuple[list[int] | None, list[int]]:
    """Values of the prepared labels but 0 (None where there are no labels), and those that resampling has lost."""
    if source is None or prepared is None:
        return None, []
    before, after = (values_of(label).tolist() for label in (source.astype(prepared.dtype, copy=False), prepared))
    return [value for value in after if value != 0], [value for value in before if value not in (0, *after)]


def _read(row: dict[str, Any]) -> tuple[list[Image], Image | None, int]:
    """All channels and the label of a case, checked to lie on one grid, and the size of their files."""
    from prevox.data.quality import check_same_grid

    root = Path(row["root"])
    paths = [root / path for path in row["paths"]]
    channels = [read_image(path) for path in paths]
    first = channels[0].header
    for other in (channel.header for channel in channels[1:]):
        check_same_grid(first, other, "a channel")
    label = None
    if row["label_path"] is not None:
        paths.append(root / row["label_path"])
        label = read_image(paths[-1])
        check_same_grid(first, label.header, "a label map")
        if len(label.array_CIJK) != 1:
            raise DataError(paths[-1], found=f"a label map of {len(label.array_CIJK)} channels", expected="one channel")
    return channels, label, sum(path.stat().st_size for path in paths)


def channel_statistics(channel_ZYX: np.ndarray) -> dict[str, float]:
    """Statistics that normalisation needs, in the image's units; without non-zero voxels their mean and std are 0."""
    nonzero = channel_ZYX[channel_ZYX != 0]
    low, high = np.percentile(channel_ZYX, [0.5, 99.5])
    return {
        "mean": float(channel_ZYX.mean(dtype=np.float64)),
        "std": float(channel_ZYX.std(dtype=np.float64)),
        "mean_nonzero": float(nonzero.mean(dtype=np.float64)) if nonzero.size else 0.0,
        "std_nonzero": float(nonzero.std(dtype=np.float64)) if nonzero.size else 0.0,
        "p005": float(low),
        "p995": float(high),
        "minimum": float(channel_ZYX.min()),
        "maximum": float(channel_ZYX.max()),
    }


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
